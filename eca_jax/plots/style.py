"""What all figures share: fonts and lines for print, colours for every eye, and files that are the same every time."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN, PAGE = 3.25, 6.875
"""The width of one column and of both, in inches (CVPR, ICCV and ICML have about these)."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D00")
"""Okabe and Ito's, which colour-blind readers can tell apart, with a darker yellow for lines on white."""
GREY = "#666666"


def styled():
    """A context in which what is drawn has the style of the figures; matplotlib's settings are the same after it."""
    return matplotlib.rc_context(
        {
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "legend.handlelength": 1.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.0,
            "lines.markersize": 3.5,
            "figure.dpi": 100,
            "savefig.dpi": 300,
            "svg.hashsalt": "eca_jax",  # the same figure is the same file
        }
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. It belongs to no window and to no list of pyplot's."""
    return Figure(figsize=(width, height), layout="constrained")


def own_or_new(ax: Axes | None, height: float) -> Axes:
    """The axes that are given, or those of a new figure of a column's width."""
    return new_figure(COLUMN, height).add_subplot() if ax is None else ax
