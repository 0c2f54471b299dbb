"""Drive one URL with wrk (the Debian package) and read its figures."""

import json
import math
import random
import statistics
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """wrk.method = "POST"
{headers}
local f = io.open("{body}", "rb"); wrk.body = f:read("*a"); f:close()
done = function(s, l, r)
  io.write(string.format('\\nFIGURES {{"rps": %f, "p50": %f, "p99": %f, "bad": %d}}\\n',
    s.requests / (s.duration / 1e6), l:percentile(50) / 1e3, l:percentile(99) / 1e3,
    s.errors.status + s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout))
end
"""


@dataclass(frozen=True)
class Figures:
    """Medians over rounds: requests/s, and latency in milliseconds."""

    rps: float
    p50: float
    p99: float


class Load:
    """One request of the Open Inference Protocol, sent over and over."""

    def __init__(self, directory: Path, shape: Sequence[int], *, binary: bool) -> None:
        numbers = random.Random(0)
        values = [round(numbers.random(), 6) for _ in range(math.prod(shape))]
        tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": list(shape)}
        headers = {"Content-Type": "application/json"}
        if binary:
            raw = struct.pack(f"<{len(values)}f", *values)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        else:
            tensor["data"] = values
            raw, head = b"", json.dumps({"inputs": [tensor]}).encode()
        name = f"{'x'.join(map(str, shape))}-{'binary' if binary else 'json'}"
        body = directory / f"{name}.body"
        body.write_bytes(head + raw)
        lines = "\n".join(f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items())
        self._script = directory / f"{name}.lua"
        self._script.write_text(_SCRIPT.format(headers=lines, body=body))

    def run(self, url: str, connections: int, seconds: int) -> Figures:
        """One round; RuntimeError if any answer was an error."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(self._script), url]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures = json.loads(printed.split("FIGURES ", 1)[1])
        if figures.pop("bad"):
            raise RuntimeError(f"{url} answered with errors:\n{printed}")
        return Figures(**figures)


def side_by_side(load: Load, urls: Sequence[str], connections: int, rounds: int, seconds: int) -> list[Figures]:
    """Medians for each URL; the rounds alternate, and so does who begins, for the machine's speed drifts."""
    seen: dict[str, list[Figures]] = {url: [] for url in urls}
    for number in range(rounds):
        for url in urls if number % 2 == 0 else reversed(urls):
            seen[url].append(load.run(url, connections, seconds))
    return [
        Figures(*(statistics.median(getattr(each, key) for each in seen[url]) for key in ("rps", "p50", "p99")))
        for url in urls
    ]
