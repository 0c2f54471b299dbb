"""Build the benchmark's models: a tiny MLP in both frameworks, and a CNN of several milliseconds per image."""

import os
import sys
import warnings
from pathlib import Path

IMAGE = (3, 224, 224)
CNN_YAML = "max_batch_size: 8\n"


def build_torch(store: Path) -> None:
    """Save mlp (16 numbers to 4) and cnn (an image of 3 x 224 x 224 to 1000 classes) as TorchScript."""
    import torch  # noqa: PLC0415 - one framework per process
    from torch import nn  # noqa: PLC0415 - as above

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.hidden(x)))

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for channels, out, stride in ((3, 48, 2), (48, 96, 2), (96, 192, 2), (192, 224, 1), (224, 256, 2)):
                layers += [nn.Conv2d(channels, out, 3, stride=stride, padding=1), nn.ReLU()]
            self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # TorchScript is deprecated, and what is measured here
    for name, module in (("mlp", Mlp()), ("cnn", Cnn())):
        (store / name / "1").mkdir(parents=True, exist_ok=True)
        torch.jit.script(module.eval()).save(store / name / "1" / "model.pt")
    (store / "cnn" / "model.yaml").write_text(CNN_YAML)


def build_tensorflow(store: Path) -> None:
    """Save mlp_tf, the like of mlp, as a SavedModel."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf  # noqa: PLC0415 - one framework per process

    module = tf.Module()
    shapes = ((16, 32), (32,), (32, 4), (4,))
    module.weights = [tf.Variable(tf.random.stateless_normal(shape, (0, i))) for i, shape in enumerate(shapes)]
    w1, b1, w2, b2 = module.weights
    spec = [tf.TensorSpec([None, 16], tf.float32, "x")]
    module.call = tf.function(lambda x: {"y": tf.nn.relu(x @ w1 + b1) @ w2 + b2}, input_signature=spec)
    tf.saved_model.save(module, str(store / "mlp_tf" / "1"), signatures=module.call.get_concrete_function())


if __name__ == "__main__":
    {"pytorch": build_torch, "tensorflow": build_tensorflow}[sys.argv[1]](Path(sys.argv[2]))
