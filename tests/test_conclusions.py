import msgspec
import pytest
from comparisons import cell, comparison, model
from hypothesis import given
from hypothesis import strategies as st

from gateway.comparing.agreement import OutputAgreement
from gateway.comparing.conclusions import amount, groups_of, ranged, warnings
from gateway.comparing.document import Comparison, Figure, Settings
from gateway.comparing.pairing import Pair
from gateway.comparing.spread import contrast, spread


def test_the_verdict_says_who_is_faster_smaller_and_whether_they_agree() -> None:
    found = comparison().verdict
    assert found.speed == (
        "mine_torch answers faster with 1 row and 1 connection: a median of 1.02 against 1.54 ms (1.50x). With 8 rows "
        "and 8 connections mine_torch computes more rows a second: 65,600 against 43,733 (1.50x). Of 4 combinations of "
        "rows and connections the throughput is clearly higher of mine_torch in 4."
    )
    assert found.size == "mine_torch has 10.0 MB of memory to itself against 25.0 MB (2.5x)."
    assert found.answers == (
        "Their answers name the same class in all 64 rows and differ by at most 1e-07; against the labels mine_torch "
        "is right in 90.0%, mine_keras in 80.0%, a difference within the noise."
    )


def test_the_second_is_named_where_it_is_ahead() -> None:
    found = comparison(cells=[cell(1, 1, a=3.0, b=1.0)]).verdict.speed
    assert found.startswith(
        "mine_keras answers faster with 1 row and 1 connection: a median of 1.02 against 3.08 ms (3.0x)"
    )
    assert "mine_keras computes more rows a second" in found


def test_within_the_noise_nobody_is() -> None:
    found = comparison(cells=[cell(1, 1, a=1.0, b=1.001)])
    assert found.verdict.speed.startswith("With 1 row and 1 connection neither is clearly faster")
    rows = [row for title, rows in groups_of(found) if title == "1 row and 1 connection" for row in rows]
    assert [row.title for row in rows] == ["p50", "p95", "p99", "requests/s"]
    assert {row.ahead for row in rows} == {"within noise"}


def test_versions_are_told_where_the_names_are_the_same() -> None:
    found = comparison(models=(model("m"), model("m", version="2")))
    assert found.verdict.speed.startswith("m/1 answers faster")


def test_text_answers_are_equal_or_not() -> None:
    for unequal, said in ((0, "are equal in all 9 rows"), (2, "differ in 2 of 9 elements")):
        output = OutputAgreement("y", "y", 9, 9, unequal, None, None, None)
        assert comparison(agreement=[output], accuracy=None).verdict.answers == f"Their answers {said}."


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"settings": Settings(2, 0.5, 0.1, 0, "", 64, False, 0.0, 2)},
            "2 rounds cannot tell a difference from noise",
        ),
        ({"settings": Settings(6, 0.5, 0.1, 0, "", 64, True, 3.0, 2)}, "a load of 3.0 on 2 CPUs"),
        (
            {"cells": [cell(1, 8, generator_cpu=0.95)]},
            "With 1 row and 8 connections the load generator had its whole core",
        ),
        ({"cells": [cell(1, 1, answers=(599, 6000))]}, "fewer than 100 answers"),
        ({"cells": [cell(1, 1, errors=(0, 1))]}, "1 request of mine_keras/1 failed"),
        ({"inputs": [Pair("x", "z", "order", [], unsure=True)]}, "'x' and 'z' do not tell where their channels stand"),
        ({"models": (model("a"), model("b", max_batch_size=1))}, "a/1 takes up to 32 rows together, b/1 1"),
        ({"models": (model("a"), model("b", devices=["cuda:0"]))}, "a/1 is on cpu, b/1 on cuda:0"),
    ],
)
def test_what_spoils_a_comparison_is_said(changed: dict[str, object], said: str) -> None:
    assert warnings(comparison()) == []
    assert said in " ".join(warnings(comparison(**changed)))


def test_what_was_measured_once_is_called_that() -> None:
    figure = Figure("load_seconds", "Load time", "s", contrast([0.1], [0.2]))
    found = comparison(figures=[figure])
    assert found.verdict.size == "Load time: 100 ms and 200 ms, measured once."
    assert groups_of(found)[0][1][0] == ("Load time", "100 ms", "200 ms", "2.00", "measured once")


def test_what_one_model_has_nothing_of_is_no_times_more() -> None:
    figure = Figure("gpu_memory_bytes", "Memory on GPU", "B", contrast([0.0] * 6, [2e6] * 6))
    row = groups_of(comparison(figures=[figure]))[0][1][0]
    assert (row.a, row.ratio, row.ahead) == ("0 B", "", "mine_torch")


def test_a_range_has_its_unit_once() -> None:
    assert ranged(spread([1.0, 2.0, 3.0]), "ms") == "2 (1.5-2.5) ms"
    assert ranged(spread([2.0]), "ms") == "2 ms"
    assert ranged(spread([900e3, 1e6, 1.1e6]), "B") == "1.0 MB (950.0 kB-1.1 MB)"
    assert ranged(spread([1000.0, 2000.0, 3000.0]), "") == "2,000 (1,500-2,500)"


@given(st.floats(1e-6, 1e9), st.sampled_from(["s", "B", "ms", ""]))
def test_an_amount_can_be_read(value: float, unit: str) -> None:
    assert len(amount(value, unit)) < 20


def test_the_document_is_read_back_as_it_was_written() -> None:
    found = comparison()
    text = msgspec.json.encode(found)
    assert msgspec.json.decode(text, type=Comparison) == found
    assert msgspec.json.decode(text)["format_version"] == 1
