import numpy as np
from PIL import Image

from gateway.pixels import in_8_bits


def test_greys_of_16_bits_keep_their_share_of_white() -> None:
    for mode in (np.uint16, np.int32):
        found = in_8_bits(Image.fromarray(np.array([[0, 128, 129, 32768, 65535]], mode)))
        assert (found.mode, np.asarray(found).tolist()) == ("L", [[0, 0, 1, 128, 255]])


def test_other_images_are_left_as_they_are() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        image = Image.new(mode, (2, 2))
        assert in_8_bits(image) is image
