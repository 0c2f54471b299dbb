import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from gateway.errors import ConfigError
from gateway.ipc.batching import Batching
from gateway.ipc.messages import Ready
from gateway.store.manifest import ModelConfig, parse
from gateway.store.source import Artifact, Inventory
from gateway.tensors import Signature, TensorSpec
from gateway.verdicts import COLUMNS, Report, Verdict, as_json, brief, chosen, notes, row, show, summary


def artifact(model: str, version: int = 1, config: ModelConfig | None = None) -> Artifact:
    return Artifact(model, version, "pytorch_torchscript", Path("model.pt"), config or ModelConfig())


def ready(*signatures: Signature, batching: Batching | None = None) -> Ready:
    return Ready(
        pid=1,
        platform="pytorch_torchscript",
        signatures={signature.name: signature for signature in signatures},
        default_signature=signatures[0].name,
        batching=batching or Batching(32, "on: proved", repeatable="forward"),
        notes=["optimize_for_inference: [not] tried"],
        load_seconds=0.25,
        sandbox="seccomp",
    )


X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "BYTES", None, optional=True)
FORWARD = Signature("forward", (X,), (Y,))


def test_a_signature_is_one_short_line() -> None:
    assert brief(ready(FORWARD)) == "x FP32[-1,4] → y? BYTES[?]"
    guess = Signature("forward", (TensorSpec("x", "FP32", (1, 4), strict=False, guessed=True),), ())
    assert brief(ready(guess)) == "x FP32[1,4] (a guess) → nothing"
    assert brief(ready(FORWARD, Signature("other", (), ()))) == "x FP32[-1,4] → y? BYTES[?] (and 1 more)"
    many = Signature("forward", tuple(TensorSpec(f"x{n}", "FP32", ()) for n in range(9)), ())
    assert brief(ready(many)) == "x0 FP32[], x1 FP32[], x2 FP32[], x3 FP32[], … 5 more → nothing"


def test_a_row_says_what_was_measured_or_what_is_wrong() -> None:
    good = Verdict(artifact("m"), ready(FORWARD), {"cpu": 4_000_000, "cuda:0": 512_000_000})
    assert row(good) == (
        "m", "1", "pytorch_torchscript", "x FP32[-1,4] → y? BYTES[?]", "32, proved",
        "4.0 MB, 512.0 MB on cuda:0", "250 ms", "",
    )  # fmt: skip
    bad = row(Verdict(artifact("m", 7), problem="it hangs"))
    assert bad == ("m", "7", "pytorch_torchscript", "", "", "", "", "it hangs")
    assert len(bad) == len(COLUMNS)


def test_versions_come_in_order_and_what_is_odd_is_said_of_its_model() -> None:
    labelled = parse("version_policy: {specific: [1, 9]}\nversion_labels: {stable: 5}")
    inventory = Inventory(
        artifacts=[artifact("b", 10), artifact("b", 9), artifact("a", 1, labelled)],
        ignored=["'a/tmp' is no version", "'ab' has no version directory, such as ab/1/"],
    )
    artifacts, oddities = chosen(inventory, None)
    assert [(each.model, each.version) for each in artifacts] == [("a", 1), ("b", 9), ("b", 10)]
    assert oddities == [
        "ignored: 'a/tmp' is no version",
        "ignored: 'ab' has no version directory, such as ab/1/",
        "a: version_policy names version 9, which 'a' does not have",
        "a: label 'stable' points to version 5, which is not served",
    ]
    artifacts, oddities = chosen(inventory, "b")
    assert [each.version for each in artifacts] == [9, 10]
    assert oddities == []
    assert chosen(inventory, "ab") == ([], ["ignored: 'ab' has no version directory, such as ab/1/"])
    assert chosen(inventory, "a")[1][0] == "ignored: 'a/tmp' is no version"
    with pytest.raises(ConfigError, match="the store has no model 'c'; it has: a, b"):
        chosen(inventory, "c")


def test_problems_are_counted_and_everything_is_shown() -> None:
    report = Report([Verdict(artifact("m"), ready(FORWARD)), Verdict(artifact("n"), problem="[red]torn")], ["odd"])
    assert report.problems == 2
    text = io.StringIO()
    show(Console(file=text, width=160), report)
    lines = text.getvalue().splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert lines[2].split() == ["n", "1", "pytorch_torchscript", "[red]torn"]
    assert lines[3:] == ["odd", "m/1: optimize_for_inference: [not] tried", "2 versions, 2 problems"]
    assert summary(Report([Verdict(artifact("m"), ready(FORWARD))], [])) == "1 version, no problems"
    assert summary(Report([], [])) == "0 versions, no problems"


def test_a_note_is_made_once_and_a_batch_size_that_was_not_proved_says_why() -> None:
    noted = [Verdict(artifact("m", number), ready(FORWARD)) for number in range(3)]
    assert notes(noted) == ["m/0, m/1, m/2: optimize_for_inference: [not] tried"]
    assert notes(noted * 2) == ["6 versions: optimize_for_inference: [not] tried"]
    off = Verdict(artifact("m"), ready(FORWARD, batching=Batching(1, "off: it has no batch dimension")))
    assert row(off)[4] == "1, off: it has no batch dimension"
    assert row(Verdict(artifact("m"), ready(FORWARD, batching=Batching(8, "model.yaml says so"))))[4] == (
        "8, model.yaml says so"
    )


def test_the_report_is_json() -> None:
    report = Report(
        [Verdict(artifact("m"), ready(FORWARD), {"cpu": 4}), Verdict(artifact("n"), problem="torn")], ["odd"]
    )
    found = json.loads(json.dumps(as_json(report)))
    assert found["problems"] == 2
    assert found["oddities"] == ["odd"]
    good, bad = found["versions"]
    assert good["signatures"]["forward"]["inputs"] == [
        {
            "name": "x",
            "datatype": "FP32",
            "shape": [-1, 4],
            "optional": False,
            "strict": True,
            "guessed": False,
            "integers": False,
            "plain": False,
        }
    ]
    assert good["batching"] == {"max_batch_size": 32, "reason": "on: proved"}
    assert (good["memory_bytes"], good["load_seconds"], good["problem"]) == ({"cpu": 4}, 0.25, None)
    assert bad == {"model": "n", "version": 1, "platform": "pytorch_torchscript", "problem": "torn"}
