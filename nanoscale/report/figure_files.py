"""A figure on its way out: as text of a page, or as a file.

The one idea: a figure is drawn once, in the light colours. In a page each colour is a variable, so
the same SVG is legible on paper, on a light and on a dark screen; in a file it is the light one.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.figure import Figure

from nanoscale.errors import UserError
from nanoscale.report.links import ROW, SERIES
from nanoscale.report.style import LIGHT, MINUS, SUPERSCRIPTS, styled
from nanoscale.store.files import atomic_write

LOWERED = {high: low for low, high in SUPERSCRIPTS.items()} | {ord("⁻"): MINUS}
RAISED = re.compile(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵍ][⁰¹²³⁴⁵⁶⁷⁸⁹·]*)(?=</text>)")


def svg(figure: Figure, prefix: str = "") -> str:
    """The figure as one `<svg>` element for a page: colours are variables, fonts are the page's.

    `prefix` keeps the ids of several figures of one page apart. Equal figures give equal text.
    """
    buffer = io.StringIO()
    with styled():
        undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=undated)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()

    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"; font-family: [^\";]*", "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = RAISED.sub(_small, text)
    text = text.replace(f' id="{SERIES}', ' data-series="').replace(' target="_blank"', "")
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return re.sub(rf'( id="|href="#(?!{ROW})|url\(#)', rf"\g<1>{prefix}", text)


def _small(match: re.Match[str]) -> str:
    """Raised digits as the page's own, smaller: few fonts have all of the raised ones."""
    return f'<tspan dy="-.45em" font-size="72%">{match[1].translate(LOWERED)}</tspan>'


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure in the format of the path's ending (png, pdf, svg), atomically."""
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"cannot draw {path.name!r}; end the name in .png, .pdf or .svg")

    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with styled(), atomic_write(path) as part:
        figure.savefig(
            part,
            format=kind,
            dpi=200,
            metadata=undated,
            bbox_inches="tight",
            pad_inches=0.12,
        )
    return path
