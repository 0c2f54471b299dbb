"""No request of any API ends an instance, whatever its shapes, datatypes and sizes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.tensors import DTYPES, ITEMSIZES

MODELS = [
    "mlp",
    "residual",
    "identity_torch",
    "echo_strings",
    "optional_input",
    "ranks_its_numbers",
    "images_torch",
    "digits_torch",
    "digits_tensorflow",
    "identity_tensorflow",
    "text_tensorflow",
]
EXAMPLES = 400
AXES = [0, 0, 1, 1, 2, 3, 4, 8, 16, 32, 64, 65, 1 << 16, (1 << 16) + 1, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 32]
BEYOND = [5_000_000_000, (1 << 63) - 1, 1 << 63, 1 << 64, -1, -(1 << 31)]
MAX_DATA = 1 << 16
NUMBERS = [0, 1, -1, 0.5, -0.0, 1e38, 1e308, 255, 1 << 31, 1 << 63, True, None, "", "word", "é", [], {}, [1]]

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
shapes = st.lists(st.sampled_from(AXES) | st.sampled_from(AXES[:12]) | st.sampled_from(BEYOND), max_size=6)
datatypes = st.sampled_from([*DTYPES, "FP32", "FP32", "INT64", "FP8", ""])
values = st.recursive(
    st.sampled_from(NUMBERS), lambda inner: st.lists(inner, max_size=5) | st.lists(st.just(0.5), max_size=70)
)


@pytest.fixture(scope="module")
def inputs(gateway: Any) -> dict[str, list[dict[str, Any]]]:
    """Model → what it says of its inputs."""
    return {name: gateway.http.get(f"/v2/models/{name}").json()["inputs"] for name in MODELS}


@pytest.fixture(autouse=True)
def unhurt(gateway: Any) -> Iterator[None]:
    before = gateway.pids("instance ")
    yield
    assert gateway.pids("instance ") == before


def harmless(gateway: Any, path: str, body: bytes, *headers: str) -> bool:
    """Whether a request is answered, and not with the end of a process."""
    with gateway.connect() as connection:
        response = connection.ask(gateway.request("POST", path, body, *headers))
    return b"processes of the model" not in response.body and b"process ended" not in response.body


def count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= max(size, 0)
    return total


def test_no_inference_of_the_open_protocol_does(gateway: Any, inputs: dict[str, Any]) -> None:
    @many
    @given(st.data())
    def every_case(data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(MODELS))
        sent, binary = [], b""
        for spec in inputs[model]:
            told = [1 if size < 0 else size for size in spec["shape"]]
            shape = data.draw(shapes | st.just([data.draw(st.sampled_from(AXES)), *told[1:]]) | st.just(told))
            datatype = data.draw(datatypes | st.just(spec["datatype"]))
            size = count(shape) if count(shape) <= MAX_DATA else data.draw(st.sampled_from([0, 1, 16]))
            one = {"name": spec["name"], "shape": shape, "datatype": datatype}
            if data.draw(st.booleans()):
                raw = (b"\1\0\0\0a" if datatype == "BYTES" else bytes(ITEMSIZES.get(datatype, 4))) * size
                one["parameters"] = {"binary_data_size": len(raw)}
                binary += raw
            else:
                one["data"] = [data.draw(st.sampled_from(NUMBERS))] * size
            sent.append(one)
        body = json.dumps({"inputs": sent}).encode()
        header = [f"Inference-Header-Content-Length: {len(body)}"] if binary else []
        assert harmless(gateway, f"/v2/models/{model}/infer", body + binary, *header)

    every_case()


@pytest.mark.parametrize(
    "shape", [[5_000_000_000, 0], [0, 5_000_000_000], [1 << 24, 0], [1 << 10, 1 << 10, 1 << 10, 0]]
)
@pytest.mark.parametrize("model", ["identity_torch", "mlp", "identity_tensorflow"])
def test_many_rows_of_nothing_are_refused(
    gateway: Any, inputs: dict[str, Any], model: str, shape: list[int], helpers: Any
) -> None:
    (spec,) = inputs[model]
    answer = gateway.infer(model, {"inputs": [helpers.tensor(spec["name"], spec["datatype"], shape, [])]})
    assert answer.status == 400, answer.body


def test_no_inference_of_tensorflow_serving_does(gateway: Any, inputs: dict[str, Any]) -> None:
    @many
    @given(st.data())
    def every_case(data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(MODELS))
        names = [spec["name"] for spec in inputs[model]]
        tensor = values | st.integers(0, 200).map(lambda rows: [[0.5] * 16] * rows)
        named = st.fixed_dictionaries(dict.fromkeys(names, tensor))
        body = data.draw(
            st.fixed_dictionaries({"instances": tensor | st.lists(named, max_size=3)})
            | st.fixed_dictionaries({"inputs": tensor | named})
        )
        verb = data.draw(st.sampled_from(["predict", "predict", "classify", "regress"]))
        assert harmless(gateway, f"/v1/models/{model}:{verb}", json.dumps(body).encode())

    every_case()


def test_no_inference_of_torchserve_does(gateway: Any, inputs: dict[str, Any]) -> None:
    @many
    @given(st.data())
    def every_case(data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(MODELS))
        names = [spec["name"] for spec in inputs[model]]
        named = st.fixed_dictionaries(dict.fromkeys(names, values))
        kind, body = data.draw(
            st.tuples(st.just("application/json"), (values | named).map(lambda value: json.dumps(value).encode()))
            | st.tuples(st.sampled_from(["application/octet-stream", "text/plain", "image/png"]), st.binary())
        )
        assert harmless(gateway, f"/predictions/{model}", body, f"Content-Type: {kind}")

    every_case()
