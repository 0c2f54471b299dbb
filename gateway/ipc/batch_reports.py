"""Messages about the checks of batches of real requests, on the control socket of an instance."""

from gateway.ipc.messages import Message

TEXT = 300
"""Characters of a disagreement that are kept."""


class BatchesAgree(Message):
    """Instance → supervisor, once: so many batches of real requests got the same answers together as alone."""

    batches: int


class BatchesDisagree(Message):
    """Instance → supervisor, once: rows of a batch influenced each other, and it joins no requests any more."""

    difference: str
    """What differed, as the end of a sentence."""


class RunAlone(Message):
    """Supervisor → instance: join no requests any more, another instance of the version has found a disagreement."""
