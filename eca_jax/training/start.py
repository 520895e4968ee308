"""What a run starts from: its data, and its first state."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
from flax import nnx

from eca_jax.config import Config
from eca_jax.convert.pretrained import create_model, locate
from eca_jax.data.python_records import Rows, python_source
from eca_jax.data.records import PYTHON, Source, check_disjoint, class_difference
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import architecture, param_dtype
from eca_jax.optim import total_steps
from eca_jax.runs.checkpoint import CHECKPOINTS
from eca_jax.runs.state import TrainState, split
from eca_jax.training.program import Program


def open_sources(
    config: Config,
    train: Rows | None = None,
    held_out: Rows | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[Config, Source, Source]:
    """The configuration, the training and the held-out examples, where the task can be trained with them.

    They are those that the configuration names, or those that are given: then the configuration that is returned notes
    that its data came from Python.

    Raises:
      EcaJaxError: as `open_source` and `python_source`; the two have other classes, or share examples.
    """
    if train is None and held_out is None and class_names is None:
        train_source, held_out_source = (
            open_source(config.data.name, split, config.data.data_dir, config.data.keys)
            for split in (config.data.train_split, config.data.eval_split)
        )
    else:
        train_source, held_out_source = _given(config, train, held_out, class_names)
        noted = {"name": PYTHON, "train_split": train_source.split, "eval_split": held_out_source.split}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **noted, data_dir=None))
    _check(config, train_source, held_out_source)
    return config, train_source, held_out_source


def _given(
    config: Config, train: Rows | None, held_out: Rows | None, class_names: Sequence[str] | None
) -> tuple[Source, Source]:
    if train is None or held_out is None:
        missing = "held_out" if held_out is None else "train"
        raise EcaJaxError(
            f"train: {missing} is not given: expected train=... and held_out=... (class_names=... goes with them), or "
            "none of them, where config.data says what the images are"
        )
    train_source = python_source(train, "train", class_names, config.data.keys)
    held_out_source = python_source(held_out, "held_out", train_source.class_names, config.data.keys)
    if train_source.fingerprint() == held_out_source.fingerprint():
        raise EcaJaxError("train and held_out are the same examples: keep some out of train, for held_out alone")
    return train_source, held_out_source


def _check(config: Config, train_source: Source, held_out: Source) -> None:
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
        output_stride=config.model.output_stride,
        param_dtype=param_dtype(config.model),
    )
    if model.architecture != expected:
        raise EcaJaxError(
            f"model.pretrained: {config.model.pretrained} is of {model.architecture}, the configuration of {expected}"
        )
    _, params, batch_stats = split(model)
    return jax.device_put(state.with_weights(params, batch_stats), program.shardings)
