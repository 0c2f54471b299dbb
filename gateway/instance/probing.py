"""What is to be told of a model that answered none of the requests made up to test it."""

from collections.abc import Sequence

from gateway.errors import GatewayError, InputRefused, RequestError

_LIMIT = 600
"""Characters of the model's own message that are repeated."""


def trouble_of(failures: Sequence[GatewayError]) -> str:
    """One sentence with the error that says most; empty if nothing failed.

    An error that is no matter of shapes and datatypes tells more: those may be the fault of the request made up.
    """
    if not failures:
        return ""
    own = [error for error in failures if not isinstance(error, InputRefused | RequestError)]
    count = "the test request" if len(failures) == 1 else f"any of {len(failures)} test requests"
    hint = "" if own else "; declare its inputs in model.yaml so that it is tested with what it takes"
    return f"the model did not answer {count}: {(own or failures)[0].message[:_LIMIT]}{hint}"
