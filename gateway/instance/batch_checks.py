"""Which batches of real requests are checked: the first ones of each kind, then a small share, none after a violation.

Pure decisions; checked_batches.py runs the model.
"""

from gateway.ipc.framing import RequestHeader

FIRST_BATCHES = 32
"""Batches of different rows that must agree before the results of rows together are used."""
CHECK_EVERY = 1000
"""After that one batch of so many is checked."""
EQUAL_ROWS_RETRY = 100
"""Batches until the next check, after one whose rows were all equal and which therefore proved nothing."""
MOST_UNDECIDED = 8
"""Times the batches that must agree, so many may show nothing before requests are not joined any more."""
MOST_KINDS = 1024
"""Kinds of requests that are told apart; beyond them all are forgotten and proved again."""

Kind = tuple[str, tuple[tuple[str, str, int], ...]]
"""Signature, and of each input its name, datatype and rank: only requests of one kind may be joined."""


def kind_of(header: RequestHeader) -> Kind:
    """The kind of a request."""
    return header.signature, tuple((each.name, each.datatype, len(each.shape)) for each in header.inputs)


class Trust:
    """How far batches of one kind of request are trusted. `left` is counted down once a batch by who runs it."""

    __slots__ = ("agreed", "left", "needed", "undecided")

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.agreed = 0
        """Checked batches whose rows were different and got the same answers together as alone."""
        self.undecided = 0
        """Checked batches that have shown nothing, and so cost more than they can bring."""
        self.left = 0
        """Batches that run before the next one is checked."""

    @property
    def proven(self) -> bool:
        """Whether the results of rows together may be used."""
        return self.agreed >= self.needed


class BatchChecks:
    """The state of all checks of one instance: unproven, then trusted, kind by kind; or violated, for all kinds."""

    def __init__(self, needed: int = FIRST_BATCHES, every: int = CHECK_EVERY) -> None:
        self.violation = ""
        """How answers differed; empty while none did."""
        self._needed = needed
        self._every = every
        self._kinds: dict[Kind, Trust] = {}

    def trust_of(self, header: RequestHeader) -> Trust:
        """What the requests of a header's kind share."""
        kind = kind_of(header)
        trust = self._kinds.get(kind)
        if trust is None:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            trust = self._kinds[kind] = Trust(self._needed)
        return trust

    def agreed(self, trust: Trust) -> bool:
        """A batch of different rows agreed; True if its kind is trusted from now on."""
        trust.agreed += 1
        if trust.agreed != trust.needed:
            return False
        trust.left = self._every
        return True

    def tried(self, trust: Trust) -> bool:
        """A check of a batch has shown nothing; True if there were too many of them to go on."""
        trust.undecided += 1
        return trust.undecided >= MOST_UNDECIDED * trust.needed

    def taken(self, trust: Trust, *, different: bool) -> None:
        """A batch of a trusted kind was taken for a check, or would have been if its rows were different."""
        trust.left = self._every if different else min(EQUAL_ROWS_RETRY, self._every)

    def violate(self, difference: str) -> bool:
        """Rows of a batch influenced each other; True the first time, when it is to be reported."""
        first = not self.violation
        self.violation = self.violation or difference
        return first
