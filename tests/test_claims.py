import msgspec
import pytest

from gateway.errors import LoadFailed, OutOfMemory
from gateway.ipc.batching import Batching
from gateway.ipc.messages import EXAMPLE_BYTES, ExampleInput, Failed, Ready
from gateway.nodes import claims
from gateway.tensors import Signature, TensorSpec

SPEC = TensorSpec("x", "FP32", (-1, 4))
READY = Ready(
    pid=1,
    platform="pytorch_torchscript",
    signatures={"forward": Signature("forward", (SPEC,), (SPEC,))},
    default_signature="forward",
    batching=Batching(32, "on", {"forward": {"x": ("FP32", 2)}}),
    notes=["fine"],
    load_seconds=0.1,
    sandbox="all of it",
    example=[ExampleInput("x", "FP32", (1, 4), b"x" * 16)],
)


def with_spec(spec: TensorSpec) -> Ready:
    return msgspec.structs.replace(READY, signatures={"forward": Signature("forward", (spec,), ())})


def test_a_plausible_claim_is_believed() -> None:
    assert claims.objection(READY, "pytorch_torchscript") is None
    assert claims.objection(with_spec(TensorSpec("x", "BYTES", None)), "pytorch_torchscript") is None


@pytest.mark.parametrize(
    "absurd",
    [
        msgspec.structs.replace(READY, platform="tensorflow_savedmodel"),
        msgspec.structs.replace(READY, default_signature="other"),
        msgspec.structs.replace(READY, signatures={}),
        msgspec.structs.replace(READY, signatures={f"s{n}": Signature(f"s{n}", (), ()) for n in range(2000)}),
        msgspec.structs.replace(READY, signatures={"forward": Signature("backward", (SPEC,), (SPEC,))}),
        msgspec.structs.replace(READY, signatures={"forward": Signature("forward", (), (), definition=b" " * 100_000)}),
        msgspec.structs.replace(READY, notes=["x"] * 1000),
        msgspec.structs.replace(READY, notes=["x" * 100_000]),
        msgspec.structs.replace(READY, sandbox="x" * 100_000),
        msgspec.structs.replace(READY, load_seconds=float("nan")),
        msgspec.structs.replace(READY, load_seconds=-1.0),
        msgspec.structs.replace(READY, batching=Batching(0, "off")),
        msgspec.structs.replace(READY, batching=Batching(1 << 60, "on")),
        msgspec.structs.replace(READY, batching=Batching(1, "on", {"s": {str(n): ("FP32", 1) for n in range(20_000)}})),
        msgspec.structs.replace(READY, device_memory=-1),
        msgspec.structs.replace(READY, device_memory=(1 << 64) - 1),
        with_spec(TensorSpec("x" * 100_000, "FP32", (1,))),
        with_spec(TensorSpec("x", "FP31", (1,))),
        with_spec(TensorSpec("x", "FP32", (-2,))),
        with_spec(TensorSpec("x", "FP32", (1 << 63,))),
        with_spec(TensorSpec("x", "FP32", (1,) * 1000)),
        msgspec.structs.replace(READY, signatures={"forward": Signature("forward", (SPEC,) * 20_000, ())}),
        msgspec.structs.replace(READY, example=[ExampleInput("x", "FP32", (1,), b"x" * (EXAMPLE_BYTES + 1))]),
        msgspec.structs.replace(READY, example=[ExampleInput("x", "FP32", (-1,))]),
        msgspec.structs.replace(READY, example=[ExampleInput("x", "FP31", (1,))]),
        msgspec.structs.replace(READY, example=[ExampleInput("x", "FP32", ())] * 20_000),
    ],
)
def test_an_absurd_claim_is_not(absurd: Ready) -> None:
    assert claims.objection(absurd, "pytorch_torchscript") is not None


def test_a_failure_is_one_of_two_kinds_and_its_reason_one_line() -> None:
    found = claims.reason(Failed(reason="no\nmore\x1b[2J", code="out_of_memory"))
    assert type(found) is OutOfMemory
    assert found.message == "no more [2J"
    assert type(claims.reason(Failed(reason="", code="internal"))) is LoadFailed
    assert len(claims.reason(Failed(reason="x" * 1_000_000)).message) == claims.TEXT
