"""The figures of the README: speed, beside Triton if asked, and the memory and start of an instance."""

import argparse
import contextlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import servers
from models import IMAGE
from wrk import Figures, Load, side_by_side

HERE = Path(__file__).parent


def scrape(url: str, name: str, model: str, **labels: str) -> float:
    """One metric's value, from /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    wanted = {"model": model, **labels}
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in wanted.items()):
            return float(line.rsplit(" ", 1)[1])
    raise RuntimeError(f"{name} of {model} is not in the metrics")


def ratio_rows(ours: str, peer: str | None, load: Load, connections: list[int], args: Any) -> list[dict[str, Any]]:
    """One row per number of connections, printed as it is measured."""
    rows = []
    for number in connections:
        urls = [ours] if peer is None else [ours, peer]
        figures = side_by_side(load, urls, number, args.rounds, args.seconds)
        row: dict[str, Any] = {"connections": number, "gateway": vars(figures[0])}
        text = f"{number:>11}  {_show(figures[0])}"
        if peer is not None:
            row |= {"triton": vars(figures[1]), "ratio": figures[0].rps / figures[1].rps}
            text += f"  {_show(figures[1])}  {row['ratio']:>6.2f}"
        print(text, flush=True)
        rows.append(row)
    return rows


def _show(figures: Figures) -> str:
    return f"{figures.rps:>8.0f} {figures.p50:>7.2f} {figures.p99:>7.2f}"


def header(title: str, peer: str | None) -> None:
    """The head of a table."""
    print(f"\n{title}\n{'':>11}  {'gateway':<24}" + (f"  {'triton':<24}  ratio" if peer else ""))
    print(f"{'connections':>11}" + f"  {'req/s':>8} {'p50 ms':>7} {'p99 ms':>7}" * (2 if peer else 1))


def tiny(url: str, args: Any, directory: Path, store: Path) -> dict[str, Any]:
    """The tiny MLP in JSON, and its TensorFlow twin at 32 connections."""
    load = Load(directory, [1, 16], binary=False)
    with peer_of(args, store / "mlp" / "1" / "model.pt", "mlp", "16", 4, 32) as peer:
        for each in [url, *([peer] if peer else [])]:
            load.run(f"{each}/v2/models/mlp/infer", 8, 1)
        header("Tiny MLP, JSON", peer)
        theirs = f"{peer}/v2/models/mlp/infer" if peer else None
        rows = ratio_rows(f"{url}/v2/models/mlp/infer", theirs, load, [1, 8, 32, 128], args)
    pair = [f"{url}/v2/models/mlp_tf/infer", f"{url}/v2/models/mlp/infer"]
    tensorflow, torch = side_by_side(load, pair, 32, args.rounds, args.seconds)
    print(f"SavedModel / TorchScript at 32 connections: {tensorflow.rps / torch.rps:.2f}")
    return {"rows": rows, "savedmodel_to_torchscript": tensorflow.rps / torch.rps}


def images(url: str, args: Any, directory: Path, store: Path) -> dict[str, Any]:
    """The CNN with binary requests of 602 kB, and how busy its instance is."""
    load = Load(directory, [1, *IMAGE], binary=True)
    ours = f"{url}/v2/models/cnn/infer"
    dims = ", ".join(map(str, IMAGE))
    with peer_of(args, store / "cnn" / "1" / "model.pt", "cnn", dims, 1000, 8) as peer:
        load.run(ours, 16, 1)
        header("CNN, 602 kB binary", peer)
        rows = ratio_rows(ours, f"{peer}/v2/models/cnn/infer" if peer else None, load, [1, 4, 16], args)
    names = [f"gateway_{name}" for name in ("execution_duration_seconds_sum", "batch_size_sum", "batch_size_count")]
    before = [scrape(url, name, "cnn") for name in names]
    seconds = 3 * args.seconds
    load.run(ours, 16, seconds)
    busy, inputs, batches = (scrape(url, name, "cnn") - old for name, old in zip(names, before, strict=True))
    print(f"at 16 connections: {busy / seconds:.1%} of the time in the framework, mean batch {inputs / batches:.2f}")
    return {"rows": rows, "busy": busy / seconds, "mean_batch": inputs / batches}


def codec(url: str, args: Any, directory: Path) -> float:
    """Milliseconds of decoding and encoding one JSON request of 150,528 floats with 1,000 in return."""
    load = Load(directory, [1, *IMAGE], binary=False)
    stages = [{"stage": "decode"}, {"stage": "encode"}]
    before = [scrape(url, "gateway_stage_duration_seconds_sum", "cnn", **stage) for stage in stages]
    count = scrape(url, "gateway_request_duration_seconds_count", "cnn")
    load.run(f"{url}/v2/models/cnn/infer", 1, args.seconds)
    spent = sum(scrape(url, "gateway_stage_duration_seconds_sum", "cnn", **stage) for stage in stages) - sum(before)
    each = 1000 * spent / (scrape(url, "gateway_request_duration_seconds_count", "cnn") - count)
    print(f"\n150,528 floats of JSON in, 1,000 out: decode + encode {each:.2f} ms")
    return each


@contextlib.contextmanager
def peer_of(args: Any, model: Path, name: str, dims: str, out: int, batch: int) -> Iterator[str | None]:
    """Triton's base URL if it was asked for, else None."""
    if args.peer == "triton":
        with servers.triton(model, name, dims, out, batch) as url:
            yield url
    else:
        yield None


def instances(url: str) -> dict[str, Any]:
    """Private memory (MB) and load time (ms, from fork to ready) of the idle tiny instances."""
    found: dict[str, Any] = {}
    for model in ("mlp", "mlp_tf"):
        private = scrape(url, "gateway_instance_memory_bytes", model, kind="private") / 1e6
        ready = scrape(url, "gateway_instance_ready_seconds", model) * 1000
        found[model] = {"private_mb": private, "ready_ms": ready}
        print(f"idle instance of {model}: {private:.1f} MB private, ready {ready:.0f} ms after its fork")
    return found


def main() -> None:
    """Build the models, start the servers, measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=["triton"], help="measure beside it (installs 2 GB at first use)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds whose median counts")
    parser.add_argument("--seconds", type=int, default=3, help="length of a round")
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"))
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        directory, store = Path(name), Path(name) / "store"
        print("building the models", flush=True)
        for framework in ("pytorch", "tensorflow"):
            subprocess.run([sys.executable, str(HERE / "models.py"), framework, str(store)], check=True)
        with servers.gateway(store) as (url, seconds):
            print(f"gateway serve to all three models ready, both frameworks: {seconds:.1f} s")
            results: dict[str, Any] = {"machine": platform.platform(), "start_seconds": seconds}
            results["instances"] = instances(url)
            results["tiny"] = tiny(url, args, directory, store)
            results["images"] = images(url, args, directory, store)
            results["codec_ms"] = codec(url, args, directory)
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
