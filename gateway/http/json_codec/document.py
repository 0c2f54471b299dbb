"""Large JSON documents whose arrays of numbers stay unconverted."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import RequestError
from gateway.http.json_codec import numbers
from gateway.http.json_codec.budget import Budget, Text, strings_and_objects
from gateway.http.json_codec.numbers import Numbers

_BYTES_A_NAME = 1 << 10
"""Of text for each string in it: with fewer, looking for arrays in each row takes longer than reading it at once."""
_SHOWN_BYTES = 4 << 10
_SPACE = b" \t\r\n"
_decode = msgspec.json.Decoder().decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_rows = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def read(text: Text) -> Any:
    """A large document with its regular arrays of numbers unconverted (Numbers): itself, or the members of an object.

    They are so too in an object that is the value of `inputs`, and in the objects that are the rows of `instances` or
    of the whole. The last of several members of the same name counts.
    RequestError if too much is left to look at; msgspec's errors for what is no JSON.
    """
    budget = Budget()
    try:
        whole = _decode_raw(text)
        if bytes(memoryview(whole)[:1]) == b"{":
            return {name: _member(name, value, budget) for name, value in _decode_object(whole).items()}
        return _member("instances", whole, budget)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Not valid, which is told in the same words whatever the size.
        Budget().take(text)
        return _decode(text)


def _member(name: str, raw: msgspec.Raw, budget: Budget) -> Any:
    text = bytes(raw)
    first = text[:1]
    if name == "inputs" and first == b"{":
        return {key: _value(bytes(value), budget) for key, value in _decode_object(text).items()}
    if name == "instances" and first == b"[" and text[1:_SHOWN_BYTES].lstrip(_SPACE)[:1] == b"{":
        return _rows(text, budget)
    return _value(text, budget)


def _rows(text: bytes, budget: Budget) -> Any:
    """Rows that are objects; in all of them, or in none, arrays of numbers stay unconverted."""
    most = len(text) // _BYTES_A_NAME
    if strings_and_objects(text, most) <= most:
        try:
            rows = _decode_rows(text)
        except msgspec.ValidationError:  # not all are objects
            pass
        else:
            return [{name: _value(bytes(value), budget) for name, value in row.items()} for row in rows]
    budget.take(text)
    return _decode(text)


def _value(text: bytes, budget: Budget) -> Any:
    """A valid JSON text as Python has it, or as Numbers if it is a regular array of them."""
    if text[:1] == b"[" and (found := numbers.read(text)) is not None:
        return found
    budget.take(text)
    return _decode(text)


def listed(values: Sequence[Any], too_many: str) -> list[Any]:
    """Values with Numbers as Python has them, to look at one by one; RequestError with a sentence if too many are."""
    budget = Budget()
    try:
        for each in values:
            if isinstance(each, Numbers):
                budget.take(each.text)
    except RequestError:
        raise RequestError(too_many) from None
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
