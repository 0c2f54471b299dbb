import pytest

from gateway.errors import LoadFailed
from gateway.lifecycle.placement import CPU, Device, place
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
    with pytest.raises(LoadFailed, match=r"GPU 2, this machine has 2"):
        place([InstanceGroup(gpus=[0, 2])], BOTH, {})


def test_the_counts_that_are_handed_in_stay_as_they_are() -> None:
    load = {"cuda:0": 1}
    place([InstanceGroup(count=5)], BOTH, load)
    assert load == {"cuda:0": 1}
