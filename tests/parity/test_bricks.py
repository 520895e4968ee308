"""Attention against timm, batch norm and the optimiser against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm_layers = pytest.importorskip("timm.layers")

from eca_jax.config import OptimConfig  # noqa: E402
from eca_jax.nn import ECA, SE, BatchNorm, adaptive_kernel_size  # noqa: E402
from eca_jax.nn.attention import ESE, SEOptions, Slot  # noqa: E402
from eca_jax.optim import learning_rate, make_optimizer  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity


def apply_both(ours, theirs, rng, channels):
    x = rng.normal(size=(3, 5, 4, channels)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5, 7, 9])
@pytest.mark.parametrize(("module", "circular"), [("EcaModule", False), ("CecaModule", True)])
def test_eca_is_timm_s(rng, module, circular, k):
    theirs = getattr(timm_layers, module)(kernel_size=k)
    ours = ECA(24, k, circular=circular, rngs=nnx.Rngs(0))
    authors.exchange(ours, authors.randomise(theirs))
    apply_both(ours, theirs, rng, 24)


@pytest.mark.parametrize("channels", [16, 24, 32, 64, 96, 128, 160, 256, 320, 512, 1024, 1280, 2048])
def test_adaptive_kernel_size_is_timm_s(channels):
    assert timm_layers.EcaModule(channels).conv.kernel_size == (adaptive_kernel_size(channels),)


@pytest.mark.parametrize("bias", [False, True])
def test_se_is_timm_s(rng, bias):
    theirs = timm_layers.SEModule(32, rd_channels=8, bias=bias)
    ours = SE(32, 8, bias=bias, rngs=nnx.Rngs(0))
    authors.exchange(ours, authors.randomise(theirs))
    apply_both(ours, theirs, rng, 32)


@pytest.mark.parametrize("reduction", [4, 6, 8, 16])
def test_the_rounded_widths_of_se_are_timm_s(reduction):
    options = SEOptions(reduction, divisor=8)
    for channels in (8, 24, 64, 96, 128, 160, 256, 320, 328, 512, 1000, 2048):
        theirs = timm_layers.SEModule(channels, rd_ratio=1 / reduction).fc1.out_channels
        assert options.hidden(Slot(channels)) == theirs, channels


def test_ese_is_timm_s(rng):
    theirs = timm_layers.EffectiveSEModule(32)
    ours = ESE(32, rngs=nnx.Rngs(0))
    authors.exchange(ours, authors.randomise(theirs))
    apply_both(ours, theirs, rng, 32)


@pytest.mark.parametrize("group", [None, 4])
def test_batch_norm_is_pytorch_s(rng, group):
    """Three batches in training mode; a group is what one of PyTorch's devices sees, their average is ours."""
    channels, size = 5, 8
    devices = [torch.nn.BatchNorm2d(channels) for _ in range(size // (group or size))]
    ours = BatchNorm(channels, group_size=group)
    for _ in range(3):
        x = (rng.normal(size=(size, 3, 4, channels)) * 2 + 1).astype(np.float32)
        parts = np.split(x.transpose(0, 3, 1, 2), len(devices))
        with torch.no_grad():
            outputs = [device(torch.from_numpy(part.copy())) for device, part in zip(devices, parts, strict=True)]
        expected = torch.cat(outputs).numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
    for mine, name in ((ours.mean, "running_mean"), (ours.var, "running_var")):
        expected = np.mean([getattr(device, name).numpy() for device in devices], axis=0)
        np.testing.assert_allclose(mine[...], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["step", "exponential", "cosine"])
def test_sgd_and_schedules_are_pytorch_s(rng, schedule):
    """40 steps of 4 to an epoch in float64: momentum, decay on every parameter, and the rate of each epoch."""
    steps_per_epoch, epochs = 4, 10
    config = OptimConfig(lr=0.1, weight_decay=0.01, schedule=schedule, drop_epochs=(3, 6), drop_factor=0.2)
    parameter = torch.nn.Parameter(torch.from_numpy(rng.normal(size=7)))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=0.01)
    scheduler = {
        "step": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 24], gamma=0.2),
        "exponential": lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.98 ** (i // steps_per_epoch)),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps_per_epoch * epochs),
    }[schedule]()

    with jax.enable_x64(True):
        rate = learning_rate(config, num_examples=128, batch_size=32, total_steps=steps_per_epoch * epochs)
        ours = make_optimizer(config, rate)
        params = jnp.asarray(parameter.detach().numpy())
        state = ours.init(params)
        for step in range(steps_per_epoch * epochs):
            gradient = rng.normal(size=7)
            np.testing.assert_allclose(rate(step), scheduler.get_last_lr()[0], rtol=1e-6, atol=1e-9)
            parameter.grad = torch.from_numpy(gradient)
            optimizer.step()
            scheduler.step()
            updates, state = ours.update(jnp.asarray(gradient), state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=1e-6, atol=1e-8)
