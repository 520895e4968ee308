"""How a training went: loss, score and learning rate over the epochs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eca_jax.analysis.history import History
from eca_jax.errors import EcaJaxError, nearest
from eca_jax.plots.kernel_size import MEASURES
from eca_jax.plots.style import COLORS, COLUMN, new_figure, own_or_new, styled

KINDS = {"train": ("training", "-", COLORS[0]), "eval": ("held-out", "o-", COLORS[1])}
"""The rows of a run -> what they are called, and their line."""
COLUMNS = {**MEASURES, "loss": ("loss", 1.0), "lr": ("learning rate", 1.0), "top5": ("top-5 (%)", 100.0)}
"""A column -> (what it is, with the unit; the factor from the column to that unit). Others by their name."""
NOT_SHOWN = ("step", "epoch", "lr", "loss", "count")
"""Columns that are no score."""
HEIGHT = 1.8
"""In inches."""


def plot_history(history: History, column: str = "loss", *, ax: Axes | None = None) -> Axes:
    """A column of the log and of the evaluations over the epochs; what was not finite leaves a gap.

    Args:
      history: of `eca_jax.analysis.read_history`: arrays (n,), of one value a row.
      column: 'loss', 'lr', 'top1' or another of the history's.
      ax: where to draw; None is new axes of a column's width.

    Raises:
      EcaJaxError: neither the log nor the evaluations have the column.

    Example:
      After `eca-jax train`:

      >>> from eca_jax.analysis import read_history
      >>> from eca_jax.plots import plot_history
      >>> ax = plot_history(read_history("runs/digits"), "top1")
      >>> ax.get_xlabel(), ax.get_ylabel()
      ('epoch', 'top-1 (%)')
    """
    found = {kind: rows for kind, rows in history.items() if column in rows and kind in KINDS}
    if not found:
        raise EcaJaxError(f"column: the history has no {column!r}.{nearest(column, _names(history))}")
    name, scale = COLUMNS.get(column, (column, 1.0))
    with styled():
        ax = own_or_new(ax, HEIGHT)
        for kind, rows in found.items():
            label, form, color = KINDS[kind]
            ax.plot(rows["epoch"], scale * np.asarray(rows[column]), form, color=color, label=label)
        ax.set_xlabel("epoch")
        ax.set_ylabel(name)
        if len(found) > 1:
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def history_figure(history: History) -> Figure:
    """Panels one below the other: the loss, the score of the evaluations as far as there is one, the learning rate.

    Args:
      history: of `eca_jax.analysis.read_history`: arrays (n,), of one value a row.

    Raises:
      EcaJaxError: there is no row yet.

    Example:
      After `eca-jax train`:

      >>> from eca_jax.analysis import read_history
      >>> from eca_jax.plots import history_figure
      >>> history_figure(read_history("runs/digits")).savefig("history.pdf")
    """
    scores = [name for name in history.get("eval", {}) if name not in NOT_SHOWN]
    columns = [name for name in ("loss", *scores[:1], "lr") if name in _names(history)]
    if not columns:
        raise EcaJaxError("history: it has no row yet; wait until the run has logged its first steps")
    with styled():
        figure = new_figure(COLUMN, 0.4 + 1.4 * len(columns))
        panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
        for column, ax in zip(columns, panels, strict=True):
            plot_history(history, column, ax=ax)
            ax.set_xlabel("epoch" if ax is panels[-1] else "")
            if ax is not panels[0] and ax.get_legend():
                ax.get_legend().remove()
    return figure


def _names(history: History) -> list[str]:
    return [name for kind in KINDS for name in history.get(kind, ())]
