"""JSON documents whose arrays of numbers stay unconverted, and what bounds the work of looking at other values."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import RequestError
from gateway.http.json_codec import numbers
from gateway.http.json_codec.numbers import Numbers

LARGE = 32 << 10
"""Bytes: in larger texts arrays of numbers are read as such, and the number of all other values is bounded."""
MOST_VALUES = 1 << 20
"""Values of a text that are looked at one by one."""
MOST_PIECES = 1 << 18
"""Lists, strings and twice the objects of a large text that are looked at one by one: a quarter of a second."""
_BYTES_A_NAME = 1 << 10
"""Of text for each string in it: with fewer, looking for arrays in each row takes longer than reading it at once."""
_SHOWN_BYTES = 4 << 10
_SPACE = b" \t\r\n"
_decode = msgspec.json.Decoder().decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_rows = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode

Text = bytes | bytearray


class _Budget:
    """What may still be looked at one by one in a document."""

    def __init__(self) -> None:
        self._values, self._pieces = MOST_VALUES, MOST_PIECES

    def take(self, text: Text) -> None:
        """RequestError if it would take long to look at all values of this text as well."""
        self._values -= text.count(b",") + 1
        if self._values < 0:
            raise RequestError(
                f"the body holds more than {MOST_VALUES} values that are not all numbers of one array; "
                "send fewer at a time, or numbers as columnar 'inputs'"
            )
        self._pieces -= text.count(b"[") + _strings_and_objects(text)
        if self._pieces < 0:
            raise _too_many_pieces()


def _strings_and_objects(text: Text) -> int:
    return 2 * text.count(b"{") + text.count(b'"') // 2


def _too_many_pieces() -> RequestError:
    return RequestError(
        "the body holds too many lists, objects, keys and strings to look at each of them; "
        "send fewer at a time, or numbers as one array of columnar 'inputs'"
    )


def check_strings(text: Text) -> None:
    """RequestError if a text has so many strings and objects that looking at each of them takes long."""
    if len(text) > LARGE and _strings_and_objects(text) > MOST_PIECES:
        raise _too_many_pieces()


def read(text: Text) -> Any:
    """A large document with its regular arrays of numbers unconverted (Numbers): itself, or the members of an object.

    They are so too in an object that is the value of `inputs`, and in the objects that are the rows of `instances` or
    of the whole. The last of several members of the same name counts.
    RequestError if too much is left to look at; msgspec's errors for what is no JSON.
    """
    budget = _Budget()
    try:
        whole = _decode_raw(text)
        if bytes(memoryview(whole)[:1]) == b"{":
            return {name: _member(name, value, budget) for name, value in _decode_object(whole).items()}
        return _member("instances", whole, budget)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Not valid, which is told in the same words whatever the size.
        _Budget().take(text)
        return _decode(text)


def _member(name: str, raw: msgspec.Raw, budget: _Budget) -> Any:
    text = bytes(raw)
    first = text[:1]
    if name == "inputs" and first == b"{":
        return {key: _value(bytes(value), budget) for key, value in _decode_object(text).items()}
    if name == "instances" and first == b"[" and text[1:_SHOWN_BYTES].lstrip(_SPACE)[:1] == b"{":
        return _rows(text, budget)
    return _value(text, budget)


def _rows(text: bytes, budget: _Budget) -> Any:
    """Rows that are objects; in all of them, or in none, arrays of numbers stay unconverted."""
    if _strings_and_objects(text) * _BYTES_A_NAME <= len(text):
        try:
            rows = _decode_rows(text)
        except msgspec.ValidationError:  # not all are objects
            pass
        else:
            return [{name: _value(bytes(value), budget) for name, value in row.items()} for row in rows]
    budget.take(text)
    return _decode(text)


def _value(text: bytes, budget: _Budget) -> Any:
    """A valid JSON text as Python has it, or as Numbers if it is a regular array of them."""
    if text[:1] == b"[" and (found := numbers.read(text)) is not None:
        return found
    budget.take(text)
    return _decode(text)


def listed(values: Sequence[Any], too_many: str) -> list[Any]:
    """Values with Numbers as Python has them, to look at one by one; RequestError with a sentence if too many are."""
    texts = [each.text for each in values if isinstance(each, Numbers)]
    if sum(text.count(b",") for text in texts) > MOST_VALUES or sum(text.count(b"[") for text in texts) > MOST_PIECES:
        raise RequestError(too_many)
    return [_decode(each.text) if isinstance(each, Numbers) else each for each in values]


def beginning(found: Numbers) -> list[Any]:
    """The first numbers in their lists, for people to read."""
    text = found.text[: 4 * _SHOWN_BYTES].translate(None, _SPACE)
    if len(found.text) > 4 * _SHOWN_BYTES or len(text) > _SHOWN_BYTES:
        text = text[:_SHOWN_BYTES]
        text = text[: text.rfind(b",")] if b"," in text else b"["
        text += b"]" * (text.count(b"[") - text.count(b"]"))
    values: list[Any] = _decode(text)
    return values
