"""What an instance's end means: for its requests, for its version, in logs and metrics. Pure functions."""

import signal

from gateway.errors import DeadlineExceeded, InstanceDied
from gateway.ipc.messages import Died
from gateway.nodes.node import Instance

ABANDONED = "abandoned"
_CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE, -signal.SIGABRT}
"""Ends that native code brings upon itself."""


def how_it_ended(instance: Instance, code: int) -> str:
    """An instance's end, for metrics and logs."""
    if instance.abandoned:
        return ABANDONED
    return f"exit {code}" if code >= 0 else f"signal {-code}"


def crashed(code: int) -> bool:
    """Whether native code ended the process."""
    return code in _CRASHES


def crashed_optimised(instance: Instance, code: int) -> bool:
    """Whether the optimised form of its model may be what crashed; then the artifact's own is still to be tried."""
    if instance.verdict is not None or instance.abandoned or not crashed(code):
        return False
    ready = instance.ready
    return ready.done() and not ready.cancelled() and ready.exception() is None and ready.result().optimised


def exit_report(instance: Instance, code: int) -> Died:
    """What the workers are told of an instance that ended with this code."""
    blameless = instance.abandoned or crashed_optimised(instance, code)
    if instance.verdict is not None:
        error_code, reason = instance.verdict
    elif code == -signal.SIGALRM:
        seconds = instance.artifact.config.execution_timeout
        error_code = DeadlineExceeded.code
        reason = f"the model did not finish within its execution_timeout of {seconds:g} s"
    else:
        error_code, reason = InstanceDied.code, "the model's process ended before it answered"
    return Died(instance=instance.name, error_code=error_code, reason=reason, blameless=blameless)


def counts_as_quick(report: Died) -> bool:
    """Whether an end soon after the start tells against the version: not if a request or the gateway is the cause."""
    return not report.blameless and report.error_code != DeadlineExceeded.code
