"""Losses of detection by hand, and what their masks keep out. (tests/parity has PyTorch's values and gradients.)"""

import jax
import numpy as np
import pytest

from eca_jax.nn.detection import binary_cross_entropy, cross_entropy, l1, sigmoid_focal, smooth_l1

MASK = np.array([True, True, False])
BOXES = np.array([[0.5, -1, 2, 0], [0.05, 0.1, -0.2, 0], [9, 9, 9, 9]], np.float32)
LOGITS = np.array([[0.0, 1], [-2, 3], [5, 5]], np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_distances():
    zeros = np.zeros((3, 4), np.float32)
    np.testing.assert_allclose(l1(BOXES, zeros, MASK), 3.85, rtol=1e-6)
    below = 0.1 * 0.1 / 2 / 0.2 + 0.05 * 0.05 / 2 / 0.2 + 0.2 - 0.1
    np.testing.assert_allclose(smooth_l1(BOXES, zeros, MASK, beta=0.2), 3.5 - 3 * 0.1 + below, rtol=1e-6)


def test_cross_entropies():
    want = -np.log(sigmoid(0)) - np.log(1 - sigmoid(1)) - np.log(sigmoid(-2)) - np.log(1 - sigmoid(3))
    targets = np.array([[1, 0], [1, 0], [1, 0]])
    np.testing.assert_allclose(binary_cross_entropy(LOGITS, targets, MASK[:, None]), want, rtol=1e-6)
    want = np.log(1 + np.exp(-1)) + np.log(1 + np.exp(5))
    np.testing.assert_allclose(cross_entropy(LOGITS, np.array([1, 0, 1]), MASK), want, rtol=1e-6)


def test_focal_loss():
    targets = np.array([[True, False], [False, False], [True, True]])
    parts = [0.1 * 0.5**3 * np.log(2)]
    parts += [0.9 * sigmoid(x) ** 3 * -np.log(1 - sigmoid(x)) for x in (1, -2, 3)]
    np.testing.assert_allclose(sigmoid_focal(LOGITS, targets, MASK, alpha=0.1, gamma=3.0), sum(parts), rtol=1e-5)


@pytest.mark.parametrize("hole", [np.nan, np.inf])
@pytest.mark.parametrize(
    "loss",
    [
        lambda x, hole: l1(x, hole[:, None], MASK),
        lambda x, hole: smooth_l1(x, hole[:, None], MASK, beta=0.1),
        lambda x, hole: binary_cross_entropy(x, hole[:, None], MASK[:, None]),
        lambda x, hole: cross_entropy(x, np.array([1, 0, -1]), MASK),
        lambda x, hole: sigmoid_focal(x, np.ones((3, 4), bool), MASK),
    ],
    ids=["l1", "smooth_l1", "binary_cross_entropy", "cross_entropy", "sigmoid_focal"],
)
def test_what_is_masked_has_no_influence(loss, hole):
    """Neither on the value nor on the gradient, not even NaN, in the predictions or in the targets."""
    run = jax.jit(jax.value_and_grad(loss))
    whole, gradient = run(BOXES, np.array([0.1, 0.2, 0.3], np.float32))
    broken, broken_gradient = run(np.where(MASK[:, None], BOXES, hole), np.where(MASK, [0.1, 0.2, 0], hole).astype("f"))
    assert whole == broken
    assert whole > 0
    np.testing.assert_array_equal(gradient, broken_gradient)
    assert (gradient[2] == 0).all()
    assert (gradient[:2] != 0).any()


def test_sums_are_float32():
    """300 equal losses of 1 make 300, which bfloat16 would add up to 256."""
    ones = jax.numpy.ones((300, 4), "bfloat16")
    assert l1(ones, 0 * ones, np.ones(300, bool)) == 1200
