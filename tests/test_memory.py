import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.nodes.memory import available_memory, left_in_groups, read_anonymous, read_memory

SIZE = 32 << 20


def test_the_memory_of_a_process_is_measured() -> None:
    private, pss = read_memory(os.getpid())
    assert 0 < private <= pss < 1 << 40


def test_what_a_process_takes_is_seen_in_both_figures() -> None:
    before, anonymous = read_memory(os.getpid()).private, read_anonymous(os.getpid())
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        taken.write(bytes(SIZE))
        assert abs(read_memory(os.getpid()).private - before - SIZE) < SIZE // 4
        assert abs(read_anonymous(os.getpid()) - anonymous - SIZE) < SIZE // 4


def test_a_process_that_is_gone_has_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for read in (read_memory, read_anonymous):
        with pytest.raises(OSError, match=rf"{process.pid}"):
            read(process.pid)


def test_what_is_available_is_at_most_what_the_machine_has() -> None:
    assert 0 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def group(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = "".join(f"{key} {value}\n" for key, value in content.items()) if isinstance(content, dict) else content
        (directory / name.replace("__", ".")).write_text(f"{text}\n")


def unified(directory: Path, limit: object, used: int, **stat: int) -> None:
    group(directory, memory__max=limit, memory__current=used, memory__stat={"anon": 5, **stat})


def older(directory: Path, limit: object, used: int, **stat: int) -> None:
    group(
        directory,
        memory__limit_in_bytes=limit,
        memory__usage_in_bytes=used,
        memory__stat={"inactive_file": 3, "rss": 5, **stat},
    )


def test_the_limits_of_all_control_groups_above_are_respected(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    unified(tmp_path / "pod", 1000, 400, inactive_file=100)
    unified(tmp_path / "pod" / "box", "max", 300)
    assert left_in_groups("0::/pod/box\n", tmp_path) == [700]


def test_page_cache_that_can_be_reclaimed_is_not_used_memory(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    unified(tmp_path, 1000, 990, inactive_file=300, active_file=400, slab_reclaimable=50, shmem=40, file=740)
    assert left_in_groups("0::/\n", tmp_path) == [760]


def test_page_cache_is_reclaimed_in_the_older_control_groups_too(tmp_path: Path) -> None:
    older(tmp_path / "memory" / "box", 1000, 990, total_inactive_file=300, total_active_file=400)
    assert left_in_groups("4:memory:/box\n", tmp_path) == [710]


def test_above_memory_high_a_group_is_slowed_down_so_it_counts_as_a_limit(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    unified(tmp_path, 1000, 600)
    (tmp_path / "memory.high").write_text("800\n")
    assert left_in_groups("0::/\n", tmp_path) == [200]
    unified(tmp_path, "max", 600)
    assert left_in_groups("0::/\n", tmp_path) == [200]
    (tmp_path / "memory.high").write_text("max\n")
    assert left_in_groups("0::/\n", tmp_path) == []


def test_figures_that_do_not_agree_leave_no_more_than_the_limit(tmp_path: Path) -> None:
    older(tmp_path / "memory", 1000, 100, total_inactive_file=300)
    assert left_in_groups("4:memory:/\n", tmp_path) == [1000]


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    older(tmp_path / "memory" / "box", 1000, 900, total_inactive_file=50)
    assert left_in_groups("5:cpu:/\n4:memory:/box\n0::/\n", tmp_path) == [150]


def test_a_group_whose_path_is_the_hosts_is_found_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    unified(tmp_path, 1000, 600)
    assert left_in_groups("0::/kubepods/burstable/pod1\n", tmp_path) == [400]


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    older(tmp_path / "memory", 1000, 2000)
    assert left_in_groups("4:memory:/\n", tmp_path) == [0]
