"""Declared pre- and post-processing: of a model that is made up, and of real ones through the whole gateway."""

import asyncio
import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from gateway.errors import InferenceFailed, LoadFailed, RequestError
from gateway.instance.handlers import HandledModel, handled, with_image_input
from gateway.instance.row_separation import RowSeparation
from gateway.ipc.batching import Batching
from gateway.store.manifest import ModelConfig, TensorConfig, parse
from gateway.tensors import Array, Signature, TensorSpec, pack_bytes

Images = dict[str, dict[str, bytes]]
IMAGE = "preprocessing: {image: {crop: 8}}\n"
CLASSES = "postprocessing: {classes: {top: 2, softmax: false, names: [cat, dog]}}\n"


class Scores:
    """A model that sums the pixels of each channel, and keeps count of what it is asked."""

    platform = "pytorch_torchscript"
    default_signature = "forward"

    def __init__(self, *inputs: TensorSpec, obstacle: str | None = None) -> None:
        specs = inputs or (TensorSpec("x", "FP32", (-1, 3, 8, 8)),)
        outputs = (TensorSpec("sums", "FP32", (-1, 3)), TensorSpec("rows", "INT64", (-1,)))
        self.signatures = {
            "forward": Signature("forward", specs, outputs),
            "other": Signature("other", (TensorSpec("y", "FP32", (-1,)),), ()),
        }
        self.notes = ["a note"]
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self.obstacle = obstacle

    def execute(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        (array,) = inputs.values()
        self.asked.append((signature, array.shape))
        if array.shape[1:] != (3, 8, 8):
            raise InferenceFailed("the model raised")
        return {"sums": array.sum(axis=(2, 3)), "rows": np.arange(len(array))}

    def example(self, signature: str) -> dict[str, Array] | None:  # noqa: ARG002 - of the protocol
        if self.obstacle:
            return None
        return {"x": np.zeros((1, 3, 8, 8), np.float32)}

    optimised = False
    trouble = ""

    def rest(self) -> float:
        return -1.0

    def device_memory(self) -> int | None:
        return 7

    def batching_obstacle(self, signature: str) -> str | None:  # noqa: ARG002 - as above
        return self.obstacle

    def row_separation(self, _: str) -> RowSeparation:
        return RowSeparation("unknown", "a model of numpy has no graph")


def wrapped(text: str, model: Any = None) -> HandledModel:
    found = handled(model or Scores(), parse(text))
    assert isinstance(found, HandledModel)
    return found


def rows(*files: bytes) -> Array:
    found = np.empty(len(files), dtype=object)
    found[:] = files
    return found


def colour(red: int, green: int, blue: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


def test_a_model_without_a_declaration_is_itself() -> None:
    model = Scores()
    assert handled(model, ModelConfig()) is model
    assert handled(model, parse("preprocessing: {}\npostprocessing: {}\n")) is model


def test_an_image_becomes_the_input_and_the_most_probable_classes_come_back() -> None:
    model = wrapped(IMAGE + CLASSES)
    signature = model.signatures["forward"]
    assert signature.inputs == (TensorSpec("x", "BYTES", (-1,)),)
    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.outputs] == [
        ("labels", "BYTES", (-1, 2)), ("probabilities", "FP32", (-1, 2)), ("rows", "INT64", (-1,)),
    ]  # fmt: skip
    answer = model.execute("forward", {"x": rows(colour(0, 0, 255), colour(0, 255, 51))})
    assert answer["labels"].tolist() == [[b"2", b"cat"], [b"dog", b"2"]]
    assert answer["probabilities"].tolist() == [[64.0, 0.0], [64.0, pytest.approx(12.8)]]
    assert answer["rows"].tolist() == [0, 1]
    assert model.notes[0] == "a note"
    assert "become FP32 [-1, 3, 8, 8]" in model.notes[1]
    assert model.notes[2] == "postprocessing: the 2 most probable of 3 classes, for which there are 2 labels"


def test_either_may_be_declared_without_the_other() -> None:
    images = wrapped(IMAGE)
    assert images.execute("forward", {"x": rows(colour(255, 0, 0))})["sums"].tolist() == [[64.0, 0.0, 0.0]]
    assert images.signatures["forward"].outputs == Scores().signatures["forward"].outputs
    classes = wrapped(CLASSES)
    assert classes.signatures["forward"].inputs == Scores().signatures["forward"].inputs
    answer = classes.execute("forward", {"x": np.ones((2, 3, 8, 8), np.float32)})
    assert answer["labels"].tolist() == [[b"cat", b"dog"]] * 2


def test_other_signatures_stay_as_they_are() -> None:
    inner = Scores()
    model = wrapped(IMAGE + CLASSES, inner)
    assert model.signatures["other"] is inner.signatures["other"]
    assert set(model.execute("other", {"y": np.ones((1, 3, 8, 8), np.float32)})) == {"sums", "rows"}
    assert model.device_memory() == 7
    assert model.example("forward") is None
    assert model.example("other") is not None


def test_what_was_proved_of_the_model_holds_for_rows_of_images() -> None:
    model, form = wrapped(IMAGE), {"forward": {"x": ("FP32", 4)}}
    assert model.batching(Batching(32, "on", form)) == Batching(32, "on", {"forward": {"x": ("BYTES", 1)}})
    assert model.batching(Batching(8, "model.yaml says so")).proved is None
    assert wrapped(CLASSES).batching(Batching(32, "on", form)) == Batching(32, "on", form)


def test_a_missing_input_and_a_bad_row_are_the_requests_fault() -> None:
    model = wrapped(IMAGE)
    with pytest.raises(RequestError, match="input 'x' is missing"):
        model.execute("forward", {})
    with pytest.raises(RequestError, match="input 'x' row 1 is no image that can be read"):
        model.execute("forward", {"x": rows(colour(0, 0, 0), b"hello")})


def test_a_model_that_must_not_be_tried_is_not_called() -> None:
    for inner, text in ((Scores(), "stateful: true\n"), (Scores(obstacle="it keeps state"), "")):
        model = wrapped(text + IMAGE + CLASSES, inner)
        assert inner.asked == []
        assert [spec.shape for spec in model.signatures["forward"].outputs[:2]] == [(-1, -1), (-1, -1)]


@pytest.mark.parametrize(
    ("model", "text", "words"),
    [
        (Scores(TensorSpec("a", "FP32", None), TensorSpec("b", "FP32", None)), IMAGE, "with one input; .* 'a', 'b'"),
        (Scores(TensorSpec("x", "FP32", (-1, 4))), IMAGE, "but input 'x' takes FP32"),
        (
            Scores(TensorSpec("x", "FP32", None)),
            "preprocessing: {image: {crop: 9}}",
            r"does not take FP32 \[1, 3, 9, 9\] from preprocessing.image: the model raised",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_at_load(model: Scores, text: str, words: str) -> None:
    with pytest.raises(LoadFailed, match=words):
        handled(model, parse(text))


def test_outputs_that_are_no_scores_or_have_our_names_are_refused_at_load() -> None:
    class Flat(Scores):
        def execute(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return {"sums": super().execute(signature, inputs)["sums"].ravel()}

    with pytest.raises(LoadFailed, match=r"shape \[rows, classes\], the model's has \[3\]"):
        handled(Flat(), parse(CLASSES))
    model = Scores()
    outputs = (TensorSpec("sums", "FP32", None), TensorSpec("labels", "BYTES", None))
    model.signatures["forward"] = msgspec.structs.replace(model.signatures["forward"], outputs=outputs)
    with pytest.raises(LoadFailed, match="makes an output 'labels', which the model has already"):
        handled(model, parse(CLASSES))


def test_scores_that_are_probabilities_already_are_worth_a_note() -> None:
    class Probable(Scores):
        def execute(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return {"sums": np.full((len(super().execute(signature, inputs)["sums"]), 4), 0.25, np.float32)}

    softmax = "postprocessing: {classes: {}}"
    assert "softmax: false is probably meant" in wrapped(softmax, Probable()).notes[-1]
    assert "softmax" not in wrapped(CLASSES, Probable()).notes[-1]


def test_the_inner_model_is_declared_as_what_it_gets_unless_model_yaml_declares_it() -> None:
    config, spec = parse(IMAGE), TensorSpec("x", "FP32", None)
    for platform, shape in {"tensorflow_savedmodel": [-1, 8, 8, 3], "pytorch_torchscript": [-1, 3, 8, 8]}.items():
        assert with_image_input(config, [spec], platform).inputs == [TensorConfig("x", "FP32", shape)]
    for same in (ModelConfig(), parse(IMAGE + "inputs: [{name: x, datatype: FP32, shape: [-1, 3, 8, 8]}]")):
        assert with_image_input(same, [spec], "pytorch_torchscript") is same
    assert with_image_input(config, [spec, spec], "pytorch_torchscript") is config


# --- Through the gateway --------------------------------------------------------------------------

RAW = "Inference-Header-Content-Length: 0"


def ask(gateway: Any, helpers: Any, model: str, name: str, *files: bytes) -> Any:
    """An inference with the images as binary data."""
    data = pack_bytes(files)
    tensor = helpers.tensor(name, "BYTES", [len(files)], binary_data_size=len(data))
    return gateway.infer(model, ({"inputs": [tensor]}, data))


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    return {output["name"]: output for output in answer.json()["outputs"]}


def expected_classes(built: Path, file: bytes) -> tuple[list[str], list[float]]:
    """What TorchServe's image_classifier would say: torchvision's transforms, the archive, softmax, topk."""
    with Image.open(io.BytesIO(file)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    assert width < height
    image = image.resize((40, int(40 * height / width)), Image.Resampling.BILINEAR)
    top, left = round((image.height - 32) / 2.0), round((image.width - 32) / 2.0)
    pixels = np.array(image.crop((left, top, left + 32, top + 32)))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.inference_mode():
        module = torch.jit.load(str(built / "images_torch" / "1" / "model.pt"))
        found, classes = torch.topk(torch.softmax(module(tensor.sub_(mean).div_(std)[None]), dim=1), 3, dim=1)
    return [f"class {index}" if index < 9 else "9" for index in classes[0].tolist()], found[0].tolist()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torch_model_classifies_every_format_as_torchserve_would(
    gateway: Any, helpers: Any, built: Path, images: Images
) -> None:
    names = [name for name in images["good"] if name != "palette.png"]  # Pillow warns of that one, here
    found = outputs(ask(gateway, helpers, "images_torch", "images", *(images["good"][name] for name in names)))
    assert found["labels"]["shape"] == found["probabilities"]["shape"] == [len(names), 3]
    for row, name in enumerate(names):
        labels, probabilities = expected_classes(built, images["good"][name])
        assert found["labels"]["data"][row * 3 : row * 3 + 3] == labels, name
        assert found["probabilities"]["data"][row * 3 : row * 3 + 3] == pytest.approx(probabilities, rel=1e-4), name


def test_a_tensorflow_model_takes_the_bytes_of_an_image_as_the_whole_body(gateway: Any, images: Images) -> None:
    file = images["good"]["plain.png"]
    with Image.open(io.BytesIO(file)) as image:
        means = np.asarray(image.resize((32, 24), Image.Resampling.BILINEAR)).astype(np.float64).mean(axis=(0, 1))
    head, binary = gateway.infer("images_tensorflow", file, RAW).parts()
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert [output["name"] for output in head["outputs"]] == ["labels", "probabilities", "pixels"]
    order = np.argsort(-means)
    names = [("red", "green", "blue")[index].encode() for index in order]
    assert binary[: sizes[0]] == pack_bytes(names)
    assert struct.unpack("<3f", binary[sizes[0] : sizes[0] + sizes[1]]) == pytest.approx(means[order], rel=1e-4)
    assert struct.unpack("<i", binary[-4:]) == (24 * 32 * 3,)


def test_images_alone_may_be_declared(gateway: Any, helpers: Any, images: Images) -> None:
    found = outputs(ask(gateway, helpers, "images_scored", "images", images["good"]["plain.jpg"]))
    assert {name: output["shape"] for name, output in found.items()} == {"output_0": [1, 10]}


def test_metadata_tell_of_images_and_of_why_they_are_batched(gateway: Any) -> None:
    for model, name in {"images_torch": "images", "images_tensorflow": "image"}.items():
        told = gateway.http.get(f"/v2/models/{model}").json()
        assert told["inputs"] == [{"name": name, "datatype": "BYTES", "shape": [-1]}]
        assert told["outputs"][0] == {"name": "labels", "datatype": "BYTES", "shape": [-1, 3]}
        assert told["parameters"]["max_batch_size"] == 32
        assert any(note.startswith("preprocessing: images (PNG") for note in told["parameters"]["notes"])


def test_every_hostile_image_is_refused_and_the_model_goes_on(gateway: Any, helpers: Any, images: Images) -> None:
    pid = gateway.pid("instance images_torch/1")
    for name, content in images["bad"].items():
        answer = gateway.infer("images_torch", content, RAW)
        assert answer.status == 400, name
        assert answer.json()["error"].startswith("input 'images' row 0 is "), name
    outputs(ask(gateway, helpers, "images_torch", "images", images["good"]["plain.png"]))
    assert gateway.pid("instance images_torch/1") == pid


@pytest.mark.parametrize("form", [{"shape": [1, 1]}, {"datatype": "FP32", "data": [1.0]}, {"shape": []}])
def test_an_input_of_another_form_is_refused(gateway: Any, helpers: Any, form: dict[str, Any]) -> None:
    tensor = {**helpers.tensor("images", "BYTES", [1], ["hello"]), **form}
    answer = gateway.infer("images_torch", {"inputs": [tensor]})
    assert answer.status == 400
    assert "images" in answer.json()["error"]


async def test_one_bad_image_does_not_spoil_its_neighbours_in_a_batch(
    gateway: Any, helpers: Any, images: Images
) -> None:
    good = images["good"]["plain.png"]
    alone = outputs(ask(gateway, helpers, "images_torch", "images", good))["labels"]["data"]
    before = gateway.metrics().of("gateway_executions_total", model="images_torch")

    async def one(number: int, client: httpx.AsyncClient) -> httpx.Response:
        content = b"no image" if number % 5 == 0 else good
        data = pack_bytes([content])
        head = json.dumps({"inputs": [helpers.tensor("images", "BYTES", [1], binary_data_size=len(data))]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return await client.post("/v2/models/images_torch/infer", content=head + data, headers=headers)

    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        answers = await asyncio.gather(*(one(number, client) for number in range(60)))
    for number, answer in enumerate(answers):
        if number % 5 == 0:
            assert answer.status_code == 400
            assert "input 'images' row 0 is no image" in answer.json()["error"]
        else:
            assert answer.status_code == 200
            assert answer.json()["outputs"][0]["data"] == alone
    assert gateway.metrics().of("gateway_executions_total", model="images_torch") > before


def test_what_does_not_fit_is_a_reason_and_new_labels_are_taken_up_while_serving(
    start_gateway: Callable[..., Any], helpers: Any, images: Images
) -> None:
    def prepare(store: Path) -> None:
        (store / "mlp" / "model.yaml").write_text(IMAGE)
        (store / "images_scored" / "model.yaml").write_text(IMAGE + "postprocessing: {classes: {labels: gone.json}}")

    with start_gateway(["mlp", "images_scored", "images_torch"], prepare=prepare) as gateway:
        reasons = {each["name"]: each["reason"] for each in gateway.http.post("/v2/repository/index").json()}
        assert "the model does not take FP32 [1, 3, 8, 8] from preprocessing.image" in reasons["mlp"]
        assert reasons["images_scored"].startswith("'gone.json' cannot be read: No such file")
        assert "--data-binary @image.jpg" in gateway.log.read_text()

        def labels() -> Any:
            answer = ask(gateway, helpers, "images_torch", "images", images["good"]["plain.png"])
            return outputs(answer)["labels"]["data"]

        assert all(label.startswith("class ") for label in labels())
        file = gateway.log.parent / "store" / "images_torch" / "index_to_name.json"
        file.write_text(json.dumps({str(index): f"kind {index}" for index in range(10)}))
        helpers.until(lambda: all(label.startswith("kind ") for label in labels()), 30.0)
