"""The report: figures and one self-contained page, made from tables and JSON records alone.

`figures` draws, `style` is how everything looks, `html` writes the page.
"""

from nanoscale.report.doubt import cloud_figure, multiverse_figure, rollout_figure
from nanoscale.report.figures import heatmap_figure, law_figure, lines_figure, loss_curves_figure
from nanoscale.report.html import write_report
from nanoscale.report.isoflop import valleys_figure
from nanoscale.report.laws import frontier_figure, residuals_figure, surface_figure
from nanoscale.report.lr_curves import transfer_figure
from nanoscale.report.paired_losses import compare_figure
from nanoscale.report.search import contour_figure, search_figure
from nanoscale.report.style import save, svg

__all__ = [
    "cloud_figure",
    "compare_figure",
    "contour_figure",
    "frontier_figure",
    "heatmap_figure",
    "law_figure",
    "lines_figure",
    "loss_curves_figure",
    "multiverse_figure",
    "residuals_figure",
    "rollout_figure",
    "save",
    "search_figure",
    "surface_figure",
    "svg",
    "transfer_figure",
    "valleys_figure",
    "write_report",
]
