"""Recordings of what a model computes, as the supervisor answers for them: which instance, and one archive of it."""

import asyncio
import io
import json
import zipfile
from typing import Any

from gateway.errors import ModelNotReady, RequestError
from gateway.ipc.messages import Ask
from gateway.lifecycle.manager import Manager
from gateway.nodes.node import Instance, Node
from gateway.nodes.recording import Recording

FACTS = "recording.json"


class Profiling:
    """Answers the questions of one supervisor."""

    def __init__(self, node: Node, manager: Manager) -> None:
        self._node = node
        self._manager = manager

    async def answer(self, ask: Ask) -> bytes:
        """A zip archive with `recording.json`, `trace` and `graph`; GatewayError says why there is none."""
        version = self._manager.versions.get((ask.model, ask.version))
        title = f"model '{ask.model}' version {ask.version}"
        if version is None or not version.is_ready() or not version.instances:
            raise ModelNotReady(f"{title} has no running instance; try again soon")
        indices = sorted(each.index for each in version.instances)
        found = [each for each in version.instances if each.index == ask.instance]
        if not found:
            raise RequestError(f"{title} has no instance {ask.instance}; it has {', '.join(map(str, indices))}")
        recording = await self._node.record(found[0], ask.seconds)
        return await asyncio.to_thread(_packed, recording, _facts(found[0], indices, recording))


def _facts(instance: Instance, indices: list[int], recording: Recording) -> dict[str, Any]:
    return {
        "model": instance.artifact.model,
        "version": str(instance.artifact.version),
        "framework": instance.framework,
        "instance": instance.index,
        "instances": indices,
        "device": instance.device.name,
        "seconds": round(recording.seconds, 3),
        "executions": recording.executions,
        "full": recording.full,
        "missing": recording.missing,
    }


def _packed(recording: Recording, facts: dict[str, Any]) -> bytes:
    """Packed fast; traces shrink to a tenth all the same."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(FACTS, json.dumps(facts))
        for name, data in recording.files.items():
            archive.writestr(name, data)
    return out.getvalue()
