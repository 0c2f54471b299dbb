import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import yaml_text
from gateway.errors import ConfigError
from gateway.keys import parse as parse_keys
from gateway.store.manifest import parse as parse_model

TAGS = ("bool", "int", "float", "null", "binary", "timestamp", "omap", "pairs", "set", "seq", "map", "str", "mine")
LAUGHS = "[&a [0], &b [*a, *a, *a], &c [*b, *b, *b], &d [*c, *c, *c], &e [*d, *d, *d], [*e, *e, *e, *e, *e]]"
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
