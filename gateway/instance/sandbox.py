"""What a model may do to the world outside its process: next to nothing, as far as the kernel can see to it.

`decide` says what is in force on a kernel; `enter` does it, in this order: limits, no_new_privs, Landlock,
capabilities, seccomp. Each step would be refused after the next one.
"""

import functools
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from gateway.errors import LoadFailed
from gateway.instance import landlock, seccomp
from gateway.instance.kernel import capabilities, prctl, set_capabilities
from gateway.instance.landlock import DEVICE, READ, SCRATCH, Grant
from gateway.ipc.messages import Spawn
from gateway.sizes import format_size

FILE_BYTES = 64 << 20
"""No file that an instance writes grows larger."""
OPEN_FILES = 4096
HEADROOM, OF_A_CORE = 64 << 20, 16 << 20
"""Above its memory limit an instance may reserve so much, for stacks of threads, of which a machine with more cores
makes more: they are reserved and hardly touched, and a framework that cannot have its threads aborts."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_DAC_READ_SEARCH = 1 << 2

_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system",
    "/sys/kernel/mm/transparent_hugepage",
    "/dev/random",
    "/dev/urandom",
)
_OF_ITSELF = ("cmdline", "comm", "maps", "smaps", "smaps_rollup", "status", "stat", "statm", "cgroup")
_OF_A_GPU = (
    "usr/local/cuda*",
    "usr/local/nvidia",
    "usr/share/nvidia",
    "usr/lib/wsl",
    "proc/driver/nvidia*",
    "proc/devices",
    "proc/modules",
    "proc/version",
    "proc/sys/vm/mmap_min_addr",
    "sys/bus",
    "sys/class",
    "sys/devices",
    "sys/module",
)
_GPU_DEVICES = ("dev/nvidia*", "dev/dxg", "dev/nvmap", "dev/nvhost*", "dev/nvgpu")


@dataclass(frozen=True)
class Kernel:
    """What this machine has to sandbox with."""

    landlock: int
    seccomp: bool


@dataclass(frozen=True)
class Plan:
    """What is going to be in force, and which parts are lacking, a few words for each."""

    landlock: int
    seccomp: bool
    missing: tuple[str, ...] = ()


@functools.cache
def probe() -> Kernel:
    """Ask the kernel."""
    return Kernel(landlock.abi(), seccomp.available())


def decide(wanted: str, kernel: Kernel) -> Plan:
    """What to do, `wanted` being auto, require or off; LoadFailed if that cannot be had."""
    if wanted == "off":
        return Plan(0, seccomp=False)
    missing = []
    if not kernel.landlock:
        missing.append("Landlock (Linux 5.13 or newer, enabled at boot and not forbidden by the container)")
    if not kernel.seccomp:
        missing.append("seccomp filters (on x86_64 and aarch64)")
    if missing and wanted == "require":
        raise LoadFailed(f"sandbox: require, and this machine lacks {' and '.join(missing)}")
    return Plan(kernel.landlock, kernel.seccomp, tuple(missing))


def describe(plan: Plan, memory_limit: int = 0) -> str:
    """One sentence of what is in force, for the model's status."""
    parts = []
    if plan.landlock:
        parts.append("reads its own version and libraries, writes only its scratch folder")
    if plan.seccomp:
        parts.append("no network, no other processes")
    if parts or plan.missing:
        parts.append("no capabilities")
    else:
        parts.append("off")
    if memory_limit:
        parts.append(f"at most {format_size(memory_limit)} of memory")
    lacking = f"; not in force, for this machine lacks it: {', '.join(plan.missing)}" if plan.missing else ""
    means = [f"Landlock {plan.landlock}"] * bool(plan.landlock) + ["seccomp"] * plan.seccomp
    return "; ".join(parts) + (f" ({', '.join(means)})" if means else "") + lacking


def enter(spawn: Spawn) -> str:
    """Put this process, which has one thread, into its sandbox for good; what `describe` says of it.

    LoadFailed if the sandbox is required and cannot be had.
    """
    gpu = spawn.device != "cpu"
    plan = decide(spawn.sandbox, probe())
    limit_resources(spawn.memory_limit, gpu=gpu)
    if spawn.sandbox == "off":
        return describe(plan, spawn.memory_limit)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    refused: list[str] = []
    if plan.landlock and _try("Landlock", lambda: landlock.restrict(plan.landlock, grants(spawn)), refused):
        plan = Plan(0, plan.seccomp, (*plan.missing, *refused))
    drop_capabilities(_DAC_READ_SEARCH if plan.landlock else 0)
    if plan.seccomp and _try("seccomp", lambda: seccomp.install(seccomp.program(gpu=gpu)), refused):
        plan = Plan(plan.landlock, seccomp=False, missing=(*plan.missing, refused[-1]))
    if plan.missing and spawn.sandbox == "require":
        raise LoadFailed(f"sandbox: require, and this machine lacks {' and '.join(plan.missing)}")
    return describe(plan, spawn.memory_limit)


def _try(part: str, step: Callable[[], None], refused: list[str]) -> bool:
    """Whether a step failed, though the kernel had said that it would not."""
    try:
        step()
    except OSError as error:
        refused.append(f"{part} ({error.strerror})")
        return True
    return False


def limit_resources(memory_limit: int, *, gpu: bool) -> None:
    """No core dumps, bounded files, and memory: what is over the limit fails to be allocated.

    The limit counts what is reserved, so it comes with some headroom. Without one, no more than the machine has. A CUDA
    driver reserves more than any machine has.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if not gpu:
        page = resource.getpagesize()
        file = os.open("/proc/self/statm", os.O_RDONLY)
        reserved = int(os.read(file, 200).split()[5]) * page
        os.close(file)
        most = memory_limit or os.sysconf("SC_PHYS_PAGES") * page
        _lower(resource.RLIMIT_DATA, reserved + most + HEADROOM + OF_A_CORE * (os.cpu_count() or 1))


def _lower(kind: int, most: int) -> None:
    """Set a limit for good, unless a lower one is set already."""
    _, hard = resource.getrlimit(kind)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


def drop_capabilities(kept: int = 0) -> None:
    """Give up all capabilities but those, for good.

    Under Landlock a gateway of root keeps the right to read what belongs to others, because their models do.
    """
    effective, permitted = capabilities()
    set_capabilities(effective & kept, permitted & kept)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # which a change of credentials may clear


def grants(spawn: Spawn) -> list[Grant]:
    """All files that an instance may use, as paths and rights."""
    own = os.path.realpath(spawn.directory or spawn.artifact)
    itself = [f"/proc/{os.getpid()}/{name}" for name in _OF_ITSELF]
    # What a link leads to was resolved when the store was read; what is a link itself by now may lead anywhere.
    linked = [path for path in spawn.linked if os.path.realpath(path) == path]
    found = [(path, READ) for path in (own, *linked, *itself, *libraries())]
    found.append(("/dev/null", DEVICE))
    if spawn.scratch:
        found.append((spawn.scratch, SCRATCH))
    if spawn.device != "cpu":
        for patterns, rights in ((_OF_A_GPU, READ), (_GPU_DEVICES, DEVICE)):
            found += [(str(path), rights) for pattern in patterns for path in Path("/").glob(pattern)]
    return found


def prepare() -> None:
    """Work out before the fork what is the same for all instances."""
    libraries()
    if probe().seccomp:
        for gpu in (False, True):
            seccomp.program(gpu=gpu)


@functools.cache
def libraries() -> tuple[str, ...]:
    """Where the system, Python and the framework keep what they read as they run. Best asked before the fork."""
    return tuple(library_paths(sys.modules, sys.path, os.environ.get("LD_LIBRARY_PATH", "")))


def library_paths(modules: Mapping[str, ModuleType], search: Iterable[str], loader: str) -> list[str]:
    """The folders of Python, of every installed package and of each package that came from elsewhere.

    What else lies on Python's search path is not meant: that may be the working directory, with settings and models.
    """
    given = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    given += [str(Path(prefix, "lib")) for prefix in (sys.prefix, sys.base_prefix)]
    given += [path for path in search if Path(path).name in ("site-packages", "dist-packages")]
    given += [path for path in loader.split(":") if path.startswith("/") and path != "/"]
    found = list(dict.fromkeys(map(os.path.realpath, (*_SYSTEM, *given))))
    known = tuple(f"{path}/" for path in (*given, *found))
    for name, module in list(modules.items()):
        if "." in name:
            continue
        for place in list(getattr(module, "__path__", None) or [getattr(module, "__file__", None)]):
            if place and not place.startswith(known):
                found.append(os.path.realpath(place))  # noqa: PERF401 - three conditions deep
    return found
