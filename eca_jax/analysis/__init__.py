"""Looking at what a network costs, and at what a trained one does."""

from eca_jax.analysis.activations import activations as activations, in_batches as in_batches
from eca_jax.analysis.classes import class_means as class_means
from eca_jax.analysis.complexity import Complexity as Complexity, Layer as Layer, complexity as complexity
from eca_jax.analysis.gates import (
    GateStatistics as GateStatistics,
    channel_gates as channel_gates,
    gate_statistics as gate_statistics,
    with_gates as with_gates,
)
from eca_jax.analysis.paper_flops import paper_flops as paper_flops
