"""What a run starts from: its data, and its first state."""

import pathlib

import jax
from flax import nnx

from eca_jax.config import Config
from eca_jax.convert.pretrained import create_model, locate
from eca_jax.data.records import Source, check_disjoint, class_difference
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import architecture, param_dtype
from eca_jax.optim import total_steps
from eca_jax.runs.checkpoint import CHECKPOINTS
from eca_jax.runs.state import TrainState, split
from eca_jax.training.program import Program


def open_sources(config: Config) -> tuple[Source, Source]:
    """The training and the held-out examples, where the task can be trained with them."""
    train_source = open_source(config.data.name, config.data.train_split, config.data.data_dir, config.data.keys)
    held_out = open_source(config.data.name, config.data.eval_split, config.data.data_dir, config.data.keys)
    if train_source.class_names != held_out.class_names:
        raise EcaJaxError(
            f"data set {config.data.name!r}: the splits {config.data.train_split!r} and {config.data.eval_split!r} "
            f"do not have the same classes: "
            f"{class_difference(train_source.class_names, held_out.class_names)}"
        )
    config.task.check_data(train_source, held_out)
    check_disjoint(train_source, held_out)
    if total_steps(config.epochs, len(train_source), config.batch_size) == 0:
        raise EcaJaxError(
            f"batch_size {config.batch_size} is more than the {config.epochs * len(train_source)} examples "
            f"of {config.epochs} epochs of {config.data.train_split!r}"
        )
    return train_source, held_out


def check_pretrained(config: Config) -> None:
    """Refuses a new run whose `model.pretrained` is not there, before its directory is made.

    A run that goes on has its weights from its checkpoint, and does not need them again.
    """
    source = config.model.pretrained
    if source is None or any(path.name.isdecimal() for path in pathlib.Path(config.workdir).glob(f"{CHECKPOINTS}/*")):
        return
    try:
        if not source:
            raise EcaJaxError("expected a file, a run or a name on the hub, got ''")
        locate(source)
    except EcaJaxError as error:
        raise EcaJaxError(f"model.pretrained: {error}") from error


def initial_state(config: Config, program: Program, num_classes: int) -> TrainState:
    """The state before the first step: fresh, or with the weights of `model.pretrained`.

    What `model.skip` names is as fresh as the seed makes it.

    Raises:
      EcaJaxError: the weights are not there, or not of the model that the configuration describes.
    """
    state = program.init()
    if config.model.pretrained is None:
        return state
    expected = architecture(config.model, num_classes)
    model = create_model(
        config.model.name,
        attention=expected.attention.kind or "none",
        num_classes=num_classes,
        rngs=nnx.Rngs(config.seed),
        pretrained=config.model.pretrained,
        skip=config.model.skip,
        param_dtype=param_dtype(config.model),
    )
    if model.architecture != expected:
        raise EcaJaxError(
            f"model.pretrained: {config.model.pretrained} is of {model.architecture}, the configuration of {expected}"
        )
    _, params, batch_stats = split(model)
    return jax.device_put(state.with_weights(params, batch_stats), program.shardings)
