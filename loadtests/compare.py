"""`make compare`: the digit twins side by side on digits that neither has seen; on request a picture of the page."""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

STORE = Path(__file__).parents[1] / "model_store"
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


def write_held_out(path: Path) -> None:
    """The quarter of the digits that was kept from training, with what they are."""
    spec = importlib.util.spec_from_file_location("digits_data", STORE / "digits_torch" / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    held_out = module.split()[1]
    np.savez_compressed(path, image=held_out.images, labels=held_out.labels)


def take_picture(page: Path, picture: Path) -> None:
    """The upper part of the page, with Chromium."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of the extra dev, and only for this

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        opened = browser.new_page(viewport={"width": 1100, "height": 1190})
        opened.goto(page.resolve().as_uri())
        opened.wait_for_function("document.documentElement.dataset.drawn")
        opened.screenshot(path=picture)
        browser.close()


def main() -> int:
    """Run it; the exit code is that of `gateway compare`, whose options may follow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("compare-report"), help="folder of the report")
    parser.add_argument("--picture", type=Path, help="write a picture of the page there")
    given, options = parser.parse_known_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data = given.out / "digits.npz"
    write_held_out(data)
    command = [sys.executable, "-m", "gateway", "compare", "digits_torch", "digits_tensorflow"]
    command += ["--model-store", str(STORE), "--data", str(data), "--out", str(given.out), *options]
    code = subprocess.run(command, check=False).returncode
    if code == 0 and given.picture is not None:
        take_picture(given.out / "report.html", given.picture)
    return code


if __name__ == "__main__":
    sys.exit(main())
