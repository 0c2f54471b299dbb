import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.importing.text_proto import MAX_BYTES, MAX_DEPTH, Word, parse

PIECES = st.sampled_from(
    [*'{}<>[]:,;"#-.\\\n\f ', "name", "true", "1", "0x1", "1e999", "1.5f", '"text"', "'it''s'", "\\q"]
)


def complaint(text: bytes) -> str:
    try:
        parse(text, "t")
    except ConfigError as error:
        message = error.message
    else:
        return ""
    assert message.startswith("t ")
    return message


def test_strings_are_unescaped() -> None:
    text = r"""a: "\x41\101\n\"\u00e9\xc3\xa9" '"' """
    assert parse(text.encode(), "t") == {"a": ['AA\n"éé"']}


def test_everything_that_a_config_is_made_of_is_read() -> None:
    text = b"""
    # a comment
    name: "a" 'b' ; kind: KIND_CPU, count: 2
    input { dims: [ -1, 3 ] dims: 4 nested < on: true > }
    ratio: 0.5 hex: 0x10 empty: []
    """
    tree = parse(text, "t")
    assert tree == {
        "name": ["ab"],
        "kind": ["KIND_CPU"],
        "count": [2],
        "input": [{"dims": [-1, 3, 4], "nested": [{"on": ["true"]}]}],
        "ratio": [0.5],
        "hex": [16],
        "empty": [],
    }
    assert isinstance(tree["kind"][0], Word)
    assert not isinstance(tree["name"][0], Word)


@given(st.lists(PIECES, max_size=40).map("".join))
@example('a: "\\q"')
@example('a: "\\xff"')
@example('a: "\\777"')
@example("a: " + "9" * 5000)
@example("a: 1_0")
def test_text_is_read_or_is_a_config_error(text: str) -> None:
    assert complaint(text.encode()).isprintable()


@given(st.binary(max_size=100))
def test_bytes_are_read_or_are_a_config_error(text: bytes) -> None:
    assert complaint(text).isprintable()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: {" * (MAX_DEPTH + 1), "deep"),
        (b"a {" * 100_000, "deep"),
        (b" " * (MAX_BYTES + 1), "larger"),
        (b"a: [" + b"1," * 100_001 + b"1]", "more than 100000 values"),
        (b'a: "' + b"x" * 500_000 + b'"' + b' "a"' * 120_000, "more than 100000 values"),
        (b"a: 99999999999999999999", "64 bits"),
        (b"a 1", ":"),
        (b"a: {", "not in protobuf's text format"),
        (b"\xff", "UTF-8"),
    ],
)
def test_what_is_wrong_is_said(text: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(text, "t")
