"""The verdict and the warnings of a comparison, in sentences. Pure functions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from gateway.comparing.agreement import OutputAgreement
from gateway.comparing.document import Cell, Comparison, Figure, Verdict
from gateway.comparing.spread import FEWEST_ROUNDS, RARELY, Contrast, Spread, ahead
from gateway.sizes import format_size

BUSY = 0.9
"""A load generator that has so much of its core measures itself."""
BUSY_MACHINE = 0.75
"""A load of so much for each CPU leaves too little to measure with."""
FEW_ANSWERS = 100
"""A 99th percentile of fewer answers is little more than the slowest."""


def number(value: float) -> str:
    """With three digits, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def amount(value: float, unit: str) -> str:
    """A figure with its unit, for people."""
    if unit == "B":
        return format_size(value)
    if unit == "s":
        return f"{number(value * 1000)} ms" if value < 1 else f"{number(value)} s"
    return f"{number(value)} {unit}"


def times(contrast: Contrast) -> str:
    """How many times the smaller of two figures the larger is: 1.3x; empty if the smaller is 0."""
    if not contrast.ratio:
        return ""
    ratio = max(contrast.ratio, 1 / contrast.ratio)
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x"


def place(cell: Cell) -> str:
    """Of what a cell is about."""
    return f"{counted(cell.rows, 'row')} and {counted(cell.connections, 'connection')}"


def counted(count: int, what: str) -> str:
    """1 row, 2 rows."""
    return f"{count} {what}{'s' * (count != 1)}"


def verdict(found: Comparison) -> Verdict:
    """Which is faster at what, which is smaller, and do they agree."""
    names = names_of(found)
    return Verdict(" ".join(_speed(found.cells, names)), " ".join(_size(found.figures, names)), _answers(found, names))


def names_of(found: Comparison) -> tuple[str, str]:
    """Without versions where that is enough to tell them apart."""
    a, b = found.models
    return (a.name, b.name) if a.name != b.name else (a.title, b.title)


def _speed(cells: Sequence[Cell], names: tuple[str, str]) -> list[str]:
    first, last = cells[0], cells[-1]
    latency, rate = first.p50_ms, last.requests_per_second
    said = []
    if winner := ahead(latency, "less"):
        ours, theirs = (latency.a, latency.b) if winner == "a" else (latency.b, latency.a)
        said.append(
            f"{names[winner == 'b']} answers faster with {place(first)}: a median of "
            f"{number(ours.median)} against {number(theirs.median)} ms ({times(latency)})."
        )
    else:
        said.append(
            f"With {place(first)} neither is clearly faster: medians of {number(latency.a.median)} and "
            f"{number(latency.b.median)} ms."
        )
    if winner := ahead(rate, "more"):
        ours, theirs = (rate.a, rate.b) if winner == "a" else (rate.b, rate.a)
        rows = [number(each.median * last.rows) for each in (ours, theirs)]
        said.append(
            f"With {place(last)} {names[winner == 'b']} computes more rows a second: {rows[0]} against {rows[1]} "
            f"({times(rate)})."
        )
    wins = [ahead(cell.requests_per_second, "more") for cell in cells]
    counts = [f"{name} in {wins.count(side)}" for name, side in zip(names, "ab", strict=True) if side in wins]
    if not counts:
        more = "clearly more throughput"
        said.append(
            f"In none of {len(cells)} combinations of rows and connections has either {more}."
            if len(cells) > 1
            else f"Neither has {more}."
        )
    elif len(cells) > 1:
        said.append(
            f"Of {len(cells)} combinations of rows and connections the throughput is clearly higher of "
            f"{' and of '.join(counts)}."
        )
    return said


def _size(figures: Sequence[Figure], names: tuple[str, str]) -> list[str]:
    by_name = {figure.name: figure for figure in figures}
    said = []
    if (memory := by_name.get("memory_bytes")) is not None:
        said.append(_less(memory, names, "has {} of memory to itself against {}"))
    if (load := by_name.get("load_seconds")) is not None:
        said.append(_less(load, names, "loads in {} against {}"))
    return said


def _less(figure: Figure, names: tuple[str, str], words: str) -> str:
    contrast = figure.contrast
    if winner := ahead(contrast, "less"):
        ours, theirs = (contrast.a, contrast.b) if winner == "a" else (contrast.b, contrast.a)
        shown = words.format(amount(ours.median, figure.unit), amount(theirs.median, figure.unit))
        more = times(contrast)
        return f"{names[winner == 'b']} {shown}{f' ({more})' if more else ''}."
    a, b = (amount(each.median, figure.unit) for each in (contrast.a, contrast.b))
    rounds = len(contrast.a.rounds)
    why = (
        "measured once"
        if rounds == 1
        else "too few rounds to tell"
        if rounds < FEWEST_ROUNDS
        else "a difference within the noise"
    )
    return f"{figure.title}: {a} and {b}, {why}."


def equal(output: OutputAgreement) -> bool:
    """Whether there is no difference at all."""
    return not output.unequal and not output.max_difference


def _answers(found: Comparison, names: tuple[str, str]) -> str:
    said = []
    for output in found.agreement:
        where = f" in '{output.a}'" if len(found.agreement) > 1 else ""
        if equal(output):
            said.append(f"are equal in all {output.rows} rows{where}")
            continue
        if output.same_class is not None:
            part = "all" if output.same_class == 1 else f"{output.same_class:.1%} of"
            said.append(f"name the same class in {part} {output.rows} rows{where}")
        if output.max_difference:
            said.append(f"differ by at most {output.max_difference:.2g}{where}")
        if output.unequal:
            said.append(f"differ in {output.unequal} of {output.elements} elements{where}")
    text = f"Their answers {' and '.join(said)}"
    if (accuracy := found.accuracy) is None:
        return f"{text}."
    text += f"; against the labels {names[0]} is right in {accuracy.a:.1%}, {names[1]} in {accuracy.b:.1%}"
    return f"{text}{'' if accuracy.a == accuracy.b or accuracy.p <= RARELY else ', a difference within the noise'}."


def warnings(found: Comparison) -> list[str]:
    """What a reader should know before believing the figures."""
    said = []
    if found.settings.rounds < FEWEST_ROUNDS:
        said.append(
            f"{counted(found.settings.rounds, 'round')} cannot tell a difference from noise, so none is called clear; "
            f"from {FEWEST_ROUNDS} on they can."
        )
    settings = found.settings
    if settings.load_before is not None and settings.load_before > BUSY_MACHINE * settings.cpus:
        said.append(
            f"Other programs kept the machine busy when this began (a load of {settings.load_before:.1f} on "
            f"{counted(settings.cpus, 'CPU')}): the figures are worse than they could be, and the noise is larger."
        )
    limited = [place(cell) for cell in found.cells if cell.generator_cpu >= BUSY]
    if limited:
        said.append(
            f"With {', '.join(limited)} the load generator had its whole core and was itself the limit: the server can "
            "do more, and the models may differ more than is seen."
        )
    rounds = found.settings.rounds
    few = [place(cell) for cell in found.cells if min(cell.answers) < FEW_ANSWERS * rounds]
    if few:
        said.append(
            f"With {', '.join(few)} a round has fewer than {FEW_ANSWERS} answers, of which a p99 is little more than "
            "the slowest; a larger --seconds helps."
        )
    for cell in found.cells:
        for model, errors in zip(found.models, cell.errors, strict=True):
            if errors:
                said.append(f"With {place(cell)} {counted(errors, 'request')} of {model.title} failed.")
    said += [
        f"The known sizes of '{pair.a}' and '{pair.b}' do not tell where their channels stand: they were taken "
        + (f"as transposed by {pair.axes}." if pair.axes else "to be laid out alike.")
        for pair in (*found.inputs, *found.outputs)
        if pair.unsure
    ]
    return said + _unequal(found)


def _unequal(found: Comparison) -> list[str]:
    """Differences between the models that have nothing to do with their frameworks."""
    a, b = found.models
    said = []
    if (a.max_batch_size or 1) != (b.max_batch_size or 1):
        said.append(
            f"The models are not batched alike, which shows with several connections: {a.title} takes up to "
            f"{counted(a.max_batch_size or 1, 'row')} together, {b.title} {b.max_batch_size or 1}."
        )
    if sorted(a.devices) != sorted(b.devices):
        said.append(
            f"The models are not on the same devices: {a.title} is on {', '.join(a.devices) or 'none'}, {b.title} on "
            f"{', '.join(b.devices) or 'none'}."
        )
    return said


# The same as a table


class Row(NamedTuple):
    """A line of the table: both models' medians with the middle half of their rounds, their ratio, who is ahead."""

    title: str
    a: str
    b: str
    ratio: str = ""
    ahead: str = ""


def groups_of(found: Comparison) -> list[tuple[str, list[Row]]]:
    """All figures under headings."""
    names = names_of(found)
    answers = [_answer_row(output) for output in found.agreement]
    if (accuracy := found.accuracy) is not None:
        who = "neither" if accuracy.a == accuracy.b else "within noise"
        if accuracy.p <= RARELY:
            who = names[accuracy.b > accuracy.a]
        answers.append(Row("accuracy", f"{accuracy.a:.2%}", f"{accuracy.b:.2%}", "", who))
    return [
        ("Size", [_row(figure.title, figure.contrast, figure.unit, "less", names) for figure in found.figures]),
        *(
            (
                place(cell),
                [
                    _row("p50", cell.p50_ms, "ms", "less", names),
                    _row("p95", cell.p95_ms, "ms", "less", names),
                    _row("p99", cell.p99_ms, "ms", "less", names),
                    _row("requests/s", cell.requests_per_second, "", "more", names),
                ],
            )
            for cell in found.cells
        ),
        ("Answers", answers),
    ]


def _answer_row(output: OutputAgreement) -> Row:
    title = f"'{output.a}'" if output.a == output.b else f"'{output.a}', '{output.b}'"
    if equal(output):
        return Row(title, f"equal in all {output.rows} rows", "")
    if output.max_difference is None:
        return Row(title, f"{output.unequal} of {output.elements} unequal", "")
    apart = f"differ by {output.max_difference:.2g} at most, {output.mean_difference:.2g} on average"
    return Row(title, apart, "" if output.same_class is None else f"same class in {output.same_class:.2%}")


def _row(title: str, contrast: Contrast, unit: str, better: Literal["less", "more"], names: tuple[str, str]) -> Row:
    winner = ahead(contrast, better)
    single = len(contrast.a.rounds) == 1 and not contrast.exact
    who = "neither" if contrast.exact else "measured once" if single else "within noise"
    if winner:
        who = ", ".join(filter(None, (names[winner == "b"], times(contrast))))
    ratio = "" if contrast.ratio is None else f"{contrast.ratio:.2f}"
    return Row(title, ranged(contrast.a, unit), ranged(contrast.b, unit), ratio, who)


def ranged(spread: Spread, unit: str) -> str:
    """A median, and between what the middle half of the rounds lies: 8.1 (8.0-8.3) MB."""
    shown = amount(spread.median, unit).strip()
    low, high = (amount(each, unit).strip() for each in (spread.low, spread.high))
    if low == high:
        return shown
    (value, _, kind), *ends = (each.partition(" ") for each in (shown, low, high))
    if all(end[2] == kind for end in ends):
        return f"{value} ({ends[0][0]}-{ends[1][0]}) {kind}".strip()
    return f"{shown} ({low}-{high})"
