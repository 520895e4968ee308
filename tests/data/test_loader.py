"""The global batch is a pure function of (seed, step); evaluation sees every example once."""

import collections

import jax
import numpy as np
import pytest

from eca_jax.data.loader import eval_batches, local_rows, train_batches
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.training.sharding import batch_sharding, make_mesh

SMALL = PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)
PLAIN = PreprocessConfig(image_size=8, eval_resize=8, augment="none", flip=False)


def batches(steps, *, devices=1, seed=0, batch_size=16, config=SMALL, split="train[:40]", num_threads=2):
    sharding = batch_sharding(make_mesh(jax.devices()[:devices]), batch_size)
    iterator = train_batches(
        open_source("digits", split),
        config,
        seed=seed,
        batch_size=batch_size,
        steps=steps,
        sharding=sharding,
        num_threads=num_threads,
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
    (batch,) = train_batches(source, SMALL, seed=0, batch_size=16, steps=range(1), sharding=sharding, num_threads=1)
    assert batch["image"].sharding == sharding
    assert len(batch["image"].addressable_shards) == 8
    np.testing.assert_array_equal(local_rows(sharding, 16), np.arange(16))


@pytest.mark.parametrize("n", [1, 31, 32, 33])
def test_evaluation_sees_every_example_once(n):
    source = open_source("digits", f"test[:{n}]")
    sharding = batch_sharding(make_mesh(), 16)
    seen, labels = [], []
    for batch in eval_batches(source, PLAIN, batch_size=16, sharding=sharding, num_threads=2):
        mask = np.asarray(batch["mask"]) == 1
        assert not np.asarray(batch["image"])[~mask].any()
        seen += list(np.asarray(batch["image"])[mask, :, :, 0])
        labels += list(np.asarray(batch["label"])[mask])
    assert labels == [label for _, label in source]
    assert len(seen) == n


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    data = open_source("digits", "test")[0][0]
    (tmp_path / "val" / "a" / "good.png").write_bytes(data)
    (tmp_path / "val" / "a" / "torn.png").write_bytes(data[:60])
    source = open_source(f"folder:{tmp_path}", "val")
    sharding = batch_sharding(make_mesh(jax.devices()[:1]), 2)
    with pytest.raises(EcaJaxError, match=r"cannot read .*/torn.png of 'folder:.*', split 'val'"):
        list(eval_batches(source, PLAIN, batch_size=2, sharding=sharding, num_threads=2))
