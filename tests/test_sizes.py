import pytest

from gateway.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7),
        ("7", 7),
        ("512MB", 512_000_000),
        ("8GiB", 8 << 30),
        ("1.5 kB", 1500),
        ("2g".upper(), 2 * 10**9),
        ("0", 0),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "5 bananas", "1e9", -1, "MB", 10**30, "9" * 400])
def test_what_is_no_amount_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="no amount of memory"):
        parse_size(text)


def test_amounts_are_shown_with_a_unit_that_keeps_them_short() -> None:
    assert [format_size(size) for size in (0, 999, 8_300_000, 2 * 10**10, 3 * 10**13)] == [
        "0 B",
        "999 B",
        "8.3 MB",
        "20.0 GB",
        "30.0 TB",
    ]
