import math
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.instance.batching import join_inputs, part_outputs
from gateway.instance.connection import Connection
from gateway.instance.queue import PendingRequest, Plan, plan_request
from gateway.ipc.framing import OFFSET, RequestHeader, TensorHeader
from gateway.tensors import DTYPES, Array, raw_from_array

quick = settings(max_examples=200, deadline=None)


class FakeConnection:
    def __init__(self, arena: bytes = b"") -> None:
        self.arena = memoryview(arena)


def pending(
    plan: Plan, number: int = 0, payload: bytes = b"", arrived: float = 0.0, arena: bytes = b""
) -> PendingRequest:
    return PendingRequest(cast("Connection", FakeConnection(arena)), number, plan, payload, arrived)


def waiting(rows: int, key: str | None) -> PendingRequest:
    return pending(Plan("forward", (), (), rows, rows, 0, None if key is None else (key,)))


datatypes = st.sampled_from(sorted(DTYPES))
tails = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


def values(datatype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if datatype == "BYTES":
        strings = np.empty(math.prod(shape), object)
        strings[:] = [bytes(rng.integers(0, 256, rng.integers(0, 4)).astype(np.uint8)) for _ in range(strings.size)]
        return strings.reshape(shape)
    return np.asarray(rng.integers(0, 2, shape).astype(DTYPES[datatype]))


def request_of(inputs: dict[str, Array], number: int, placed: frozenset[str]) -> PendingRequest:
    tensors, payload, arena = [], b"", b"before"
    for name, array in inputs.items():
        datatype, raw = raw_from_array(array)
        tensors.append(TensorHeader(name, datatype, array.shape, len(raw), name in placed))
        if name in placed:
            payload += OFFSET.pack(len(arena))
            arena += bytes(raw)
        else:
            payload += bytes(raw)
    plan = plan_request(RequestHeader("f", tuple(tensors)), max_rows=8)
    return pending(plan, number, payload, arena=arena)


@quick
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.tuples(datatypes, tails, st.booleans()), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_what_is_joined_and_parted_is_what_it_was(
    rows: list[int], kinds: list[tuple[str, tuple[int, ...], bool]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    placed = frozenset(f"t{at}" for at, (_, _, in_arena) in enumerate(kinds) if in_arena)
    inputs = [
        {f"t{at}": values(datatype, (count, *tail), rng) for at, (datatype, tail, _) in enumerate(kinds)}
        for count in rows
    ]
    batch = [request_of(each, number, placed) for number, each in enumerate(inputs)]
    assert len({request.plan.key for request in batch}) == 1
    joined = join_inputs(batch)
    for name, array in joined.items():
        want = np.concatenate([each[name] for each in inputs])
        assert array.dtype == want.dtype
        assert array.shape == want.shape
        assert array.tolist() == want.tolist()
        assert array.flags.writeable or array.dtype == object or name in placed
    parts = part_outputs(joined, batch)
    assert [{name: array.tolist() for name, array in part.items()} for part in parts] == [
        {name: array.tolist() for name, array in each.items()} for each in inputs
    ]


@pytest.mark.parametrize("output", [np.zeros(()), np.zeros(2), np.zeros((4, 3)), np.zeros((0, 3))])
def test_an_output_without_a_row_for_each_input_row_is_refused(output: Array) -> None:
    batch = [waiting(2, "a"), waiting(1, "a")]
    with pytest.raises(ValueError, match="'y'"):
        part_outputs({"y": output}, batch)


@pytest.mark.parametrize("output", [np.zeros(()), np.zeros(2), np.zeros((4, 3))])
def test_a_request_that_ran_alone_gets_whatever_came_out(output: Array) -> None:
    outputs = {"y": output}
    assert part_outputs(outputs, [waiting(3, None)]) == [outputs]
