import pytest

from gateway.errors import DeadlineExceeded, InferenceFailed, InstanceDied, OutOfMemory
from gateway.http.retry import answer_to_loss
from gateway.ipc.reply import InstanceLost


@pytest.mark.parametrize("verdict", ["instance_died", "deadline", "out_of_memory"])
@pytest.mark.parametrize("deaths", [0, 1])
def test_a_request_that_only_waited_is_sent_again_whatever_the_instance_died_of(verdict: str, deaths: int) -> None:
    assert answer_to_loss(InstanceLost(verdict=verdict), deaths, stateful=False) is None


def test_a_request_that_was_computed_is_sent_again_once() -> None:
    lost = InstanceLost(executing=True)
    assert answer_to_loss(lost, 1, stateful=False) is None
    assert isinstance(answer_to_loss(lost, 2, stateful=False), InferenceFailed)


@pytest.mark.parametrize(("verdict", "kind"), [("deadline", DeadlineExceeded), ("out_of_memory", OutOfMemory)])
def test_a_request_that_took_too_much_is_told_what(verdict: str, kind: type[Exception]) -> None:
    for reason in ("the supervisor's sentence", ""):
        error = answer_to_loss(InstanceLost(executing=True, verdict=verdict, reason=reason), 1, stateful=False)
        assert type(error) is kind
        assert str(error) == reason or (not reason and str(error))


@pytest.mark.parametrize("executing", [True, False])
def test_nothing_that_a_stateful_model_had_is_sent_again(executing: bool) -> None:
    error = answer_to_loss(InstanceLost(executing=executing), int(executing), stateful=True)
    assert type(error) is InstanceDied
