"""The warm-up of a run: shortened where the run is too short for it, and then kept for good.

The checkpoints of a run that was shortened have the warm-up that it has in their configuration (as config.json does),
and beside it the one that was asked for. Whoever asks for that again continues the run with the one that it has: also
with more epochs, among which the one asked for would find room, since the steps that are done were done with it.
"""

import dataclasses

from eca_jax.config import Config, from_dict, to_dict
from eca_jax.optim import fitting_warmup, total_steps, warmup_steps

ASKED = "warmup_asked"
"""What a checkpoint calls the `optim.warmup_epochs` that was asked for, where the run has another."""


def fit_warmup(config: Config, num_examples: int) -> tuple[Config, dict[str, float]]:
    """With a warm-up that fits the run, and what a checkpoint says besides of it: nothing where it fits as it is."""
    optim = fitting_warmup(
        config.optim,
        num_examples=num_examples,
        batch_size=config.batch_size,
        total_steps=total_steps(config.epochs, num_examples, config.batch_size),
    )
    asked = {} if optim == config.optim else {ASKED: config.optim.warmup_epochs}
    return dataclasses.replace(config, optim=optim), asked


def keep_warmup(config: Config, description: dict, saved: dict) -> tuple[Config, dict]:
    """A configuration and what its checkpoints say (`describe_run`), with the warm-up of a run that it continues.

    Where another warm-up is asked for than the run has or was asked for, both stay as they are: then it is up to
    `check_continues` to refuse them.

    Args:
      config, description: of today, after `fit_warmup`.
      saved: what a checkpoint of the run says.
    """
    has = from_dict(saved["config"]).optim.warmup_epochs
    asked = saved.get(ASKED, has)
    if description.get(ASKED, config.optim.warmup_epochs) not in (has, asked):
        return config, description
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_epochs=has))
    rest = {key: value for key, value in description.items() if key != ASKED}
    return config, rest | {"config": to_dict(config)} | ({} if asked == has else {ASKED: asked})


def describe_warmup(config: Config, description: dict) -> list[str]:
    """A line where the run does not have the warm-up that was asked for."""
    if ASKED not in description:
        return []
    asked = dataclasses.replace(config.optim, warmup_epochs=description[ASKED])
    has, too_many = (
        warmup_steps(optim, num_examples=description["num_examples"], batch_size=config.batch_size)
        for optim in (config.optim, asked)
    )
    return [
        f"warm-up: {has} steps ({config.optim.warmup_epochs:.3g} epochs) instead of the {too_many} of "
        f"optim.warmup_epochs {asked.warmup_epochs:g}, which are more than the run had when it began"
    ]
