from hypothesis import given
from hypothesis import strategies as st

from gateway.lifecycle.admission import Resident, admit, excess


def resident(name: str, size: int, used: float = 0.0, *, evictable: bool = True, device: str = "cpu") -> Resident:
    return Resident((name, 1), {device: size}, used, evictable)


def test_what_fits_beside_the_others_is_admitted() -> None:
    assert admit({"cpu": 40}, {"cpu": 100}, [resident("a", 57)]).fits


def test_a_little_stays_free_for_what_grows_but_one_may_have_all_for_itself() -> None:
    assert not admit({"cpu": 40}, {"cpu": 100}, [resident("a", 58)]).fits
    assert admit({"cpu": 100}, {"cpu": 100}, []).fits


def test_the_least_recently_used_go_first_and_no_more_than_must() -> None:
    there = [resident("new", 28, 3.0), resident("old", 28, 1.0), resident("middle", 28, 2.0)]
    assert admit({"cpu": 40}, {"cpu": 100}, there).evict == (("old", 1),)
    assert admit({"cpu": 60}, {"cpu": 100}, there).evict == (("old", 1), ("middle", 1))


def test_what_may_not_go_stays() -> None:
    decision = admit({"cpu": 40}, {"cpu": 100}, [resident("pinned", 90, evictable=False)])
    assert not decision.fits
    assert not decision.evict
    assert not decision.never


def test_what_can_never_fit_is_told_both_numbers() -> None:
    assert (
        admit({"cpu": 2_000_000}, {"cpu": 1_000_000}, []).never == "it needs 2.0 MB of memory and the budget is 1.0 MB"
    )
    assert "on cuda:0" in admit({"cuda:0": 2}, {"cuda:0": 1}, []).never


def test_memory_of_another_device_is_of_no_use() -> None:
    there = [resident("a", 90), resident("b", 90, device="cuda:0")]
    assert admit({"cuda:0": 20}, {"cpu": 100, "cuda:0": 100}, there).evict == (("b", 1),)


def test_a_device_without_a_budget_is_not_limited() -> None:
    assert admit({"cuda:7": 10**15}, {"cpu": 1}, []).fits


def test_the_excess_is_told_by_device() -> None:
    assert excess({"cpu": 100, "cuda:0": 10}, [resident("a", 60), resident("b", 60)]) == {"cpu": 20}


residents = st.lists(
    st.builds(
        lambda name, cpu, gpu, used, free: Resident((name, 1), {"cpu": cpu, "cuda:0": gpu}, used, free),
        st.uuids().map(str),
        st.integers(0, 50),
        st.integers(0, 50),
        st.floats(0, 10),
        st.booleans(),
    ),
    max_size=8,
)


@given(st.fixed_dictionaries({"cpu": st.integers(0, 120), "cuda:0": st.integers(0, 120)}), residents)
def test_a_decision_keeps_the_budget_takes_only_who_may_go_and_finds_a_way_if_there_is_one(
    need: dict[str, int], there: list[Resident]
) -> None:
    budgets = {"cpu": 100, "cuda:0": 100}
    decision = admit(need, budgets, there)

    def room(gone: set[tuple[str, int]]) -> bool:
        held = {device: sum(each.holds[device] for each in there if each.key not in gone) for device in budgets}
        return all(not held[device] or need[device] + held[device] <= 97 for device in budgets)

    free = {each.key for each in there if each.evictable}
    assert set(decision.evict) <= free
    assert bool(decision.never) == any(need[device] > budgets[device] for device in budgets)
    if decision.never:
        return
    assert decision.fits == room(set())
    if decision.evict:
        assert room(set(decision.evict))
    elif not decision.fits:
        assert not room(free)
