"""benchmarks/fashion_mnist_torch.py is configs/fashion_mnist.py in PyTorch: the same function of the same pixels.

What remains to differ between the two is what the benchmark measures: random numbers, and how each framework trains.
"""

import io
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

from benchmarks import fashion_mnist_torch as loop  # noqa: E402
from eca_jax.config import load_config  # noqa: E402
from eca_jax.convert.state_dict import from_state_dict  # noqa: E402
from eca_jax.data.preprocess import eval_image, normalise  # noqa: E402
from eca_jax.models.config import build_model  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity

CONFIG = load_config(str(pathlib.Path(__file__).parents[2] / "configs/fashion_mnist.py"))


@pytest.mark.parametrize("train", [False, True])
def test_the_networks_compute_the_same(train):
    """Logits of a batch: float32, as in test_models.py."""
    theirs = authors.randomise(loop.NarrowResNet18(10)).train(train)
    images = np.random.default_rng(0).normal(size=(CONFIG.batch_size, 28, 28, 3)).astype(np.float32)
    tensors = authors.arrays(theirs)
    with torch.no_grad():
        expected = theirs(authors.to_torch(images)).numpy()

    ours = build_model(CONFIG.model, 10, nnx.Rngs(0))
    nnx.update(ours, nnx.state(from_state_dict(tensors, source="ecanet")))
    ours.train() if train else ours.eval()
    graphdef, state = nnx.split(ours)
    actual = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, images)
    assert authors.error(actual, expected) < 2e-5


def test_evaluation_sees_the_same_pixels():
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
    file = io.BytesIO()
    grey.save(file, "png")
    ours = normalise(jax.numpy.asarray(eval_image(file.getvalue(), CONFIG.task.preprocess)), CONFIG.task.preprocess)
    theirs = loop.TEST(grey.convert("RGB")).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
