"""What the gates of every block are: how they are distributed, whether they are stuck, and over what they vary."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eca_jax.analysis.gates import HALF, HIGH, LOW, SAME, GateStatistics
from eca_jax.plots.style import COLORS, COLUMN, GREY, PAGE, new_figure, own_or_new, styled

Blocks = Mapping[str, GateStatistics]
"""The name of each block, in the order of the network -> its statistics."""


def plot_gate_distribution(blocks: Blocks, *, ax: Axes | None = None) -> Axes:
    """The median, the middle half and the middle 98% of the gates of each block.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import gate_statistics
      >>> from eca_jax.plots import plot_gate_distribution
      >>> gates = {"layer1.0": np.array([[0.4, 0.6]]), "layer1.1": np.array([[0.5, 0.9]])}
      >>> ax = plot_gate_distribution({block: gate_statistics(of) for block, of in gates.items()})
      >>> ax.figure.savefig("distribution.pdf")
    """
    x, values = np.arange(len(blocks)), list(blocks.values())
    with styled():
        ax = own_or_new(ax, 1.8)
        ax.axhline(0.5, color=GREY, lw=0.6, ls=":", zorder=0)
        low, high = [v.low_percentile for v in values], [v.high_percentile for v in values]
        ax.vlines(x, low, high, color=COLORS[0], lw=0.8, label="middle 98%")
        lower, upper = [v.lower_quartile for v in values], [v.upper_quartile for v in values]
        ax.vlines(x, lower, upper, color=COLORS[5], lw=3.5, label="middle 50%")
        ax.plot(x, [v.median for v in values], "_", color="black", markersize=6, label="median")
        ax.set_ylim(min(0, *low), max(1, *high))
        ax.set_ylabel("gate")
        _finish(ax, blocks)
    return ax


def plot_gate_shares(blocks: Blocks, *, ax: Axes | None = None) -> Axes:
    """The shares of gates near 0, at 0.5 and near 1, in per cent, of each block.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import gate_statistics
      >>> from eca_jax.plots import plot_gate_shares
      >>> ax = plot_gate_shares({"layer1.0": gate_statistics(np.array([[0.01, 0.6]]))})
      >>> ax.figure.savefig("shares.pdf")
    """
    with styled():
        ax = own_or_new(ax, 1.8)
        _draw(ax, [100 * s.near_zero for s in blocks.values()], "v", COLORS[0], f"below {LOW}")
        _draw(ax, [100 * s.near_half for s in blocks.values()], "o", "black", f"within {HALF} of 0.5")
        _draw(ax, [100 * s.near_one for s in blocks.values()], "^", COLORS[1], f"above {HIGH}")
        ax.set_ylim(-4, 104)
        ax.set_ylabel("share of gates (%)")
        _finish(ax, blocks)
    return ax


def plot_gate_spreads(blocks: Blocks, *, ax: Axes | None = None) -> Axes:
    """The spread of the gates over images and over channels, as standard deviations, of each block.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import gate_statistics
      >>> from eca_jax.plots import plot_gate_spreads
      >>> ax = plot_gate_spreads({"layer1.0": gate_statistics(np.array([[0.4, 0.6]]))})
      >>> ax.figure.savefig("spreads.pdf")
    """
    with styled():
        ax = own_or_new(ax, 1.8)
        _draw(ax, [s.over_images for s in blocks.values()], "o", COLORS[1], "over images")
        _draw(ax, [s.over_channels for s in blocks.values()], "s", COLORS[0], "over channels")
        ax.axhline(SAME, color=GREY, lw=0.6, ls=":", label="counts as none", zorder=0)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("spread of gates")
        _finish(ax, blocks)
    return ax


WIDE = 20
"""A figure of more blocks than this has the width of a page."""


def gates_figure(blocks: Blocks) -> Figure:
    """The three panels, one below the other.

    Example:
      >>> import eca_jax
      >>> import jax
      >>> from eca_jax.analysis import channel_gates, gate_statistics
      >>> from eca_jax.plots import gates_figure
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> gates = channel_gates(model, jax.random.normal(jax.random.key(0), (2, 64, 64, 3)))
      >>> figure = gates_figure({block: gate_statistics(of) for block, of in gates.items()})
      >>> figure.savefig("gates.pdf")
    """
    with styled():
        figure = new_figure(COLUMN if len(blocks) <= WIDE else PAGE, 5.0)
        panels = figure.subplots(3, 1, sharex=True)
        for plot, ax in zip((plot_gate_distribution, plot_gate_shares, plot_gate_spreads), panels, strict=True):
            plot(blocks, ax=ax)
            ax.set_xlabel("block" if ax is panels[-1] else "")
    return figure


def _draw(ax: Axes, values: Sequence[float], marker: str, color: str, label: str) -> None:
    """A line with a value for each block."""
    ax.plot(range(len(values)), values, marker, ls="-", lw=0.6, color=color, label=label)


def _finish(ax: Axes, blocks: Blocks) -> None:
    """Names the blocks below the axis, and puts the legend above, where it hides nothing."""
    ax.set_xticks(range(len(blocks)), list(blocks), rotation=90)
    ax.set_xlabel("block")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.2)
