"""What layers return, saliency and Grad-CAM, against PyTorch's hooks and gradients on torchvision's ResNet-18."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from eca_jax.analysis import activations, grad_cam, saliency  # noqa: E402
from eca_jax.convert.state_dict import from_state_dict  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity

CLASSES = np.array([3, 500])


@pytest.fixture(scope="module")
def pair():
    theirs = authors.randomise(torchvision.models.resnet18()).eval()
    ours = from_state_dict(authors.arrays(theirs))
    ours.eval()
    return theirs, ours


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def theirs(pair, images):
    """Of every module its output, and of layer3 the gradient too; the gradient of the images."""
    model, outputs, kept = pair[0], {}, []
    for name, module in model.named_modules():
        if name and not isinstance(module, torch.nn.ReLU):
            # A copy at once: torchvision's ReLUs and additions write over what they get.
            module.register_forward_hook(
                lambda _, __, y, name=name: outputs.__setitem__(name, last(y).detach().clone())
            )
    model.layer3.register_forward_hook(lambda _, __, y: kept.append(y))
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    scores = model(x)[torch.arange(2), torch.from_numpy(CLASSES)]
    kept[0].retain_grad()
    scores.sum().backward()
    return outputs, kept[0], x.grad


def last(y):
    """(b, c, h, w) -> (b, h, w, c)."""
    return y.permute(0, 2, 3, 1) if y.ndim == 4 else y


def test_every_layer_that_both_have(pair, images, theirs):
    found, (expected, *_) = activations(pair[1], images, "*"), theirs
    names = {name: name.replace("downsample.", "downsample.layers.") for name in expected}
    shared = {name: ours for name, ours in names.items() if ours in found}
    assert set(expected) - set(shared) == {"maxpool", "avgpool"}
    for name, ours in shared.items():
        values = expected[name].numpy()
        np.testing.assert_allclose(found[ours], values, atol=2e-5 * abs(values).max(), err_msg=name)


def test_grad_cam_and_saliency(pair, images, theirs):
    _, maps, gradient = theirs
    weights = maps.grad.mean((2, 3), keepdim=True)
    expected = torch.relu((weights * maps).sum(1)).detach().numpy()
    found = grad_cam(pair[1], jnp.asarray(images), "layer3", CLASSES)
    assert found.shape == (2, 4, 4)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    expected = last(gradient).numpy()
    np.testing.assert_allclose(saliency(pair[1], images, CLASSES), expected, atol=1e-4 * abs(expected).max())
