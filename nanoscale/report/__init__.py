"""The report: figures and one self-contained page, made from tables and the records of checks and
laws.

`X_figures` draws X, from what `style` and `marks` hold for all of them; `page` writes the page.
"""

from nanoscale.report.doubt_figures import cloud_figure, rivals_figure, rollout_figure
from nanoscale.report.figure_files import save, svg
from nanoscale.report.index import StudyLine, write_index
from nanoscale.report.ladder_figures import law_figure
from nanoscale.report.law_figures import frontier_figure, residuals_figure, surface_figure
from nanoscale.report.links import link_runs
from nanoscale.report.lr_curves import transfer_figure
from nanoscale.report.multiverse_figures import multiverse_figure
from nanoscale.report.page import StudyPage
from nanoscale.report.paired_losses import compare_figure
from nanoscale.report.parallel_figures import parallel_figure
from nanoscale.report.run_figures import heatmap_figure, lines_figure, loss_curves_figure
from nanoscale.report.search_figures import contour_figure, search_figure
from nanoscale.report.valley_figures import valleys_figure
from nanoscale.report.worth_figures import worth_figure

__all__ = [
    "StudyLine",
    "StudyPage",
    "cloud_figure",
    "compare_figure",
    "contour_figure",
    "frontier_figure",
    "heatmap_figure",
    "law_figure",
    "lines_figure",
    "link_runs",
    "loss_curves_figure",
    "multiverse_figure",
    "parallel_figure",
    "residuals_figure",
    "rivals_figure",
    "rollout_figure",
    "save",
    "search_figure",
    "surface_figure",
    "svg",
    "transfer_figure",
    "valleys_figure",
    "worth_figure",
    "write_index",
]
