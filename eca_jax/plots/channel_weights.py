"""Mean channel weights of several classes, as in the paper's appendix."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eca_jax.errors import EcaJaxError
from eca_jax.plots.style import COLORS, COLUMN, PAGE, new_figure, own_or_new, styled


def expect_classes(names: Sequence[str]) -> None:
    """Refuses more classes than there are colours."""
    if len(names) > len(COLORS):
        raise EcaJaxError(f"--classes: expected at most {len(COLORS)}, one for each colour, got {len(names)}")


def plot_channel_weights(means: np.ndarray, class_names: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """One line for each class: the mean weight of every channel of a block, (classes, channels)."""
    with styled():
        ax = own_or_new(ax, 1.6)
        width = 0.9 if means.shape[1] <= 256 else 0.5
        for name, color, line in zip(class_names, COLORS, means, strict=False):
            ax.plot(np.arange(len(line)), line, color=color, lw=width, label=name)
        ax.set_xlim(0, means.shape[1] - 1)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("channel index")
        ax.set_ylabel("mean weight")
    return ax


def channel_weights_figure(
    columns: Mapping[str, Mapping[str, np.ndarray]], blocks: Sequence[str], class_names: Sequence[str]
) -> Figure:
    """A panel for each block (rows) and network (columns), with one scale of the weights in each row.

    Args:
      columns: the title of each network -> block -> mean weights (classes, channels).
      blocks: from top to bottom.
      class_names: at most as many as there are colours (8).
    """
    rows = len(blocks)
    with styled():
        figure = new_figure(COLUMN if len(columns) == 1 else PAGE, 0.6 + 1.15 * rows)
        panels = figure.subplots(rows, len(columns), sharey="row", squeeze=False)
        for j, (title, means) in enumerate(columns.items()):
            for i, block in enumerate(blocks):
                ax = plot_channel_weights(means[block], class_names, ax=panels[i, j])
                ax.set_title(f"{title}\n{block}" if i == 0 and len(columns) > 1 else block)
                ax.set_xlabel("channel index" if i == rows - 1 else "")
                ax.set_ylabel("mean weight" if j == 0 else "")
        handles, names = panels[0, 0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 4))
        for line in legend.get_lines():
            line.set_linewidth(1.5)
    return figure
