"""`gateway compare`: what it reports is what the models do."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.cli import main
from gateway.comparing.document import Comparison

TINY = ("--rounds", "2", "--seconds", "0.05", "--warmup", "0.02", "--batch", "1,8", "--connections", "2")


@pytest.fixture(scope="module")
def digits(helpers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty of the digits that were kept from training, with labels."""
    spec = importlib.util.spec_from_file_location("digits_data", helpers.shipped / "digits_torch" / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    held_out = module.split()[1]
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, image=held_out.images[:60], labels=held_out.labels[:60])
    return path


def test_the_twins_agree_and_everything_is_reported(gateway: Any, digits: Path, tmp_path: Path) -> None:
    loaded = gateway.metrics().of("gateway_instance_ready_seconds", model="digits_torch")
    out = tmp_path / "report"
    done = gateway.command(
        "compare", "digits_torch", "digits_tensorflow/1", "--data", digits, "--out", out, "--json", *TINY
    )
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=Comparison, strict=True)
    assert json.loads((out / "report.json").read_bytes()) == json.loads(done.stdout)
    assert found.format_version == 1
    assert [model.title for model in found.models] == ["digits_torch/1", "digits_tensorflow/1"]
    assert [model.max_batch_size for model in found.models] == [32, 32]
    assert [(pair.a, pair.b, pair.by) for pair in (*found.inputs, *found.outputs)] == [
        ("image", "image", "name"), ("probabilities", "probabilities", "name"),
    ]  # fmt: skip
    (output,) = found.agreement
    assert (output.rows, output.same_class) == (60, 1.0)
    assert 0 <= output.mean_difference <= output.max_difference < 1e-5
    assert found.accuracy is not None
    assert found.accuracy.a == found.accuracy.b > 0.9
    assert [(cell.rows, cell.connections) for cell in found.cells] == [(1, 2), (8, 2)]
    for cell in found.cells:
        assert cell.errors == (0, 0)
        for side, answers in zip("ab", cell.answers, strict=True):
            p50, p95, p99 = (getattr(each, side) for each in (cell.p50_ms, cell.p95_ms, cell.p99_ms))
            assert len(p50.rounds) == 2
            assert 0 < p50.median <= p95.median <= p99.median
            assert getattr(cell.requests_per_second, side).least > 0
            assert sum(getattr(cell.latencies_ms, side)) == answers > 0
        assert not cell.p50_ms.clear  # two rounds cannot tell
    figures = {figure.name: figure.contrast for figure in found.figures}
    assert set(figures) == {"load_seconds", "memory_bytes", "memory_peak_bytes", "artifact_bytes"}
    assert len(figures["memory_bytes"].a.rounds) == 1  # of the same process
    assert figures["load_seconds"].a.rounds == [pytest.approx(loaded, rel=1e-5)]  # and it was not loaded again
    assert 1e6 < figures["memory_bytes"].a.least <= figures["memory_peak_bytes"].a.most * 1.001
    assert figures["artifact_bytes"].exact
    files = [path for path in Path(__file__).parents[1].glob("model_store/digits_torch/1/*") if path.is_file()]
    assert figures["artifact_bytes"].a.median == sum(path.stat().st_size for path in files)
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert "2 rounds cannot tell" in " ".join(found.warnings)


def test_people_get_a_table_and_a_verdict_even_if_nothing_can_be_written(gateway: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", n=np.arange(1, 65), labels=np.array(["odd", "even"] * 32))
    options = ("--data", tmp_path / "data.npz", "--out", tmp_path / "out", *TINY[:6], "--batch", "1", "-c", "1")
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    done = gateway.command("compare", "collatz_torch", "collatz_torch", *options)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["collatz_torch/1", "collatz_torch/1", "B", "/", "A", "AHEAD"]
    assert any(line.split()[:1] == ["p99"] for line in lines)
    assert "Their answers are equal in all 64 rows in 'steps' and are equal in all 64 rows in 'peak'." in done.stdout
    assert "\x1b" not in done.stdout
    said = done.stderr.splitlines()
    assert all(line.startswith("gateway: ") for line in said)
    assert said[0].startswith("gateway: The labels are of no use: no output has")
    assert said[-1] == f"gateway: {tmp_path}/out/report.html cannot be written: Is a directory"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("digits_torch", "digits_tensorflwo"), 1, "no model 'digits_tensorflwo'; did you mean 'digits_tensorflow'?"),
        (("digits_torch", "digits_torch/7"), 1, "'digits_torch' version '7' is not found"),
        (("digits_torch", "no_archive"), 1, "FAILED"),
        (("digits_torch", "text_tensorflow"), 2, "input 'image' FP32 [-1, 64] of digits_torch and 'text' BYTES [-1]"),
        (("digits_torch/", "digits_torch"), 2, "'digits_torch/' is no model; write NAME or NAME/VERSION"),
        (("digits_torch", "digits_torch", "--batch", "0"), 2, "--batch takes numbers from 1 to 65536"),
        (("digits_torch", "digits_torch", "--connections", "x"), 2, "--connections takes numbers from 1 to 512"),
        (("digits_torch", "digits_torch", "--data", "/none.npz"), 2, "/none.npz cannot be read"),
        (("digits_torch", "digits_torch", "--out", "/dev/null/x"), 1, "/dev/null/x cannot be written: Not a directory"),
        (("digits_torch", "digits_torch", "--out", "/proc"), 1, "/proc cannot be written: "),  # which root cannot, too
        (("raises", "raises", "--data", "negative.npz"), 1, "ValueError: negative numbers make this model unhappy"),
        (("digits_torch",), 2, "Missing argument"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_leaves_nothing(
    gateway: Any,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Within this process: a dozen others would take seconds to start."""
    monkeypatch.chdir(tmp_path)
    np.savez("negative.npz", x=-np.ones(8, np.float32))
    more = () if "--out" in arguments else ("--out", "a/new/folder")
    monkeypatch.setattr("sys.argv", ["gateway", "compare", *arguments, *more, *TINY[:6], "--url", gateway.url])
    with pytest.raises(SystemExit) as ended:
        main()
    written = capfd.readouterr()
    assert (ended.value.code, written.out) == (code, ""), written.err
    (line,) = written.err.splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["negative.npz"]


def test_on_a_gateway_of_its_own_every_round_loads_both_anew(helpers: Any, tmp_path: Path) -> None:
    for name in ("one", "other"):
        copied = shutil.copytree(helpers.shipped / "digits_torch", tmp_path / "store" / name)
        config = (copied / "model.yaml").read_text()
        assert "shape: [-1, 64]" in config
        (copied / "model.yaml").write_text(config.replace("shape: [-1, 64]", "shape: [4, 64]"))
    out = tmp_path / "out"
    done = helpers.command("compare", "one", "other", "--model-store", tmp_path / "store", "--out", out, *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{out}/report.html shows it, {out}/report.json has all figures"
    found = msgspec.json.decode((out / "report.json").read_bytes(), type=Comparison)
    assert found.settings.reloaded
    assert [cell.rows for cell in found.cells] == [4]
    assert "gateway: The models take 4 rows at once and nothing else: not --batch 1,8." in done.stderr.splitlines()
    assert found.accuracy is None
    assert found.agreement[0].max_difference == 0
    figures = {figure.name: figure.contrast for figure in found.figures}
    assert len(set(figures["load_seconds"].a.rounds)) == 2
    for name in ("memory_idle_bytes", "memory_bytes", "memory_peak_bytes"):
        assert len(figures[name].b.rounds) == 2
    assert figures["memory_idle_bytes"].a.median <= figures["memory_peak_bytes"].a.median
    assert figures["artifact_bytes"].a == figures["artifact_bytes"].b
