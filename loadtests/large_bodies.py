"""Whether large and hostile JSON bodies hold up others: many clients send them while another asks for health."""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from report import Report, arguments
from running import Running, running, workplace

MB = 1 << 20
MODEL = "sums"
HEALTH_SECONDS, WORKER_TIMES = 0.05, 6.0
"""The bars: 99 % of the health probes within so many seconds; workers' memory in times of the bodies in flight."""
PROBE_EVERY = 0.01
ANSWER_SECONDS = 300.0
PATHS = {
    "oip": f"/v2/models/{MODEL}/infer",
    "tfserving": f"/v1/models/{MODEL}:predict",
    "torchserve": f"/predictions/{MODEL}",
}
PIECES = {
    "flat numbers": b"0.5",
    "short numbers": b"0",
    "lists of one number": b"[0]",
    "lists of one truth": b"[true]",
    "short texts": b'"a"',
    "objects": b'{"a":0}',
    "deep": b"",
}


class Sums(torch.nn.Module):
    """Takes whatever comes, as a tensor is declared to be of no shape, and gives back one number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all."""
        return x.sum().reshape(1)


def bodies(size: int, dialect: str) -> Iterator[tuple[str, bytes]]:
    """Each kind's name and a body of it of about so many bytes."""
    for kind, piece in PIECES.items():
        count = size // (len(piece) + 1)
        data = b"[" + (b"[" * size if kind == "deep" else b",".join([piece] * count)) + b"]"
        if dialect == "oip":
            datatype = "BOOL" if piece == b"[true]" else "BYTES" if piece == b'"a"' else "FP32"
            head = json.dumps({"name": "x", "datatype": datatype, "shape": [count, 1]})
            data = b'{"inputs":[' + head[:-1].encode() + b',"data":' + data + b"}]}"
        elif dialect == "tfserving":
            data = b'{"instances":' + data + b"}"
        yield kind, data


def send(address: tuple[str, int], path: str, body: bytes, statuses: Counter[str]) -> None:
    """Send a body and note what comes back."""
    connection = http.client.HTTPConnection(*address, timeout=ANSWER_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            answer.read()
            statuses[str(answer.status)] += 1
        except (OSError, http.client.HTTPException) as error:
            statuses[type(error).__name__] += 1


def probe(host: str, port: int) -> None:
    """Ask for health until standard input ends; then print the seconds that each answer took."""
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    connection, seconds = http.client.HTTPConnection(host, port, timeout=60.0), []
    while not ended.wait(PROBE_EVERY):
        began = time.perf_counter()
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


@contextlib.contextmanager
def probing(address: tuple[str, int], seconds: list[float]) -> Iterator[None]:
    """Another process asks for health meanwhile; `seconds` is filled at the end."""
    command = [sys.executable, __file__, "--probe", address[0], str(address[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield
        seconds += sorted(json.loads(process.communicate(b"")[0]))


def resident(pids: dict[int, str]) -> int:
    """Bytes of memory that these processes have, each page counted once for all that share it."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def measure(gateway: Running, report: Report, clients: int, dialect: str, kind: str, body: bytes) -> None:
    """Have all clients send one body each at once."""
    statuses: Counter[str] = Counter()
    senders = [
        threading.Thread(target=send, args=(gateway.address, PATHS[dialect], body, statuses)) for _ in range(clients)
    ]
    seconds: list[float] = []
    peak, began = 0, time.monotonic()
    with probing(gateway.address, seconds):
        for sender in senders:
            sender.start()
        while any(sender.is_alive() for sender in senders):
            peak = max(peak, resident(gateway.pids("http worker") | gateway.pids("body decoder")))
            time.sleep(0.1)
    p50, p99 = (seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    name = f"{dialect}, {kind}"
    report.say(f"{name}: {answers} in {time.monotonic() - began:.1f} s; health p50 {p50 * 1e3:.1f} ms")
    report.figure(f"{name}: health max", 1e3 * seconds[-1], "ms")
    report.bar(f"{name}: health p99", 1e3 * p99, f"<= {1e3 * HEALTH_SECONDS:g}", p99 <= HEALTH_SECONDS, "ms")
    times = peak / (clients * len(body))
    report.bar(f"{name}: memory / bodies", times, f"<= {WORKER_TIMES:g}", times <= WORKER_TIMES)


def main() -> int:
    """Run it; 1 if a bar is missed."""
    if sys.argv[1:2] == ["--probe"]:
        probe(sys.argv[2], int(sys.argv[3]))
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=60, help="size of a body")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dialect", action="append", choices=PATHS, help="only this one (repeatable)")
    parser.add_argument("--kind", action="append", choices=PIECES, help="only this one (repeatable)")
    wanted = parser.parse_args()
    report = Report(f"{wanted.clients} clients send bodies of {wanted.megabytes} MB")
    with workplace() as directory:
        store = directory / "store"
        (store / MODEL / "1").mkdir(parents=True)
        torch.jit.save(torch.jit.script(Sums()), store / MODEL / "1" / "model.pt")
        with running(store, "--workers", str(wanted.workers), "--settle-seconds", "0") as gateway:
            for dialect in wanted.dialect or PATHS:
                for kind, body in bodies(wanted.megabytes * MB, dialect):
                    if not wanted.kind or kind in wanted.kind:
                        measure(gateway, report, wanted.clients, dialect, kind, body)
    return report.finish(wanted.json)


if __name__ == "__main__":
    sys.exit(main())
