"""Reading a run, and writing one from weights of elsewhere."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from eca_jax.config import Config, from_dict, to_dict
from eca_jax.data.records import Source
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.runs.checkpoint import Checkpoints
from eca_jax.runs.directory import choose_step, claim_directory, open_run
from eca_jax.runs.state import StatePlan, plan_state, split
from eca_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run, on one device."""

    model: Backbone
    """In evaluation mode."""
    momentum: nnx.State | None
    """SGD's, a tree like the model's parameters; None of another optimiser."""
    config: Config
    class_names: tuple[str, ...]
    num_examples: int
    """Of the training split."""
    step: int
    metrics: dict[str, float] | None
    """Of the evaluation at that step."""


def read_run(run: str | pathlib.Path, which: str | int = "latest") -> Run:
    """Everything that a checkpoint holds and another framework could use; `which` is as of `load_run`."""
    with open_run(run) as checkpoints:
        step = choose_step(checkpoints, str(which))
        saved = checkpoints.read_run(step)
        config, class_names = from_dict(saved["config"]), tuple(saved["class_names"])
        plan = _plan_on_one_device(config, saved["num_examples"], len(class_names))
        state = checkpoints.read_state(step, plan.abstract_state)
        metrics = checkpoints.evaluation(step)
    model = nnx.merge(plan.network.eval, *state.evaluated)
    model.preprocess = config.task.preprocess
    momentum = optax.tree_utils.tree_get(state.opt_state, "trace") if config.optim.name == "sgd" else None
    return Run(model, momentum, config, class_names, saved["num_examples"], step, metrics)


def load_run(run: str | pathlib.Path, which: str | int = "latest") -> tuple[Backbone, Config, tuple[str, ...]]:
    """The model of a checkpoint in evaluation mode, the configuration and the class names of its run.

    `which` is 'latest', 'best' or a step.

    Example:
      After `eca-jax train`:

      >>> from eca_jax.training import load_run
      >>> model, config, class_names = load_run("runs/digits", "best")
      >>> model.architecture.name, config.batch_size, class_names[:3]
      ('eca_resnet18', 64, ('0', '1', '2'))
    """
    found = read_run(run, which)
    return found.model, found.config, found.class_names


def write_run(
    model: Backbone, momentum: nnx.State | None, config: Config, *, step: int, description: dict
) -> pathlib.Path:
    """A run in `config.workdir` that `train` continues at `step`, from weights of elsewhere; returns its checkpoint.

    `description` is what a checkpoint says of its run (`describe_run`).
    """
    plan = _plan_on_one_device(config, description["num_examples"], len(description["class_names"]))
    state = plan.init()
    _, params, batch_stats = split(model)
    opt_state = optax.tree_utils.tree_set(state.opt_state, _of_the_schedule, count=jnp.asarray(step, jnp.int32))
    if momentum is not None:
        opt_state = optax.tree_utils.tree_set(opt_state, trace=momentum)
    state = dataclasses.replace(
        state.with_weights(params, batch_stats), step=jnp.asarray(step, jnp.int32), opt_state=opt_state
    )
    run = pathlib.Path(config.workdir)
    if run.is_dir() and any(run.iterdir()):
        raise EcaJaxError(f"{run} is not empty; expected a new directory for the run")
    claim_directory(run, config)
    with Checkpoints(run, config.checkpoint.keep, score=config.task.best) as checkpoints:
        checkpoints.save(step, state, description, None)
        checkpoints.wait()
        return checkpoints.path(step)


def _of_the_schedule(path: tuple, _: object) -> bool:
    """Whether a leaf of the optimiser's state is of the schedule, which counts the steps of the run.

    The averages of adamw and lamb start anew, and what they count is how many gradients they are of.
    """
    return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"


def describe_run(config: Config, source: Source) -> dict:
    """What a checkpoint says of its run, besides the arrays."""
    return {
        "config": to_dict(config),
        "class_names": list(source.class_names),
        "num_examples": len(source),
        "data": source.fingerprint(),
    }


def _plan_on_one_device(config: Config, num_examples: int, num_classes: int) -> StatePlan:
    return plan_state(config, make_mesh(jax.local_devices()[:1]), num_examples=num_examples, num_classes=num_classes)
