"""How much of a JSON text may be looked at value by value, each of which becomes a Python object."""

from gateway.errors import RequestError
from gateway.http.json_depth import count_up_to, outside_strings

LARGE = 32 << 10
"""Bytes: smaller texts are never refused."""
MOST_VALUES = 1 << 20
"""Values of a text."""
MOST_PIECES = 1 << 18
"""Its lists and strings, names included, and twice its objects: a quarter of a second."""

Text = bytes | bytearray


class Budget:
    """What may still be looked at in one document."""

    def __init__(self) -> None:
        self._values, self._pieces = MOST_VALUES, MOST_PIECES

    def take(self, text: Text) -> None:
        """RequestError if it would take long to look at all values of this text as well."""
        values, pieces = text.count(b",") + 1, text.count(b"[") + strings_and_objects(text)
        if values > self._values or pieces > self._pieces:  # unless they stand in strings
            values, pieces = 1, 0
            for part in outside_strings(text):
                values += part.count(b",")
                pieces += part.count(b"[") + 2 * part.count(b"{") + part.count(b'"')
        if pieces > self._pieces:
            raise RequestError(
                "the body holds too many lists, objects, keys and strings to look at each of them; "
                "send fewer at a time, or numbers as one array for each input"
            )
        if values > self._values:
            raise RequestError(
                f"the body holds more than {MOST_VALUES} values that are not all numbers of one array; "
                "send fewer at a time, or numbers as one array for each input"
            )
        self._values -= values
        self._pieces -= pieces


def strings_and_objects(text: Text, limit: int = MOST_PIECES) -> int:
    """No fewer than a text has, objects counted twice; or a number beyond the limit."""
    return 2 * count_up_to(text, b"{", limit) + count_up_to(text, b'"', 2 * limit) // 2


def check_strings(text: Text) -> None:
    """RequestError if a text has so many strings and objects that looking at each of them takes long."""
    if len(text) <= LARGE or strings_and_objects(text) <= MOST_PIECES:
        return
    if sum(2 * part.count(b"{") + part.count(b'"') for part in outside_strings(text)) > MOST_PIECES:
        raise RequestError(
            "the body holds too many objects, keys and strings to look at each of them; "
            "send fewer at a time, or numbers as one array for each input"
        )


def check(text: Text, sentence: str) -> None:
    """RequestError with a sentence of its own if it would take long to look at all values of a text."""
    if len(text) > LARGE:
        try:
            Budget().take(text)
        except RequestError:
            raise RequestError(sentence) from None
