"""Protocol buffers' text format, without a schema: what stands in the file, as lists by field name.

https://protobuf.dev/reference/protobuf/textformat-spec/; extensions and Any in brackets are refused.
"""

import re
from typing import Any

from google.protobuf import text_format

from gateway.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000
_CLOSES = {"{": "}", "<": ">"}

_QUOTES = ("'", '"')
_ESCAPES = rb"""[abfnrtv\\'"?]|[0-3]?[0-7]{1,2}|[xX][0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|U00[01][0-9a-fA-F]{5}"""
_ESCAPE = re.compile(rb"\\(" + _ESCAPES + rb")")
_STRING = re.compile(r"(?:[^\\]|\\(?:" + _ESCAPES.decode() + "))*+", re.DOTALL)
_LETTERS = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))

Tree = dict[str, list[Any]]
"""Field name → its values in their order: Word, str, int, float or another Tree."""


class Word(str):
    """A value without quotes: a constant of an enumeration, true or false."""

    __slots__ = ()


def parse(text: bytes, title: str) -> Tree:
    """What `text` says; ConfigError, which begins with `title`, with the line where it is wrong."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{title} is larger than {MAX_BYTES} bytes")
    try:
        # The lines of the format end with a line feed; splitlines would end them at a form feed as well.
        return _Reader(text.decode().split("\n")).everything()
    except UnicodeDecodeError:
        raise ConfigError(f"{title} is not UTF-8 text") from None
    except text_format.ParseError as error:
        raise ConfigError(f"{title} is not in protobuf's text format: {_first_words(str(error))}") from None
    except ValueError:
        raise ConfigError(f"{title} is not in protobuf's text format") from None


def _first_words(text: str) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= 200 else f"{text[:60]} … {text[-100:]}"  # the reason stands at the end


def _unescaped(match: "re.Match[bytes]") -> bytes:
    """What an escape stands for: a byte of UTF-8, or a character."""
    said = match[1]
    if said[:1] in b"uU":
        return chr(int(said[1:], 16)).encode()
    if said[:1] in b"xX":
        return bytes([int(said[1:], 16)])
    if said[:1].isdigit():
        return bytes([int(said, 8)])
    return bytes([_LETTERS.get(said[0], said[0])])


class _Reader:
    """Walks once through the tokens."""

    def __init__(self, lines: list[str]) -> None:
        self._tokens = text_format.Tokenizer(lines)
        self._left = MAX_VALUES

    def everything(self) -> Tree:
        return self._fields("", 0)

    def _fields(self, end: str, depth: int) -> Tree:
        tokens = self._tokens
        found: Tree = {}
        while not (tokens.TryConsume(end) if end else tokens.AtEnd()):
            name = tokens.ConsumeIdentifier()
            colon = tokens.TryConsume(":")
            if tokens.TryConsume("["):
                found.setdefault(name, []).extend(self._list(depth))
            elif not colon and tokens.token not in _CLOSES:
                raise tokens.ParseError('Expected ":".')
            else:
                found.setdefault(name, []).append(self._value(depth))
            _ = tokens.TryConsume(",") or tokens.TryConsume(";")
        return found

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        if self._tokens.TryConsume("]"):
            return found
        while True:
            found.append(self._value(depth))
            if self._tokens.TryConsume("]"):
                return found
            self._tokens.Consume(",")

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._tokens.ParseError(f"more than {MAX_VALUES} values.")

    def _value(self, depth: int) -> Any:
        tokens = self._tokens
        self._count()
        if (end := _CLOSES.get(tokens.token)) is not None:
            if depth == MAX_DEPTH:
                raise tokens.ParseError(f"nested more than {MAX_DEPTH} deep.")
            tokens.NextToken()
            return self._fields(end, depth + 1)
        if tokens.token[:1] in _QUOTES:
            return self._strings()
        if tokens.token[:1].isalpha() or tokens.token[:1] == "_":
            return Word(tokens.ConsumeIdentifier())
        return self._number()

    def _strings(self) -> str:
        """Strings that stand behind each other are one; the tokenizer's own unescaping warns where it should refuse."""
        tokens = self._tokens
        found: list[bytes] = []
        while tokens.token[:1] in _QUOTES:
            token = tokens.token
            if len(token) < 2 or token[-1] != token[0] or not _STRING.fullmatch(token[1:-1]):
                raise tokens.ParseError("a string has no end, or an escape that is none.")
            if found:
                self._count()
            found.append(_ESCAPE.sub(_unescaped, token[1:-1].encode()))
            tokens.NextToken()
        return b"".join(found).decode()

    def _number(self) -> int | float:
        tokens = self._tokens
        try:
            number = int(tokens.ConsumeInteger())
        except text_format.ParseError:
            return float(tokens.ConsumeFloat())
        if not -(1 << 63) <= number < 1 << 64:
            raise tokens.ParseError("an integer has more than 64 bits.")
        return number
