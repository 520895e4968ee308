"""A held-out score against ECA's kernel size, as in the paper's Figure 4."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eca_jax.analysis.kernel_sizes import Point
from eca_jax.plots.style import COLORS, COLUMN, GREY, new_figure, own_or_new, styled

REFERENCES = {"none": "no attention", "se": "SE"}
"""What a reference is called in the legend; others by their kind."""
MEASURES = {"top1": ("top-1 (%)", 100.0), "map": ("mAP (%)", 100.0)}
"""What tasks call their score -> (what it is, with the unit; the factor from the score to that unit)."""
HEIGHT = 2.3
"""In inches."""
STEP, ASIDE = 1.5, 0.12
"""In distances between two sizes that are one number: between the others, whose names are long, and before the first of
them; and from a mean to its single runs, to the right."""


def plot_kernel_size(points: Sequence[Point], measure: str, *, scale: float = 1.0, ax: Axes | None = None) -> Axes:
    """The mean over the seeds with its interval, for each kernel size; references are horizontal lines.

    Sizes that are one number are joined by a line; what is chosen for each stage ('adaptive', '3,5,5,7') stands beside
    them. Small dots are the single runs.

    Args:
      points: of `eca_jax.analysis.kernel_sizes.summarise`.
      measure: what the scores are, with the unit: 'top-1 (%)'.
      scale: the factor from the scores to that unit: 100 for per cent.
      ax: where to draw; None is new axes of a column's width.

    Example:
      >>> from eca_jax.analysis.kernel_sizes import to_point
      >>> from eca_jax.plots import plot_kernel_size
      >>> scores = {"1": (0.95, 0.96), "3": (0.97, 0.98), "5": (0.96, 0.98)}  # of two seeds each
      >>> points = [to_point(size, reference=False, values=values) for size, values in scores.items()]
      >>> ax = plot_kernel_size(points, "top-1 (%)", scale=100)
      >>> [label.get_text() for label in ax.get_xticklabels()]
      ['1', '3', '5']
    """
    sizes = [point for point in points if not point.reference]
    single = [point for point in sizes if point.label.isdecimal()]
    staged = [point for point in sizes if not point.label.isdecimal()]
    beside = STEP * np.arange(len(staged)) + (len(single) - 1 + STEP if single else 0)
    with styled():
        ax = own_or_new(ax, HEIGHT)
        _draw(ax, np.arange(len(single)), single, scale, "o-", COLORS[0], "one size for all stages")
        _draw(ax, beside, staged, scale, "s", COLORS[1], "a size for each stage")
        references, colors = [point for point in points if point.reference], (GREY, *COLORS[2:])
        for i, point in enumerate(references):
            color, dashes = colors[i % len(colors)], ("--", ":", "-.")[i % 3]
            label = REFERENCES.get(point.label, point.label)
            ax.axhline(scale * point.mean, ls=dashes, color=color, label=label, zorder=1)
            ax.axhspan(scale * point.low, scale * point.high, color=color, alpha=0.1, lw=0, zorder=0)
        ax.set_xticks([*range(len(single)), *beside.tolist()], [point.label for point in (*single, *staged)])
        ax.set_xlabel("kernel size $k$")
        ax.set_ylabel(measure)
        ax.margins(x=0.06)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def kernel_size_figure(points: Sequence[Point], measure: str, *, scale: float = 1.0) -> Figure:
    """`plot_kernel_size`, by itself.

    Example:
      >>> from eca_jax.analysis.kernel_sizes import to_point
      >>> from eca_jax.plots import kernel_size_figure
      >>> eca = to_point("3", reference=False, values=(0.97, 0.98))  # of two seeds
      >>> se = to_point("se", reference=True, values=(0.96, 0.97))
      >>> kernel_size_figure([eca, se], "top-1 (%)", scale=100).savefig("kernel_sizes.pdf")
    """
    with styled():
        figure = new_figure(COLUMN, HEIGHT)
        plot_kernel_size(points, measure, scale=scale, ax=figure.add_subplot())
    return figure


def _draw(ax: Axes, x: np.ndarray, points: Sequence[Point], scale: float, form: str, color: str, label: str) -> None:
    """The means with their intervals, and the single runs as small dots."""
    if not points:
        return
    mean, low, high = (scale * np.array([getattr(point, end) for point in points]) for end in ("mean", "low", "high"))
    for place, point in zip(x, points, strict=True):
        values = scale * np.array(point.values)
        beside = np.full(len(values), place + ASIDE)
        ax.plot(beside, values, ".", color=color, alpha=0.5, markersize=4, markeredgewidth=0)
    ax.errorbar(x, mean, (mean - low, high - mean), fmt=form, color=color, capsize=2, elinewidth=0.8, label=label)
