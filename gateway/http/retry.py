"""What becomes of a request whose instance is gone: it is sent again, or answered with the error it has earned."""

from gateway.errors import DeadlineExceeded, GatewayError, InferenceFailed, InstanceDied, OutOfMemory
from gateway.ipc.reply import InstanceLost

MOST_DEATHS = 2
"""A request that was being computed in so many deaths is taken for their cause."""


def answer_to_loss(lost: InstanceLost, deaths: int, *, stateful: bool) -> GatewayError | None:
    """The error to answer with; None: send it again.

    `deaths` counts those that the request was part of, this one included. A stateful model may have done half of what
    was asked, so nothing that it had is done twice.
    """
    if lost.executing and lost.verdict == DeadlineExceeded.code:
        return DeadlineExceeded(lost.reason or "the model took longer than its execution_timeout")
    if lost.executing and lost.verdict == OutOfMemory.code:
        return OutOfMemory(lost.reason or "the model took more memory than its memory_limit")
    if stateful:
        return InstanceDied(lost.message)
    if deaths >= MOST_DEATHS:
        return culprit()
    return None


def culprit() -> InferenceFailed:
    """The error of a request that is not tried again."""
    return InferenceFailed("this request has ended two processes of the model")
