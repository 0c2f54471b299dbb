"""Bodies that are refused, sent by the hundred: what they leave in the memory of the HTTP workers.

Usage: python loadtests/bad_bodies.py --base URL --model NAME --pid WORKER_PID [--count 200]
"""

import argparse
import gzip
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

ALLOWED_BYTES = 8 << 20
BOMB_BYTES = 80 << 20
OVERSIZED_BYTES = 65 << 20
PATHS = ("/v2/models/{}/infer", "/v1/models/{}:predict", "/predictions/{}", "/v2/models/{}/generate")


def memory(pid: int) -> int:
    """Bytes that are resident of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def send(url: str, body: bytes, encoding: str, kind: str = "application/json") -> int:
    """The status of the answer; 0 if the connection was closed instead."""
    headers = {"Content-Type": kind} | ({"Content-Encoding": encoding} if encoding else {})
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code
    except OSError:
        return 0


def bodies() -> dict[str, tuple[bytes, str, str]]:
    """By kind: the body, its encoding and its media type."""
    zeros = bytes(BOMB_BYTES)
    bomb, wrapped = gzip.compress(zeros), zlib.compress(zeros)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    raw = packer.compress(zeros) + packer.flush()
    json, form = "application/json", "multipart/form-data; boundary=x"
    return {
        "gzip bomb": (bomb, "gzip", json),
        "gzip bomb over several members": (gzip.compress(zeros[: BOMB_BYTES // 4]) * 4, "gzip", json),
        "deflate bomb": (wrapped, "deflate", json),
        "deflate bomb without wrapper": (raw, "deflate", json),
        "gzip cut off": (gzip.compress(zeros[: 32 << 20])[:-9], "gzip", json),
        "deflate cut off": (zlib.compress(zeros[: 32 << 20])[:-9], "deflate", json),
        "gzip bomb as form": (bomb, "gzip", form),
        "torn form": (zlib.compress(zeros[: 32 << 20]), "deflate", form),
        "too large": (zeros[:OVERSIZED_BYTES], "", json),
    }


def main() -> int:
    """Send each kind to each path; 1 if one of them leaves more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    failed = False
    every = bodies()
    urls = [options.base + path.format(options.model) for path in PATHS]
    say: Callable[[str], object] = sys.stdout.write
    for name, (body, encoding, kind) in every.items():
        for url in urls:
            send(url, body, encoding, kind)
        before = memory(options.pid)
        answers = [send(urls[index % len(urls)], body, encoding, kind) for index in range(options.count)]
        left = memory(options.pid) - before
        failed |= left > ALLOWED_BYTES
        say(f"{name}: {options.count} bodies, answers {sorted(set(answers))}, left {left / (1 << 20):+.1f} MiB\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
