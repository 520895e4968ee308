"""Images and records that cannot be read: they are named, and stop the run or, up to a stated number, do not."""

import dataclasses
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig, differences
from eca_jax.data.bad_records import BadRecords
from eca_jax.data.loader import eval_batches, train_batches
from eca_jax.data.preprocess import PreprocessConfig, train_image
from eca_jax.data.records import Source
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.runs.run import load_run
from eca_jax.sharding import batch_sharding, make_mesh
from eca_jax.tasks import Classification
from eca_jax.training import evaluate, loop
from eca_jax.training.loop import train
from tests.commands import ROOT, environment
from tests.damage import refusal
from tests.tiny import brought_from_outside, register

CONFIG = PreprocessConfig(image_size=8, eval_resize=8, randaugment=7, crop_area=(0.3, 1.0))
FILES = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    """A folder with one class and `FILES` JPEG files of noise."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        for i in range(FILES):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(root / split / "a" / f"{i:02}.jpg")
    return root


def truncated(images: pathlib.Path, tmp_path: pathlib.Path, *numbers: int, split: str = "train") -> Source:
    """A copy of the folder in which these files end in their middle."""
    shutil.copytree(images, tmp_path / "images")
    for i in numbers:
        file = tmp_path / "images" / split / "a" / f"{i:02}.jpg"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return open_source(f"folder:{tmp_path / 'images'}", split)


def training(source: Source, bad_records: BadRecords | None = None, num_threads: int = 2) -> np.ndarray:
    """The images of two epochs."""
    batches = train_batches(
        source,
        Classification(CONFIG),
        seed=5,
        batch_size=4,
        steps=range(2 * FILES // 4),
        sharding=batch_sharding(make_mesh(jax.devices()[:1]), 4),
        num_threads=num_threads,
        bad_records=bad_records,
    )
    return np.concatenate([np.asarray(batch["image"]) for batch in batches])


def evaluation(source: Source, bad_records: BadRecords | None = None) -> list[dict[str, np.ndarray]]:
    sharding = batch_sharding(make_mesh(jax.devices()[:1]), 8)
    batches = eval_batches(
        source, Classification(CONFIG), batch_size=8, sharding=sharding, num_threads=2, bad_records=bad_records
    )
    return [{name: np.array(value) for name, value in batch.items()} for batch in batches]


@pytest.mark.parametrize("read", [training, evaluation])
def test_a_truncated_image_stops_the_run_with_its_name(images, tmp_path, read):
    source = truncated(images, tmp_path, 3)
    message = refusal(read, source)
    assert f"cannot read {tmp_path}/images/train/a/03.jpg of 'folder:" in message
    assert message.endswith("data.max_bad allows 0: mend or remove what is bad, or train with --data.max-bad 1 or more")


def test_in_training_the_next_readable_example_takes_its_place(images, tmp_path, capfd):
    """With the generator of the bad record's own (seed, epoch, example), whatever the number of threads."""
    source, sound = truncated(images, tmp_path, 3, 4, 11), open_source(f"folder:{images}", "train")
    expected = training(sound)
    substitutes = {3: 5, 4: 5, 11: 0}
    originals = {
        train_image(sound[i][0], np.random.default_rng((5, epoch, i, 0)), CONFIG).tobytes(): (epoch, i)
        for epoch in range(2)
        for i in range(FILES)
    }
    assert len(originals) == len(expected) == 2 * FILES
    replaced = 0
    for row, image in enumerate(expected):
        epoch, i = originals[image.tobytes()]
        if i in substitutes:
            rng = np.random.default_rng((5, epoch, i, 0))
            expected[row] = train_image(sound[substitutes[i]][0], rng, CONFIG)
            replaced += 1
    assert replaced == 6

    for num_threads in (1, 2, 16):
        capfd.readouterr()
        bad_records = BadRecords(3)
        np.testing.assert_array_equal(training(source, bad_records, num_threads), expected)
        assert bad_records.count == 3
        reports = capfd.readouterr().err.splitlines()
        assert len(reports) == 3  # once each, in two epochs
        for n, name in ((1, "03.jpg"), (2, "04.jpg"), (3, "11.jpg")):
            assert sum(f"/{name} of 'folder:" in line for line in reports) == 1
            assert reports[n - 1].startswith(f"bad record {n} of at most 3: cannot read ")


def test_in_evaluation_it_is_masked(images, tmp_path):
    sound = evaluation(open_source(f"folder:{images}", "val"))
    bad_records = BadRecords(2)
    damaged = evaluation(truncated(images, tmp_path, 0, 9, split="val"), bad_records)
    assert bad_records.count == 2
    for step, row in ((0, 0), (1, 1)):
        assert sound[step]["mask"][row] == 1
        for value in sound[step].values():
            value[row] = 0
    jax.tree.map(np.testing.assert_array_equal, damaged, sound)


@pytest.mark.parametrize("read", [training, evaluation])
def test_one_more_than_tolerated_stops_the_run(images, tmp_path, read):
    source = truncated(images, tmp_path, 1, 3, 5)
    message = refusal(read, source, BadRecords(2))
    assert any(f"cannot read {tmp_path}/images/train/a/0{i}.jpg" in message for i in (1, 3, 5))
    assert "3 bad so far, data.max_bad allows 2" in message


def test_without_any_readable_example_training_ends(images, tmp_path):
    source = truncated(images, tmp_path, *range(FILES))
    assert "none of the 12 records of 'folder:" in refusal(training, source, BadRecords(100))


def test_a_record_that_was_met_before_does_not_count_again(images):
    source = open_source(f"folder:{images}", "train")
    bad_records = BadRecords(1)
    for _ in range(3):
        bad_records.add(source, 7, OSError("torn"))
    assert bad_records.count == 1
    with pytest.raises(EcaJaxError, match=r"cannot read .*/08.jpg .*: two lines; 2 bad so far"):
        bad_records.add(source, 8, OSError("two\nlines"))


@pytest.fixture
def flipped(data_dir, tmp_path) -> pathlib.Path:
    """TFDS's directory with a copy of `digits`, one bit of a record wrong in the middle of each of its two files."""
    shutil.copytree(data_dir / "digits", tmp_path / "tfds" / "digits")
    for file in (tmp_path / "tfds").rglob("*.array_record*"):
        data = bytearray(file.read_bytes())
        data[70_000] ^= 0x10
        file.write_bytes(data)
    return tmp_path / "tfds"


@pytest.fixture
def base():
    """A configuration of the smallest backbone."""
    with brought_from_outside():
        register()
        yield Config(
            model=ModelConfig(name="eca_tiny"),
            data=DataConfig(name="digits", train_split="train[300:340]", eval_split="test[300:350]", max_bad=2),
            task=Classification(PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1)),
            optim=OptimConfig(schedule="constant"),
            batch_size=16,
            epochs=2,
            log_every=4,
        )


@pytest.mark.system
def test_a_run_over_damaged_array_records(base, flipped, tmp_path, capfd, monkeypatch):
    """It stops; or ends as said, with the same parameters whatever the number of threads."""
    for module in (loop, evaluate):  # to compile for less
        monkeypatch.setattr(module, "make_mesh", lambda devices=None: make_mesh(jax.devices()[:1]))

    def run(name: str, max_bad: int, num_threads: int):
        data = dataclasses.replace(base.data, data_dir=str(flipped), max_bad=max_bad, num_threads=num_threads)
        return train(dataclasses.replace(base, data=data, workdir=str(tmp_path / name)))

    assert "cannot read record 12 of 'digits', split 'train[300:340]': Corrupted Riegeli" in refusal(run, "a", 0, 2)
    results = [run("a", 2, 2), run("b", 2, 16)]  # the first goes on in the directory of the run that stopped
    out, err = capfd.readouterr()
    assert out.count("2 bad records (data.max_bad allows 2)") == 2
    assert err.count("bad record 1 of at most 2: cannot read record 12 of 'digits', split 'train[300:340]'") == 2
    assert err.count("bad record 2 of at most 2: cannot read record ") == 2
    assert results[0].evaluation["count"] == 49
    assert out.count(" of 49)") == 4  # two runs of two epochs
    assert results[0].evaluation == results[1].evaluation
    models = [jax.device_get(nnx.state(load_run(tmp_path / name)[0])) for name in ("a", "b")]
    jax.tree.map(np.testing.assert_array_equal, *models)
    assert evaluate.evaluate_run(str(tmp_path / "a"))[2]["count"] == 49


def test_the_tolerance_may_change_when_a_run_goes_on(base):
    more = dataclasses.replace(base, data=dataclasses.replace(base.data, max_bad=9))
    assert differences(base, more) == []
    with pytest.raises(EcaJaxError, match=r"data.max_bad: expected 0 or more, got -1"):
        DataConfig(max_bad=-1)


# Arguments: address of process 0, number of this process. Process 0 meets 0, 1, 2, process 1 meets 2, 3, 4.
WORKER = """
import sys, jax
from eca_jax.data.bad_records import BadRecords
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.sharding import ClusterConfig, initialize_cluster

process = int(sys.argv[2])
initialize_cluster(ClusterConfig(sys.argv[1], 2, process))
source = open_source("digits", "train")
for limit in (5, 4):
    bad_records = BadRecords(limit)
    for i in range(3):
        bad_records.add(source, i + 2 * process, OSError("torn"))
    try:
        bad_records.share()
        print("count", bad_records.count)
        bad_records.add(source, 4 * (1 - process), OSError("torn"))  # the other's: known by now
        print("count", bad_records.count)
    except EcaJaxError as error:
        print(error)
"""


def test_the_limit_holds_for_all_processes_together():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, coordinator, str(i)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in running:
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        lines = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
        assert lines[:2] == ["count 5", "count 5"]
        assert lines[2].startswith(
            "records cannot be read, each process names its own; 5 bad so far, data.max_bad allows"
        )
