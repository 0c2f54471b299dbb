"""Builds the TensorFlow twin of digits_torch: the same weights in a Keras model, written as a SavedModel."""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import torch

HERE = Path(__file__).parent


def copy_of(twin: torch.jit.ScriptModule) -> keras.Model:
    """A Keras model with the weights of the PyTorch one, which keeps its matrices the other way round."""
    layers = [keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((64,)), *layers])
    state = {name: weights.numpy() for name, weights in twin.state_dict().items()}
    for layer, name in zip(layers, ("hidden", "logits"), strict=True):
        layer.set_weights([state[f"{name}.weight"].T, state[f"{name}.bias"]])
    return model


def save(model: keras.Model, out: Path) -> None:
    """Write what serving needs and no more: one signature and the weights."""

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, name="image")])
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(image)}

    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(module, str(out), signatures={"serving_default": serve})


def main() -> None:
    """Copy, compare on random images, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--twin", type=Path, default=HERE.parent / "digits_torch" / "1" / "model.pt", help="its weights"
    )
    parser.add_argument("--out", type=Path, default=HERE / "1", help="the version directory to write")
    arguments = parser.parse_args()
    twin = torch.jit.load(arguments.twin)
    model = copy_of(twin)
    images = np.random.default_rng(0).random((256, 64), np.float32)
    with torch.inference_mode():
        difference = np.abs(model(images).numpy() - twin(torch.from_numpy(images)).numpy()).max()
    save(model, arguments.out)
    print(f"{arguments.out}: differs from its twin by at most {difference:.1e}")


if __name__ == "__main__":
    main()
