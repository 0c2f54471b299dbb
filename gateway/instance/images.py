"""Encoded images to the tensor that a model takes, number for number as torchvision's transforms make it.

Resize, CenterCrop, ToTensor and Normalize: torchvision/transforms/functional.py of torchvision 0.15 and newer, on
Pillow images. Images are hostile: few formats are read, and the pixels of one are bounded before any is decoded.
"""

import copy as ___  # noqa: F401 - which Pillow's reader of GIFs imports when it reads one
import io
import math
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import MpoImagePlugin as _  # noqa: F401 - of the JPEG files of many telephones, which hold a second image
from PIL import WebPImagePlugin as __  # noqa: F401 - the only one of FORMATS that preinit leaves out

from gateway.errors import LoadFailed, RequestError
from gateway.pixels import in_8_bits
from gateway.store.processing import ImageConfig, Layout
from gateway.tensors import DTYPES, Array, TensorSpec

MAX_PIXELS = 1 << 26
"""Of one image, as it was sent and as it is resized: 67 million, a quarter of a gigabyte."""
MAX_BATCH_BYTES = 1 << 30
"""Of the tensor that the images of one batch make."""
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
READABLE = "PNG, JPEG, GIF, BMP or WebP"
_DATATYPES = ("FP32", "FP16", "BF16", "FP64", "UINT8")
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Now, in the process that all instances are forked from; else each would load it anew, inside of its sandbox.
Image.preinit()
# Pillow warns above this and raises above twice as much, also where a plugin learns of a size on its way.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2


def image_input(config: ImageConfig, spec: TensorSpec, usual: Layout) -> tuple[TensorSpec, Layout]:
    """The tensor that preprocessing makes for a model's input, with its batch dimension, and its layout.

    `usual` is the layout of the model's framework. LoadFailed if the input is for something else.
    """
    height, width = config.size
    forms: dict[Layout, tuple[int, int, int]] = {
        "NCHW": (config.channels, height, width),
        "NHWC": (height, width, config.channels),
    }
    layouts = [config.layout] if config.layout else sorted(forms, key=lambda each: each != usual)
    known = spec.shape if spec.strict else None
    batch = known[0] if known else -1
    fitting = [each for each in layouts if known is None or _fits(known, (batch, *forms[each]))]
    if not fitting or spec.datatype not in _DATATYPES:
        made = " or ".join(str([batch, *forms[each]]) for each in layouts)
        wanted = "" if known is None else f" {list(known)}"
        raise LoadFailed(f"preprocessing.image makes {made}, but input '{spec.name}' takes {spec.datatype}{wanted}")
    if spec.datatype == "UINT8" and (config.mean or config.std or config.scale):
        raise LoadFailed(f"input '{spec.name}' takes UINT8: preprocessing.image cannot have mean, std or scale")
    return TensorSpec(spec.name, spec.datatype, (batch, *forms[fitting[0]])), fitting[0]


def _fits(shape: Sequence[int], made: Sequence[int]) -> bool:
    return len(shape) == len(made) and all(have in (-1, want) for have, want in zip(shape, made, strict=True))


class ImageReader:
    """Makes the tensor of a model's input, which has the form of `spec`; LoadFailed as `image_input`."""

    def __init__(self, config: ImageConfig, spec: TensorSpec, usual: Layout) -> None:
        self.spec, layout = image_input(config, spec, usual)
        self._config = config
        self._batch, *self._shape = self.spec.shape or ()
        self._dtype = DTYPES[spec.datatype]
        self._channels_first = layout == "NCHW"
        self._mode = "L" if config.color == "L" else "RGB"
        self._scale = np.float32(config.scale or 255.0)
        around = (config.channels, 1, 1) if self._channels_first else (1, 1, config.channels)
        self._mean, self._std = (
            None if values is None else np.array(values, np.float32).reshape(around)
            for values in (config.mean, config.std)
        )

    def read(self, images: Array) -> Array:
        """A tensor of one row for each encoded image; RequestError names the row that is none.

        `images` is an object array [n] of bytes.
        """
        name = self.spec.name
        if images.dtype != object or images.ndim != 1:
            raise RequestError(f"input '{name}' takes encoded images, BYTES of shape [-1]")
        most = MAX_BATCH_BYTES // (math.prod(self._shape) * self._dtype.itemsize)
        if len(images) > most:
            raise RequestError(f"input '{name}' holds {len(images)} images, {most} are the most in one request")
        tensor = np.empty((len(images), *self._shape), self._dtype)
        for row, data in enumerate(images.tolist()):
            try:
                self._fill(tensor[row, ...], _pixels(data, self._config, self._mode))
            except RequestError as error:
                raise RequestError(f"input '{name}' row {row} {error.message}") from None
        return tensor

    def noise(self) -> Array:
        """The tensor of images that show nothing, of as few rows as the model takes."""
        rows = max(self._batch, 1)
        height, width = self._config.size
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, self._config.channels), np.uint8)
        tensor = np.empty((rows, *self._shape), self._dtype)
        for row in range(rows):
            self._fill(tensor[row, ...], pixels)
        return tensor

    def _fill(self, row: Array, pixels: Array) -> None:
        """ToTensor and Normalize, in torchvision's order and precision."""
        if pixels.ndim == 2:
            pixels = pixels[..., np.newaxis]
        elif self._config.color == "BGR":
            pixels = pixels[..., ::-1]
        if self._channels_first:
            pixels = pixels.transpose(2, 0, 1)
        if self._dtype == np.uint8:
            row[...] = pixels
            return
        values = row if self._dtype == np.float32 else np.empty(row.shape, np.float32)
        np.divide(pixels, self._scale, out=values, dtype=np.float32)
        if self._mean is not None:
            np.subtract(values, self._mean, out=values)
        if self._std is not None:
            np.divide(values, self._std, out=values)
        if values is not row:
            row[...] = values.astype(self._dtype)


def _pixels(data: object, config: ImageConfig, mode: str) -> Array:
    """The pixels of the first frame, resized and cropped: UINT8 [height, width, channels], without these if grey.

    RequestError, the end of a sentence, if the data are no image or too large a one.
    """
    if not isinstance(data, bytes):
        raise RequestError("holds no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow has opinions about some images, but not for whom it could tell
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                plain = in_8_bits(image).convert(mode)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise RequestError(f"is an image of more than {MAX_PIXELS} pixels") from None
    except Exception:  # noqa: BLE001 - whatever a decoder stumbles over, it is the image's fault
        raise RequestError(f"is no image that can be read ({READABLE})") from None
    if not plain.width or not plain.height:
        raise RequestError("is an image without pixels")
    return np.asarray(_cropped(_resized(plain, config), config), np.uint8)


def _resized(image: Image.Image, config: ImageConfig) -> Image.Image:
    """Torchvision's Resize: the shorter side to one number, the other in proportion and rounded down; or to both."""
    if config.resize is None:
        return image
    width, height = image.size
    if isinstance(config.resize, int):
        short, long = min(width, height), max(width, height)
        other = int(config.resize * long / short)
        size = (config.resize, other) if width <= height else (other, config.resize)
    else:
        size = (config.resize[1], config.resize[0])
    if size == image.size:
        return image
    if size[0] * size[1] > MAX_PIXELS:
        raise RequestError(f"is an image that is too narrow: resized it has more than {MAX_PIXELS} pixels")
    return image.resize(size, _RESAMPLING[config.interpolation])


def _cropped(image: Image.Image, config: ImageConfig) -> Image.Image:
    """Torchvision's CenterCrop: halves are rounded to even, a smaller image gets a black frame."""
    if config.crop is None:
        return image
    height, width = config.size
    left, top = _start(image.width, width), _start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _start(size: int, wanted: int) -> int:
    """Where the crop begins along one side; negative in the frame."""
    return -((wanted - size) // 2) if wanted > size else round((size - wanted) / 2.0)
