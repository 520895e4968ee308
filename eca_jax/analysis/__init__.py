"""Looking at what a trained network does."""

from eca_jax.analysis.gates import (
    GateStatistics as GateStatistics,
    channel_gates as channel_gates,
    class_means as class_means,
    gate_statistics as gate_statistics,
)
