from typing import Any

import pytest

from gateway.http.json_images import as_base64, image_rows


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [
        ("YQ==", {"b64": "YQ=="}),
        ("YQ\n==", {"b64": "YQ=="}),
        ("data:image/png;base64,YQ==", {"b64": "YQ=="}),
        ({"b64": "YQ=="}, {"b64": "YQ=="}),
        (["YQ==", {"b64": "Yg=="}], [{"b64": "YQ=="}, {"b64": "Yg=="}]),
        ({"data": "YQ=="}, {"data": {"b64": "YQ=="}}),
        ({"images": ["YQ=="]}, {"images": [{"b64": "YQ=="}]}),
        (3, 3),
    ],
)
def test_strings_are_base64(value: Any, bytes_: Any) -> None:
    assert as_base64(value) == bytes_


def test_a_row_holds_its_image_under_one_of_several_keys() -> None:
    rows = ["YQ==", {"b64": "YQ=="}, {"data": "YQ==", "target": 0}, {"body": {"b64": "YQ=="}}, {"image": "YQ=="}]
    rows += [{"image": {"b64": "YQ=="}}, {"image_bytes": {"b64": "YQ=="}, "key": "1"}]
    assert image_rows(rows, "image") == [{"b64": "YQ=="}] * len(rows)
    assert image_rows(3, "image") == 3
