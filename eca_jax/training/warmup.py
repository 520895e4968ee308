"""The learning rate's warm-up: it is shortened if the run is too short for it, and then stays as it is.

If a warm-up was shortened, the checkpoints (and config.json) contain the shortened one in their configuration, and
beside it the one that the user asked for. When the user gives the same command again, the run continues with the
shortened one. This is so even with more epochs, because the first steps were done with it.
"""

import dataclasses

from eca_jax.config import Config, from_dict, to_dict
from eca_jax.optim import fitting_warmup, total_steps, warmup_steps

ASKED = "warmup_asked"
"""The key in a checkpoint for the `optim.warmup_epochs` that the user asked for, if the run has another value."""


def fit_warmup(config: Config, num_examples: int) -> tuple[Config, dict[str, float]]:
    """(the configuration with a warm-up that fits into the run, what the checkpoint notes if it was shortened)."""
    optim = fitting_warmup(
        config.optim,
        num_examples=num_examples,
        batch_size=config.batch_size,
        total_steps=total_steps(config.epochs, num_examples, config.batch_size),
    )
    asked = {} if optim == config.optim else {ASKED: config.optim.warmup_epochs}
    return dataclasses.replace(config, optim=optim), asked


def keep_warmup(config: Config, description: dict, saved: dict) -> tuple[Config, dict]:
    """The configuration and its description (`describe_run`), with the warm-up of the run that is continued.

    If the user asks for a warm-up that the run neither has nor was asked for before, nothing is changed here, and
    `check_continues` refuses it.

    Args:
      config, description: those of this call, after `fit_warmup`.
      saved: the description in a checkpoint of the run.
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
