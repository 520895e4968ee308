"""Random erasing: what is erased and with what; how often and where is compared with timm's in tests/parity."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from eca_jax.data.preprocess import ERASING_MODES, PreprocessConfig
from eca_jax.sharding import make_mesh
from eca_jax.tasks import Classification, MultiLabel, classification
from eca_jax.tasks.erasing import erase, rectangles

P = 1e-6
"""Of a statistic as far off as the one seen, of a right sampler. The seeds are fixed."""
SIDE = (12, 16)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(500, *SIDE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def erased(images) -> dict[str, np.ndarray]:
    """By mode, all with the same key, each image with a probability of 1."""
    configs = [PreprocessConfig(random_erasing=1.0, random_erasing_mode=mode) for mode in ERASING_MODES]
    outs = jax.jit(lambda x: [erase(x, jax.random.key(0), config) for config in configs])(images)
    return dict(zip(ERASING_MODES, map(np.asarray, outs), strict=True))


def test_one_rectangle_becomes_exactly_0_and_the_rest_stays(images, erased):
    out = erased["const"]
    hit = (out == 0).all(-1)
    np.testing.assert_array_equal(out, np.where(hit[..., None], 0, images))
    assert hit.any((1, 2)).mean() > 0.95  # all but those of which no attempt fitted
    for mask in hit:
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        for line in (rows, columns):
            assert not line.all()  # smaller than the image
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() in (0, 2)  # in one piece


def test_noise_is_a_colour_of_the_rectangle_or_of_each_pixel_and_normal(images, erased):
    const, rand, pixel = (erased[mode] for mode in ("const", "rand", "pixel"))
    hit = (const == 0).all(-1)
    for out in (rand, pixel):
        np.testing.assert_array_equal((out != images).all(-1), hit)
        np.testing.assert_array_equal(out[~hit], images[~hit])
    colours = np.concatenate([np.unique(out[mask], axis=0) for out, mask in zip(rand, hit, strict=True) if mask.any()])
    assert len(colours) == hit.any((1, 2)).sum()
    for values in (colours.ravel(), pixel[hit].ravel()):
        assert len(np.unique(values)) > 0.9 * len(values)
        assert stats.kstest(values, stats.norm.cdf).pvalue > P


def test_what_is_not_asked_for_is_no_part_of_the_step(images):
    config = PreprocessConfig(random_erasing_count=3)
    assert erase(images, jax.random.key(0), config) is images


def test_as_many_are_erased_as_asked_for_and_several_rectangles_share_the_area():
    b = 4000
    blocks = np.asarray(jax.jit(lambda: rectangles(jax.random.key(1), (b, 24, 24), 0.25, 3))()).sum((2, 3))
    numbers = (blocks > 0).sum(1)
    assert abs((numbers > 0).sum() - b / 4) < 4.5 * np.sqrt(b * 3 / 16)
    for number in (1, 2, 3):
        assert abs((numbers == number).sum() - b / 12) < 4.5 * np.sqrt(b / 12)
        shares = blocks[numbers == number].sum(1) / 24**2
        assert shares.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)


def test_on_8_devices_it_is_what_it_is_on_1_and_nothing_is_communicated(images):
    config = PreprocessConfig(random_erasing=0.7, random_erasing_count=2)
    images, results = images[:64], []
    for devices in (1, 8):
        rows = NamedSharding(make_mesh(jax.devices()[:devices]), PartitionSpec("data"))
        jitted = jax.jit(lambda x: erase(x, jax.random.key(3), config), in_shardings=rows, out_shardings=rows)
        text = jitted.lower(images).compile().as_text()
        assert not [word for word in ("all-", "collective-", "reduce-scatter") if word in text]
        assert f"f32[{64 // devices},12,16,3]" in text
        assert devices == 1 or "f32[64,12,16,3]" not in text  # no device draws the noise of the others
        results.append(np.asarray(jitted(images)))
    np.testing.assert_array_equal(*results)
    assert (results[0] != images).any((1, 2, 3)).sum() > 30


@pytest.mark.parametrize("task", [Classification(), MultiLabel()], ids=lambda task: task.name)
def test_a_task_erases_after_it_has_normalised_and_mixed_and_drops_out_as_before(monkeypatch, rng, task):
    """Mixing is a factor here, which noise that comes after it does not have."""
    monkeypatch.setattr(classification, "mix", lambda image, target, *_: (100 * image, target))
    seen = []

    def network(image: jax.Array, rngs) -> jax.Array:
        seen.append((image, jax.random.key_data(rngs.dropout())))
        raise StopIteration  # what comes of it is another matter

    network.architecture = types.SimpleNamespace(num_classes=5)
    label = rng.integers(5, size=8)
    label = np.eye(5, dtype=bool)[label] if task.name == MultiLabel.name else label.astype(np.int32)
    batch = {"image": rng.integers(0, 256, (8, *SIDE, 3)).astype(np.uint8), "label": label, "mask": np.ones(8)}
    key = jax.random.key(7)
    config = PreprocessConfig(random_erasing=0.8, mean=(0.1, 0.2, 0.3))
    for preprocess in (PreprocessConfig(mean=config.mean), config):
        with pytest.raises(StopIteration):
            dataclasses.replace(task, preprocess=preprocess).loss(network, batch, key, jnp.float32)
    (plain, dropout), (out, dropout_too) = seen
    np.testing.assert_array_equal(out, erase(plain, key, config))
    assert (out != plain).any((1, 2, 3)).sum() in range(3, 8)
    np.testing.assert_array_equal(dropout, dropout_too)
