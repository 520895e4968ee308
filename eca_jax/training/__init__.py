"""Training: state, step, sharding, checkpoints and the loop."""
