"""RoIAlign, its levels and its gradient against torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign  # noqa: E402

from eca_jax.nn.detection import TORCHVISION, pyramid_level, roi_align  # noqa: E402
from tests.nn.detection import cases  # noqa: E402

pytestmark = pytest.mark.parity

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
IMAGE = (160, 224)


def pyramid_of(rng, dtype, channels=3):
    return [rng.normal(size=(int(IMAGE[0] * s), int(IMAGE[1] * s), channels)).astype(dtype) for s in SCALES]


def boxes_of(rng, n, dtype):
    """Small to larger than the image, some without area or wholly outside; none has NaN or is so far away that
    torchvision's integers overflow."""
    drawn = cases.boxes(rng, n, broken=False) * rng.choice([0.2, 1, 2, 6], (n, 1))
    flat = rng.random(n) < 0.1
    drawn[flat, 2:] = drawn[flat, :2]
    return drawn.astype(dtype)


def theirs(maps, boxes, size, samples):
    pool = MultiScaleRoIAlign([str(i) for i in range(4)], size, samples)
    return pool({str(i): x for i, x in enumerate(maps)}, [torch.from_numpy(boxes)], [IMAGE])


def channels_first(level):
    return torch.from_numpy(level.transpose(2, 0, 1)[None].copy())


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize(("size", "samples"), [(7, 2), (14, 2), (3, 1), (2, 3)])
def test_pooled(rng, dtype, tolerance, size, samples):
    """10,000 boxes."""
    pyramid, boxes = pyramid_of(rng, dtype), boxes_of(rng, cases.CASES, dtype)
    want = theirs([channels_first(level) for level in pyramid], boxes, size, samples).numpy()
    with jax.enable_x64(dtype == np.float64):
        got = jax.jit(lambda p, b: roi_align(p, b, size, SCALES, TORCHVISION, samples=samples))(pyramid, boxes)
        assert got.dtype == dtype
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), want, atol=tolerance)
    assert (want == 0).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_gradient(rng, dtype, tolerance):
    """By every level, of a weighted sum over 10,000 boxes, relative to the largest gradient."""
    pyramid, boxes = pyramid_of(rng, dtype), boxes_of(rng, cases.CASES, dtype)
    weights = rng.normal(size=(cases.CASES, 7, 7, 3)).astype(dtype)
    maps = [channels_first(level).requires_grad_() for level in pyramid]
    (theirs(maps, boxes, 7, 2) * torch.from_numpy(np.moveaxis(weights, -1, 1))).sum().backward()
    with jax.enable_x64(dtype == np.float64):
        gradient = jax.jit(jax.grad(lambda p: jnp.vdot(roi_align(p, boxes, 7, SCALES, TORCHVISION), weights)))
        got = gradient(pyramid)
    for ours, level in zip(got, maps, strict=True):
        want = level.grad[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours, want, atol=tolerance * abs(want).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels(rng, dtype):
    """Of random boxes, and of squares within a few roundings of 112, 224 and 448 pixels."""
    boxes = boxes_of(rng, cases.CASES, dtype)
    sides = (112 * 2 ** rng.integers(0, 3, cases.CASES) * (1 + rng.uniform(-3e-6, 3e-6, cases.CASES))).astype(dtype)
    squares = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    for drawn in (boxes, squares):
        want = LevelMapper(2, 5)([torch.from_numpy(drawn)]).numpy()
        with jax.enable_x64(dtype == np.float64):
            got = jax.jit(lambda b: pyramid_level(b, 4, TORCHVISION))(drawn)
        # torchvision adds 4 to the logarithm: in float32 this moves where a level begins by two roundings.
        relative = np.sqrt(np.prod(drawn[:, 2:] - drawn[:, :2], axis=1, dtype=np.float64)) / [[112], [224], [448]]
        near = (abs(relative - 2**-1e-6) < 4 * np.finfo(dtype).eps).any(axis=0)
        np.testing.assert_array_equal(got[~near], want[~near])
        assert abs(got - want).max() <= 1
        assert near.mean() < 0.2
        assert len(np.unique(want)) == 4
