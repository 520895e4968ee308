"""The losses of detection against PyTorch's and torchvision's, values and gradients, in float64."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torch.nn import functional as F  # noqa: E402

from eca_jax.nn.detection import binary_cross_entropy, cross_entropy, l1, sigmoid_focal, smooth_l1  # noqa: E402
from tests.nn.detection import cases  # noqa: E402

pytestmark = pytest.mark.parity

ENTRIES = 5


def check(ours, theirs, x, targets, mask):
    """A loss of every case and its gradients by x (cases, entries, ...), which where masked is NaN, for us alone."""
    broken = np.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, np.nan)
    with jax.enable_x64(True):
        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(ours)))(broken, targets, mask)
        assert values.dtype == gradients.dtype == np.float64
    there = torch.from_numpy(x).requires_grad_()
    every = theirs(there, torch.from_numpy(targets)).reshape(*mask.shape, -1).sum(-1)
    sums = torch.where(torch.from_numpy(mask), every, 0).sum(1)
    sums.sum().backward()
    np.testing.assert_allclose(values, sums.detach().numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(gradients, there.grad.numpy(), rtol=1e-10, atol=1e-10)


@pytest.fixture
def mask(rng):
    return rng.random((cases.CASES, ENTRIES)) < 0.7


@pytest.mark.parametrize("beta", [1 / 9, 1.0, 0.11])
def test_distances_of_boxes(rng, mask, beta):
    """Some are 0, some `beta`."""
    targets = rng.normal(size=(*mask.shape, 4))
    apart = rng.normal(size=targets.shape) * rng.choice([0.1, 1, 10], targets.shape)
    apart = np.where(rng.random(apart.shape) < 0.1, rng.choice([0, beta, -beta], apart.shape), apart)
    check(
        lambda x, y, mask: smooth_l1(x, y, mask, beta=beta),
        lambda x, y: F.smooth_l1_loss(x, y, reduction="none", beta=beta),
        targets + apart,
        targets,
        mask,
    )
    check(l1, lambda x, y: F.l1_loss(x, y, reduction="none"), targets + apart, targets, mask)


def logits(rng, *shape):
    """Usual ones, zeros, and some of which the sigmoid is 0 or 1."""
    drawn = rng.normal(size=shape) * rng.choice([1, 10, 200], shape)
    return np.where(rng.random(shape) < 0.05, 0, drawn)


def test_binary_cross_entropy(rng, mask):
    """With targets of 0, 1 and between."""
    targets = rng.choice([0, 1, 0.3], mask.shape)
    check(
        binary_cross_entropy,
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none"),
        logits(rng, *mask.shape),
        targets,
        mask,
    )


def test_cross_entropy(rng, mask):
    check(
        cross_entropy,
        lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none"),
        logits(rng, *mask.shape, 7),
        rng.integers(0, 7, mask.shape),
        mask,
    )


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.5), (0.9, 0.0)])
def test_focal_loss(rng, mask, alpha, gamma):
    check(
        lambda x, y, mask: sigmoid_focal(x, y, mask, alpha=alpha, gamma=gamma),
        lambda x, y: torchvision.ops.sigmoid_focal_loss(x, y.double(), alpha, gamma),
        logits(rng, *mask.shape, 3),
        rng.random((*mask.shape, 3)) < 0.3,
        mask,
    )
