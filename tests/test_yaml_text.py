import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import yaml_text
from gateway.errors import ConfigError
from gateway.keys import parse as parse_keys
from gateway.store.manifest import parse as parse_model

TAGS = ("bool", "int", "float", "null", "binary", "timestamp", "omap", "pairs", "set", "seq", "map", "str", "mine")
LAUGHS = "[&a0 [0], " + ", ".join(f"&a{n + 1} [*a{n}, *a{n}, *a{n}, *a{n}]" for n in range(12)) + "]"
BAD = [
    "!!bool x",
    "!!int x",
    "!!timestamp x",
    "a: *b",
    "a: [",
    "[" * 5000,
    "{? [] : 1}",
    "\0",
    "!!python/object:os.system x",
]


def test_yaml_is_read() -> None:
    assert yaml_text.read(b"") is None
    assert yaml_text.read("a: [1, yes, x]") == {"a": [1, True, "x"]}


def test_aliases_may_stand_for_what_is_there_often() -> None:
    assert yaml_text.read("scopes: &s [infer]\nall: [" + "*s, " * 1000 + "]")["all"] == [["infer"]] * 1000
    assert yaml_text.read("base: &b {a: 1}\nmore: {<<: *b, c: 2}")["more"] == {"a": 1, "c": 2}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_yaml_is_a_value_error_of_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$"):
        yaml_text.read(text)
    for parse in (parse_model, parse_keys):
        with pytest.raises(ConfigError):
            parse(b"keys:\n  " + text.encode())


@given(st.sampled_from(TAGS), st.text(max_size=8) | st.sampled_from(["[1]", "{a: 1}", "1:2", "2020-13-40", "=", "<<"]))
@example("timestamp", "2020-13-40")
def test_no_tag_lets_another_error_out(tag: str, value: str) -> None:
    try:
        found = yaml_text.read(f"a: !!{tag} {value}")
    except ValueError:
        found = None
    assert found is None or "a" in found
