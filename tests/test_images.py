"""Images become the tensors that torchvision would make; its transforms are written out here with torch and Pillow."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import gateway
from gateway.errors import LoadFailed, RequestError
from gateway.instance import images as module
from gateway.instance.images import ImageReader, image_input
from gateway.store.processing import ImageConfig
from gateway.tensors import Array, TensorSpec

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ANY = TensorSpec("x", "FP32", None)
Images = dict[str, dict[str, bytes]]


def reader(spec: TensorSpec = ANY, **config: Any) -> ImageReader:
    return ImageReader(ImageConfig(**config), spec, "NCHW")


def rows(*files: bytes) -> Array:
    found = np.empty(len(files), dtype=object)
    found[:] = files
    return found


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def torchvision(image: Image.Image, config: ImageConfig) -> Any:
    """Resize, CenterCrop, ToTensor and Normalize of torchvision 0.15: transforms/functional.py, _functional_pil.py."""
    image = image.convert("RGB")
    if isinstance(config.resize, int):  # _compute_resized_output_size
        width, height = image.size
        short, long = (width, height) if width <= height else (height, width)
        new_short, new_long = config.resize, int(config.resize * long / short)
        size = (new_short, new_long) if width <= height else (new_long, new_short)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if isinstance(config.crop, int):  # center_crop
        crop = config.crop
        width, height = image.size
        if crop > width or crop > height:
            padding = (
                (crop - width) // 2 if crop > width else 0,
                (crop - height) // 2 if crop > height else 0,
                (crop - width + 1) // 2 if crop > width else 0,
                (crop - height + 1) // 2 if crop > height else 0,
            )
            image = ImageOps.expand(image, padding, 0)
            width, height = image.size
        top, left = int(round((height - crop) / 2.0)), int(round((width - crop) / 2.0))  # noqa: RUF046 - as it is there
        image = image.crop((left, top, left + crop, top + crop))
    tensor = torch.from_numpy(np.array(image, np.uint8, copy=True)).permute(2, 0, 1).contiguous()
    tensor = tensor.to(torch.float32).div(255)
    if config.mean is not None and config.std is not None:
        mean, std = (torch.as_tensor(values, dtype=torch.float32) for values in (config.mean, config.std))
        tensor.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
    return tensor


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60) | st.none(), st.integers(1, 60), st.integers(0, 9))
def test_every_size_is_resized_cropped_and_normalised_as_by_torchvision(
    width: int, height: int, resize: int | None, crop: int, seed: int
) -> None:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    config = ImageConfig(resize, crop, MEAN, STD)
    found = ImageReader(config, ANY, "NCHW").read(rows(png(image)))
    assert np.array_equal(found[0], torchvision(image, config).numpy())


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference; the reader keeps quiet
def test_every_format_and_colour_is_read_as_pillow_reads_its_first_frame(images: Images) -> None:
    config = ImageConfig(40, 32, MEAN, STD)
    made = ImageReader(config, ANY, "NCHW").read(rows(*images["good"].values()))
    for row, (name, content) in zip(made, images["good"].items(), strict=True):
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(row, torchvision(image, config).numpy()), name
    colours = dict(zip(images["good"], made[:, 0].mean(axis=(1, 2)) - made[:, 2].mean(axis=(1, 2)), strict=True))
    for name in ("animated.gif", "animated.webp", "animated.png", "two_in_one.jpg"):  # and not of the red second one
        assert colours[name] == pytest.approx(colours["plain.png"], abs=0.2)


def test_layout_colour_scale_and_type_follow_what_is_declared() -> None:
    image = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10)
    pixels, file = np.asarray(image), rows(png(image))
    plain = reader(resize=[2, 3]).read(file)
    assert plain.shape == (1, 3, 2, 3)
    assert np.array_equal(plain[0], pixels.transpose(2, 0, 1) / np.float32(255))
    assert np.array_equal(reader(resize=[2, 3], layout="NHWC", scale=1.0).read(file)[0], pixels.astype(np.float32))
    assert np.array_equal(reader(resize=[2, 3], layout="NHWC", scale=1.0, color="BGR").read(file)[0], pixels[..., ::-1])
    grey = reader(resize=[2, 3], color="L", mean=[0.5], std=[0.5]).read(file)
    assert np.array_equal(grey[0, 0], (np.asarray(image.convert("L")) / np.float32(255) - np.float32(0.5)) / 0.5)
    whole = ImageReader(ImageConfig([2, 3]), TensorSpec("x", "UINT8", (-1, 2, 3, 3)), "NCHW").read(file)
    assert whole.dtype == np.uint8
    assert np.array_equal(whole[0], pixels)
    half = reader(TensorSpec("x", "FP16", None), resize=[2, 3]).read(file)
    assert np.array_equal(half, plain.astype(np.float16))


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_each_way_to_interpolate_is_pillows(method: str, images: Images) -> None:
    with Image.open(io.BytesIO(images["good"]["plain.png"])) as image:
        expected = np.asarray(image.resize((20, 30), Image.Resampling[method.upper()]))
    found = reader(resize=[30, 20], interpolation=method, layout="NHWC", scale=1.0).read(
        rows(images["good"]["plain.png"])
    )
    assert np.array_equal(found[0], expected)


@pytest.mark.parametrize(
    "name",
    [
        "bomb.png", "text_bomb.png", "narrow.png", "huge_dimensions.png", "huge_dimensions.gif", "huge_dimensions.bmp",
        "zero_size.png", "zero_size.bmp", "truncated.png", "truncated.jpg", "truncated.gif", "truncated.webp",
        "truncated.bmp", "head_only.jpg", "other_format.tiff", "other_format.ppm", "not_an_image.txt", "script.svg",
        "postscript.eps", "nothing.png",
    ],
)  # fmt: skip
def test_a_hostile_image_is_one_sentence_that_names_its_row(name: str, images: Images) -> None:
    assert name in images["bad"]
    with pytest.raises(RequestError, match=r"^input 'x' row 1 is ") as refused:
        reader(resize=1000, crop=8).read(rows(images["good"]["plain.png"], images["bad"][name]))
    large = name.startswith(("bomb", "narrow", "huge"))
    assert ("pixels" if large else "no image that can be read (PNG, JPEG") in refused.value.message


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_bytes_come_they_are_an_image_or_a_sentence(images: Images, data: st.DataObject) -> None:
    content = bytearray(images["good"][data.draw(st.sampled_from(sorted(images["good"])))])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        said = str(reader(crop=8).read(rows(bytes(content))).shape)
    except RequestError as error:
        said = error.message
    assert said == "(1, 3, 8, 8)" or said.startswith("input 'x' row 0 is ")


@pytest.mark.parametrize("images", [np.zeros(1, np.float32), np.full((1, 1), b"", object), np.array(b"", object)])
def test_only_a_row_of_encoded_images_is_taken(images: Array) -> None:
    with pytest.raises(RequestError, match=r"BYTES of shape \[-1\]"):
        reader(crop=8).read(images)
    with pytest.raises(RequestError, match="holds no bytes"):
        reader(crop=8).read(rows("text"))  # type: ignore[arg-type]


def test_no_images_are_no_rows_and_too_many_are_refused_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reader(crop=8).read(rows()).shape == (0, 3, 8, 8)
    monkeypatch.setattr(module, "MAX_BATCH_BYTES", 2 * 3 * 8 * 8 * 4)
    with pytest.raises(RequestError, match="holds 3 images, 2 are the most"):
        reader(crop=8).read(rows(b"", b"", b""))


def test_the_layout_is_what_the_input_shows_else_what_its_framework_is_used_to() -> None:
    config = ImageConfig(crop=[8, 9])
    assert image_input(config, ANY, "NCHW") == (TensorSpec("x", "FP32", (-1, 3, 8, 9)), "NCHW")
    assert image_input(config, ANY, "NHWC") == (TensorSpec("x", "FP32", (-1, 8, 9, 3)), "NHWC")
    for shape, layout in {(-1, -1, -1, 3): "NHWC", (-1, 3, -1, -1): "NCHW", (4, 8, 9, 3): "NHWC"}.items():
        made, found = image_input(config, TensorSpec("x", "FP32", shape), "NCHW")
        assert found == layout
        assert made.shape is not None
        assert made.shape[0] == shape[0]
    guessed = TensorSpec("x", "FP32", (1, 3, 32, 32), strict=False)
    assert image_input(config, guessed, "NCHW")[0].shape == (-1, 3, 8, 9)


@pytest.mark.parametrize(
    ("spec", "config", "words"),
    [
        (TensorSpec("x", "FP32", (-1, 16)), {}, r"makes \[-1, 3, 8, 8\] or \[-1, 8, 8, 3\], but input 'x' takes FP32"),
        (TensorSpec("x", "FP32", (-1, 3, 9, 9)), {}, "makes"),
        (TensorSpec("x", "FP32", (-1, 8, 8, 1)), {}, "makes"),
        (TensorSpec("x", "FP32", (-1, 3, 8, 8)), {"layout": "NHWC"}, r"makes \[-1, 8, 8, 3\], but"),
        (TensorSpec("x", "BYTES", (-1,)), {}, "takes BYTES"),
        (TensorSpec("x", "INT64", None), {}, "takes INT64"),
        (TensorSpec("x", "UINT8", None), {"mean": [1.0, 1.0, 1.0]}, "takes UINT8: .* cannot have mean"),
    ],
)
def test_an_input_for_something_else_is_refused_in_one_sentence(
    spec: TensorSpec, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(LoadFailed, match=words):
        image_input(ImageConfig(crop=8, **config), spec, "NCHW")


def test_nothing_is_imported_when_images_are_read_and_no_thread_is_started(images: Images, tmp_path: Path) -> None:
    for name, content in {**images["good"], **images["bad"]}.items():
        (tmp_path / name).write_bytes(content)
    code = """if True:
        import os, pathlib, sys
        import numpy as np
        from gateway.errors import RequestError
        from gateway.instance.images import ImageReader
        from gateway.store.processing import ImageConfig
        from gateway.tensors import TensorSpec
        assert len(os.listdir("/proc/self/task")) == 1
        reader = ImageReader(ImageConfig(40, 32), TensorSpec("x", "FP32", None), "NCHW")
        files = [path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()]
        before = set(sys.modules)
        for content in files:
            row = np.empty(1, dtype=object)
            row[0] = content
            try:
                reader.read(row)
            except RequestError:
                pass
        print(sorted(set(sys.modules) - before), len(os.listdir("/proc/self/task")))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        check=False, capture_output=True, text=True, cwd=Path(gateway.__file__).parents[1], timeout=60,
        env={"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[] 1\n", "")


@pytest.mark.parametrize("color", ["L", "RGB"])
def test_16_bits_are_scaled_and_not_cut_off_and_other_modes_are_read(color: str) -> None:
    fine = reader(resize=[1, 4], color=color)
    greys = np.array([[0, 257, 32768, 65535]], np.uint16)
    wanted = np.array([0, 1, 128, 255], np.float32) / 255
    (row,) = fine.read(rows(png(Image.fromarray(greys))))
    assert all(np.allclose(channel[0], wanted) for channel in row)
    eight = Image.fromarray((greys // 257).astype(np.uint8))
    for mode in ("1", "P", "LA", "RGBA"):
        (row,) = fine.read(rows(png(eight.convert(mode))))
        plain = np.asarray(eight.convert(mode).convert("L"), np.float32)[0] / 255
        assert all(np.allclose(channel[0], plain, atol=1 / 255) for channel in row), mode
    file = io.BytesIO()
    Image.new("CMYK", (4, 1), (0, 0, 0, 255)).save(file, "JPEG")
    (row,) = fine.read(rows(file.getvalue()))
    assert row.max() < 0.2
