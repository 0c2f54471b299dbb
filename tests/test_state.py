import pytest

from gateway.lifecycle.state import State, next_state

NEW, LOADING, READY, DRAINING, UNLOADED, COLD, FAILED = State
WAYS = {
    (NEW, LOADING),
    (NEW, COLD),
    (NEW, FAILED),
    (LOADING, READY),
    (LOADING, COLD),
    (LOADING, FAILED),
    (READY, LOADING),
    (READY, DRAINING),
    (READY, FAILED),
    (DRAINING, UNLOADED),
    (DRAINING, COLD),
    (DRAINING, FAILED),
    (UNLOADED, LOADING),
    (COLD, LOADING),
    (COLD, DRAINING),
    (COLD, FAILED),
    (FAILED, LOADING),
    (FAILED, DRAINING),
}


@pytest.mark.parametrize("wanted", State)
@pytest.mark.parametrize("current", State)
def test_there_is_exactly_the_way_that_the_table_shows(current: State, wanted: State) -> None:
    if (current, wanted) in WAYS:
        assert next_state(current, wanted) is wanted
    else:
        with pytest.raises(ValueError, match=f"no way from {current} to {wanted}"):
            next_state(current, wanted)


def test_no_state_is_a_dead_end_and_every_one_but_new_can_be_reached() -> None:
    assert {current for current, _ in WAYS} == set(State)
    assert {wanted for _, wanted in WAYS} == set(State) - {NEW}


def test_a_state_is_its_name_on_the_wire() -> None:
    assert [str(state) for state in State] == [state.name for state in State]
