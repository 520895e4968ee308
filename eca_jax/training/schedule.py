"""Which of log row, evaluation and checkpoint come after a step."""

from typing import NamedTuple

from eca_jax.config import Config
from eca_jax.optim import epochs_ended


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    evaluation: bool
    save: bool


def due(config: Config, step: int, *, total: int, examples: int) -> Due:
    """What is to be done after a step; depends only on configuration and step, so it is the same in a continued run."""
    before, after = (epochs_ended(s, examples, config.batch_size) for s in (step - 1, step))

    def every(epochs: int) -> bool:
        return after // epochs > before // epochs

    last, every_steps = step == total, config.checkpoint.every_steps
    return Due(
        log=last or step % config.log_every == 0,
        evaluation=last or every(config.eval_every_epochs),
        save=last or every(config.checkpoint.every_epochs) or (every_steps is not None and step % every_steps == 0),
    )
