"""An image becomes what a model's signature asks for."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gateway.commands.images import Layout, array_of, layout_of
from gateway.errors import RequestError
from gateway.tensors import TensorSpec


def spec(shape: tuple[int, ...] | None, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec("image", datatype, shape)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """8 wide and 4 high; red left, white right."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4, 0] = 255
    pixels[:, 4:] = 255
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("shape", "platform", "layout"),
    [
        ((-1, 3, 224, 200), "tensorflow_savedmodel", Layout("CHW", 3, 224, 200)),
        ((-1, 224, 200, 3), "pytorch_torchscript", Layout("HWC", 3, 224, 200)),
        ((1, 1, 28, 28), "pytorch_torchscript", Layout("CHW", 1, 28, 28)),
        ((-1, 28, 28, 1), "tensorflow_savedmodel", Layout("HWC", 1, 28, 28)),
        ((-1, 3, -1, -1), "pytorch_torchscript", Layout("CHW", 3, -1, -1)),
        ((-1, -1, -1, -1), "pytorch_torchscript", Layout("CHW", 3, -1, -1)),
        ((-1, -1, -1, -1), "tensorflow_savedmodel", Layout("HWC", 3, -1, -1)),
        ((-1, 3, 5, 3), "tensorflow_savedmodel", Layout("HWC", 3, 3, 5)),
        ((3, 32, 32), "pytorch_torchscript", Layout("CHW", 3, 32, 32)),
        ((32, 32, 4), "tensorflow_savedmodel", Layout("HWC", 4, 32, 32)),
        ((-1, 28, 28), "tensorflow_savedmodel", Layout("HW", 1, 28, 28)),
        ((-1, 64), "pytorch_torchscript", Layout("P", 1, 8, 8)),
        ((-1, 784), "tensorflow_savedmodel", Layout("P", 1, 28, 28)),
    ],
)
def test_the_shape_says_how_an_image_lies(shape: tuple[int, ...], platform: str, layout: Layout) -> None:
    assert layout_of(spec(shape), platform) == layout


@pytest.mark.parametrize("shape", [None, (), (-1,), (-1, 63), (-1, -1), (1, 2, 3, 4, 5), (-1, 7, 8, 9)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...] | None) -> None:
    with pytest.raises(RequestError, match=r"input 'image' (takes no image|has 9 channels)"):
        layout_of(spec(shape), "tensorflow_savedmodel")


def test_the_image_is_resized_laid_out_and_scaled(picture: Path) -> None:
    torch, tensorflow = "pytorch_torchscript", "tensorflow_savedmodel"
    first = array_of(picture, spec((-1, 3, 4, 8)), 1.0, torch)
    assert (first.shape, first.dtype) == ((3, 4, 8), np.float32)
    assert first[:, 0, 0].tolist() == [1, 0, 0]
    assert first[:, 3, 7].tolist() == [1, 1, 1]
    last = array_of(picture, spec((-1, 4, 8, 3)), 1.0, tensorflow)
    assert np.array_equal(last, np.moveaxis(first, 0, -1))
    assert array_of(picture, spec((-1, 2, 2, 3)), 1.0, tensorflow).shape == (2, 2, 3)
    assert array_of(picture, spec((-1, -1, -1, 4)), 1.0, tensorflow).shape == (4, 8, 4)
    grey = array_of(picture, spec((-1, 1, 4, 8)), 255.0, torch)
    assert grey.shape == (1, 4, 8)
    assert grey[0, 0].tolist() == pytest.approx([76, 76, 76, 76, 255, 255, 255, 255])
    assert array_of(picture, spec((-1, 64)), 1.0, torch).shape == (64,)
    assert array_of(picture, spec((-1, 4, 8)), 1.0, torch).shape == (4, 8)


def test_whole_numbers_stay_0_to_255_whatever_the_scale(picture: Path) -> None:
    found = array_of(picture, spec((-1, 3, 4, 8), "UINT8"), 1.0, "pytorch_torchscript")
    assert found.dtype == np.uint8
    assert found[:, 0, 0].tolist() == [255, 0, 0]


def test_an_image_is_not_resized_to_a_size_that_is_only_a_guess(picture: Path) -> None:
    guess = TensorSpec("image", "FP32", (1, 3, 2, 2), strict=False, guessed=True)
    assert array_of(picture, guess, 1.0, "pytorch_torchscript").shape == (3, 4, 8)
    assert array_of(picture, guess, 1.0, "pytorch_torchscript", (2, 3)).shape == (3, 2, 3)
    flat = TensorSpec("image", "FP32", (1, 64), strict=False, guessed=True)
    with pytest.raises(RequestError, match=r"\[1, 64\], is only a guess.* --resize 8x8"):
        array_of(picture, flat, 1.0, "pytorch_torchscript")
    assert array_of(picture, flat, 1.0, "pytorch_torchscript", (8, 8)).shape == (64,)


def test_greys_of_16_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    greys = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(greys).save(tmp_path / "grey.png")
    found = array_of(tmp_path / "grey.png", spec((-1, 1, 1, 4), "UINT8"), 1.0, "pytorch_torchscript")
    assert found.tolist() == [[[0, 1, 128, 255]]]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".gif"])
def test_other_formats_are_read(picture: Path, suffix: str) -> None:
    with Image.open(picture) as image:
        image.save(picture.with_suffix(suffix))
    found = array_of(picture.with_suffix(suffix), spec((-1, 3, 4, 8)), 1.0, "pytorch_torchscript")
    assert found[:, 3, 7].tolist() == pytest.approx([1, 1, 1], abs=0.1)


def test_what_cannot_be_read_is_said_in_one_sentence(picture: Path, tmp_path: Path) -> None:
    content = picture.read_bytes()
    huge = bytearray(content)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    for name, data in (("torn", content[:45]), ("text", b"hello"), ("empty", b"")):
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        with pytest.raises((RequestError, OSError)) as caught:
            array_of(path, spec((-1, 3, 4, 8)), 1.0, "pytorch_torchscript")
        assert "\n" not in str(caught.value)
    (tmp_path / "huge.png").write_bytes(huge)
    with pytest.raises(RequestError, match=r"huge\.png has too many pixels"):
        array_of(tmp_path / "huge.png", spec((-1, 3, 4, 8)), 1.0, "pytorch_torchscript")
    with pytest.raises(RequestError, match="it would have 1000000 x 1000000 pixels"):
        array_of(picture, spec((-1, 3, 1_000_000, 1_000_000)), 1.0, "pytorch_torchscript")
