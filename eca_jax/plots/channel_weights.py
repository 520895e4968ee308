"""Mean channel weights of several classes, as in the paper's appendix."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eca_jax.errors import EcaJaxError
from eca_jax.plots.style import COLORS, COLUMN, PAGE, new_figure, own_or_new, styled

MANY = 200
"""From so many channels on, lines are thinner and let others shine through."""


def expect_classes(names: Sequence[str]) -> None:
    """Refuses more classes than there are colours."""
    if len(names) > len(COLORS):
        raise EcaJaxError(f"--classes: expected at most {len(COLORS)}, one for each colour, got {len(names)}")


def plot_channel_weights(
    means: np.ndarray, class_names: Sequence[str], *, channels: range | None = None, ax: Axes | None = None
) -> Axes:
    """One line for each class: the mean weight of every channel of a block, (classes, channels).

    `channels` are those to show, as far as the block has them; None is all.

    Raises:
      EcaJaxError: the block has none of them.

    Example:
      >>> import numpy as np
      >>> from eca_jax.plots import plot_channel_weights
      >>> means = np.array([[0.2, 0.5, 0.4], [0.3, 0.5, 0.9]])  # of two classes
      >>> ax = plot_channel_weights(means, ["cat", "dog"])
      >>> ax.get_xlabel(), ax.get_ylabel(), len(ax.lines)
      ('channel index', 'mean weight', 2)
    """
    count = means.shape[1]
    x = range(count) if channels is None else range(channels.start, min(channels.stop, count))
    if channels is not None and not x:
        asked = f"{channels.start}:{channels.stop}"
        raise EcaJaxError(f"--channels: expected less than {count}, which a block has, got {asked}")
    width, alpha = (0.9, 1.0) if len(x) < MANY else (0.4, 0.7)
    with styled():
        ax = own_or_new(ax, 1.6)
        for name, color, line in zip(class_names, COLORS, means[:, x.start : x.stop], strict=False):
            ax.plot(x, line, color=color, lw=width, alpha=alpha, label=name)
        ax.set_xlim(x.start, x.stop - 1)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("channel index")
        ax.set_ylabel("mean weight")
    return ax


def channel_weights_figure(
    columns: Mapping[str, Mapping[str, np.ndarray]],
    blocks: Sequence[str],
    class_names: Sequence[str],
    channels: range | None = None,
) -> Figure:
    """A panel for each block (rows) and network (columns), with one scale of the weights in each row.

    Args:
      columns: the title of each network -> block -> mean weights (classes, channels).
      blocks: from top to bottom.
      class_names: at most as many as there are colours (8).
      channels: as of `plot_channel_weights`.

    Example:
      >>> import numpy as np
      >>> from eca_jax.plots import channel_weights_figure
      >>> means = {"layer1.0": np.full((2, 8), 0.5), "layer4.1": np.full((2, 64), 0.6)}  # of two classes
      >>> figure = channel_weights_figure({"ECA": means}, list(means), ["cat", "dog"])
      >>> figure.savefig("weights.pdf")
    """
    rows = len(blocks)
    with styled():
        figure = new_figure(COLUMN if len(columns) == 1 else PAGE, 0.6 + 1.15 * rows)
        panels = figure.subplots(rows, len(columns), sharey="row", squeeze=False)
        for j, (title, means) in enumerate(columns.items()):
            for i, block in enumerate(blocks):
                ax = plot_channel_weights(means[block], class_names, channels=channels, ax=panels[i, j])
                ax.set_title(f"{title}\n{block}" if i == 0 and len(columns) > 1 else block)
                ax.set_xlabel("channel index" if i == rows - 1 else "")
                ax.set_ylabel("mean weight" if j == 0 else "")
        handles, names = panels[0, 0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 4))
        for line in legend.get_lines():
            line.set_linewidth(1.5)
            line.set_alpha(1)
    return figure
