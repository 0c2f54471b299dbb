"""Which system calls a sandboxed instance may make: the rules, the BPF program that enforces them, its installation.

Everything is allowed but what reaches other processes, the network, the machine, or files in ways that Landlock does
not see. Calls that are newer than the table do not exist, as on an older kernel.
"""

import ctypes
import errno
import functools
import os
import platform
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.instance.kernel import syscall
from gateway.instance.syscalls import NEWEST, NUMBERS

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine → AUDIT_ARCH, column of the table."""

Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, operand: a struct sock_filter."""

_LOAD, _JUMP, _EQUAL, _GREATER, _AND, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL = 1, 2
# Without it kernels before 5.16 slow down every process with a filter, for the sake of scripts in browsers.
_SPEC_ALLOW = 1 << 2

OWN_PID = 0x7EADBEEF
"""No process has this number; `install` puts in the process that it is called in."""

_CLONE_THREAD = 0x00010000
_O_TMPFILE = 0o20000000
# Names of threads and memory, huge pages, questions. Not: whose end kills it, who may trace it, what it is.
_PRCTL = (3, 15, 16, 21, 23, 29, 30, 39, 41, 42, 0x53564D41)
# F_SETOWN, F_SETSIG, F_SETOWN_EX: a descriptor's owner can be sent any signal. F_NOTIFY tells of changes in a folder.
_FCNTL = (8, 10, 15, 1026)
# FIOSETOWN, SIOCSPGRP: as above. TIOCSTI, TIOCLINUX: typing into a terminal.
_IOCTL = (0x8901, 0x8902, 0x5412, 0x541C)
# A CUDA driver listens on a Unix socket, and makes memfds and shared mappings. None reaches anything without connect.
_OF_A_GPU = frozenset({"socket", "socketpair", "bind", "listen", "memfd_create", "mmap"})
_MAP_SHARED_ANONYMOUS = 0x21


@dataclass(frozen=True)
class Test:
    """Whether the lower half of an argument, masked, is among these values, or among none of them."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0
    inside: bool = True


@dataclass(frozen=True)
class Rule:
    """A call that is refused with an error if all tests hold."""

    call: str
    tests: tuple[Test, ...] = ()
    error: int = errno.EPERM


def _unless(call: str, argument: int, *values: int, mask: int = 0) -> Rule:
    return Rule(call, (Test(argument, values, mask, inside=False),))


def rules(*, gpu: bool) -> list[Rule]:
    """What a process may not do; `gpu` allows what a CUDA driver needs. OWN_PID stands for its own process."""
    own = [_unless(call, 0, OWN_PID) for call in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")]
    itself = ("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")
    conditional = [
        *own,
        *(_unless(call, 0, 0) for call in itself),
        *(_unless(call, argument, 0) for call in ("setpriority", "ioprio_set") for argument in (0, 1)),
        _unless("prlimit64", 0, 0, OWN_PID),
        _unless("prctl", 0, *_PRCTL),
        Rule("clone", (Test(0, (0,), _CLONE_THREAD),)),
        Rule("clone3", error=errno.ENOSYS),  # its flags lie in memory; without it the C library calls clone
        Rule("openat2", error=errno.ENOSYS),  # as above, openat
        Rule("fcntl", (Test(1, _FCNTL),)),
        Rule("ioctl", (Test(1, _IOCTL),)),
    ]
    for call, flags in (("open", 1), ("openat", 2)):
        # Truncated by opening for reading: Landlock sees that only from Linux 6.2 on. Files without a name cannot be
        # counted.
        conditional += [
            Rule(call, (Test(flags, (os.O_RDONLY | os.O_TRUNC,), os.O_ACCMODE | os.O_TRUNC),)),
            Rule(call, (Test(flags, (_O_TMPFILE,), _O_TMPFILE),), errno.EOPNOTSUPP),
        ]
    if gpu:
        for call in ("socket", "socketpair"):
            conditional.append(_unless(call, 0, socket.AF_UNIX))
            conditional.append(_unless(call, 1, socket.SOCK_STREAM, socket.SOCK_SEQPACKET, mask=0xF))
    else:
        # Memory that no limit counts and that is nobody's in particular.
        conditional.append(Rule("mmap", (Test(3, (_MAP_SHARED_ANONYMOUS,), _MAP_SHARED_ANONYMOUS),), errno.ENOMEM))
    settled = {rule.call for rule in conditional} | (_OF_A_GPU if gpu else set())
    # creat makes a file and nothing else; the other calls that make files are Landlock's.
    return conditional + [Rule(call) for call in NUMBERS if call not in settled and call != "creat"]


def _block(rule: Rule, number: int) -> list[Instruction]:
    """Return the error if it is this call and all tests hold, else go on behind the block."""
    block: list[Instruction] = [(_RETURN, 0, 0, _ERRNO | rule.error)]
    for test in reversed(rule.tests):
        behind, checks = len(block), []
        for left, value in zip(range(len(test.values) - 1, -1, -1), test.values, strict=True):
            found = left if test.inside else left + behind
            missed = behind if test.inside and not left else 0
            checks.append((_EQUAL, found, missed, value & 0xFFFFFFFF))
        masked = [(_AND, 0, 0, test.mask)] if test.mask else []
        block = [(_LOAD, 0, 0, 16 + 8 * test.argument), *masked, *checks, *block]
    return [(_LOAD, 0, 0, 0), (_EQUAL, 0, len(block), number), *block]


def _refused(numbers: Sequence[int]) -> list[Instruction]:
    """Refuse these calls, whose number is loaded."""
    chain: list[Instruction] = [
        (_EQUAL, left + 1, 0, number) for left, number in zip(range(len(numbers) - 1, -1, -1), numbers, strict=True)
    ]
    return [*chain, (_JUMP, 0, 0, 1), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def assemble(wanted: Iterable[Rule], machine: str) -> list[Instruction]:
    """The program that enforces these rules on a machine of ARCHITECTURES."""
    audit, column = ARCHITECTURES[machine]
    numbered = [(rule, number) for rule in wanted if (number := NUMBERS[rule.call][column]) is not None]
    program: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
        (_GREATER, 0, 1, NEWEST),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    # One step each for most of them: the kernel tries all calls on a program to learn which are always allowed.
    plain = [number for rule, number in numbered if rule == Rule(rule.call)]
    program += _refused(plain)
    for rule, number in numbered:
        if rule != Rule(rule.call):
            program += _block(rule, number)
    return [*program, (_RETURN, 0, 0, _ALLOW)]


@functools.cache
def program(*, gpu: bool) -> bytes:
    """The program of this machine. Best asked before the fork."""
    instructions = assemble(rules(gpu=gpu), platform.machine())
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _seccomp(operation: int, flags: int, argument: Any) -> None:
    syscall(NUMBERS["seccomp"][ARCHITECTURES[platform.machine()][1]] or 0, operation, flags, argument)


def available() -> bool:
    """Whether the kernel takes filters that refuse and kill, and this machine's calls are in the table."""
    if platform.machine() not in ARCHITECTURES:
        return False
    try:
        for action in (_ERRNO, _KILL_PROCESS):
            _seccomp(_SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(action)))
    except OSError:
        return False
    return True


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(packed: bytes) -> None:
    """Put this process under a program, for good; no_new_privs must be set. OSError if the kernel refuses."""
    own = packed.replace(struct.pack("=I", OWN_PID), struct.pack("=I", os.getpid()))
    _seccomp(_SECCOMP_SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(_Program(len(own) // 8, own)))
