"""Attributions in float64 against finite differences and formulas by hand; the completeness of integrated gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.analysis import grad_cam, integrated_gradients, saliency
from eca_jax.errors import EcaJaxError

CLASSES = np.array([2, 0])


class Smooth(nnx.Module):
    """A convolution over the image, tanh, an average, two dense layers; float64."""

    def __init__(self, rng):
        self.conv = nnx.Conv(3, 4, (3, 3), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(4, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(1))
        self.conv.kernel[...] = jnp.asarray(rng.normal(size=(3, 3, 3, 4)))
        self.fc.kernel[...] = jnp.asarray(rng.normal(size=(4, 3)))

    def __call__(self, x):
        return self.after(self.conv(x))

    def after(self, maps):
        """The logits (b, 3) from the convolution's maps (b, h, w, 4)."""
        return self.fc(jnp.tanh(maps).mean((1, 2)) ** 2)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def network(float64, rng):
    return Smooth(rng)


@pytest.fixture
def images(rng):
    return rng.normal(size=(2, 4, 5, 3))


def logits_by_hand(network, images):
    """NumPy, float64: the logits, and the maps of the convolution."""
    kernel, x = np.asarray(network.conv.kernel[...]), np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = images.shape[1:3]
    maps = sum(x[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
    return head_by_hand(network, maps), maps


def head_by_hand(network, maps):
    return np.tanh(maps).mean((1, 2)) ** 2 @ np.asarray(network.fc.kernel[...])


def differences(function, x, step=1e-5):
    """The gradient of each row's value by central differences; the error is about step^2."""
    gradient = np.empty_like(x)
    for place in np.ndindex(*x.shape[1:]):
        higher, lower = x.copy(), x.copy()
        higher[:, *place] += step
        lower[:, *place] -= step
        gradient[:, *place] = (function(higher) - function(lower)) / (2 * step)
    return gradient


def chosen(logits, classes):
    return logits[np.arange(len(logits)), classes]


def test_saliency_against_finite_differences(network, images):
    found = saliency(network, images, CLASSES)
    assert found.dtype == jnp.float64
    expected = differences(lambda x: chosen(logits_by_hand(network, x)[0], CLASSES), images)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_the_class_is_the_networks_own_where_none_is_given(network, images):
    own = logits_by_hand(network, images)[0].argmax(axis=1)
    np.testing.assert_array_equal(saliency(network, images), saliency(network, images, own))
    np.testing.assert_array_equal(saliency(network, images, 1), saliency(network, images, [1, 1]))
    assert np.any(saliency(network, images, 1) != saliency(network, images, 2))


def test_grad_cam_against_finite_differences(network, images):
    _, maps = logits_by_hand(network, images)
    gradients = differences(lambda maps: chosen(head_by_hand(network, maps), CLASSES), maps)
    weights = gradients.mean((1, 2))  # equation 1
    expected = np.maximum(np.einsum("bk,bhwk->bhw", weights, maps), 0)  # equation 2
    found = grad_cam(network, images, "conv", CLASSES)
    assert np.any(expected == 0)
    assert np.any(expected > 0)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_integrated_gradients_are_complete(network, images):
    """The sum over an image is what the logit gains on the way from the baseline (proposition 1 of the paper)."""
    baseline = np.full((4, 5, 3), 0.3)
    gain = chosen(logits_by_hand(network, images)[0], CLASSES)
    gain -= chosen(logits_by_hand(network, np.stack([baseline] * 2))[0], CLASSES)
    errors = []
    for steps in (50, 100, 200):
        found = integrated_gradients(network, images, CLASSES, baseline=baseline, steps=steps)
        assert found.shape == images.shape
        errors.append(np.max(abs(np.asarray(found).sum((1, 2, 3)) - gain)))
    # The midpoint rule's error is proportional to 1 / steps^2.
    assert errors[0] < 1e-2 * np.max(abs(gain))
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.1)


def test_integrated_gradients_of_a_linear_network(float64, images, rng):
    """There they are the weights times the distance from the baseline, with a single step already."""
    weights = rng.normal(size=(4 * 5 * 3, 3))

    class Linear(nnx.Module):
        def __call__(self, x):
            return x.reshape(len(x), -1) @ weights

    found = integrated_gradients(Linear(), images, CLASSES, baseline=1.5, steps=1)
    expected = (images - 1.5) * weights.T[CLASSES].reshape(images.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_what_cannot_be_attributed_is_refused(network, images):
    with pytest.raises(EcaJaxError, match=r"^classes: expected numbers from 0 to 2, got 0 to 3"):
        saliency(network, images, [0, 3])
    with pytest.raises(EcaJaxError, match=r"^classes: expected a number or 2 of them, got float64 \(2,\)"):
        saliency(network, images, [0.0, 1.0])
    with pytest.raises(EcaJaxError, match=r"^model: it has no layer 'cnov'\. Did you mean conv\?"):
        grad_cam(network, images, "cnov")
    with pytest.raises(EcaJaxError, match=r"^layer: expected the name of one layer, got 'c\*'"):
        grad_cam(network, images, "c*")
    with pytest.raises(EcaJaxError, match=r"^layer: expected one with maps, \(b, h, w, c\), got 'fc', .* \(2, 3\)"):
        grad_cam(network, images, "fc")
    with pytest.raises(EcaJaxError, match=r"^steps: expected 1 or more, got 0"):
        integrated_gradients(network, images, steps=0)
    with pytest.raises(EcaJaxError, match=r"^baseline: expected a shape like \(4, 5, 3\), got \(4, 5, 2\)"):
        integrated_gradients(network, images, baseline=np.zeros((4, 5, 2)))
