"""Start what the benchmark compares: the gateway, and a real Triton from the PyPI package nvidia-pytriton."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_CONFIG = """backend: "python"
max_batch_size: {batch}
input [{{name: "x" data_type: TYPE_FP32 dims: [{dims}]}}]
output [{{name: "y" data_type: TYPE_FP32 dims: [{out}]}}]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
"""
_MODEL = """import sys
sys.path.insert(0, {site!r})
import numpy as np
import torch
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)
        self.model = torch.jit.optimize_for_inference(torch.jit.load({model!r}).eval())

    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        batch = np.concatenate(inputs) if len(inputs) > 1 else inputs[0]
        with torch.inference_mode():
            result = self.model(torch.from_numpy(batch)).numpy()
        responses, row = [], 0
        for rows in map(len, inputs):
            responses.append(pb.InferenceResponse([pb.Tensor("y", result[row : row + rows])]))
            row += rows
        return responses
"""
START_SECONDS = 120.0


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait(url: str, process: "subprocess.Popen[bytes]") -> float:
    """Seconds until the URL answers 200; RuntimeError if the process ends or takes too long."""
    started = time.monotonic()
    while time.monotonic() - started < START_SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return time.monotonic() - started
        time.sleep(0.02)
    raise RuntimeError(f"{url} did not answer within {START_SECONDS:g} s")


@contextlib.contextmanager
def _running(command: list[str], ready: str, environment: dict[str, str]) -> Iterator[float]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment)
        try:
            yield _wait(ready, process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def gateway(store: Path) -> Iterator[tuple[str, float]]:
    """The gateway with default settings over `store`: its base URL, and seconds from start to all models ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port), "--model-store", str(store)]
    command += ["--management-address", "off", "--metrics-address", "off"]
    with _running(command, f"{url}/v2/health/ready", {}) as seconds:
        yield url, seconds


def install_triton() -> Path:
    """The directory with Triton and its Python environment; installed at first use (2 GB, some minutes)."""
    home = Path(os.environ.get("BENCH_HOME", Path.home() / ".cache" / "gateway-bench"))
    if not (home / "ready").exists():
        print(f"installing Triton into {home}: 2 GB, some minutes", flush=True)
        subprocess.run(["python3.11", "-m", "venv", str(home / "venv")], check=True)
        pip = str(home / "venv" / "bin" / "pip")
        subprocess.run([pip, "install", "-q", "torch==2.13.0", "nvidia-pytriton"], check=True)
        packaged = home / "venv" / "lib" / "python3.11" / "site-packages" / "pytriton" / "tritonserver"
        shutil.copytree(packaged, home / "server", dirs_exist_ok=True)
        stub = home / "server" / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
        shutil.copy(stub, home / "server" / "backends" / "python")
        (home / "ready").touch()
    return home


@contextlib.contextmanager
def triton(model: Path, name: str, dims: str, out: int, batch: int) -> Iterator[str]:
    """Triton serving one TorchScript file through its Python backend with dynamic batching: its base URL."""
    home = install_triton()
    site = home / "venv" / "lib" / "python3.11" / "site-packages"
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        version = Path(directory) / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_CONFIG.format(batch=batch, dims=dims, out=out))
        (version / "model.py").write_text(_MODEL.format(site=str(site), model=str(model.resolve())))
        command = [
            str(home / "server" / "bin" / "tritonserver"),
            f"--model-repository={directory}",
            f"--backend-directory={home / 'server' / 'backends'}",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--http-thread-count=2",
            "--log-info=false",
        ]
        libraries = {"LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs")}
        with _running(command, f"http://127.0.0.1:{port}/v2/health/ready", libraries):
            yield f"http://127.0.0.1:{port}"
