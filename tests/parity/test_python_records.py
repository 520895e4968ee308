"""Data sets of PyTorch and torchvision, and a transform of torchvision's, given to a run as they are."""

import numpy as np
import pytest

from eca_jax.data.loader import train_batches
from eca_jax.data.preprocess import PreprocessConfig, decode
from eca_jax.data.python_records import python_source
from eca_jax.data.transform import Transformed
from eca_jax.sharding import batch_sharding, make_mesh
from eca_jax.tasks import Classification

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
v2 = pytest.importorskip("torchvision.transforms.v2")
pytestmark = pytest.mark.parity


def test_a_data_set_of_torchvision_is_read_as_it_reads_it():
    """PIL images and labels, drawn at random from the number."""
    expected = torchvision.datasets.FakeData(8, (3, 9, 7), num_classes=3)
    source = python_source(expected, "train", ["a", "b", "c"])
    for (data, label), (image, number) in zip(source, (expected[i] for i in range(8)), strict=True):
        np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(image))
        assert label == int(number)


def test_tensors_are_arrays(rng):
    images = torch.from_numpy(rng.integers(0, 256, (4, 9, 7, 3), np.uint8))
    source = python_source(torch.utils.data.TensorDataset(images, torch.tensor([1, 0, 2, 1])), "train")
    assert [label for _, label in source] == [1, 0, 2, 1]
    np.testing.assert_array_equal([decode(data) for data, _ in source], images.numpy())


def test_a_transform_of_torchvision_gives_its_pixels(rng):
    """The image that it returns, at the size of the training images, is the one in the batch."""
    images = rng.integers(0, 256, (8, 12, 12, 3), np.uint8)
    crop = v2.Compose([v2.CenterCrop(8), v2.RandomVerticalFlip(1.0), v2.ColorJitter(brightness=(1.5, 1.5))])

    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return crop(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()

    source = python_source(list(zip(images, range(8), strict=True)), "train")
    task = Transformed(Classification(PreprocessConfig(8, eval_resize=8, augment="none", flip=False)), transform)
    sharding = batch_sharding(make_mesh(), 8)
    (batch,) = train_batches(source, task, seed=0, batch_size=8, steps=range(1), sharding=sharding, num_threads=1)
    for image, label in zip(np.asarray(batch["image"]), np.asarray(batch["label"]), strict=True):
        np.testing.assert_array_equal(image, transform(images[label], rng))
