"""Training, evaluation and prediction."""

from eca_jax.runs.run import load_run as load_run
from eca_jax.training.evaluate import evaluate_run as evaluate_run
from eca_jax.training.loop import train as train
