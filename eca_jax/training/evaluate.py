"""Scores of weights that come without a run."""

import functools

import jax

from eca_jax.compiler_options import compiler_options
from eca_jax.config import DataConfig
from eca_jax.convert.pretrained import load_pretrained
from eca_jax.data.imagenet import CLASSES, synsets
from eca_jax.data.loader import eval_batches
from eca_jax.data.sources import Source, open_source
from eca_jax.errors import EcaJaxError
from eca_jax.sharding import batch_sharding, make_mesh, replicated
from eca_jax.training.loop import check_classes, mean_scores
from eca_jax.training.step import make_eval_step, split as split_model, zero_sums

EXAMPLES = 64
"""A device's share of a batch."""


def evaluate_weights(
    weights: str, data: str, *, name: str | None = None, split: str | None = None, data_dir: str | None = None
) -> dict[str, float]:
    """Scores weights (see `load_pretrained`; `name` is the model expected) on a data set, with their own preprocessing.

    Returns: loss, top1, top5 (0 to 1) and count, over the held-out split if `split` is None.

    Raises:
      EcaJaxError: as `load_pretrained` and `open_source`; the data set has other classes.
    """
    model = load_pretrained(weights, name=name)
    source = open_source(data, split, data_dir)
    _check_fit(source, model.architecture.num_classes, weights)
    mesh = make_mesh()
    batch_size = EXAMPLES * mesh.size
    batches, scalars = batch_sharding(mesh, batch_size), replicated(mesh)
    graphdef, params, batch_stats = split_model(model)
    eval_step = jax.jit(
        make_eval_step(graphdef, model.preprocess, candidates=source.candidates),
        in_shardings=(scalars, scalars, batches, scalars),
        out_shardings=scalars,
        compiler_options=compiler_options(),
    )
    images = eval_batches(
        source, model.preprocess, batch_size=batch_size, sharding=batches, num_threads=DataConfig.num_threads
    )
    return mean_scores(functools.partial(eval_step, params, batch_stats), zero_sums(), images)


def _check_fit(source: Source, num_classes: int, weights: str) -> None:
    """Weights do not name their classes: a thousand are taken for ImageNet's, others must be as many as the data's."""
    if num_classes == CLASSES:
        check_classes(source, tuple(synsets()), f"ImageNet, which {weights} is taken to be for")
    elif num_classes != len(source.class_names):
        raise EcaJaxError(
            f"data set {source.name!r} has {len(source.class_names)} classes, the weights {weights} have {num_classes}"
        )
