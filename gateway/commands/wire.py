"""Inference requests and answers of the Open Inference Protocol v2 as a client writes and reads them.

Sources: as gateway/http/oip.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from gateway.errors import CallFailed, GatewayError, RequestError
from gateway.http.tensor_json import json_from_raw
from gateway.tensors import DTYPES, Array, Buffer, array_from_raw, element_count, pack_bytes, raw_from_array

JSON_SIZE = "Inference-Header-Content-Length"


class Answer(NamedTuple):
    """What a model answered."""

    head: dict[str, Any]
    """The answer's JSON without its outputs."""
    outputs: dict[str, Array]
    """By name; the elements of BYTES are Python bytes."""
    datatypes: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The answer as the protocol has it without binary data; RequestError if BYTES are no UTF-8 text."""
        outputs = []
        for name, array in self.outputs.items():
            datatype, raw = self.datatypes[name], raw_from_array(array)[1]
            try:
                data = json_from_raw(name, datatype, array.shape, raw)
            except RequestError:
                raise CallFailed(f"output '{name}' is not UTF-8 text, which JSON needs; -o DIR writes it") from None
            outputs.append(
                {"name": name, "datatype": datatype, "shape": list(array.shape), "data": orjson.Fragment(data)}
            )
        return self.head | {"outputs": outputs}


def encode(
    arrays: Mapping[str, tuple[str, Array]],
    *,
    binary: bool,
    outputs: Sequence[str] = (),
    signature: str | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with these (datatype, array) by input; `binary` is for both ways."""
    inputs, payload = [], []
    for name, (datatype, array) in arrays.items():
        raw = _raw(datatype, array)
        described: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            described["parameters"] = {"binary_data_size": len(raw)}
            payload.append(raw)
        else:
            described["data"] = orjson.Fragment(json_from_raw(name, datatype, array.shape, raw))
        inputs.append(described)
    request: dict[str, Any] = {"inputs": inputs}
    if outputs:
        request["outputs"] = [{"name": name} for name in outputs]
    parameters: dict[str, Any] = {"signature_name": signature} if signature else {}
    if binary:
        parameters["binary_data_output"] = True
    if parameters:
        request["parameters"] = parameters
    text = orjson.dumps(request)
    if not binary:
        return text, {"Content-Type": "application/json"}
    return b"".join([text, *payload]), {"Content-Type": "application/octet-stream", JSON_SIZE: str(len(text))}


def _raw(datatype: str, array: Array) -> Buffer:
    return pack_bytes(array.ravel().tolist()) if datatype == "BYTES" else raw_from_array(array)[1]


def decode(body: bytes, json_size: str | None) -> Answer:
    """An answer, whichever of its outputs are binary; CallFailed if it makes no sense."""
    try:
        at = len(body) if json_size is None else int(json_size)
        head = orjson.loads(body[:at])
        arrays: dict[str, Array] = {}
        datatypes: dict[str, str] = {}
        for output in head.pop("outputs"):
            name, datatype, shape = output["name"], output["datatype"], tuple(output["shape"])
            element_count(shape)  # which no dimension below 0 passes
            size = (output.get("parameters") or {}).get("binary_data_size")
            if size is None:
                arrays[name] = _from_json(datatype, shape, output["data"])
            else:
                arrays[name] = array_from_raw(datatype, shape, body[at : at + size])
                at += size
            datatypes[name] = datatype
    except (GatewayError, ValueError, TypeError, KeyError, AttributeError):
        raise CallFailed("the server's answer cannot be understood") from None
    return Answer(head, arrays, datatypes)


def _from_json(datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    if datatype == "BYTES":
        return np.array([str(each).encode("utf-8", "surrogatepass") for each in data], object).reshape(shape)
    return np.array(data, np.float64 if None in data else None).astype(DTYPES[datatype]).reshape(shape)
