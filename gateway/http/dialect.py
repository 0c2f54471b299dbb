"""What a dialect is: how the inference calls of one API are read and answered; all of them share one way between."""

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from gateway.errors import GatewayError
from gateway.http.large_json import FROM
from gateway.http.responses import error_body, status_of
from gateway.http.waiting import Wish
from gateway.http.wishes import NONE, Wishes
from gateway.ipc.channel import Channel
from gateway.ipc.framing import ResultHeader
from gateway.routing import Target
from gateway.tensors import Buffer


class Body(msgspec.Struct):
    """A request body as received; `region` is where it lies in the channel's arena, if it does."""

    data: bytes | bytearray | memoryview
    json_size: int | None
    """From Inference-Header-Content-Length; None: all of it is JSON; 0: all of it is one raw tensor."""
    region: int | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    """All headers of the request, names in lower case."""


class InferenceRequest(msgspec.Struct):
    """A decoded request, ready to be sent to an instance; dialects derive from it what their responses need."""

    header: bytes
    payload: list[Buffer]
    id: str = ""
    rows: int = 1
    wishes: Wishes = NONE
    content_type: bytes = b"application/json"
    """Of the response, if it has no binary part."""
    long_from: int = FROM
    """Of results of more bytes than this it is asked whether encoding them takes long."""


class Dialect:
    """One kind of inference call. Instances hold no state of a request."""

    protocol: ClassVar[str] = ""
    """Its name in the metrics."""
    takes_put: ClassVar[bool] = False
    """Whether PUT is an inference as well as POST."""
    zero_is_latest: ClassVar[bool] = False
    """Whether version 0, where there is none, stands for the latest, as clients of TensorFlow Serving write it."""

    def decode(self, body: Body, target: Target, channel: Channel, regions: list[int]) -> InferenceRequest:
        """Check a request against the model's signature and make it ready to send.

        Regions of the channel's arena that the request takes are appended to `regions`. RequestError says what is
        wrong; OtherVersion that the request is for another version of the model.
        """
        raise NotImplementedError

    def wishes(self, body: Body) -> Wishes:  # noqa: ARG002 - for those whose bodies have some
        """What a request says of itself, when the model that would check the rest is not there yet."""
        return NONE

    def encode(
        self, request: InferenceRequest, target: Target, header: ResultHeader, tensors: Sequence[Buffer]
    ) -> tuple[bytes, list[Buffer]]:
        """The text of a response and the binary data that follow it, if any. RequestError if an output cannot be."""
        raise NotImplementedError

    def takes_long(self, request: InferenceRequest, header: ResultHeader) -> bool:  # noqa: ARG002 - as above
        """Whether so much is to be encoded that others must have their turns between; RequestError if it is too much.

        Asked only of results of more bytes than the request's `long_from`.
        """
        return False

    async def encode_in_turns(
        self, request: InferenceRequest, target: Target, header: ResultHeader, tensors: Sequence[bytes]
    ) -> tuple[bytes, list[Buffer]]:
        """As encode, for what takes long."""
        raise NotImplementedError

    def error(self, error: GatewayError, wish: Wish) -> tuple[int, bytes]:  # noqa: ARG002 - for those who name it
        """Status and body of an error; the wish is what the path asked for."""
        return status_of(error), error_body(error)
