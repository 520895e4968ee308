"""Looking at what a trained network does."""

from eca_jax.analysis.gates import channel_gates as channel_gates
