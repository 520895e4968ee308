"""The lines that a run prints when it starts."""

import jax

from eca_jax.config import Config
from eca_jax.data.records import Source
from eca_jax.optim import total_steps
from eca_jax.runs.state import StatePlan
from eca_jax.training.warmup import describe_warmup

SMALL_CROP = 0.7
"""Published procedures evaluate 0.82 of the short side or more."""


def describe_start(
    config: Config, plan: StatePlan, description: dict, held_out: Source, *, step: int | None
) -> list[str]:
    """The lines: model, data, devices, number of steps, run directory.

    Args:
      config, plan: those of the run.
      description: what the run's checkpoints say about it (`describe_run`).
      held_out: the examples for the evaluation.
      step: the step from which the run continues (0 if it was made from other weights); None for a new run.
    """
    images, classes = description["num_examples"], len(description["class_names"])
    size = config.task.preprocess.train_size
    parameters = sum(leaf.size for leaf in jax.tree.leaves(plan.abstract_state.params))
    total = total_steps(config.epochs, images, config.batch_size)
    lines = [
        f"model: {config.model.name}, {parameters:,} parameters, {config.model.dtype}",
        f"data: {config.data.name}, {images:,} images to train on and {len(held_out):,} held out, {classes:,} classes, "
        f"{size} x {size} pixels",
        f"devices: {_devices(config)}",
        f"steps: {total:,} in {config.epochs:,} epochs",
        f"workdir: {config.workdir}",
        *_describe_crop(config),
        *describe_warmup(config, description),
    ]
    return lines + ([f"continuing {config.workdir} at step {step} of {total}"] if step is not None else [])


def _describe_crop(config: Config) -> list[str]:
    """A note where an evaluation would see a small part of each image only: its two sizes go together."""
    preprocess = config.task.preprocess
    share = preprocess.image_size / preprocess.eval_resize
    if share > SMALL_CROP:
        return []
    return [
        f"note: evaluations see the middle {share:.0%} of an image's short side, preprocess.image_size "
        f"{preprocess.image_size} of preprocess.eval_resize {preprocess.eval_resize}; for more set both"
    ]


def _devices(config: Config) -> str:
    """Number and kind of the devices, and the share of a batch that each gets."""
    devices, processes, parts = jax.device_count(), jax.process_count(), config.optim.accumulate
    words = [f"{devices} x {jax.devices()[0].device_kind}{f' in {processes} processes' if processes > 1 else ''}"]
    words.append(f"batch {config.batch_size}{f' = {config.batch_size / devices:g} a device' if devices > 1 else ''}")
    return ", ".join(words + ([f"in {parts} parts"] if parts > 1 else []))
