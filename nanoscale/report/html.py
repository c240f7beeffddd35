"""The report: one self-contained HTML file, written from strings, tables and figures.

The one idea: the page needs nothing but itself. No script, no request (its own policy forbids
them), one style sheet for screen, dark screen and paper; and equal input gives equal bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Integral, Real
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nanoscale.errors import disk_errors
from nanoscale.report.style import COLOURS, MINUS, THIN, TIMES, svg
from nanoscale.store.files import write_text

MISSING = "\u2013"


def write_report(
    path: str | Path,
    *,
    title: str,
    question: str,
    summary_lines: Sequence[str],
    figures: Sequence[tuple[str, Figure]],
    tables: Sequence[tuple[str, pd.DataFrame]],
    settings: Mapping[str, object],
    command: str,
    warnings: Sequence[str] = (),
) -> Path:
    """Write the page, atomically: question, answer, figures, tables, settings, command.

    The first of `summary_lines` is the answer and stands alone; figures and tables are numbered
    in order and come with their captions; nested settings are shown with dots.
    """
    path = Path(path)
    main = [
        _head(title, question),
        _answer(summary_lines),
        _warnings(warnings),
        *(_figure(i, *one) for i, one in enumerate(figures, start=1)),
        *(_table(i, *one) for i, one in enumerate(tables, start=1)),
        _settings(settings),
        _command(command),
    ]
    page = PAGE.format(title=escape(title), style=_style(), main="\n".join(filter(None, main)))
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _head(title: str, question: str) -> str:
    return (
        f'<header>\n<p class="eyebrow">nanoscale study</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="question">{escape(question)}</p>\n</header>'
    )


def _answer(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    first, *rest = (_maths(line) for line in lines)
    items = "".join(f"\n<li>{line}</li>" for line in rest)
    notes = f'\n<ul class="notes">{items}\n</ul>' if rest else ""
    return f'<section class="answer">\n<p class="law">{first}</p>{notes}\n</section>'


def _maths(line: str) -> str:
    """Escaped, with exponents raised, intervals kept whole and `not identified` set apart."""
    line = re.sub(r"\^(-?\d[\d.]*|\w)", r"<sup>\1</sup>", escape(line))
    line = re.sub(r"\[[^\][]*\]", r'<span class="interval">\g<0></span>', line)
    return line.replace("not identified", "<strong>not identified</strong>")


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"\n<li>{escape(w)}</li>" for w in warnings)
    return f'<section class="warnings">\n<h2>Warnings</h2>\n<ul>{items}\n</ul>\n</section>'


def _figure(number: int, caption: str, figure: Figure) -> str:
    width = figure.get_size_inches()[0] / 7.6
    drawing = svg(figure, prefix=f"f{number}-")
    label = f'<svg role="img" aria-label="{escape(caption)}"'
    return (
        f'<figure>\n<div class="scroll"><div class="drawing" style="--share: {width:.4f}">'
        f"{drawing.replace('<svg', label, 1)}</div></div>\n"
        f"<figcaption><b>Figure {number}.</b> {escape(caption)}</figcaption>\n</figure>"
    )


def _table(number: int, caption: str, table: pd.DataFrame) -> str:
    columns = [_column(str(name), table.iloc[:, i]) for i, name in enumerate(table.columns)]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind, _ in columns)
    rows = zip(*(cells for _, _, cells in columns), strict=True)
    kinds = [kind for _, kind, _ in columns]
    body = "\n".join(
        "<tr>" + "".join(f"<td{k}>{c}</td>" for k, c in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<figure class="table">\n<figcaption><b>Table {number}.</b> {escape(caption)}'
        f'</figcaption>\n<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n</figure>"
    )


def _column(name: str, values: pd.Series) -> tuple[str, str, list[str]]:
    """(name, class attribute, cells): one notation per column, so that numbers line up."""
    values = [v.item() if hasattr(v, "item") else v for v in values]
    present = [v for v in values if not _missing(v)]
    numeric = bool(present) and all(_is_number(v) for v in present)
    write = _notation(present) if numeric else lambda v: escape(_words(v))
    cells = [MISSING if _missing(v) else write(v) for v in values]
    return name, ' class="n"' if numeric else "", cells


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (_is_number(value) and not math.isfinite(value))


def _notation(values: list[float]):
    """How to write every number of one column."""
    sizes = [abs(float(v)) for v in values if v]
    low, high = (min(sizes), max(sizes)) if sizes else (1.0, 1.0)
    if high >= 1e10 or ((low < 1e-4 or high >= 1e7 * low) and not _whole(values)):
        return _scientific
    if _whole(values):
        form = ",d" if high >= 1e4 else "d"
        return lambda v: f"{int(v):{form}}".replace(",", THIN).replace("-", MINUS)
    digits = max(len(f"{abs(float(v)):.6g}".partition(".")[2]) for v in values)
    decimals = min(digits, max(0, 4 - math.floor(math.log10(high))))
    return lambda v: f"{float(v):,.{decimals}f}".replace(",", THIN).replace("-", MINUS)


def _whole(values: list[float]) -> bool:
    return all(isinstance(v, Integral) or float(v).is_integer() for v in values)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{float(value):.3e}".split("e")
    power = str(int(exponent)).replace("-", MINUS)
    return f"{mantissa.replace('-', MINUS)}{TIMES}10<sup>{power}</sup>"


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _settings(settings: Mapping[str, object]) -> str:
    pairs = "".join(
        f"\n<div><dt>{escape(name)}</dt><dd>{escape(_words(value))}</dd></div>"
        for name, value in _flat(settings)
    )
    return f"<section>\n<h2>Settings</h2>\n<dl>{pairs}\n</dl>\n</section>" if pairs else ""


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    pairs = []
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value
        pairs += _flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]
    return pairs


def _command(command: str) -> str:
    return (
        "<section>\n<h2>Make this page again</h2>\n"
        f'<pre class="scroll" tabindex="0"><code>{escape(command)}</code></pre>\n</section>'
    )


def _style() -> str:
    light, dark = (
        "".join(f"--{name}: {pair[i]}; " for name, pair in COLOURS.items()).rstrip()
        for i in range(2)
    )
    return STYLE.replace("LIGHT", light).replace("DARK", dark)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{main}
</main>
</body>
</html>
"""

STYLE = """:root { color-scheme: light dark; LIGHT
  --serif: "Iowan Old Style", Charter, "Bitstream Charter", "Palatino Linotype", Palatino,
    "URW Palladio L", "Source Serif 4", Georgia, serif;
  --sans: Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 var(--serif); -webkit-text-size-adjust: 100%; }
main { max-width: 47.5rem; margin: 0 auto; padding: 4.5rem 1.5rem 6rem; }
header { margin-bottom: 2.25rem; }
.eyebrow { margin: 0 0 .5rem; font: 500 .75rem/1.4 var(--sans); letter-spacing: .08em;
  text-transform: uppercase; color: var(--muted); }
h1 { margin: 0; font-size: 2.25rem; line-height: 1.18; font-weight: 600; letter-spacing: -.012em;
  text-wrap: balance; }
.question { margin: .75rem 0 0; font-size: 1.2rem; line-height: 1.5; font-style: italic;
  color: var(--muted); text-wrap: pretty; }
h2 { margin: 0 0 .75rem; font: 600 .9375rem/1.4 var(--sans); }
section, figure { margin: 3rem 0 0; }
section.answer { margin: 0; padding: 1.5rem 0 1.35rem; border-top: 1px solid var(--ink);
  border-bottom: 1px solid var(--rule); }
.law { margin: 0; font-size: 1.55rem; line-height: 1.4; font-variant-numeric: lining-nums; }
.interval { white-space: nowrap; color: var(--muted); font-size: .78em; }
.notes { margin: .85rem 0 0; padding: 0; list-style: none; font: .875rem/1.6 var(--sans);
  color: var(--muted); }
.notes .interval { font-size: 1em; }
.notes strong { font-weight: 600; color: var(--accent); }
sup { font-size: .68em; line-height: 0; vertical-align: .55em; }
.warnings { margin-top: 1.5rem; padding: .1rem 0 .1rem 1rem; border-left: 3px solid var(--accent);
  font: .875rem/1.6 var(--sans); }
.warnings h2 { margin: 0; font-size: .875rem; color: var(--accent); }
.warnings ul { margin: 0; padding: 0; list-style: none; }
.notes li::first-letter, .warnings li::first-letter { text-transform: uppercase; }
.drawing { width: calc(var(--share) * 100%); min-width: calc(var(--share) * 34rem); }
.drawing svg { display: block; width: 100%; height: auto; font-family: var(--sans);
  font-variant-numeric: tabular-nums; }
figcaption { max-width: 40rem; margin-top: .85rem; font: .875rem/1.55 var(--sans);
  color: var(--muted); text-wrap: pretty; }
figcaption b { font-weight: 600; color: var(--ink); }
.table figcaption { margin: 0 0 .6rem; }
.scroll { overflow-x: auto; }
table { min-width: 100%; border-collapse: collapse; border-top: 1px solid var(--ink);
  border-bottom: 1px solid var(--ink); font: .8125rem/1.4 var(--sans);
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .34rem .6rem; text-align: left; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 500; color: var(--muted); border-bottom: 1px solid var(--rule); }
tbody tr + tr td { border-top: 1px solid var(--rule); }
.n { text-align: right; }
td sup { font-size: .8em; vertical-align: .4em; }
dl { margin: 0; columns: 2 17rem; column-gap: 2.5rem; font: .8125rem/1.4 var(--sans);
  font-variant-numeric: tabular-nums; }
dl div { display: flex; justify-content: space-between; gap: 1rem; padding: .32rem 0;
  border-bottom: 1px solid var(--rule); break-inside: avoid; }
dt { color: var(--muted); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
pre { margin: 0; padding: .85rem 1rem; border: 1px solid var(--rule); border-radius: 4px;
  font: .8125rem/1.55 var(--mono); }
@media screen and (min-width: 48rem) {
  .table .scroll { width: max-content; min-width: 100%;
    max-width: calc(50vw + 23.75rem - 3.5rem); }
}
@media (max-width: 40rem) {
  main { padding: 2.5rem 1.1rem 4rem; }
  h1 { font-size: 1.75rem; }
  .law { font-size: 1.25rem; }
}
@media print {
  :root { LIGHT --paper: #fff; }
  @page { margin: 18mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section, figure { margin-top: 1.75rem; }
  .answer, .warnings, figure:not(.table), tr, pre { break-inside: avoid; }
  h2, .table figcaption { break-after: avoid; }
  .scroll { overflow: visible; }
  .drawing { min-width: 0; }
  table { font-size: 7.5pt; }
  pre { white-space: pre-wrap; }
}
"""
