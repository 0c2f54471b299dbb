"""What dialects whose answers are nothing but JSON have in common: it is made piece by piece, large ones in turns."""

import asyncio
import time
from collections.abc import Iterator, Sequence

from gateway.errors import RequestError
from gateway.http import large_json
from gateway.http.dialect import Dialect, InferenceRequest
from gateway.ipc.framing import ResultHeader
from gateway.routing import Target
from gateway.tensors import Buffer

TURN_SECONDS = 0.002
"""So long others may wait for their turn."""


class JsonDialect(Dialect):
    """A dialect without binary data in its answers."""

    def parts(self, request: InferenceRequest, header: ResultHeader, tensors: Sequence[Buffer]) -> Iterator[bytes]:
        """The JSON of a response, piece by piece. RequestError if an output cannot be JSON."""
        raise NotImplementedError

    def encode(
        self,
        request: InferenceRequest,
        target: Target,  # noqa: ARG002 - Dialect's
        header: ResultHeader,
        tensors: Sequence[Buffer],
    ) -> tuple[bytes, list[Buffer]]:
        """See Dialect."""
        return b"".join(self.parts(request, header, tensors)), []

    def takes_long(self, request: InferenceRequest, header: ResultHeader) -> bool:  # noqa: ARG002 - Dialect's
        """See Dialect."""
        for tensor in header.outputs:
            if tensor.size > (large_json.MOST_TEXT if tensor.datatype == "BYTES" else large_json.MOST):
                raise RequestError(f"output '{tensor.name}' has {tensor.size} bytes, which is too much for JSON")
        return True

    async def encode_in_turns(
        self,
        request: InferenceRequest,
        target: Target,  # noqa: ARG002 - Dialect's
        header: ResultHeader,
        tensors: Sequence[bytes],
    ) -> tuple[bytes, list[Buffer]]:
        """See Dialect."""
        parts, begun = [], time.perf_counter()
        for part in self.parts(request, header, tensors):
            parts.append(part)
            if time.perf_counter() - begun > TURN_SECONDS:
                await asyncio.sleep(0)
                begun = time.perf_counter()
        return b"".join(parts), []
