"""Detectors against torchvision's, with the same random weights: what is found, and in which order."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from eca_jax.data.detection import DetectionPreprocess, detector_image  # noqa: E402
from tests.parity.detectors import picture, reference, same_weights  # noqa: E402

pytestmark = pytest.mark.parity
KINDS = ("faster_rcnn", "mask_rcnn", "retinanet")
SMALL: dict[str, Any] = {"min_size": 128, "max_size": 256}
SIZES = [(120, 200), (200, 120), (90, 91), (40, 300), (7, 9)]


@functools.cache
def pair(kind: str):
    """torchvision's and ours on a ResNet-18, and ours compiled."""
    original = reference(kind, **SMALL)
    model = same_weights(f"{kind}_resnet18_fpn", original)
    return original, jax.jit(lambda images, sizes: model(images, sizes))


def found_by_torchvision(original, image):
    """(batch as our network takes it, size after the resize, what is found, in pixels of that)."""
    with torch.no_grad():
        images, _ = original.transform([image])
        (found,) = original([image])
    (size,) = images.image_sizes
    scale = np.asarray([size[1] / image.shape[2], size[0] / image.shape[1]] * 2)
    found = {key: value.numpy() for key, value in found.items()}
    return images.tensors.permute(0, 2, 3, 1).numpy(), size, found | {"boxes": found["boxes"] * scale}


def expect_same(found, expected, what: str) -> None:
    """The same detections in the same order; a tie within rounding would show here, and is not let through."""
    valid = np.asarray(found.valid)
    assert valid.sum() == len(expected["boxes"]), what
    assert valid[: valid.sum()].all()
    n = valid.sum()
    assert np.array_equal(np.asarray(found.labels)[:n], expected["labels"]), what
    np.testing.assert_allclose(np.asarray(found.scores)[:n], expected["scores"], atol=2e-5, err_msg=what)
    # Coordinates go through exp and sums of some hundred pixels, each float32.
    np.testing.assert_allclose(np.asarray(found.boxes)[:n], expected["boxes"], atol=1e-4 * 256, err_msg=what)


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_detections(kind):
    """Of one image in a larger padding than torchvision's, whose own result would change there."""
    expect_same_detections(kind, SIZES[0], (64,))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_detections_of_all_sizes(kind, size):
    """The image alone, in torchvision's padding; then in a larger one."""
    expect_same_detections(kind, size, (0, 64))


def expect_same_detections(kind: str, size: tuple[int, int], paddings: tuple[int, ...]) -> None:
    original, compiled = pair(kind)
    batch, resized, expected = found_by_torchvision(original, picture(*size))
    assert len(expected["boxes"]) > 20
    for more in paddings:
        padded = np.pad(batch, ((0, 0), (0, more), (0, more), (0, 0)))
        found = jax.tree.map(lambda x: x[0], compiled(padded, np.asarray([resized], np.int32)))
        expect_same(found, expected, f"{kind} {size} and {more} pixels of padding")
        if kind == "mask_rcnn":
            expect_same_masks(found, expected, resized)


def expect_same_masks(found, expected, size) -> None:
    """torchvision pastes its masks before it returns them: ours are pasted by its own function.

    A probability moves by a quarter of what its logit does, which is to agree to 1e-4 of the largest one.
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    n = len(expected["boxes"])
    scale = np.asarray(expected["masks"].shape[:1:-1] * 2) / np.asarray(size[::-1] * 2)
    boxes = torch.tensor(expected["boxes"] * scale, dtype=torch.float32)
    masks = torch.tensor(np.asarray(found.masks)[:n, None])
    probabilities = np.clip(masks.numpy(), 1e-6, 1 - 1e-6)
    largest = np.abs(np.log(probabilities / (1 - probabilities))).max()
    pasted = paste_masks_in_image(masks, boxes, expected["masks"].shape[2:]).numpy()
    np.testing.assert_allclose(pasted, expected["masks"], atol=1e-4 * largest / 4)


@pytest.mark.parametrize("size", [(335, 500), (427, 640), (640, 427), (21, 33), (1, 1), (20_000, 100)], ids=str)
def test_images(size):
    """Normalised and resized on the host as torchvision does in PyTorch."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    config = DetectionPreprocess()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    transform = GeneralizedRCNNTransform(config.short_side, config.long_side, list(config.mean), list(config.std))
    images, _ = transform([torch.tensor(pixels).permute(2, 0, 1).float() / 255])
    height, width = images.image_sizes[0]
    expected = images.tensors[0].permute(1, 2, 0).numpy()[:height, :width]
    np.testing.assert_allclose(detector_image(pixels, config), expected, atol=2e-6)
