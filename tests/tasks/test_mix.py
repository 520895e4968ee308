"""Mixup and CutMix: what becomes of images and targets, and how the shares are distributed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from eca_jax.tasks.mix import MixConfig, boxes, mix

# Kolmogorov-Smirnov: a right sampler fails one of these with a probability of 1e-6.
ALPHA = 1e-6


def batch(rng, pairs: int, side: int = 6, classes: int = 5):
    image = rng.normal(size=(2 * pairs, side, side, 3))
    target = np.eye(classes)[rng.integers(classes, size=2 * pairs)]
    return image.astype(np.float32), target.astype(np.float32)


def neighbours(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def test_without_alphas_nothing_happens(rng):
    image, target = batch(rng, 4)
    same = mix(jnp.asarray(image), jnp.asarray(target), jax.random.key(0), MixConfig())
    np.testing.assert_array_equal(same[0], image)
    np.testing.assert_array_equal(same[1], target)


def test_mixup_takes_one_share_for_both_of_a_pair_and_for_image_and_target(rng):
    image, target = batch(rng, 2000)
    target = np.tile(np.eye(2, dtype=np.float32), (2000, 1))  # the two of a pair are of different classes
    mixed, targets = mix(jnp.asarray(image), jnp.asarray(target), jax.random.key(1), MixConfig(mixup_alpha=0.2))
    kept = np.asarray(targets)[np.arange(4000), np.arange(4000) % 2]
    np.testing.assert_array_equal(kept[::2], kept[1::2])
    weight = kept[:, None, None, None]
    np.testing.assert_allclose(mixed, weight * image + (1 - weight) * neighbours(image), atol=1e-5)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert stats.kstest(kept[::2], stats.beta(0.2, 0.2).cdf).pvalue > ALPHA


def test_cutmix_swaps_a_box_and_its_area_is_the_share(rng):
    """On images of 0 and 1, so that the pixels say where they come from."""
    pairs, side = 3000, 8
    image = np.tile(np.arange(2, dtype=np.float32), pairs)[:, None, None, None] * np.ones(
        (1, side, side, 1), np.float32
    )
    target = np.tile(np.eye(2, dtype=np.float32), (pairs, 1))
    mixed, targets = mix(jnp.asarray(image), jnp.asarray(target), jax.random.key(2), MixConfig(cutmix_alpha=1.0))
    taken = np.abs(np.asarray(mixed) - image)[..., 0]
    assert set(np.unique(taken)) <= {0.0, 1.0}
    for box in taken:
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, np.outer(rows, columns))  # a rectangle
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2  # in one piece
    np.testing.assert_array_equal(taken[::2], taken[1::2])
    kept = np.asarray(targets)[np.arange(2 * pairs), np.arange(2 * pairs) % 2]
    np.testing.assert_allclose(kept, 1 - taken.mean((1, 2)), atol=1e-6)

    # The shares by NumPy: a uniform share and centre, sides floor(8 sqrt(share)), cut off at the border.
    cut = (side * np.sqrt(1 - rng.random(pairs))).astype(int)
    first, end = -(cut // 2), (cut + 1) // 2
    length = [np.clip(c + end, 0, side) - np.clip(c + first, 0, side) for c in rng.integers(side, size=(2, pairs))]
    assert stats.ks_2samp(kept[::2], 1 - length[0] * length[1] / side**2).pvalue > ALPHA


def test_with_both_each_pair_takes_one(rng):
    image, target = batch(rng, 2000)
    mixed, _ = mix(jnp.asarray(image), jnp.asarray(target), jax.random.key(3), MixConfig(0.8, 1.0))
    whole = (np.asarray(mixed) == image) | (np.asarray(mixed) == neighbours(image))
    cutmix = whole.all((1, 2, 3))
    np.testing.assert_array_equal(cutmix[::2], cutmix[1::2])
    assert cutmix[::2].sum() == pytest.approx(1000, abs=5 * np.sqrt(500))


def test_the_box_of_a_share_by_hand():
    box = boxes(jnp.asarray([[0.5, 0.0]]), jnp.asarray([0.75]), 8, 8)[0]
    expected = np.zeros((8, 8), bool)
    expected[2:6, 0:2] = True  # 4 by 4 around (4, 0)
    np.testing.assert_array_equal(box, expected)
