"""Pasted masks and the targets of masks against torchvision's."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes  # noqa: E402

from eca_jax.nn.detection import mask_targets, paste  # noqa: E402
from tests.nn.detection import cases  # noqa: E402

pytestmark = pytest.mark.parity

SIZE = (40, 50)


def test_pasted(rng):
    """10,000 boxes in the image and across its edges; torchvision fails at boxes wholly outside."""
    boxes = cases.boxes(rng, cases.CASES, broken=False) * 0.5
    boxes[:, :2] = np.minimum(boxes[:, :2], [SIZE[1] - 2, SIZE[0] - 2])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], np.maximum(boxes[:, :2], 2))
    boxes, masks = boxes.astype(np.float32), rng.random((cases.CASES, 28, 28)).astype(np.float32)
    for part in np.split(np.arange(cases.CASES), 10):  # for the memory
        tensors = torch.from_numpy(masks[part, None]), torch.from_numpy(boxes[part])
        want = paste_masks_in_image(*tensors, SIZE)[:, 0].numpy()
        got = paste(masks[part], boxes[part], SIZE)
        np.testing.assert_array_equal(got == 0, want == 0)
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("size", [28, 7])
def test_targets(rng, dtype, tolerance, size):
    """10,000 boxes, smaller than a pixel to larger than the image."""
    masks, index = rng.random((5, *SIZE)) < 0.5, rng.integers(0, 5, cases.CASES)
    boxes = cases.boxes(rng, cases.CASES, broken=False) * rng.choice([0.01, 0.2, 0.5, 2], (cases.CASES, 1))
    boxes = boxes.astype(dtype)
    want = project_masks_on_boxes(*map(torch.from_numpy, (masks, boxes, index)), size).numpy()
    with jax.enable_x64(dtype == np.float64):
        got = jax.jit(lambda m, b, i: mask_targets(m, b, i, size))(masks, boxes, index)
        assert got.dtype == dtype
    np.testing.assert_allclose(got, want, atol=tolerance)
