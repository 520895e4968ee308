"""Boxes and anchors against torchvision's operations, on random boxes and on those at which formulas break."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision.models.detection import anchor_utils, image_list  # noqa: E402
from torchvision.models.detection._utils import BoxCoder  # noqa: E402

from eca_jax.nn.detection import (  # noqa: E402
    TORCHVISION,
    anchor_strides,
    area,
    cell_anchors,
    cells,
    clip,
    decode,
    encode,
    grid_anchors,
    iou,
    sides_at_least,
)
from tests.nn.detection import cases  # noqa: E402

pytestmark = pytest.mark.parity

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 2e-15)])


def run(function, *args):
    """`function`, compiled, of every case, with JAX's 64 bits for arrays that have them."""
    with jax.enable_x64(args[0].dtype == np.float64):
        got = jax.jit(jax.vmap(function))(*args)
        assert got.dtype in (bool, args[0].dtype)
        return np.asarray(got)


@DTYPES
def test_overlaps(rng, dtype, tolerance):
    a, b = (cases.boxes(rng, cases.CASES, n, dtype=dtype) for n in (3, 4))
    want = torchvision.ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert np.isnan(want).mean() > 0.01
    assert (want == 1).any()
    np.testing.assert_allclose(run(lambda a, b: iou(a, b, TORCHVISION), a, b), want, rtol=tolerance)
    areas = torchvision.ops.box_area(torch.from_numpy(a.reshape(-1, 4))).numpy().reshape(a.shape[:-1])
    np.testing.assert_allclose(run(lambda a: area(a, TORCHVISION), a), areas, rtol=tolerance)


@DTYPES
def test_coding(rng, dtype, tolerance):
    box, anchor = (cases.boxes(rng, cases.CASES, dtype=dtype) for _ in "ba")
    want = BoxCoder(WEIGHTS).encode_single(torch.from_numpy(box), torch.from_numpy(anchor)).numpy()
    assert np.isinf(want).mean() > 0.01
    got = run(lambda box, anchor: encode(box, anchor, WEIGHTS, TORCHVISION), box, anchor)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@DTYPES
def test_decoding(rng, dtype, tolerance):
    """Of three classes; with deltas beyond the limit, and NaN."""
    delta = cases.deltas(rng, cases.CASES, 3, dtype=dtype)
    anchor = cases.boxes(rng, cases.CASES, dtype=dtype)
    both = torch.from_numpy(delta.reshape(-1, 12)), torch.from_numpy(anchor)
    want = BoxCoder(WEIGHTS).decode_single(*both).numpy().reshape(delta.shape)
    got = run(lambda delta, anchor: decode(delta, anchor, WEIGHTS, TORCHVISION), delta, anchor[:, None])
    cases.assert_boxes_close(got, want, tolerance, anchor[:, None])


@DTYPES
def test_clipping_and_small_sides(rng, dtype, tolerance):
    del tolerance  # there is nothing to round
    box = cases.boxes(rng, cases.CASES, 4, dtype=dtype)
    want = torchvision.ops.clip_boxes_to_image(torch.from_numpy(box), (50, 60)).numpy()
    np.testing.assert_array_equal(run(lambda box: clip(box, (50, 60), TORCHVISION), box), want)
    for smallest in (1e-3, 8.0):
        kept = torchvision.ops.remove_small_boxes(torch.from_numpy(want.reshape(-1, 4)), smallest).numpy()
        got = run(lambda box, least=smallest: sides_at_least(box, least, TORCHVISION), want)
        assert np.flatnonzero(got).tolist() == kept.tolist()


R_CNN = [((size,), stride) for size, stride in zip((32, 64, 128, 256, 512), (4, 8, 16, 32, 64), strict=True)]
RETINANET = [
    ((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))), stride)
    for x, stride in zip((32, 64, 128, 256, 512), (8, 16, 32, 64, 128), strict=True)
]


def grid_of(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """What convolutions and pools of stride 2 leave of an image, each of which rounds up."""
    while stride > 1:
        size, stride = ((size[0] + 1) // 2, (size[1] + 1) // 2), stride // 2
    return size


@pytest.mark.parametrize("levels", [R_CNN, RETINANET], ids=["rcnn", "retinanet"])
@pytest.mark.parametrize("size", [(32, 32), (64, 416), (224, 224), (480, 672), (768, 1024), (800, 1344), (1344, 800)])
def test_anchors(levels, size):
    theirs = anchor_utils.AnchorGenerator(tuple(sizes for sizes, _ in levels), ((0.5, 1.0, 2.0),) * 5)
    maps = [torch.zeros(1, 1, *grid_of(size, stride)) for _, stride in levels]
    (want,) = theirs(image_list.ImageList(torch.zeros(1, 3, *size), [size]), maps)
    got = [
        grid_anchors(
            cell_anchors(sizes, (0.5, 1.0, 2.0), stride, TORCHVISION),
            grid_of(size, stride),
            anchor_strides(np.array(size), stride, TORCHVISION),
        )
        for sizes, stride in levels
    ]
    np.testing.assert_array_equal(np.concatenate(got), want.numpy())


def test_anchors_of_a_cell(rng):
    """Of random sizes, 1 to 1000 pixels, and ratios."""
    sizes, ratios = rng.integers(1, 1000, 100).tolist(), rng.uniform(0.1, 10, 100).tolist()
    (want,) = anchor_utils.AnchorGenerator((sizes,), (ratios,)).cell_anchors
    np.testing.assert_array_equal(cell_anchors(sizes, ratios, 8, TORCHVISION), want.numpy())


def test_strides():
    """Of all sizes up to 1344 that are multiples of 32, for every stride of a level."""
    sizes = np.stack(np.meshgrid(*[np.arange(32, 1345, 32)] * 2), axis=-1).reshape(-1, 2)
    for stride in (4, 8, 16, 32, 64, 128):
        own, got = jax.jit(lambda s, stride=stride: (cells(s.T, stride), anchor_strides(s.T, stride, TORCHVISION)))(
            sizes
        )
        grids = np.stack(grid_of((sizes[:, 0], sizes[:, 1]), stride))
        np.testing.assert_array_equal(own, grids)
        np.testing.assert_array_equal(got, sizes.T // grids)
