"""model.yaml: what a user may say of a model, all of it optional."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from gateway import yaml_text
from gateway.errors import ConfigError
from gateway.sizes import parse_size
from gateway.store import processing
from gateway.store.contents import LEADS_OUT, inside, resolved, shown
from gateway.store.processing import Postprocessing, Preprocessing
from gateway.store.regular import open_regular
from gateway.tensors import DTYPES, TensorSpec

Platform = Literal["pytorch_torchscript", "tensorflow_savedmodel"]
FRAMEWORKS: dict[str, str] = {"pytorch_torchscript": "pytorch", "tensorflow_savedmodel": "tensorflow"}

FILE = "model.yaml"
MAX_BYTES = 1 << 20

PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
NaturalInt = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
VersionNumber = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
Extent = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
LibraryName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
LABEL_FILE = re.compile(r"[^/\0]{1,255}")
MAX_LABELS = 1 << 16
MODEL_NAME = r"(?!\.)[^/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,255}"
"""What a model may be called, as a pattern: a folder's name in UTF-8 without control characters, not hidden."""
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,62}")


class TensorConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One declared input or output; `shape` includes the batch dimension, -1 means any size."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    datatype: str
    shape: list[Extent]
    labels: str | list[str] = []
    """Of an output: the names of its classes; as it is written, also the name of a file with one a line."""

    def spec(self) -> TensorSpec:
        """The declaration as the rest of the gateway reads it."""
        return TensorSpec(self.name, self.datatype, tuple(self.shape))


class InstanceGroup(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How many instances of each version run, and on what; `gpus` lists device indices, empty means any."""

    count: PositiveInt = 1
    kind: Literal["auto", "cpu", "gpu"] = "auto"
    gpus: list[NaturalInt] = []


class Warmup(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Calls made before a version is ready: `iterations` of each of these batch sizes."""

    iterations: NaturalInt = 3
    batch_sizes: list[PositiveInt] = []


class VersionPolicy(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which versions are served: the `latest` so many, or those listed; exactly one of the two is given."""

    latest: PositiveInt | None = None
    specific: Annotated[list[VersionNumber], msgspec.Meta(min_length=1)] | None = None


class Shadow(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Another version that gets copies of requests, to see whether it would answer the same.

    `model` None is the same model, `version` None the one that requests without a version get.
    """

    percent: Annotated[float, msgspec.Meta(gt=0, le=100)]
    model: Annotated[str, msgspec.Meta(pattern=rf"\A{MODEL_NAME}\Z")] | None = None
    version: VersionNumber | None = None
    tolerance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-3
    """How far numbers may be apart, relative and absolute."""


class ModelConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole of model.yaml; see docs/model-yaml.md."""

    platform: Platform | None = None
    inputs: list[TensorConfig] = []
    outputs: list[TensorConfig] = []
    max_batch_size: PositiveInt | Literal["auto"] = "auto"
    batching_check: bool = True
    """Whether batches of real requests are checked, and a max_batch_size by a test at load; written on or off."""
    max_queue_delay_microseconds: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    max_queue_size: PositiveInt = 1024
    """In rows."""
    max_queue_bytes: int | str = "256MiB"
    instance_group: InstanceGroup | list[InstanceGroup] = InstanceGroup()
    threads: PositiveInt | Literal["auto"] = "auto"
    libraries: list[LibraryName] = []
    """Packages with operators that the model needs; the gateway must have been started with them."""
    stateful: bool = False
    warmup: Warmup = Warmup()
    version_policy: Literal["latest", "all"] | VersionPolicy = "latest"
    version_labels: dict[str, VersionNumber] = {}
    traffic: dict[VersionNumber, Percent] = {}
    """Which share of the requests that name no version each of these gets."""
    shadow: Shadow | None = None
    pinned: bool = False
    idle_ttl: PositiveSeconds | None = None
    execution_timeout: PositiveSeconds = 60.0
    memory_limit: int | str | None = None
    preprocessing: Preprocessing = Preprocessing()
    postprocessing: Postprocessing = Postprocessing()

    @property
    def labels_file(self) -> str:
        """Name of the file in the model's directory that holds the labels of its classes; empty for none."""
        classes = self.postprocessing.classes
        return classes.labels if classes is not None else ""

    def named(self, labels: list[str]) -> "ModelConfig":
        """The same with these labels."""
        classes = self.postprocessing.classes
        if classes is None or classes.names == labels:
            return self
        classes = msgspec.structs.replace(classes, names=labels)
        return msgspec.structs.replace(self, postprocessing=Postprocessing(classes))

    @property
    def of_instance(self) -> "ModelConfig":
        """The same without labels, which are long and nothing to an instance."""
        if not any(tensor.labels for tensor in self.outputs):
            return self
        outputs = [msgspec.structs.replace(tensor, labels=[]) for tensor in self.outputs]
        return msgspec.structs.replace(self, outputs=outputs)

    @property
    def queue_bytes(self) -> int:
        """max_queue_bytes as a number."""
        return parse_size(self.max_queue_bytes)

    @property
    def memory_limit_bytes(self) -> int:
        """memory_limit as a number; 0 for none."""
        return parse_size(self.memory_limit or 0)

    @property
    def groups(self) -> list[InstanceGroup]:
        """instance_group as a list; a single group may be written without the list."""
        return [self.instance_group] if isinstance(self.instance_group, InstanceGroup) else self.instance_group


def parse(text: str | bytes) -> ModelConfig:
    """The configuration in a model.yaml; ConfigError names the key that is wrong."""
    try:
        config = msgspec.convert(yaml_text.read(text), ModelConfig | None) or ModelConfig()
    except msgspec.ValidationError as error:
        raise ConfigError(f"model.yaml: {error}") from None
    except (ValueError, RecursionError):
        raise ConfigError("model.yaml is not YAML") from None
    for tensor in (*config.inputs, *config.outputs):
        if tensor.datatype not in DTYPES:
            raise ConfigError(
                f"model.yaml: '{tensor.name}' has datatype {tensor.datatype!r}; known are {', '.join(DTYPES)}"
            )
    for key, tensors in (("inputs", config.inputs), ("outputs", config.outputs)):
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ConfigError(f"model.yaml: a name stands twice in {key}")
    _check_versions(config)
    _check_labels(config)
    for size in (config.max_queue_bytes, config.memory_limit):
        try:
            parse_size(size or 0)
        except ValueError as error:
            raise ConfigError(f"model.yaml: {error}") from None
    processing.check(config.preprocessing, config.postprocessing)
    if not config.groups:
        raise ConfigError("model.yaml: instance_group is empty; leave it out for one instance")
    return config


_parsed = lru_cache(maxsize=1024)(parse)
"""YAML is slow, and the same files are read at every look at the store."""


def _check_versions(config: ModelConfig) -> None:
    policy = config.version_policy
    if isinstance(policy, VersionPolicy) and (policy.latest is None) == (policy.specific is None):
        raise ConfigError("model.yaml: version_policy takes 'latest: NUMBER' or 'specific: [VERSION, ...]'")
    if config.traffic and sum(config.traffic.values()) != 100:
        raise ConfigError(f"model.yaml: the percentages of traffic come to {sum(config.traffic.values())}, not to 100")
    if config.shadow is not None and config.shadow.model is None and config.shadow.version is None:
        raise ConfigError("model.yaml: shadow takes 'model: NAME', 'version: NUMBER' or both")
    for label in config.version_labels:
        if not LABEL.fullmatch(label):
            raise ConfigError(f"model.yaml: {label!r} is no version label: a letter, then letters, digits, '_' and '-'")


def _check_labels(config: ModelConfig) -> None:
    for tensor in config.inputs:
        if tensor.labels:
            raise ConfigError(f"model.yaml: input '{tensor.name}' has labels, which only outputs have")
    for tensor in config.outputs:
        name = tensor.labels
        if isinstance(name, list):
            _check_label_count(tensor.name, name)
        elif not LABEL_FILE.fullmatch(name) or name in (".", "..") or name == FILE:
            raise ConfigError(
                f"model.yaml: labels of '{tensor.name}' must be a list, or the name of a file beside model.yaml"
            )


def _check_label_count(output: str, labels: list[str]) -> None:
    if len(labels) > MAX_LABELS:
        raise ConfigError(f"model.yaml: '{output}' has {len(labels)} labels, {MAX_LABELS} are the most")


def read(directory: Path, root: str = "/") -> ModelConfig:
    """The configuration of the model in `directory`; all defaults where it has no model.yaml.

    The names of label files are replaced by what they hold. `root` is the store, which links must not lead out of; both
    paths are resolved.
    """
    if not os.path.lexists(directory / FILE):
        return ModelConfig()
    return resolve(_parsed(read_file(directory, FILE, root)), directory, root)


def resolve(config: ModelConfig, directory: Path, root: str = "/") -> ModelConfig:
    """The configuration with what the files that it names hold in place of their names; ConfigError."""
    if config.labels_file:
        content = read_file(directory, config.labels_file, root)
        config = config.named(list(processing.parse_labels(content, config.labels_file)))
    names = [tensor.labels for tensor in config.outputs if isinstance(tensor.labels, str)]
    return _with_labels(config, {name: read_file(directory, name, root) for name in names}) if names else config


def named_files(config: ModelConfig) -> tuple[str, ...]:
    """The files in a model's directory that its configuration names."""
    found = [tensor.labels for tensor in config.outputs if isinstance(tensor.labels, str)]
    return (*found, config.labels_file) if config.labels_file else tuple(found)


def files(directory: Path, root: str = "/") -> tuple[str, ...]:
    """The names of the files, beside versions, that `read` reads; what cannot be read has no further names."""
    try:
        return FILE, *named_files(_parsed(read_file(directory, FILE, root)))
    except ConfigError:
        return (FILE,)


def _with_labels(config: ModelConfig, texts: dict[str, bytes]) -> ModelConfig:
    """The configuration with what label files hold in place of their names; ConfigError if that is no text, or much."""
    outputs, total = [], 0
    for tensor in config.outputs:
        if not isinstance(name := tensor.labels, str):
            outputs.append(tensor)
            continue
        total += len(texts[name])
        if total > MAX_BYTES:
            raise ConfigError(f"model.yaml: the labels of all outputs are more than {MAX_BYTES} bytes")
        try:
            labels = processing.lines_of(texts[name])
        except UnicodeDecodeError:
            raise ConfigError(f"{shown(name)} is not UTF-8 text") from None
        _check_label_count(tensor.name, labels)
        outputs.append(msgspec.structs.replace(tensor, labels=labels))
    return msgspec.structs.replace(config, outputs=outputs)


def read_file(directory: Path, name: str, root: str) -> bytes:
    """A file of a model; ConfigError if it leads out of the store, is too large or cannot be read."""
    path = resolved(str(directory), name)
    title = name if name == FILE else shown(name)
    if not inside(path, root):
        raise ConfigError(f"{title} {LEADS_OUT}")
    try:
        with open_regular(path, os.O_NOFOLLOW) as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{title} cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{title} is larger than {MAX_BYTES} bytes")
    return text
