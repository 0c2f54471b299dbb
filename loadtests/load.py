"""`make load`: locust on the digit twins, headless or with its page, on a gateway of its own or one that runs."""

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from load_shapes import SHAPES
from servers import gateway

HERE = Path(__file__).parent
REPORT, FIGURES, PLOT = "report.html", "load", "load.png"


@contextlib.contextmanager
def _target(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    print("starting a gateway on model_store", file=sys.stderr, flush=True)
    with gateway(HERE.parent / "model_store") as (own, _):
        yield own


def main() -> int:
    """Run it; the exit code is locust's, which is 1 if an answer was wrong or there was none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a gateway that runs  [default: one is started on model_store]")
    parser.add_argument("--shape", choices=SHAPES, default="ramp", help="open: at a constant rate")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the shape open")
    parser.add_argument("--out", type=Path, default=Path("load-report"), help="folder of report, figures and plot")
    parser.add_argument("--ui", action="store_true", help="open locust's page on http://127.0.0.1:8089 instead")
    given = parser.parse_args()
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--shape", given.shape]
    command += ["--users", str(given.users), "--rate", str(given.rate), "--loglevel", "WARNING"]
    if given.ui:
        command += ["--web-host", "127.0.0.1"]
        print("locust's page is http://127.0.0.1:8089; Ctrl-C ends it", file=sys.stderr, flush=True)
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        command += ["--headless", "--only-summary", "--run-time", f"{given.seconds}s", "--csv-full-history"]
        command += ["--html", str(given.out / REPORT), "--csv", str(given.out / FIGURES)]
        command += ["--plot", str(given.out / PLOT)]
    with _target(given.url) as url, contextlib.suppress(KeyboardInterrupt):
        code = subprocess.run([*command, "--host", url], check=False).returncode
        if not given.ui:
            print(f"{given.out}/: {REPORT}, {FIGURES}_*.csv, {PLOT}")
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
