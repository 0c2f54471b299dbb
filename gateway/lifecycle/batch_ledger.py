"""What the traffic of each version has shown of its batches, kept for as long as its files are the same."""

import logging
from collections import Counter
from collections.abc import Callable
from weakref import WeakSet

import msgspec

from gateway.ipc.batch_reports import BatchesAgree, BatchesDisagree
from gateway.ipc.messages import Ready
from gateway.lifecycle.version import Version
from gateway.nodes.node import Instance
from gateway.store.source import Artifact

log = logging.getLogger("gateway.batching")

MOST_FILES = 4096
"""Versions' files that are remembered after a disagreement; the oldest are forgotten first."""
FOUND = "rows of a batch of real requests influenced each other"
Files = tuple[str, int, int]
"""Model, version, and the fingerprint of its files."""


class BatchLedger:
    """Disagreements by the files of a version. `run_alone` tells an instance to join no requests any more."""

    def __init__(self, run_alone: Callable[[Instance], None]) -> None:
        self.violations: Counter[str] = Counter()
        """model/version → disagreements found."""
        self._run_alone = run_alone
        self._found: dict[Files, str] = {}
        self._versions: WeakSet[Version] = WeakSet()

    def against(self, artifact: Artifact) -> str:
        """Why instances of these files must not join requests; empty if nothing is known."""
        return self._found.get(_files(artifact), "")

    def started(self, version: Version, ready: Ready) -> Ready:
        """What a version says of itself once it has started as `ready` says."""
        self._versions.add(version)
        version.disagreement = self.against(version.artifact)
        return self._told(version, ready)

    def hear(self, version: Version, instance: Instance, report: BatchesAgree | BatchesDisagree) -> bool:
        """Act on a report; True if what is said of versions has changed."""
        if isinstance(report, BatchesAgree):
            if version.agreed or version.ready is None:
                return False
            version.agreed = report.batches
            version.ready = self._told(version, instance.ready.result())
            return True
        self.violations[version.title] += 1
        files = _files(instance.artifact)
        if files in self._found:
            return False
        if len(self._found) >= MOST_FILES:
            del self._found[next(iter(self._found))]
        self._found[files] = f"{FOUND}: {report.difference}"
        log.warning(
            "%s: requests are not joined any more, because %s (together instead of alone; found by %s). Answers given "
            "since the last check may have been wrong. batching_check: off in model.yaml joins them without checks.",
            version.title,
            self._found[files],
            instance.name,
        )
        self._switch_off(files, instance)
        return True

    def _switch_off(self, files: Files, found_by: Instance) -> None:
        """Tell all instances of these files, also those that are about to be ready."""
        for version in list(self._versions):
            mine = [each for each in (*version.instances, *version.starting) if _files(each.artifact) == files]
            for instance in mine:
                if instance is not found_by:
                    self._run_alone(instance)
            if version.ready is not None and _files(version.artifact) == files:
                version.disagreement = self._found[files]
                version.ready = self._told(version, version.ready)

    def _told(self, version: Version, ready: Ready) -> Ready:
        """A Ready with what traffic has shown in its reason for batching or not."""
        batching = ready.batching
        if not batching.checked:
            return ready
        if found := self.against(version.artifact):
            batching = batching.off(found)
        elif version.agreed:
            more = f"; {version.agreed} batches of real requests agree"
            batching = msgspec.structs.replace(batching, reason=batching.reason + more)
        else:
            more = f"; the first {batching.checked} batches of different requests are computed alone, too"
            batching = msgspec.structs.replace(batching, reason=batching.reason + more)
        return msgspec.structs.replace(ready, batching=batching)


def _files(artifact: Artifact) -> Files:
    return artifact.model, artifact.version, artifact.contents.stamp
