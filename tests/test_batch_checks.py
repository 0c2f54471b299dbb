"""Which batches are checked, as a state machine: unproven, trusted, violated."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.instance import batch_checks
from gateway.instance.batch_checks import BatchChecks, Trust, kind_of
from gateway.ipc.framing import RequestHeader, TensorHeader

HEADER = RequestHeader("forward", (TensorHeader("x", "FP32", (1, 4), 16),))


def is_due(trust: Trust) -> bool:
    """Counts a batch, as the server does."""
    trust.left -= 1
    return trust.left < 0


@given(st.integers(1, 40), st.integers(1, 50), st.lists(st.booleans(), max_size=300))
def test_a_kind_is_trusted_after_so_many_different_batches_and_checked_at_intervals_after_that(
    needed: int, every: int, batches: list[bool]
) -> None:
    checks = BatchChecks(needed, every)
    trust, told = checks.trust_of(HEADER), 0
    since, last_different = 0, True
    for different in batches:
        before = trust.proven
        due = is_due(trust)
        if not before:
            assert due
            if different:
                told += checks.agreed(trust)
        else:
            since += 1
            assert due == (since > (every if last_different else min(every, batch_checks.EQUAL_ROWS_RETRY)))
            if due:
                checks.taken(trust, different=different)
        if not before or due:
            since, last_different = 0, different
    assert trust.proven == (sum(batches) >= needed or trust.agreed >= needed)
    assert told == trust.proven


@given(st.lists(st.text(max_size=3), min_size=1))
def test_a_violation_is_reported_once_and_the_first_one_counts(differences: list[str]) -> None:
    checks = BatchChecks()
    told = [checks.violate(f"output '{each}' differs") for each in differences]
    assert told == [True] + [False] * (len(differences) - 1)
    assert checks.violation == f"output '{differences[0]}' differs"


def test_kinds_are_told_apart_by_signature_names_datatypes_and_ranks_and_not_by_sizes() -> None:
    def header(signature: str, name: str, datatype: str, *shape: int) -> RequestHeader:
        return RequestHeader(signature, (TensorHeader(name, datatype, shape, 4),))

    checks = BatchChecks()
    same = [header("forward", "x", "FP32", 1, 4), header("forward", "x", "FP32", 3, 8)]
    others = [
        header("other", "x", "FP32", 1, 4),
        header("forward", "y", "FP32", 1, 4),
        header("forward", "x", "FP64", 1, 4),
        header("forward", "x", "FP32", 1, 4, 1),
    ]
    assert checks.trust_of(same[0]) is checks.trust_of(same[1])
    assert len({id(checks.trust_of(each)) for each in (same[0], *others)}) == 5


def test_clients_cannot_fill_the_memory_with_kinds() -> None:
    checks = BatchChecks()
    for number in range(2 * batch_checks.MOST_KINDS):
        checks.trust_of(RequestHeader(f"s{number}", ()))
    assert len(checks._kinds) <= batch_checks.MOST_KINDS  # noqa: SLF001 - its size is what is tested
    assert kind_of(HEADER) == ("forward", (("x", "FP32", 2),))
