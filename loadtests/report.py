"""What a load test found: lines on its way, a table with its bars at the end, JSON if asked, and the exit code."""

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

from client import Tally


class Report:
    """Figures and bars of one load test."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._began = time.monotonic()
        self._rows: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def figure(self, name: str, value: float, unit: str = "") -> None:
        """A figure that nothing depends on."""
        self._rows.append({"name": name, "value": _plain(value), "unit": unit, "bar": "", "met": None})

    def bar(self, name: str, value: float, bar: str, met: bool, unit: str = "") -> None:
        """A figure that must meet its bar."""
        self._rows.append({"name": name, "value": _plain(value), "unit": unit, "bar": bar, "met": bool(met)})

    def none_failed(self, name: str, tally: Tally) -> None:
        """The bar that no request failed; what failed is shown with an example of each kind."""
        self.bar(f"{name}: failed of {tally.total} requests", tally.failed, "0", tally.failed == 0 < tally.total)
        for kind, number in tally.failures.most_common():
            self.say(f"{name}: {number} x {kind}, such as {tally.examples[kind]!r}")

    @property
    def met(self) -> bool:
        """Whether every bar is met."""
        return all(row["met"] is not False for row in self._rows)

    def finish(self, path: Path | None) -> int:
        """Print the table, write the JSON; the exit code."""
        width = max((len(row["name"]) for row in self._rows), default=0)
        print(f"\n{self.title}")
        for row in self._rows:
            verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
            value = "-" if row["value"] is None else f"{row['value']:,.6g} {row['unit']}".rstrip()
            print(f"{row['name']:<{width}}  {value:>14}  {row['bar']:<12}  {verdict}".rstrip())
        print(
            f"{'all bars met' if self.met else 'NOT all bars met'}, {time.monotonic() - self._began:.0f} s", flush=True
        )
        if path is not None:
            found = {"title": self.title, "machine": platform.platform(), "met": self.met, "rows": self._rows}
            path.write_text(json.dumps(found, indent=1) + "\n")
        return 0 if self.met else 1


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every load test has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seed", type=int, default=0)
    return parser
