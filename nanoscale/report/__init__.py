"""The report: figures and one self-contained page, made from tables and JSON records alone.

`figures` draws, `style` is how everything looks, `html` writes the page.
"""

from nanoscale.report.compare import compare_figure
from nanoscale.report.figures import heatmap_figure, law_figure, lines_figure, loss_curves_figure
from nanoscale.report.html import write_report
from nanoscale.report.search import contour_figure, search_figure
from nanoscale.report.style import save, svg
from nanoscale.report.transfer import transfer_figure

__all__ = [
    "compare_figure",
    "contour_figure",
    "heatmap_figure",
    "law_figure",
    "lines_figure",
    "loss_curves_figure",
    "save",
    "search_figure",
    "svg",
    "transfer_figure",
    "write_report",
]
