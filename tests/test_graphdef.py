"""What is written here is read by TensorBoard's own reader and messages."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef

from gateway.graphdef import Node, crc32c, event_file, graph

NODES = st.builds(Node, st.text(), st.text(), st.lists(st.text(), max_size=5).map(tuple))


@given(st.lists(NODES, max_size=20))
def test_a_graph_is_read_as_it_was_written(nodes: list[Node]) -> None:
    read = GraphDef.FromString(graph(nodes))
    assert [Node(each.name, each.op, tuple(each.input)) for each in read.node] == nodes
    assert read.versions.producer == 21


def test_lengths_of_more_than_one_byte_are_read_too() -> None:
    for size in (127, 128, 16_383, 16_384, 3_000_000):
        assert GraphDef.FromString(graph([Node("n" * size, "op")])).node[0].name == "n" * size


def test_tensorboards_reader_takes_an_event_file_and_its_checksums(tmp_path: Path) -> None:
    for size in (0, 1, 1000, 100_000):
        nodes = graph([Node("n" * size, "op")])
        path = tmp_path / f"events.out.tfevents.{size}"
        path.write_bytes(event_file(nodes, 1.5e9))
        version, event = (Event.FromString(data) for data in RawEventFileLoader(str(path)).Load())
        assert (version.file_version, version.wall_time) == ("brain.Event:2", 1.5e9)
        assert event.graph_def == nodes


def test_one_wrong_bit_is_noticed_by_it(tmp_path: Path) -> None:
    data = bytearray(event_file(graph([Node("n", "op")]), 0.0))
    data[-6] ^= 1
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(data)
    assert len(list(RawEventFileLoader(str(path)).Load())) == 1


def test_the_checksum_of_rfc_3720() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
