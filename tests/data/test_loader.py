"""The global batch is a pure function of (seed, step); evaluation sees every example once."""

import collections
import itertools
import math

import jax
import numpy as np
import pytest

from eca_jax.config import Config, DataConfig
from eca_jax.data.digits import png
from eca_jax.data.loader import eval_batches, local_rows, stream_position, train_batches
from eca_jax.data.preprocess import PreprocessConfig, train_image
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.sharding import batch_sharding, make_mesh
from eca_jax.tasks import Classification

SMALL = PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)
PLAIN = PreprocessConfig(image_size=8, eval_resize=8, augment="none", flip=False)


def batches(steps, *, devices=1, seed=0, batch_size=16, config=SMALL, split="train[:40]", num_threads=2, repeats=1):
    sharding = batch_sharding(make_mesh(jax.devices()[:devices]), batch_size)
    iterator = train_batches(
        open_source("digits", split),
        Classification(config),
        seed=seed,
        batch_size=batch_size,
        steps=steps,
        sharding=sharding,
        num_threads=num_threads,
        repeats=repeats,
    )
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in iterator]


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


def test_a_batch_depends_on_seed_and_step_alone():
    all_steps = batches(range(12))
    assert len(all_steps) == 12
    assert_equal(batches(range(7, 12)), all_steps[7:])
    assert_equal(batches(range(12), devices=8), all_steps)
    assert_equal(batches(range(12), num_threads=5), all_steps)
    assert not np.array_equal(batches(range(1), seed=1)[0]["image"], all_steps[0]["image"])


EVERYTHING = PreprocessConfig(
    image_size=8, eval_resize=8, crop_area=(0.3, 1.0), randaugment=7, train_interpolation="random"
)


def test_pixels_are_a_function_of_seed_epoch_and_example():
    """The same for any number of threads and devices and any batch size: it is the stream that is cut differently."""
    source = open_source("digits", "train[:40]")
    index_of = {data: index for index, (data, _) in enumerate(source)}
    assert len(index_of) == 40
    plain = np.concatenate([batch["image"] for batch in batches(range(2), seed=3, config=PLAIN, batch_size=40)])
    order = [index_of[png(image[..., 0])] for image in plain]
    expected = np.stack(
        [
            train_image(source[index][0], np.random.default_rng((3, position // 40, index, 0)), EVERYTHING)
            for position, index in enumerate(order)
        ]
    )
    for options in (
        {"num_threads": 1},
        {"num_threads": 2, "batch_size": 40},
        {"num_threads": 16},
        {"num_threads": 16, "batch_size": 8, "devices": 8},
    ):
        steps = range(80 // options.get("batch_size", 16))
        images = [batch["image"] for batch in batches(steps, seed=3, config=EVERYTHING, **options)]
        np.testing.assert_array_equal(np.concatenate(images), expected, err_msg=str(options))


@pytest.mark.parametrize(("batch_size", "repeats"), [(48, 3), (64, 3), (2048, 3), (100, 1), (7, 7), (1, 1)])
def test_repeats_are_spread_over_the_batch(batch_size, repeats):
    """Without decoding: the positions in the stream that the rows of a few batches take."""
    distinct = math.ceil(batch_size / repeats)
    for step in (0, 1, 10**9):
        rows = [stream_position(step, row, batch_size, repeats) for row in range(batch_size)]
        assert len(set(rows)) == batch_size  # no copy is there twice
        positions, copies = zip(*rows, strict=True)
        assert list(range(step * distinct, (step + 1) * distinct)) == sorted(
            set(positions)
        )  # the stream, without a gap
        assert max(copies) < repeats
        counts = collections.Counter(positions)
        assert max(counts.values()) <= repeats
        assert sum(count < repeats for count in counts.values()) < repeats
        if distinct > 1:
            assert all(a != b for a, b in itertools.pairwise(positions))


def test_more_repeats_than_a_batch_has_rows_are_refused():
    with pytest.raises(EcaJaxError, match=r"data.repeats: expected a positive number, got 0"):
        DataConfig(repeats=0)
    with pytest.raises(EcaJaxError, match=r"data.repeats: expected at most the batch_size 2, got 3"):
        Config(data=DataConfig(repeats=3), batch_size=2)


def test_every_copy_is_augmented_anew_and_an_epoch_sees_a_part_of_the_examples():
    plain = batches(range(2), config=PLAIN, batch_size=48, repeats=3, split="train[:96]")
    augmented = batches(range(2), config=SMALL, batch_size=48, repeats=3, split="train[:96]")
    for batch, other in zip(plain, augmented, strict=True):
        images, labels = (batch[name].reshape(3, 16, -1) for name in ("image", "label"))
        assert (images == images[0]).all()
        assert (labels == labels[0]).all()
        np.testing.assert_array_equal(batch["label"], other["label"])
        copies = other["image"].reshape(3, 16, -1)
        same = (copies[0] == copies[1]).all(axis=-1)
        assert same.sum() < 8  # 9 shifts: a ninth of them are equal by chance
    assert len({image.tobytes() for batch in plain for image in batch["image"]}) == 32  # of 96
    assert_equal(batches(range(1, 2), batch_size=48, repeats=3, split="train[:96]", devices=8), augmented[1:])


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    """40 examples in batches of 16: batches reach across the ends of epochs, and nothing is dropped."""
    images = np.concatenate([batch["image"] for batch in batches(range(5), config=PLAIN)])
    epochs = [[image.tobytes() for image in images[start : start + 40]] for start in (0, 40)]
    expected = collections.Counter(epochs[0])
    assert len(epochs[0]) == 40
    assert collections.Counter(epochs[1]) == expected
    assert epochs[0] != epochs[1]
    source = open_source("digits", "train[:40]")
    assert sorted(label for _, label in source) == sorted(
        np.concatenate([batch["label"] for batch in batches(range(5), config=PLAIN)])[:40]
    )


def test_augmentation_differs_between_epochs():
    images = np.concatenate([batch["image"] for batch in batches(range(5))])
    first, second = ({image.tobytes() for image in images[s : s + 40]} for s in (0, 40))
    assert len(first & second) < 20  # 9 shifts: a ninth of them stay in place by chance


def test_shards_hold_the_rows_that_the_sharding_says():
    sharding = batch_sharding(make_mesh(), 16)
    source = open_source("digits", "train[:40]")
    (batch,) = train_batches(
        source, Classification(SMALL), seed=0, batch_size=16, steps=range(1), sharding=sharding, num_threads=1
    )
    assert batch["image"].sharding == sharding
    assert len(batch["image"].addressable_shards) == 8
    np.testing.assert_array_equal(local_rows(sharding, 16), np.arange(16))


@pytest.mark.parametrize("n", [1, 31, 32, 33])
def test_evaluation_sees_every_example_once(n):
    source = open_source("digits", f"test[:{n}]")
    sharding = batch_sharding(make_mesh(), 16)
    seen, labels = [], []
    for batch in eval_batches(source, Classification(PLAIN), batch_size=16, sharding=sharding, num_threads=2):
        mask = np.asarray(batch["mask"]) == 1
        assert not np.asarray(batch["image"])[~mask].any()
        seen += list(np.asarray(batch["image"])[mask, :, :, 0])
        labels += list(np.asarray(batch["label"])[mask])
    assert labels == [label for _, label in source]
    assert len(seen) == n
