"""Scores to the most probable classes with their labels, as TorchServe's image_classifier does it: pure functions."""

import numpy as np
import numpy.typing as npt

from gateway.errors import InferenceFailed
from gateway.store.processing import Classes
from gateway.tensors import Array


def top_classes(scores: Array, config: Classes, labels: list[bytes]) -> tuple[Array, Array]:
    """Labels (object array of bytes) and probabilities (FP32), both [n, k], the most probable first.

    `scores` are [n, classes] of any number type. k is config.top or, if those are fewer, all classes. Of equal ones the
    lower class is first; a class beyond `labels` has its number for one. InferenceFailed if they have another form.
    """
    if scores.ndim != 2 or scores.dtype.hasobject:
        shape = list(scores.shape)
        raise InferenceFailed(
            f"postprocessing.classes takes an output of shape [rows, classes], the model's has {shape}"
        )
    values = softmax(scores) if config.softmax and scores.size else scores.astype(np.float32)
    order = np.argsort(-values, axis=1, kind="stable")[:, : config.top]
    names = np.empty(order.size, dtype=object)
    names[:] = [labels[index] if index < len(labels) else b"%d" % index for index in order.ravel().tolist()]
    return names.reshape(order.shape), np.take_along_axis(values, order, axis=1)


def softmax(values: Array) -> npt.NDArray[np.float32]:
    """Over the last axis; FP32."""
    powers = values.astype(np.float32)
    powers = np.exp(powers - powers.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def look_like_probabilities(scores: Array) -> bool:
    """Whether scores add up to one already."""
    values = scores.astype(np.float32)
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-2))
