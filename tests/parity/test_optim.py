"""LAMB and the losses of timm's recipes against timm's own, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eca_jax.optim import OptimConfig, make_optimizer
from eca_jax.tasks import Classification

torch = pytest.importorskip("torch")
timm_optim = pytest.importorskip("timm.optim")
timm_loss = pytest.importorskip("timm.loss")
timm_mixup = pytest.importorskip("timm.data.mixup")
pytestmark = pytest.mark.parity


def test_lamb_is_timm_s(rng):
    """Kernels are decayed and adapted, vectors neither; gradients are clipped to norm 1, timm's default."""
    shapes = {"kernel": (3, 3, 2, 4), "scale": (4,)}
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(20)]
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    groups = [{"params": [theirs["kernel"]], "weight_decay": 0.02}, {"params": [theirs["scale"]], "weight_decay": 0.0}]
    lamb = timm_optim.Lamb(groups, lr=5e-3)
    with jax.enable_x64(True):
        config = OptimConfig("lamb", weight_decay=0.02, decay_vectors=False, clip_norm=1.0)
        optimizer = make_optimizer(config, lambda step: 5e-3)
        state = optimizer.init(values)
        for gradient in gradients:
            for name, p in theirs.items():
                p.grad = torch.tensor(gradient[name])
            lamb.step()
            updates, state = optimizer.update(gradient, state, values)
            values = optax.apply_updates(values, updates)
            for name, p in theirs.items():
                np.testing.assert_allclose(values[name], p.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_the_losses_are_timm_s(rng, threshold):
    """Of mixed and smoothed targets: the shares of timm's mixup_target, smoothed before they are mixed."""
    logits, labels, kept = rng.normal(size=(8, 10)), rng.integers(10, size=8), 0.7
    targets = timm_mixup.mixup_target(torch.tensor(labels), 10, lam=kept, smoothing=0.1).double()
    smoothed = optax.smooth_labels(np.eye(10)[labels], 0.1)
    ours = kept * smoothed + (1 - kept) * smoothed[::-1]
    np.testing.assert_allclose(ours, targets, rtol=1e-6)  # timm's are float32
    task = Classification(loss_function="sigmoid", target_threshold=threshold)
    with jax.enable_x64(True):
        found = task.losses(jnp.asarray(logits), jnp.asarray(targets.numpy())).mean()
        expected = timm_loss.BinaryCrossEntropy(target_threshold=threshold)(torch.tensor(logits), targets)
        np.testing.assert_allclose(found, expected.item(), rtol=1e-12)
        if threshold is None:
            soft = dataclasses.replace(task, loss_function="softmax")
            found = soft.losses(jnp.asarray(logits), jnp.asarray(targets.numpy())).mean()
            expected = timm_loss.SoftTargetCrossEntropy()(torch.tensor(logits), targets)
            np.testing.assert_allclose(found, expected.item(), rtol=1e-12)
