"""What is told of a model that answered no test request."""

from gateway.errors import InferenceFailed, InputRefused
from gateway.instance.probing import trouble_of


def test_an_error_of_the_model_itself_is_told_before_one_of_the_request_made_up() -> None:
    assert trouble_of([]) == ""
    told = trouble_of([InputRefused("wrong shape"), InferenceFailed("no CUDA device")])
    assert told == "the model did not answer any of 2 test requests: no CUDA device"
    assert "declare its inputs" in trouble_of([InputRefused("wrong shape")])
