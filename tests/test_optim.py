"""Learning rates at the bounds of epochs, and optimisers, by hand."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from eca_jax.config import OptimConfig
from eca_jax.errors import EcaJaxError
from eca_jax.optim import (
    MAX_STEPS,
    fitting_warmup,
    learning_rate,
    make_optimizer,
    rate_factors,
    total_steps,
    warmup_steps,
)


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


def test_epochs_beyond_what_a_run_counts():  # neither listed one by one nor put into int32
    far = OptimConfig(lr=1.0, schedule="step", drop_epochs=(1, 10**9, 10**18), drop_factor=0.1)
    assert rates(far, [0, 22, 2**31 - 2], n=1437, batch=64, epochs=90_000_000) == pytest.approx([1, 0.1, 0.1])
    for schedule in ("cosine", "constant"):
        assert rates(OptimConfig(lr=1.0, schedule=schedule), [0], n=64, batch=64, epochs=MAX_STEPS) == [1.0]
    with pytest.raises(EcaJaxError, match="exponential is for at most 1048576 epochs, got 2147483648"):
        rates(OptimConfig(schedule="exponential"), [0], n=64, batch=64, epochs=MAX_STEPS)
    assert total_steps(MAX_STEPS, 64, 64) == MAX_STEPS
    with pytest.raises(EcaJaxError, match=r"are 22453125000000 steps, .* use at most 95642973 epochs"):
        total_steps(10**12, 1437, 64)
    assert total_steps(95642973, 1437, 64) <= MAX_STEPS < 95642974 * 1437 // 64


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(EcaJaxError, match=r"20 epochs are 100 of the run's 50 steps"):
        rates(OptimConfig(warmup_epochs=20), [0], n=320, batch=64, epochs=10)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [(0, 0), (1, 5), (9.5, 48), (10, 50), (10.05, 50), (10.2, 5), (20, 5)],  # of the 50 of the run
)
def test_a_warm_up_that_does_not_fit_takes_a_tenth_of_the_run_and_others_stay(asked, steps):
    sizes = {"num_examples": 320, "batch_size": 64}
    config = OptimConfig(warmup_epochs=asked, schedule="constant")
    fitting = fitting_warmup(config, **sizes, total_steps=50)
    assert warmup_steps(fitting, **sizes) == steps
    assert (fitting is config) == (asked < 10.1)
    rate = learning_rate(fitting, **sizes, total_steps=50)
    assert rate(max(steps - 1, 0)) == pytest.approx(0.1)
    assert steps == 0 or rate(0) == pytest.approx(0.1 / steps)


@pytest.mark.parametrize("total", [1, 7, 9, 10, 44, 445, 44_449])
def test_the_steps_of_a_shortened_warm_up_are_whole(total):
    """Whatever the examples and the batch: epochs are written down, and read back as that many steps."""
    for sizes in ({"num_examples": 1437, "batch_size": 64}, {"num_examples": 1_281_167, "batch_size": 2048}):
        config = fitting_warmup(OptimConfig(warmup_epochs=1e6), **sizes, total_steps=total)
        assert warmup_steps(config, **sizes) == total // 10


def test_the_rate_follows_the_batch_where_it_is_said_for_how_many():
    scaled = OptimConfig(lr=0.1, lr_batch_size=256, schedule="constant")
    assert rates(scaled, [0], n=8192, batch=1024, epochs=1) == pytest.approx([0.4])
    assert rates(OptimConfig(lr=0.1, schedule="constant"), [0], n=8192, batch=1024, epochs=1) == pytest.approx([0.1])


def test_the_cosine_ends_at_its_floor_and_both_follow_the_batch():
    config = OptimConfig(lr=0.1, min_lr=0.01, lr_batch_size=256, schedule="cosine", warmup_epochs=1)
    at = [0, 8, 48, 88, 10**6]  # a warm-up of 8 steps and a cosine of 80
    expected = np.array([0.1 / 8, 0.1, 0.055, 0.01, 0.01])
    assert rates(config, at, n=2048, batch=256, epochs=11) == pytest.approx(expected, rel=1e-6)
    assert rates(config, at, n=8192, batch=1024, epochs=11) == pytest.approx(4 * expected, rel=1e-6)
    none = dataclasses.replace(config, min_lr=0.0)
    assert rates(none, at[1:4], n=2048, batch=256, epochs=11) == pytest.approx([0.1, 0.05, 0.0], abs=1e-8)


def steps(config: OptimConfig, params: dict, grads: list[dict], rate: float) -> dict:
    optimizer = make_optimizer(config, lambda step: rate)
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def tree(rng) -> dict:
    return {"conv": {"kernel": rng.normal(size=(3, 3, 2, 4))}, "bn": {"scale": rng.normal(size=4)}}


def test_lars_by_hand(rng):
    """Rates of vectors are not adapted, nor are they decayed, where decay_vectors says so."""
    with jax.enable_x64(True):
        params, grads = tree(rng), [tree(rng) for _ in range(3)]
        found = steps(OptimConfig("lars", weight_decay=0.1, decay_vectors=False), params, grads, rate=2.0)
        kernel, scale = params["conv"]["kernel"], params["bn"]["scale"]
        v_kernel, v_scale = 0, 0
        for grad in grads:
            g = grad["conv"]["kernel"] + 0.1 * kernel
            ratio = 0.001 * np.linalg.norm(kernel) / np.linalg.norm(g)
            v_kernel = 0.9 * v_kernel + 2.0 * ratio * g
            v_scale = 0.9 * v_scale + 2.0 * grad["bn"]["scale"]
            kernel, scale = kernel - v_kernel, scale - v_scale
        np.testing.assert_allclose(found["conv"]["kernel"], kernel, rtol=1e-12)
        np.testing.assert_allclose(found["bn"]["scale"], scale, rtol=1e-12)


def test_adamw_by_hand(rng):
    """The decay is the rate's share of the parameter, whatever the gradient; vectors have none."""
    with jax.enable_x64(True):
        params, grads = tree(rng), [tree(rng) for _ in range(3)]
        config = OptimConfig("adamw", weight_decay=0.1, decay_vectors=False, betas=(0.5, 0.75))
        found = steps(config, params, grads, rate=0.01)
        for layer, name, decay in (("conv", "kernel", 0.1), ("bn", "scale", 0.0)):
            p, m, v = params[layer][name], 0, 0
            for t, grad in enumerate(grads, 1):
                m = 0.5 * m + 0.5 * grad[layer][name]
                v = 0.75 * v + 0.25 * grad[layer][name] ** 2
                direction = m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.75**t)) + 1e-8)
                p = p * (1 - 0.01 * decay) - 0.01 * direction
            np.testing.assert_allclose(found[layer][name], p, rtol=1e-12)


def test_gradients_are_clipped_by_their_global_norm(rng):
    with jax.enable_x64(True):
        params, grad = tree(rng), tree(rng)
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(grad)))
        config = OptimConfig(momentum=0.0, weight_decay=0.0, clip_norm=norm / 3)
        found = steps(config, params, [grad], rate=1.0)
        np.testing.assert_allclose(params["bn"]["scale"] - found["bn"]["scale"], grad["bn"]["scale"] / 3, rtol=1e-12)
        loose = steps(dataclasses.replace(config, clip_norm=norm * 1.01), params, [grad], rate=1.0)
        np.testing.assert_allclose(params["bn"]["scale"] - loose["bn"]["scale"], grad["bn"]["scale"], rtol=1e-12)


def test_the_first_pattern_that_matches_scales_the_rate(rng):
    with jax.enable_x64(True):
        params, grads = tree(rng), [tree(rng)]
        scales = (("bn.*", 0.0), ("conv.kernel", 0.5), ("*", 7.0))
        with pytest.raises(EcaJaxError, match=r"optim.lr_scales: no parameter is left for \*; names are such as bn"):
            steps(OptimConfig(lr_scales=scales), params, grads, rate=0.1)
        found = steps(OptimConfig(lr_scales=scales[:2]), params, grads, rate=0.1)
        plain = steps(OptimConfig(), params, grads, rate=0.1)
        np.testing.assert_array_equal(found["bn"]["scale"], params["bn"]["scale"])
        moved = [after["conv"]["kernel"] - params["conv"]["kernel"] for after in (found, plain)]
        np.testing.assert_allclose(moved[0], moved[1] / 2, rtol=1e-12)


@pytest.mark.parametrize("scales", [(("*", 0.0),), (("bn.*", 0.0), ("conv.*", 0.0))])
def test_everything_frozen_is_refused(rng, scales):
    with pytest.raises(EcaJaxError, match=r"optim\.lr_scales: the factor of every parameter is 0"):
        rate_factors(OptimConfig(lr_scales=scales), tree(rng))
