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


def group(directory: Path, limit: str, used: int, inactive: int, names: tuple[str, str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / names[0]).write_text(f"{limit}\n")
    (directory / names[1]).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\n{names[2]} {inactive}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_the_limits_of_all_control_groups_above_are_respected(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    group(tmp_path / "pod", "1000", 400, 100, V2)
    group(tmp_path / "pod" / "box", "max", 300, 0, V2)
    assert left_in_groups("0::/pod/box\n", tmp_path) == [700]


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "box", "1000", 900, 50, V1)
    assert left_in_groups("5:cpu:/\n4:memory:/box\n0::/\n", tmp_path) == [150]


def test_a_group_whose_path_is_the_hosts_is_found_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    group(tmp_path, "1000", 600, 0, V2)
    assert left_in_groups("0::/kubepods/burstable/pod1\n", tmp_path) == [400]


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path / "memory", "1000", 2000, 0, V1)
    assert left_in_groups("4:memory:/\n", tmp_path) == [0]
