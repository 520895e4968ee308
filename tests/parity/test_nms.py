"""Non-maximum suppression against torchvision's, index for index."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision.ops.boxes import _batched_nms_coordinate_trick, _batched_nms_vanilla  # noqa: E402

from eca_jax.nn.detection import TORCHVISION, nms, select  # noqa: E402
from tests.nn.detection import cases  # noqa: E402

pytestmark = pytest.mark.parity

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def random_scores(rng, *shape, dtype=np.float32):
    """Half of the cases have equal ones; some are NaN or infinite."""
    drawn = rng.normal(size=shape)
    drawn[::2] = np.round(drawn[::2], 1)
    which = rng.random(shape)
    return np.where(which < 0.01, np.nan, np.where(which < 0.02, np.inf, drawn)).astype(dtype)


def kept(function, *args):
    with jax.enable_x64(args[0].dtype == np.float64):
        return np.asarray(jax.jit(jax.vmap(function))(*args))


def by_score(scores, keep):
    """Indices in the order in which PyTorch has them: NaN first, of equal ones the first."""
    return [i for i in torch.from_numpy(scores).sort(descending=True, stable=True)[1].tolist() if keep[i]]


@DTYPES
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_indices(rng, dtype, threshold):
    boxes, scores = cases.boxes(rng, cases.CASES, 20, dtype=dtype), random_scores(rng, cases.CASES, 20, dtype=dtype)
    got = kept(lambda b, s: nms(b, s, threshold, TORCHVISION), boxes, scores)
    for i in range(cases.CASES):
        want = torchvision.ops.nms(torch.from_numpy(boxes[i]), torch.from_numpy(scores[i]), threshold)
        assert by_score(scores[i], got[i]) == want.tolist(), i


def test_classes(rng):
    """The loop over the classes; torchvision's other way shifts the boxes, and differs by the rounding of the sums."""
    boxes, scores = cases.boxes(rng, cases.CASES, 20), random_scores(rng, cases.CASES, 20)
    groups, differing = rng.integers(0, 3, (cases.CASES, 20)), 0
    got = kept(lambda b, s, g: nms(b, s, 0.5, TORCHVISION, groups=g), boxes, scores, groups)
    for i in range(cases.CASES):
        args = [torch.from_numpy(x[i]) for x in (boxes, scores, groups)]
        assert sorted(_batched_nms_vanilla(*args, 0.5).tolist()) == np.flatnonzero(got[i]).tolist(), i
        differing += sorted(_batched_nms_coordinate_trick(*args, 0.5).tolist()) != np.flatnonzero(got[i]).tolist()
    assert 0 < differing < cases.CASES / 3


def test_as_many_boxes_as_an_image_has(rng):
    """4,819 proposals of five levels, and the best 1,000 of them: `batched_nms` loops over the levels."""
    boxes, scores = cases.boxes(rng, 4819, broken=False) * 8, rng.normal(size=4819).astype(np.float32)
    levels = np.repeat(np.arange(5), [1000, 1000, 1000, 1000, 819])
    want = torchvision.ops.batched_nms(*map(torch.from_numpy, (boxes, scores, levels)), 0.7)
    keep = jax.jit(lambda b, s, g: nms(b, s, 0.7, TORCHVISION, groups=g))(boxes, scores, levels)
    assert keep.sum() > 1000
    _, best = jax.lax.top_k(np.where(keep, scores, -np.inf), 1000)
    assert best.tolist() == want[:1000].tolist()


def test_detections(rng):
    """The best 100 of 1,000 boxes of each of 90 classes, whose scores are a softmax."""
    boxes = cases.boxes(rng, 1000, 90, broken=False) * 8
    scores = np.asarray(jax.nn.softmax(3 * rng.normal(size=(1000, 91)).astype(np.float32), axis=-1))[:, 1:]
    candidates = np.argwhere(scores > 0.05)
    chosen = [torch.from_numpy(x[tuple(candidates.T)]) for x in (boxes, scores)]
    want = torchvision.ops.batched_nms(*chosen, torch.from_numpy(candidates[:, 1]), 0.5)[:100]
    rows, labels, found = jax.jit(lambda b, s: select(b, s, 0.5, 100, TORCHVISION, valid=s > 0.05))(boxes, scores)
    assert found.all()
    np.testing.assert_array_equal(np.stack([rows, labels], axis=1), candidates[want])
