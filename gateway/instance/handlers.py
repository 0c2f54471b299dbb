"""A model with what model.yaml declares before and after it: encoded images in, labels and probabilities out."""

from collections.abc import Sequence

import msgspec

from gateway.errors import GatewayError, LoadFailed, RequestError
from gateway.instance.backend import LoadedModel, Tensors, Tracer
from gateway.instance.classes import look_like_probabilities, top_classes
from gateway.instance.images import READABLE, ImageReader, image_input
from gateway.instance.row_separation import RowSeparation
from gateway.ipc.batching import Batching
from gateway.store.manifest import ModelConfig, TensorConfig
from gateway.store.processing import Layout
from gateway.tensors import Array, Signature, TensorSpec

USUAL: dict[str, Layout] = {"pytorch_torchscript": "NCHW", "tensorflow_savedmodel": "NHWC"}
LABELS, PROBABILITIES = "labels", "probabilities"


def with_image_input(config: ModelConfig, specs: Sequence[TensorSpec], platform: str) -> ModelConfig:
    """The configuration with the model's one input declared as the tensor that its declared preprocessing makes.

    So the model is examined and tested with what it is going to get. Unchanged where nothing is to be gained.
    """
    image = config.preprocessing.image
    if image is None or config.inputs or len(specs) != 1:
        return config
    made, _ = image_input(image, specs[0], USUAL[platform])
    assert made.shape is not None
    return msgspec.structs.replace(config, inputs=[TensorConfig(made.name, made.datatype, list(made.shape))])


def handled(model: LoadedModel, config: ModelConfig) -> "LoadedModel | HandledModel":
    """The model as its clients see it: itself, if model.yaml declares nothing. LoadFailed if that does not fit it."""
    if config.preprocessing.image is None and config.postprocessing.classes is None:
        return model
    return HandledModel(model, config)


class HandledModel:
    """A LoadedModel around another; only the default signature is changed."""

    def __init__(self, model: LoadedModel, config: ModelConfig) -> None:
        self._model = model
        self._classes = config.postprocessing.classes
        self._labels = [label.encode() for label in self._classes.names] if self._classes else []
        self.platform = model.platform
        self.default_signature = model.default_signature
        self.notes = list(model.notes)
        self.trouble = model.trouble
        signature = model.signatures[model.default_signature]
        self._reader = self._image_reader(config, signature)
        answer = None if config.stateful else self._try(signature)
        changed = Signature(
            signature.name,
            self._inputs(signature),
            self._outputs(signature, answer),
            signature.open_inputs,
            signature.open_outputs and self._classes is None,
        )
        self.signatures = {**model.signatures, signature.name: changed}

    # Loading

    def _image_reader(self, config: ModelConfig, signature: Signature) -> ImageReader | None:
        image = config.preprocessing.image
        if image is None:
            return None
        if len(signature.inputs) != 1 or signature.open_inputs:
            names = ", ".join(f"'{spec.name}'" for spec in signature.inputs) or "any"
            raise LoadFailed(f"preprocessing.image is for a model with one input; the inputs of this one are {names}")
        reader = ImageReader(image, signature.inputs[0], USUAL[self.platform])
        self.notes.append(
            f"preprocessing: images ({READABLE}) become {reader.spec.datatype} {list(reader.spec.shape or ())}"
        )
        return reader

    def _try(self, signature: Signature) -> dict[str, Array] | None:
        """What the model answers to a tensor as preprocessing makes it, or to its example; None if it is not asked."""
        name, reader = signature.name, self._reader
        example = self._model.example(name)
        if reader is None or (example is None and self._model.batching_obstacle(name) is not None):
            # Without an example, that may be because a call would change something.
            return None if example is None else self._model.execute(name, example)
        noise = reader.noise()
        try:
            return self._model.execute(name, {reader.spec.name: noise})
        except GatewayError as error:
            form = f"{reader.spec.datatype} {list(noise.shape)}"
            raise LoadFailed(f"the model does not take {form} from preprocessing.image: {error.message}") from None

    def _inputs(self, signature: Signature) -> tuple[TensorSpec, ...]:
        if self._reader is None:
            return signature.inputs
        spec = self._reader.spec
        return (TensorSpec(spec.name, "BYTES", (spec.shape or (-1,))[:1]),)

    def _outputs(self, signature: Signature, answer: dict[str, Array] | None) -> tuple[TensorSpec, ...]:
        if self._classes is None:
            return signature.outputs
        rest = signature.outputs[1:]
        if taken := {LABELS, PROBABILITIES} & {spec.name for spec in rest}:
            raise LoadFailed(f"postprocessing.classes makes an output '{min(taken)}', which the model has already")
        shown = -1
        if answer:
            scores = next(iter(answer.values()))
            try:
                shown = top_classes(scores, self._classes, self._labels)[0].shape[1]
            except GatewayError as error:
                raise LoadFailed(error.message) from None
            self._note_classes(scores, shown)
        shape = (-1, shown)
        return (TensorSpec(LABELS, "BYTES", shape), TensorSpec(PROBABILITIES, "FP32", shape), *rest)

    def _note_classes(self, scores: Array, shown: int) -> None:
        classes, labels = scores.shape[1], len(self._labels)
        note = f"postprocessing: the {shown} most probable of {classes} classes"
        if labels and labels != classes:
            note += f", for which there are {labels} labels"
        if self._classes is not None and self._classes.softmax and look_like_probabilities(scores):
            note += "; their scores add up to 1 already, so softmax: false is probably meant"
        self.notes.append(note)

    # Serving

    def execute(self, signature: str, inputs: Tensors) -> dict[str, Array]:
        """Run one signature; RequestError names the row of an input that is no image. See `LoadedModel.execute`."""
        if signature != self.default_signature:
            return self._model.execute(signature, inputs)
        if self._reader is not None:
            name = self._reader.spec.name
            if (images := inputs.get(name)) is None:
                raise RequestError(f"input '{name}' is missing")
            inputs = {**inputs, name: self._reader.read(images)}
        outputs = self._model.execute(signature, inputs)
        if self._classes is None or not outputs:
            return outputs
        first = next(iter(outputs))
        labels, probabilities = top_classes(outputs.pop(first), self._classes, self._labels)
        return {LABELS: labels, PROBABILITIES: probabilities, **outputs}

    def example(self, signature: str) -> dict[str, Array] | None:
        """As the model says; None where that is made from an image."""
        image = signature == self.default_signature and self._reader is not None
        return None if image else self._model.example(signature)

    def device_memory(self) -> int | None:
        """As the model says."""
        return self._model.device_memory()

    @property
    def optimised(self) -> bool:
        """As the model says."""
        return self._model.optimised

    def rest(self) -> float:
        """As the model does."""
        return self._model.rest()

    def tracer(self) -> Tracer:
        """As the model says."""
        return self._model.tracer()

    def batching_obstacle(self, signature: str) -> str | None:
        """As the model says: images and classes are made row by row."""
        return self._model.batching_obstacle(signature)

    def row_separation(self, signature: str) -> RowSeparation:
        """As the model says: images and classes are made row by row."""
        return self._model.row_separation(signature)

    def batching(self, proved: Batching) -> Batching:
        """What was proved of the model, as it holds for requests to this one."""
        if proved.proved is None or self._reader is None or self.default_signature not in proved.proved:
            return proved
        form = {self.default_signature: {self._reader.spec.name: ("BYTES", 1)}}
        return msgspec.structs.replace(proved, proved={**proved.proved, **form})
