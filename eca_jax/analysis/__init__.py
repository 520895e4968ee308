"""Looking at what a network costs, and at what a trained one does."""

from eca_jax.analysis.activations import activations as activations, in_batches as in_batches
from eca_jax.analysis.attribution import (
    grad_cam as grad_cam,
    integrated_gradients as integrated_gradients,
    saliency as saliency,
)
from eca_jax.analysis.classes import (
    ClassStatistics as ClassStatistics,
    class_means as class_means,
    class_statistics as class_statistics,
)
from eca_jax.analysis.complexity import Complexity as Complexity, Layer as Layer, complexity as complexity
from eca_jax.analysis.gates import (
    GateStatistics as GateStatistics,
    channel_gates as channel_gates,
    gate_statistics as gate_statistics,
    with_gates as with_gates,
)
from eca_jax.analysis.history import read_history as read_history
from eca_jax.analysis.paper_flops import paper_flops as paper_flops
from eca_jax.analysis.pixels import denormalise as denormalise
from eca_jax.analysis.predictions import (
    confusion_matrix as confusion_matrix,
    least_certain as least_certain,
    most_certain as most_certain,
)
