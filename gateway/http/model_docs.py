"""The OpenAPI document of one model version: its calls with its own names and shapes, and examples that it answers.

A pure function of the routing table's entry.
"""

from typing import Any
from urllib.parse import quote

from gateway.http import examples, openapi, tfserving
from gateway.http.calls import match
from gateway.http.examples import Example, example_of, size_of
from gateway.routing import Target
from gateway.tensors import TensorSpec

_SCALARS = {"BOOL": {"type": "boolean"}, "BYTES": {"type": "string"}}
_NUMBER, _STRING = {"type": "number"}, {"type": "string"}
_TOO_LONG = (
    "\n\nNo example: a request would be too long to be shown, or none is known that the model answers. "
    "Large tensors are best sent as binary data."
)


def document(target: Target, version: str | None) -> dict[str, Any]:
    """What `…/openapi.json` of a model answers; `version` as the path has it, if it has one."""
    ready = target.route.ready
    example = None if ready is None else example_of(ready)
    paths: dict[str, Any] = {}
    for path, summary, body in _calls(target, version, example):
        if match(path.encode()):
            paths[path] = {"post": _inference(path, summary, body, target)}
    base = _base(target.model, version)
    for path, summary, schema in (
        (base, "Metadata", openapi.MODEL_METADATA),
        (f"{base}/ready", "Can it answer?", openapi.MODEL_READY),
        (f"{base}/config", "Configuration", openapi.MODEL_CONFIG),
        (f"{base}/stats", "Statistics", openapi.MODEL_STATS),
    ):
        responses = openapi.responses(schema, *openapi.MODEL_ERRORS)
        paths[path] = {"get": {"tags": ["model"], "summary": summary, "responses": _by_text(responses)}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{target.model}, version {target.version}",
            "version": target.version,
            "description": _description(target),
        },
        "paths": paths,
    }


def _base(model: str, version: str | None) -> str:
    return f"/v2/models/{quote(model)}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _calls(target: Target, version: str | None, example: Example | None) -> list[tuple[str, str, Any]]:
    """Path, summary and example body of each inference call that there may be."""
    base, name = _base(target.model, version), quote(target.model)
    number = (
        f"/{'versions' if version and version.isdigit() else 'labels'}/{quote(version, safe='')}" if version else ""
    )
    torchserve = f"/{quote(version, safe='')}" if version else ""
    signature, ready = target.signature(None), target.route.ready
    named = tfserving.signatures_of(target).get(tfserving.SERVING_DEFAULT) is not signature

    def predict(example: examples.Example) -> Any:
        return examples.predict(example, signature, named=named, in_rows=ready is not None and ready.example_in_rows)

    binary = ready is not None and ready.example_in_binary

    def body(dialect: Any, *, carries_bytes: bool = False) -> Any:
        return None if example is None or (binary and not carries_bytes) else dialect(example)

    def infer(example: examples.Example) -> Any:
        return examples.infer(example, binary=binary)

    named_inputs = {spec.name for spec in signature.inputs}
    # Generate and TorchServe requests have no place for names beyond the signature's, as the tensors of a list have.
    listed = all(each.spec.name in named_inputs for each in example or [])
    generate = body(examples.generate) if listed else None
    prediction = body(examples.prediction, carries_bytes=True) if listed else None
    return [
        (f"{base}/infer", "Infer (Open Inference Protocol)", body(infer, carries_bytes=True)),
        (f"{base}/generate", "Generate (Triton)", generate),
        (f"{base}/generate_stream", "Generate, as a server-sent event (Triton)", generate),
        (f"/v1/models/{name}{number}:predict", "Predict (TensorFlow Serving)", body(predict)),
        (f"/predictions/{name}{torchserve}", "Predict (TorchServe)", prediction),
    ]


def _inference(path: str, summary: str, body: Any, target: Target) -> dict[str, Any]:
    request, response = _schemas(path, target)
    content: dict[str, Any] = {"schema": request} | ({} if body is None else {"example": body})
    kind = "text/event-stream" if path.endswith("_stream") else "application/json"
    zeros = examples.zero_bytes(ready) if path.endswith("/infer") and (ready := target.route.ready) else 0
    answers: dict[str, Any] = {kind: {"schema": response}}
    if path.endswith("/infer"):  # with binary_data_output
        answers["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    success = {"description": "the outputs", "content": answers}
    return {
        "tags": ["inference"],
        "summary": summary,
        "description": _tensors(target) + ("" if body is not None else _TOO_LONG),
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {"200": success, **openapi.inference_errors()},
    } | ({"x-zero-bytes": zeros} if zeros else {})


def _schemas(path: str, target: Target) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the request and the response."""
    signature = target.signature(None)
    required = [spec.name for spec in signature.inputs if not spec.optional]
    if path.endswith("/infer"):
        request = _object({"inputs": {"type": "array", "items": _one_of(signature.inputs)}, "id": _STRING}, ["inputs"])
        outputs = {"type": "array", "items": _one_of(signature.outputs)}
        response = _object({"model_name": _STRING, "model_version": _STRING, "outputs": outputs}, ["outputs"])
    elif "/generate" in path:
        request = _object({spec.name: _values(spec) for spec in signature.inputs}, required)
        outputs = {spec.name: _values(spec) for spec in signature.outputs}
        response = _object({"model_name": _STRING, "model_version": _STRING, **outputs}, ["model_name"])
        if path.endswith("_stream"):
            response = {"type": "string"}
    elif path.endswith(":predict"):
        request = _object({"instances": {"type": "array", "items": {}}, "inputs": {}, "signature_name": _STRING}, [])
        response = _object({"predictions": {}, "outputs": {}}, [])
    else:
        request = response = {}
    return request, response


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _one_of(specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """The schema of one of `inputs` or `outputs`."""
    shown = [_tensor(spec) for spec in specs]
    return shown[0] if len(shown) == 1 else {"anyOf": shown} if shown else {"type": "object"}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "description": size_of(spec.shape),
    }
    if spec.shape is not None and spec.strict:
        shape |= {"minItems": len(spec.shape), "maxItems": len(spec.shape)}
    data = {"type": "array", "items": _SCALARS.get(spec.datatype, _NUMBER), "description": "flat, in row-major order"}
    datatype = {"type": "string"} | ({"enum": [spec.datatype]} if spec.strict else {"description": spec.datatype})
    name = {"type": "string", "enum": [spec.name]}
    return _object({"name": name, "datatype": datatype, "shape": shape, "data": data}, ["name", "datatype", "shape"])


def _values(spec: TensorSpec) -> dict[str, Any]:
    return {"description": f"{spec.datatype} {size_of(spec.shape)}: a scalar, a flat list, or lists as the shape says"}


def _tensors(target: Target) -> str:
    """The signature as two tables."""
    signature = target.signature(None)
    lines: list[str] = []
    for title, specs in (("input", signature.inputs), ("output", signature.outputs)):
        lines += [f"\n| {title} | datatype | shape |", "|---|---|---|"]
        for spec in specs:
            words = [
                word
                for word, holds in (
                    ("optional", spec.optional),
                    ("a guess", spec.guessed),
                    ("not enforced", not spec.strict and not spec.guessed),
                )
                if holds
            ]
            note = f" ({', '.join(words)})" if words else ""
            lines.append(f"| `{spec.name}`{note} | {spec.datatype} | {size_of(spec.shape)} |")
    return "\n".join(lines)


def _description(target: Target) -> str:
    ready = target.route.ready
    assert ready is not None
    lines = [
        f"{ready.platform} on {', '.join(sorted({each.device for each in target.route.instances})) or 'no device'}.",
        f"Batching: {ready.batching.reason}, up to {ready.batching.max_batch_size} rows.",
        *ready.notes,
    ]
    if len(ready.signatures) > 1:
        lines.append(f"Signatures: {', '.join(ready.signatures)}; described is {ready.default_signature}.")
    return "\n\n".join(lines)


def _by_text(responses: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    return {str(code): response for code, response in responses.items()}
