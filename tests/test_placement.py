import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import LoadFailed
from gateway.lifecycle.placement import CPU, LEAST_BYTES, Device, place
from gateway.store.manifest import InstanceGroup

GPU0, GPU1 = Device("cuda:0", "GPU-a"), Device("cuda:1", "GPU-b")
BOTH = [CPU, GPU0, GPU1]


def test_auto_takes_the_cpu_where_there_is_no_gpu() -> None:
    assert place([InstanceGroup(count=2)], [CPU], {}) == [CPU, CPU]
    assert place([InstanceGroup()], [], {}) == [CPU]


def test_auto_takes_the_gpu_with_the_fewest_instances() -> None:
    assert place([InstanceGroup()], BOTH, {"cuda:0": 2, "cuda:1": 1}) == [GPU1]
    assert place([InstanceGroup()], BOTH, {"cuda:0": 1, "cuda:1": 2, "cpu": 9}) == [GPU0]


def test_of_equal_gpus_the_first_is_taken() -> None:
    assert place([InstanceGroup(kind="gpu")], BOTH, {}) == [GPU0]


def test_several_instances_are_spread() -> None:
    assert place([InstanceGroup(count=4)], BOTH, {}) == [GPU0, GPU1, GPU0, GPU1]
    assert place([InstanceGroup(count=3)], BOTH, {"cuda:0": 2}) == [GPU1, GPU1, GPU0]


def test_groups_count_on_each_other() -> None:
    assert place([InstanceGroup(), InstanceGroup(kind="gpu")], BOTH, {}) == [GPU0, GPU1]


def test_cpu_is_the_cpu_also_beside_gpus() -> None:
    assert place([InstanceGroup(count=2, kind="cpu")], BOTH, {}) == [CPU, CPU]


def test_listed_gpus_get_count_instances_each() -> None:
    assert place([InstanceGroup(count=2, gpus=[1, 0])], BOTH, {"cuda:1": 9}) == [GPU1, GPU1, GPU0, GPU0]


def test_instances_on_listed_gpus_count_for_the_groups_after_them() -> None:
    groups = [InstanceGroup(count=2, kind="gpu", gpus=[0]), InstanceGroup(kind="gpu")]
    assert place(groups, BOTH, {"cuda:1": 1}) == [GPU0, GPU0, GPU1]


def test_a_gpu_where_there_is_none_is_refused() -> None:
    with pytest.raises(LoadFailed, match="has none"):
        place([InstanceGroup(kind="gpu")], [CPU], {})


def test_a_gpu_number_that_is_not_there_is_named() -> None:
    with pytest.raises(LoadFailed, match=r"GPU 2, this machine has GPU 0, 1$"):
        place([InstanceGroup(gpus=[0, 2])], BOTH, {})


def test_the_counts_that_are_handed_in_stay_as_they_are() -> None:
    load = {"cuda:0": 1}
    place([InstanceGroup(count=5)], BOTH, load)
    assert load == {"cuda:0": 1}


# By measured memory


def test_the_gpu_with_the_most_free_memory_is_taken_whatever_runs_on_it() -> None:
    assert place([InstanceGroup()], BOTH, {"cuda:1": 5}, {"cuda:0": 10, "cuda:1": 20}, 1) == [GPU1]
    assert place([InstanceGroup(kind="gpu")], BOTH, {"cuda:0": 5}, {"cuda:0": 30, "cuda:1": 20}, 1) == [GPU0]


def test_each_instance_takes_what_it_needs_from_the_next() -> None:
    free = {"cuda:0": 100, "cuda:1": 70}
    assert place([InstanceGroup(count=4)], BOTH, {}, free, 20) == [GPU0, GPU0, GPU1, GPU0]
    assert free == {"cuda:0": 100, "cuda:1": 70}


def test_where_free_memory_is_equal_the_gpu_with_fewer_instances_is_taken() -> None:
    assert place([InstanceGroup()], BOTH, {"cuda:0": 1}, {"cuda:0": 50, "cuda:1": 50}, 1) == [GPU1]


def test_an_unknown_need_counts_as_a_cuda_context_so_that_instances_are_spread() -> None:
    free = {"cuda:0": 10 * LEAST_BYTES + 1, "cuda:1": 10 * LEAST_BYTES}
    assert place([InstanceGroup(count=4)], BOTH, {}, free) == [GPU0, GPU1, GPU0, GPU1]


def test_an_unmeasured_gpu_comes_before_a_full_one_and_after_one_with_room() -> None:
    assert place([InstanceGroup(count=3)], BOTH, {}, {"cuda:0": 25}, 20) == [GPU0, GPU1, GPU1]


def test_where_nothing_fits_the_least_full_is_taken() -> None:
    assert place([InstanceGroup()], BOTH, {}, {"cuda:0": 5, "cuda:1": 7}, 20) == [GPU1]


def test_a_listed_gpu_is_taken_also_when_it_is_full_and_fills_up_for_the_others() -> None:
    groups = [InstanceGroup(kind="gpu", gpus=[0], count=2), InstanceGroup()]
    assert place(groups, BOTH, {}, {"cuda:0": 100, "cuda:1": 70}, 20) == [GPU0, GPU0, GPU1]
    assert place([InstanceGroup(gpus=[0])], BOTH, {}, {"cuda:0": 0, "cuda:1": 70}, 20) == [GPU0]


def test_a_number_stays_the_gpu_s_own_when_another_is_lost() -> None:
    assert place([InstanceGroup(gpus=[1])], [CPU, GPU1], {}) == [GPU1]
    with pytest.raises(LoadFailed, match=r"GPU 0, this machine has GPU 1$"):
        place([InstanceGroup(gpus=[0])], [CPU, GPU1], {})


def test_a_framework_without_cuda_gets_the_cpu_unless_a_gpu_is_asked_for() -> None:
    assert place([InstanceGroup(count=2)], BOTH, {}, cuda=False) == [CPU, CPU]
    assert place([InstanceGroup(kind="gpu")], BOTH, {}, cuda=False) == [GPU0]


GROUPS = st.lists(
    st.builds(
        InstanceGroup,
        count=st.integers(1, 4),
        kind=st.sampled_from(["auto", "cpu", "gpu"]),
        gpus=st.lists(st.integers(0, 4), max_size=3),
    ),
    min_size=1,
    max_size=3,
)
GPUS = st.lists(st.integers(0, 4), unique=True).map(lambda numbers: [Device(f"cuda:{n}", f"GPU-{n}") for n in numbers])


@given(GROUPS, GPUS, st.data())
def test_every_instance_gets_a_device_that_is_there_or_the_load_fails(
    groups: list[InstanceGroup], gpus: list[Device], data: st.DataObject
) -> None:
    names = [gpu.name for gpu in gpus]
    numbers = st.dictionaries(st.sampled_from([*names, "cpu"]), st.integers(0, 9))
    load, free, need = data.draw(numbers), data.draw(numbers), data.draw(st.integers(0, 9))
    asked = [group for group in groups if group.kind == "gpu" or (group.kind == "auto" and gpus)]
    possible = all(gpus and {f"cuda:{n}" for n in group.gpus} <= set(names) for group in asked)
    if not possible:
        with pytest.raises(LoadFailed):
            place(groups, [CPU, *gpus], load, free, need)
        return
    chosen = place(groups, [CPU, *gpus], load, free, need)
    assert set(chosen) <= {CPU, *gpus}
    for group in groups:
        if group not in asked:
            here, chosen = chosen[: group.count], chosen[group.count :]
            assert here == [CPU] * group.count
        elif group.gpus:
            expected = [f"cuda:{n}" for n in group.gpus for _ in range(group.count)]
            here, chosen = chosen[: len(expected)], chosen[len(expected) :]
            assert [device.name for device in here] == expected
        else:
            here, chosen = chosen[: group.count], chosen[group.count :]
            assert CPU not in here
    assert chosen == []


@given(GPUS.filter(bool), st.integers(1, 40), st.data())
def test_instances_that_are_not_listed_are_spread(gpus: list[Device], count: int, data: st.DataObject) -> None:
    """Unmeasured: their numbers become even. Measured: no GPU is left with more than another had and one need more."""
    load = data.draw(st.fixed_dictionaries({gpu.name: st.integers(0, 5) for gpu in gpus}))
    chosen = place([InstanceGroup(count=count)], gpus, load)
    after = {gpu.name: load[gpu.name] + chosen.count(gpu) for gpu in gpus}
    assert all(after[taken.name] <= min(after.values()) + 1 for taken in chosen)

    free = data.draw(st.fixed_dictionaries({gpu.name: st.integers(0, 500) for gpu in gpus}))
    need = data.draw(st.integers(1, 50))
    chosen = place([InstanceGroup(count=count)], gpus, load, free, need)
    left = {gpu.name: free[gpu.name] - need * chosen.count(gpu) for gpu in gpus}
    assert all(left[taken.name] + need >= max(left.values()) for taken in chosen)
