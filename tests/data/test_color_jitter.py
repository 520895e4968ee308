"""Which adjustments of colour are drawn, and a few by hand; tests/parity compares the pixels with torchvision's."""

import collections
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from eca_jax.data.color_jitter import ADJUSTMENTS, draw_adjustments

DRAWS = 20_000


def test_adjustments_are_drawn_in_every_order_with_uniform_factors():
    """Bounds are 4.5 standard deviations, and a p of 1e-6 of Kolmogorov and Smirnov's test."""
    rng = np.random.default_rng(0)
    drawn = [draw_adjustments(rng, (0.4, 1.5, 0.2, 0.1)) for _ in range(DRAWS)]
    orders = collections.Counter(tuple(name for name, _ in one) for one in drawn)
    assert len(orders) == math.factorial(4)
    assert all(abs(count - DRAWS / 24) < 4.5 * math.sqrt(DRAWS / 24) for count in orders.values())
    expected = {"brightness": (0.6, 1.4), "contrast": (0, 2.5), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for name, (low, high) in expected.items():
        factors = [dict(one)[name] for one in drawn]
        assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > 1e-6, name


def test_what_has_no_strength_is_left_out():
    rng = np.random.default_rng(0)
    assert {tuple(name for name, _ in draw_adjustments(rng, (0, 0.5, 0, 0.5))) for _ in range(50)} == {
        ("contrast", "hue"),
        ("hue", "contrast"),
    }


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_factor_that_changes_nothing_changes_nothing(rng, name):
    """Of the hue that does not hold: Pillow's way to HSV and back loses some levels."""
    pixels = rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)
    function, unchanged, _ = ADJUSTMENTS[name]
    np.testing.assert_array_equal(np.asarray(function(Image.fromarray(pixels), unchanged)), pixels)


@pytest.mark.parametrize(
    ("name", "factor", "colour", "expected"),
    [
        ("brightness", 1.5, (100, 200, 0), (150, 255, 0)),
        ("brightness", 0.0, (100, 200, 0), (0, 0, 0)),
        ("contrast", 0.0, (10, 20, 30), (18, 18, 18)),  # 0.299 * 10 + 0.587 * 20 + 0.114 * 30
        ("contrast", 2.0, (10, 20, 30), (2, 22, 42)),
        ("saturation", 0.0, (10, 20, 30), (18, 18, 18)),
        ("saturation", 2.0, (10, 20, 30), (2, 22, 42)),
        ("hue", 1 / 3, (255, 0, 0), (0, 255, 0)),
        ("hue", -1 / 3, (255, 0, 0), (0, 0, 255)),
    ],
)
def test_an_adjustment_by_hand(name, factor, colour, expected):
    """To 6 levels of the hue, of whose 256 steps a third is none."""
    adjusted = np.asarray(ADJUSTMENTS[name][0](Image.new("RGB", (3, 2), colour), factor))
    np.testing.assert_allclose(adjusted, np.broadcast_to(expected, adjusted.shape), atol=6 if name == "hue" else 0)
