"""What an instance and the supervisor tell each other of a model's batches."""

import msgspec


class Batching(msgspec.Struct, frozen=True):
    """Whether requests are joined, up to how many rows, and why."""

    max_batch_size: int
    """Rows that requests are joined to; 1: each request runs alone."""
    reason: str
    proved: dict[str, dict[str, tuple[str, int]]] | None = None
    """Signature → input → datatype and rank of the requests it was proved for; None: the user vouches for all."""
    checked: int = 0
    """Batches of real requests that are computed together and alone before the joined results are used; 0: none."""
    repeatable: str = ""
    """Signature of which the same request was seen to get the same answer twice."""
    alone: tuple[str, ...] = ()
    """Signatures whose requests are never joined."""
    shown: int = 0
    """What Triton's configuration says where that is more than `max_batch_size`, as after batching was switched off."""

    @property
    def shown_batch_size(self) -> int:
        """Triton's max_batch_size: the first dimension of tensors is one of rows if it is over 1.

        It does not change when batching is switched off, so that clients need not learn other shapes.
        """
        return max(self.shown, self.max_batch_size)

    def off(self, reason: str) -> "Batching":
        """The same after batching was switched off for this reason."""
        return Batching(1, f"off: {reason}", shown=self.shown_batch_size)
