"""Boxes in both conventions, against the formulas written out for one pair at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eca_jax.nn.detection import MMDET1, TORCHVISION, area, clip, decode, encode, iou, sides, sides_at_least
from tests.nn.detection import cases

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
EACH = pytest.mark.parametrize(("convention", "plus"), [(TORCHVISION, 0), (MMDET1, 1)], ids=["torchvision", "mmdet1"])


def overlap(a, b, plus):
    """IoU of boxes a and b (..., 4) in float64."""
    columns = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + plus
    rows = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + plus
    both = np.where(columns < 0, 0, columns) * np.where(rows < 0, 0, rows)
    areas = [(x[..., 2] - x[..., 0] + plus) * (x[..., 3] - x[..., 1] + plus) for x in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / (areas[0] + areas[1] - both)


@EACH
def test_overlaps(rng, convention, plus):
    a, b = (cases.boxes(rng, cases.CASES, n) for n in (2, 3))
    got = jax.jit(jax.vmap(lambda a, b: iou(a, b, convention)))(a, b)
    want = overlap(a[:, :, None].astype(np.float64), b[:, None].astype(np.float64), plus)
    assert got.shape == (cases.CASES, 2, 3)
    assert got.dtype == jnp.float32
    # Sides are differences of float32 coordinates below 200, and one is half a pixel at least.
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


@EACH
def test_overlap_of_a_box_with_itself_and_its_halves(convention, plus):
    box = np.array([[10, 20, 30 - plus, 40 - plus]])
    parts = np.array([[10, 20, 30, 40], [10, 20, 20, 40], [20, 30, 30, 40], [30, 20, 50, 40]]) - [0, 0, plus, plus]
    np.testing.assert_allclose(iou(box, parts, convention), [[1, 1 / 2, 1 / 4, 0]], rtol=1e-6)
    np.testing.assert_array_equal(area(parts, convention), [400, 200, 100, 400])
    np.testing.assert_array_equal(sides(parts, convention), [[20, 20], [10, 20], [10, 10], [20, 20]])


def test_overlaps_of_boxes_without_area_are_nan():
    point, box = np.array([[5, 5, 5, 5]]), np.array([[0, 0, 10, 10]])
    assert np.isnan(iou(point, point, TORCHVISION)).all()
    np.testing.assert_array_equal(iou(point, box, TORCHVISION), [[0]])
    np.testing.assert_allclose(iou(point, box, MMDET1), [[1 / 121]], rtol=1e-6)


def coded(box, anchor, plus):
    """`box` relative to `anchor`, (..., 4) each, in float64 and MMDetection's order of the operations."""
    (x, y), (xa, ya) = (((t[..., 0] + t[..., 2]) / 2, (t[..., 1] + t[..., 3]) / 2) for t in (box, anchor))
    (w, h), (wa, ha) = ((t[..., 2] - t[..., 0] + plus, t[..., 3] - t[..., 1] + plus) for t in (box, anchor))
    parts = ((x - xa) / wa, (y - ya) / ha, np.log(w / wa), np.log(h / ha))
    return np.stack(parts, axis=-1) / [0.1, 0.1, 0.2, 0.2]


def decoded(delta, anchor, plus):
    delta = delta * [0.1, 0.1, 0.2, 0.2]
    limit = -np.log(16 / 1000)
    logs = np.where(delta[..., 2:] > limit, limit, delta[..., 2:])
    logs = np.where((logs < -limit) & bool(plus), -limit, logs)
    (wa, ha) = (anchor[..., 2] - anchor[..., 0] + plus, anchor[..., 3] - anchor[..., 1] + plus)
    x, y = (anchor[..., 0] + anchor[..., 2]) / 2 + wa * delta[..., 0], (anchor[..., 1] + anchor[..., 3]) / 2
    y = y + ha * delta[..., 1]
    w, h = wa * np.exp(logs[..., 0]), ha * np.exp(logs[..., 1])
    half = plus / 2
    return np.stack([x - w / 2 + half, y - h / 2 + half, x + w / 2 - half, y + h / 2 - half], axis=-1)


@EACH
@jax.enable_x64(True)
def test_coding(rng, convention, plus):
    """And back, for boxes and anchors with sides."""
    box, anchor = (cases.boxes(rng, cases.CASES, broken=False, dtype=np.float64) for _ in "ba")
    code = jax.jit(lambda box, anchor: encode(box, anchor, WEIGHTS, convention))(box, anchor)
    assert code.dtype == jnp.float64
    np.testing.assert_allclose(code, coded(box, anchor, plus), rtol=1e-12, atol=1e-12)
    back = decode(code, anchor, WEIGHTS, convention)
    small = abs(np.log(sides(box, convention) / sides(anchor, convention))).max(-1) < np.log(62.5)
    np.testing.assert_allclose(back[small], box[small], rtol=1e-12, atol=1e-11)


@EACH
@jax.enable_x64(True)
def test_decoding(rng, convention, plus):
    """One anchor for three classes; the sizes are clamped from above alone, or on both sides."""
    delta = cases.deltas(rng, cases.CASES, 3, dtype=np.float64)
    anchor = cases.boxes(rng, cases.CASES, 1, dtype=np.float64)
    got = jax.jit(lambda delta, anchor: decode(delta, anchor, WEIGHTS, convention))(delta, anchor)
    want = decoded(delta, anchor, plus)
    assert (abs(delta[..., 2:]) * 0.2 > np.log(62.5)).mean() > 0.01
    cases.assert_boxes_close(got, want, 1e-14, anchor)


@EACH
def test_sides_are_clamped(convention, plus):
    anchor = np.array([0, 0, 16 - plus, 16 - plus])
    delta = np.array([[0, 0, 100, 0], [0, 0, 0, -100]])
    (wide, _), (_, flat) = sides(decode(delta, anchor, (1, 1, 1, 1), convention), convention)
    np.testing.assert_allclose(wide, 1000, rtol=1e-6)
    np.testing.assert_allclose(flat, 16 / 62.5 if plus else 0, rtol=1e-5, atol=1e-6)


@EACH
def test_clipping(rng, convention, plus):
    """To sizes that are traced, one of each image."""
    box, size = cases.boxes(rng, cases.CASES, 2), rng.integers(1, 100, (cases.CASES, 2))
    got = jax.jit(jax.vmap(lambda box, size: clip(box, size, convention)))(box, size)
    end = np.stack([size[:, 1], size[:, 0]] * 2, axis=-1)[:, None] - plus
    want = np.where(box < 0, 0, np.where(box > end, end, box))
    np.testing.assert_array_equal(got, want)


@EACH
def test_small_sides(convention, plus):
    box = np.array([[0, 0, 3, 3], [0, 0, 4, 4], [0, 0, 9, 3], [0, 0, np.nan, 9], [9, 9, 0, 0]])
    assert sides_at_least(box, 4, convention).tolist() == [plus == 1, True, plus == 1, False, False]


def test_narrow_numbers_are_widened():
    """The corners of a box in bfloat16 are whole numbers up to 256 alone; what is computed from them is float32."""
    box = jnp.asarray([[0, 0, 250, 130]], jnp.bfloat16)
    found = [area(box, TORCHVISION), iou(box, box, MMDET1), clip(box, (100, 100), MMDET1)]
    found += [encode(box, box, WEIGHTS, MMDET1), decode(box, box, WEIGHTS, MMDET1)]
    assert {str(x.dtype) for x in found} == {"float32"}
    assert found[0] == 250 * 130
