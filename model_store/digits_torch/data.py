"""The digits both twins are trained and judged on; tests and load tests take their images from here."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """One part of the data: images as FP32 [n, 64] in 0..1, labels as INT64 [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def split() -> tuple[Digits, Digits]:
    """The part to train on and the held-out quarter, the same on every machine."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=0.25, random_state=0, stratify=labels
    )
    return Digits(train, train_labels), Digits(held_out, held_out_labels)
