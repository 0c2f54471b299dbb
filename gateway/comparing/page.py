"""The page of a comparison: one HTML file that needs nothing beside itself, and asks no other host for anything."""

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path

import msgspec

from gateway.comparing.conclusions import Row, groups_of, names_of
from gateway.comparing.document import Comparison, Model

_STATIC = Path(__file__).parents[1] / "static"
_SCRIPTS = ("uplot/uPlot.iife.min.js", "compare/report.js")
_CHARTS = {
    "latency": (
        "Latency",
        "Milliseconds to an answer: medians, the middle half of rounds shaded; dashed: p99 of the fewest connections.",
    ),
    "throughput": ("Throughput", "Rows a second by rows of a request; the middle half of the rounds shaded."),
    "memory": ("Memory", "What only the model's process has, and its files on disk, in MB."),
    "distribution": ("All answers", "How often which latency was seen with the smallest requests, over all rounds."),
}
_NOISE = (
    "One model is ahead in so few rounds that chance explains it (sign test over the paired rounds, p above 5 %), or "
    "the middle halves of both models' rounds overlap."
)
_MEMORY = (
    "Private memory of the model's process, as the kernel measures it; the framework, which all models share, is not "
    "in it. Its peak is the most that was seen at looks twice a second."
)
_LOAD = "From the fork of the model's process to its being ready; the framework is imported before."


@cache
def _static(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def page(found: Comparison) -> str:
    """The whole page."""
    a, b = names_of(found)
    sources = " ".join(script_hashes())
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {sources}; img-src data:"
    style = _static("uplot/uPlot.min.css") + _static("compare/report.css")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">',
            f"<title>{escape(a)} and {escape(b)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
            _head(found),
            _verdict(found),
            *(_chart(name, *words) for name, words in _CHARTS.items()),
            _table(found),
            _how(found),
            "</main>",
            f'<script type="application/json" id="comparison">{_embedded(found)}</script>',
            f"<!-- The charts are drawn by uPlot.\n\n{_static('uplot/LICENSE')}-->",
            *(f"<script>{_static(script)}</script>" for script in _SCRIPTS),
            "</body>\n</html>\n",
        ]
    )


def script_hashes() -> list[str]:
    """What a Content Security Policy has to name for the scripts of a page to run (CSP Level 3, 2.3.1)."""
    return [f"'sha256-{_digest(_static(script))}'" for script in _SCRIPTS]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _embedded(found: Comparison) -> str:
    """The document as JSON that cannot end the element it stands in."""
    return msgspec.json.encode(found).decode().replace("<", "\\u003c")


def _head(found: Comparison) -> str:
    cards = "".join(_card(side, model) for side, model in zip("ab", found.models, strict=True))
    a, b = names_of(found)
    return f'<header>\n<h1>{escape(a)} or {escape(b)}?</h1>\n<div class="models">{cards}</div>\n</header>'


def _card(side: str, model: Model) -> str:
    details = [model.platform, ", ".join(model.devices)]
    if model.max_batch_size is not None and model.max_batch_size > 1:
        details.append(f"batches of {model.max_batch_size}")
    shown = " · ".join(escape(each) for each in details if each)
    return f'<div class="model {side}"><b>{escape(model.title)}</b><span>{shown}</span></div>'


def _verdict(found: Comparison) -> str:
    parts = (("Speed", found.verdict.speed), ("Size", found.verdict.size), ("Answers", found.verdict.answers))
    said = "".join(f"<dt>{what}</dt><dd>{escape(text)}</dd>" for what, text in parts if text)
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in found.warnings)
    return f'<section class="verdict"><dl>{said}</dl></section>' + (
        f'<ul class="warnings">{notes}</ul>' if notes else ""
    )


def _chart(name: str, title: str, caption: str) -> str:
    """Where the script draws; the figures stand in the table below."""
    return (
        f'<figure id="{name}" hidden><h2>{title}</h2>'
        f'<div class="chart" role="img" aria-label="{title}; the figures are in the table below"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(found: Comparison) -> str:
    columns = ("", *(model.title for model in found.models), "B / A", "Ahead")
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(
        f'<tbody><tr class="group"><th colspan="5" scope="rowgroup">{escape(title)}</th></tr>\n'
        f"{''.join(map(_row, rows))}</tbody>"
        for title, rows in groups_of(found)
    )
    return (
        '<section>\n<h2>All figures</h2>\n<div class="wide"><table>\n'
        "<caption>Medians over the rounds, with the range of the middle half of the rounds.</caption>"
        f"<thead><tr>{head}</tr></thead>\n{body}</table></div>\n</section>"
    )


def _row(row: Row) -> str:
    kind = ' class="noise"' if row.ahead in ("within noise", "measured once", "neither") else ""
    shown = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    return f'<tr{kind}><th scope="row">{escape(row.title)}</th>{shown}</tr>\n'


def _how(found: Comparison) -> str:
    settings = found.settings
    loaded = ", each begun by loading both models anew" if settings.reloaded else ""
    asked = "asked from " if settings.load_before is None else ""
    facts = [
        ("When, where", f"{found.created}, {asked}{found.machine}, {settings.cpus} CPUs, gateway {found.gateway}"),
        ("Rounds", f"{settings.rounds}{loaded}; {settings.seconds:g} s for each model, rows and connections"),
        ("Requests", f"binary tensors, {settings.rows_of_data} rows of data ({settings.data})"),
        ("Inputs", _pairs((pair.a, pair.b, pair.axes) for pair in found.inputs)),
        ("Outputs", _pairs((pair.a, pair.b, pair.axes) for pair in found.outputs)),
        *((f"Batching of {model.title}", model.batching) for model in found.models if model.batching),
        ("Within noise", _NOISE),
        ("Memory", _MEMORY),
        ("Load time", _LOAD),
    ]
    shown = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in facts)
    return f"<section>\n<h2>How it was measured</h2>\n<dl>{shown}</dl>\n</section>"


def _pairs(pairs: Iterable[tuple[str, str, list[int]]]) -> str:
    return "; ".join(
        (a if a == b else f"{a} with {b}") + (f", transposed by {axes}" if axes else "") for a, b, axes in pairs
    )
