"""Figures for papers, drawn with matplotlib (the extra `plots`).

A function `plot_...` draws into the axes that it is given, or into new ones of a column's width, and returns them. A
function `..._figure` puts several panels together. The numbers come from `eca_jax.analysis`.
"""

import importlib.util

from eca_jax.errors import EcaJaxError

if importlib.util.find_spec("matplotlib") is None:
    raise EcaJaxError("figures are drawn with matplotlib, which is not here: pip install 'eca_jax[plots]'")

from eca_jax.plots.channel_weights import (
    channel_weights_figure as channel_weights_figure,
    plot_channel_weights as plot_channel_weights,
)
from eca_jax.plots.confusion import plot_confusion_matrix as plot_confusion_matrix
from eca_jax.plots.files import to_bytes as to_bytes
from eca_jax.plots.gates import (
    gates_figure as gates_figure,
    plot_gate_distribution as plot_gate_distribution,
    plot_gate_shares as plot_gate_shares,
    plot_gate_spreads as plot_gate_spreads,
)
from eca_jax.plots.history import history_figure as history_figure, plot_history as plot_history
from eca_jax.plots.images import (
    plot_activation_maps as plot_activation_maps,
    plot_heat_map as plot_heat_map,
    plot_images as plot_images,
)
from eca_jax.plots.kernel_size import (
    kernel_size_figure as kernel_size_figure,
    plot_kernel_size as plot_kernel_size,
)
