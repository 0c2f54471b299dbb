"""Builds the digit classifier: trains a small network on scikit-learn's digits and writes it as TorchScript."""

import argparse
from pathlib import Path

import torch
from data import Digits, split
from torch import Tensor, nn

EPOCHS, BATCH, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 40, 32, 0.1, 0.9, 1e-4


class Classifier(nn.Module):
    """64 pixels in 0..1 to ten probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 128)
        self.logits = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """The probability of each digit, one row per image."""
        return self.logits(self.hidden(image).relu()).softmax(-1)


def train(data: Digits) -> Classifier:
    """A trained classifier, the same each time.

    It is trained in double precision: what another CPU rounds differently then stays far below the single
    precision that is kept.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.double)
    model = Classifier()
    images, labels = torch.from_numpy(data.images).double(), torch.from_numpy(data.labels)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.nll_loss(model(images[rows]).log(), labels[rows]).backward()
            optimizer.step()
    return model.float().eval()


def main() -> None:
    """Train, judge on the held-out quarter, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "1", help="the version directory to write")
    out: Path = parser.parse_args().out
    train_part, held_out = split()
    model = train(train_part)
    with torch.inference_mode():
        guesses = model(torch.from_numpy(held_out.images)).argmax(1).numpy()
    out.mkdir(parents=True, exist_ok=True)
    torch.jit.script(model).save(out / "model.pt")
    print(f"{out / 'model.pt'}: accuracy {(guesses == held_out.labels).mean():.4f} on {len(guesses)} held-out images")


if __name__ == "__main__":
    main()
