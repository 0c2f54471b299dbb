"""Builds the Collatz counter: a TorchScript model that loops for as long as its input needs and returns a dict."""

import argparse
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn


class Collatz(nn.Module):
    """How many times n is halved, or tripled and one added, until it is 1, and the largest number on the way."""

    max_steps: Final[int] = 2000  # no n below 2**31 needs more than 1000
    largest_tripled: Final[int] = (2**63 - 2) // 3

    def forward(self, n: Tensor) -> dict[str, Tensor]:
        """Steps and peak of each n; steps is -1 where n is below 1, needs too many steps or outgrows 64 bits."""
        peak = n.clone()
        steps = torch.zeros_like(n)
        running = n > 1
        turn = 0
        while turn < self.max_steps and bool(running.any()):
            odd = n % 2 == 1
            running = running & ~(odd & (n > self.largest_tripled))
            n = torch.where(running, torch.where(odd, 3 * n + 1, n // 2), n)
            steps = steps + running.long()
            peak = torch.maximum(peak, n)
            running = running & (n > 1)
            turn += 1
        return {"steps": torch.where(n == 1, steps, -1), "peak": peak}


def main() -> None:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "1", help="the version directory to write")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = torch.jit.script(Collatz())
    model.save(out / "model.pt")
    print(f"{out / 'model.pt'}: 27 gives {model(torch.tensor([27]))}")


if __name__ == "__main__":
    main()
