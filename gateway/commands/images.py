"""An image file as the array that a model takes, by the shape in its signature."""

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.errors import RequestError
from gateway.tensors import Array, TensorSpec

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
SUFFIXES = tuple(_FORMATS)
Size = tuple[int, int]
"""Height and width."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Layout(NamedTuple):
    """How an input holds one image; height and width are -1 where any will do."""

    axes: str
    """CHW, HWC, HW, or P where all pixels stand in a row."""
    channels: int
    height: int
    width: int


def layout_of(spec: TensorSpec, platform: str) -> Layout:
    """From a shape, with or without its batch: NCHW, NHWC, NHW, or NP if P is a square; RequestError if it is none."""
    shape = spec.shape or ()
    sizes = shape[1:] if len(shape) == 4 else shape
    if len(sizes) == 3 and (len(shape) == 4 or sizes[0] in _MODES or sizes[2] in _MODES):
        # Where the numbers leave it open: as the framework has it by default.
        open_to_both = (sizes[0] in _MODES) == (sizes[2] in _MODES)
        first = platform.startswith("pytorch") if open_to_both else sizes[0] in _MODES
        channels, height, width = sizes if first else (sizes[2], sizes[0], sizes[1])
        if channels not in (-1, *_MODES):
            raise RequestError(f"input '{spec.name}' has {channels} channels; an image has 1, 3 or 4")
        return Layout("CHW" if first else "HWC", 3 if channels < 0 else channels, height, width)
    if len(shape) == 3:
        return Layout("HW", 1, shape[1], shape[2])
    if len(shape) == 2 and shape[1] > 0 and (side := math.isqrt(shape[1])) ** 2 == shape[1]:
        return Layout("P", 1, side, side)
    shown = "unknown" if spec.shape is None else list(shape)
    raise RequestError(f"input '{spec.name}' takes no image, its shape is {shown}; give it as .npy or .json")


def array_of(path: Path, spec: TensorSpec, scale: float, platform: str, size: Size | None = None) -> Array:
    """The image, resized to `size` or else to the input's height and width, but not to those of a guess.

    Floats are 0 for black to `scale` for white, whole numbers 0 to 255. RequestError says what is wrong.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - for images only

    from gateway.pixels import in_8_bits  # noqa: PLC0415 - as above

    layout = layout_of(spec, platform)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=tuple(set(_FORMATS.values()))) as opened:
                image = in_8_bits(ImageOps.exif_transpose(opened)).convert(_MODES[layout.channels])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RequestError(f"{path} has too many pixels") from None
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError):
        raise RequestError(f"{path} is no image that can be read ({' '.join(SUFFIXES)})") from None
    height, width = size or _wanted(image.height, image.width, spec, layout)
    if 0 in (width, height) or width * height > (Image.MAX_IMAGE_PIXELS or 0):
        raise RequestError(f"input '{spec.name}' takes no image, it would have {width} x {height} pixels")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if spec.datatype in ("FP16", "BF16", "FP32", "FP64"):
        pixels = pixels.astype(np.float32) * np.float32(scale / 255)
    if layout.axes == "P":
        return pixels.reshape(-1)
    if layout.axes == "HW":
        return pixels
    pixels = pixels.reshape(height, width, layout.channels)
    return np.moveaxis(pixels, -1, 0) if layout.axes == "CHW" else pixels


def _wanted(height: int, width: int, spec: TensorSpec, layout: Layout) -> Size:
    """The size to send an image of this size in; RequestError if it would have to be one that is only a guess."""
    wanted = (height if layout.height < 0 else layout.height, width if layout.width < 0 else layout.width)
    if not spec.guessed or wanted == (height, width):
        return wanted
    if layout.axes == "P":
        raise RequestError(
            f"the shape of input '{spec.name}', {list(spec.shape or ())}, is only a guess, and images are not resized "
            f"for one; --resize {wanted[0]}x{wanted[1]} does it, or declare the input in model.yaml"
        )
    return height, width
