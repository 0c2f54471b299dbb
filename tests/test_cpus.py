"""The names say what holds."""

import os
from pathlib import Path

import pytest

from gateway import cgroups, cpus


def quotas(root: Path, membership: str) -> list[float]:
    return list(cpus.quotas(cgroups.groups("cpu", membership, root)))


def test_the_quota_of_a_container_limits_the_cpus_of_its_host(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu")
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert cpus.within(64, quotas(tmp_path, "0::/\n")) == 2


def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu")
    (tmp_path / "pod" / "box").mkdir(parents=True)
    (tmp_path / "pod" / "cpu.max").write_text("300000 100000\n")
    (tmp_path / "pod" / "box" / "cpu.max").write_text("max 100000\n")
    assert quotas(tmp_path, "0::/pod/box\n") == [3.0]


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    box = tmp_path / "cpu" / "box"
    box.mkdir(parents=True)
    (box / "cpu.cfs_period_us").write_text("50000\n")
    for quota, expected in (("-1", []), ("125000", [2.5])):
        (box / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert quotas(tmp_path, "3:cpu,cpuacct:/box\n0::/\n") == expected


def test_files_that_say_nothing_of_use_limit_nothing(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu")
    for text in ("", "max", "0 100000", "100000 0", "half 100000"):
        (tmp_path / "cpu.max").write_text(text)
        assert quotas(tmp_path, "0::/\n") == []


@pytest.mark.parametrize(
    ("affinity", "limits", "expected"), [(8, [], 8), (8, [2.9], 2), (2, [4.0], 2), (8, [0.5], 1), (8, [6.0, 3.0], 3)]
)
def test_whole_cpus_within_all_limits_are_used_and_at_least_one(
    affinity: int, limits: list[float], expected: int
) -> None:
    assert cpus.within(affinity, limits) == expected


def test_the_affinity_mask_is_followed() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpus.usable() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= cpus.usable() <= len(before)


def test_threads_are_those_of_model_yaml_or_half_of_the_usable_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpus.threads(7) == 7
    for usable, expected in ((1, 1), (2, 1), (5, 2), (64, 32)):
        monkeypatch.setattr(cpus, "usable", lambda usable=usable: usable)
        assert cpus.threads("auto") == expected
