"""Pixels of 16 bits, which Pillow would cut off at 255, as pixels of 8."""

import numpy as np
from PIL import Image


def in_8_bits(image: Image.Image) -> Image.Image:
    """An image of greys of 16 bits with the same greys in 8; any other as it is."""
    if not image.mode.startswith("I"):
        return image
    greys = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((greys * 255 + 32767) // 65535).astype(np.uint8))
