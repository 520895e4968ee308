"""Learning rates at the bounds of epochs, by hand."""

import numpy as np
import pytest

from eca_jax.config import OptimConfig
from eca_jax.errors import EcaJaxError
from eca_jax.training.optim import learning_rate


def rates(config: OptimConfig, steps, *, n: int, batch: int, epochs: int) -> list[float]:
    schedule = learning_rate(config, num_examples=n, batch_size=batch, total_steps=epochs * n // batch)
    return [float(schedule(np.int32(step))) for step in steps]


@pytest.mark.parametrize("steps_an_epoch", [3, 41, 47, 61, 500])
def test_exponential_decay_starts_with_the_first_step_of_each_epoch(steps_an_epoch):
    config = OptimConfig(lr=1.0, schedule="exponential", decay_per_epoch=0.5)
    bounds = [e * steps_an_epoch + offset for e in range(1, 9) for offset in (-1, 0)]
    expected = [0.5 ** (e + offset) for e in range(1, 9) for offset in (-1, 0)]
    assert rates(config, bounds, n=64 * steps_an_epoch, batch=64, epochs=9) == pytest.approx(expected)


def test_drops_that_fall_on_one_step_all_count():
    config = OptimConfig(lr=1.0, schedule="step", drop_epochs=(1, 2, 3), drop_factor=0.1)
    assert rates(config, [0], n=10, batch=64, epochs=20) == pytest.approx([0.001])
    assert rates(config, [0, 1, 2, 3], n=64, batch=64, epochs=20) == pytest.approx([1, 0.1, 0.01, 0.001])


def test_the_paper_s_rule_on_imagenet():
    n, batch = 1_281_167, 256
    at = [epoch * n // batch for epoch in (30, 60, 90)]
    steps = [0, at[0] - 1, at[0], at[1], at[2], 100 * n // batch - 1]
    assert rates(OptimConfig(), steps, n=n, batch=batch, epochs=100) == pytest.approx(
        [0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4]
    )


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(EcaJaxError, match=r"20 epochs are 100 of the run's 50 steps"):
        rates(OptimConfig(warmup_epochs=20), [0], n=320, batch=64, epochs=10)
