"""Encoded images in JSON, for models whose model.yaml declares that they take images: strings are base64.

Source: pytorch/serve ts/torch_handler/vision_handler.py and its KServe requests; a data URL is RFC 2397's.
"""

from typing import Any

from gateway.routing import Target

_DATA_URL = "data:"
_WRAPPERS = ("data", "body")
"""Keys of a row that TorchServe's handlers take an image from; they ignore all others."""


def takes_images(target: Target) -> bool:
    """Whether the default signature of a model takes encoded images."""
    return target.route.config.preprocessing.image is not None


def as_base64(value: Any) -> Any:
    """The value with {"b64": …} for each string, which no image can be as it is."""
    if isinstance(value, str):
        text = value.partition(",")[2] if value.startswith(_DATA_URL) else value
        return {"b64": "".join(text.split())}
    if isinstance(value, list):
        return [as_base64(each) for each in value]
    if isinstance(value, dict) and not _is_base64(value):
        return {key: as_base64(each) for key, each in value.items()}
    return value


def image_rows(rows: Any, name: str) -> Any:
    """The rows of `instances` as images for an input: bare, in {"data": …}, or in {"b64": …}, also under some name."""
    return [_image_of(row, name) for row in rows] if isinstance(rows, list) else rows


def _image_of(row: Any, name: str) -> Any:
    if isinstance(row, dict) and not _is_base64(row):
        keys = [key for key in (name, *_WRAPPERS) if key in row] or [key for key in row if _is_base64(row[key])]
        row = row[keys[0]] if keys else row
    return as_base64(row)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)
