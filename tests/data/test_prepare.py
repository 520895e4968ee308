"""Data sets are written by shard, and an interruption loses no more than a shard.

What needs TensorFlow runs in a process of its own, as a user runs it.
"""

import functools
import importlib.util
import os
import pathlib
import shutil
import signal
import sys
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from eca_jax.data.prepare import convert, prepare
from eca_jax.data.shards import Shard, write_data_set
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from tests.commands import run
from tests.damage import disk_with, refusal
from tests.datasets import prepare_like

ECA_JAX = str(pathlib.Path(sys.executable).with_name("eca-jax"))


@pytest.fixture
def no_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_without_tensorflow_the_extra_is_named(tmp_path, no_tensorflow):
    with pytest.raises(
        EcaJaxError, match=r"preparing 'cifar10' needs TensorFlow, once: pip install 'eca-jax\[prepare\]'"
    ):
        prepare("cifar10", str(tmp_path))
    prepare_like("mnist", tmp_path, {"train": 3})
    with pytest.raises(EcaJaxError, match="needs TensorFlow"):
        convert("mnist", str(tmp_path), str(tmp_path / "new"))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "No module named 'tensorflow'",
            "data set 'coco/2017': No module named 'tensorflow': pip install 'eca-jax[prepare]'",
        ),
        ("Please install gcsfs to access Google Storage", "access Google Storage: pip install gcsfs"),
        ("No module named 'bs4'", "data set 'coco/2017': No module named 'bs4'"),
    ],
)
def test_of_a_package_that_is_missing_the_right_one_is_named(tmp_path, monkeypatch, missing, message):
    def builder(name, data_dir):
        raise ImportError(missing)

    monkeypatch.setattr(tfds, "builder", builder)
    assert refusal(prepare, "coco/2017", str(tmp_path)).endswith(message)


def test_data_sets_of_hugging_face_are_refused_without_the_network(monkeypatch):
    monkeypatch.setattr(tfds, "builder", None)
    message = refusal(open_source, "huggingface:mnist", "train")
    assert message.endswith("data sets of Hugging Face are not read; save its images as folder:/path or csv:/path")


def test_a_file_is_no_data_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (prepare, lambda name, data_dir: open_source(name, "train", data_dir)):
        message = refusal(call, "digits", str(tmp_path / "file"))
        assert message == f"data.data_dir: {tmp_path / 'file'} is a file; expected a directory"


def test_a_folder_needs_no_preparation(tmp_path):
    for prefix in ("folder", "csv"):
        assert "needs no preparation: it is read as it is" in refusal(prepare, f"{prefix}:{tmp_path}")


def test_what_is_not_prepared_is_not_converted(tmp_path):
    with pytest.raises(EcaJaxError, match="'mnist' is not prepared in"):
        convert("mnist", str(tmp_path), str(tmp_path / "new"))


def shards(n: int = 8, killed_at: int | None = None, asked: list[int] | None = None) -> list[Shard]:
    """Shard i has the records 10 i to 10 i + 9. The process dies in the middle of shard `killed_at`."""

    def records(i: int):
        for k in range(10):
            if i == killed_at and k == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield str(10 * i + k).encode()
        if asked is not None:
            asked.append(i)

    return [Shard(f"set.array_record-{i:05}-of-{n:05}", 10, 100, functools.partial(records, i)) for i in range(n)]


def contents(directory: pathlib.Path) -> list[bytes]:
    return [record for file in sorted(directory.glob("set.*")) for record in ArrayRecordReader(str(file)).read_all()]


def write(target: pathlib.Path, pieces: list[Shard], origin: str = "a") -> None:
    write_data_set(
        target, pieces, origin={"file": origin}, finish=lambda work: (work / "info").write_text("all") and None
    )


def kill(target: pathlib.Path) -> None:
    """A process that is killed in shard 6. (It begins when three others are whole: there are four threads.)"""
    call = "import pathlib; from tests.data.test_prepare import shards, write; "
    assert run("-c", f"{call} write(pathlib.Path({str(target)!r}), shards(killed_at=6))").returncode == -signal.SIGKILL


def test_an_interrupted_preparation_is_no_data_set_and_goes_on(tmp_path):
    target, work = tmp_path / "1.0.0", tmp_path / ".incomplete.1.0.0"
    kill(target)
    assert not target.exists()
    whole = [i for i in range(8) if (work / f"set.array_record-{i:05}-of-00008").exists()]
    assert 6 not in whole
    assert len(whole) >= 3
    torn = work / f"set.array_record-{whole[0]:05}-of-00008"  # as after a loss of power
    torn.write_bytes(torn.read_bytes()[:-100])

    asked = []
    write(target, shards(asked=asked))
    assert sorted(asked) == sorted({*range(8)} - {*whole[1:]})
    assert contents(target) == [str(i).encode() for i in range(80)]
    assert not work.exists()
    assert {file.name for file in target.iterdir()} == {"info", *(shard.file for shard in shards())}


def test_shards_of_other_files_are_not_mixed(tmp_path):
    kill(tmp_path / "1.0.0")
    message = refusal(write, tmp_path / "1.0.0", shards(), origin="b")
    assert message == f"{tmp_path}/.incomplete.1.0.0 was begun from other files than these; remove it to begin anew"


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=799))
    asked = []
    message = refusal(write, tmp_path / "1.0.0", shards(asked=asked))
    assert "has 0.0 GB free, but 0.0 GB are still to be written" in message
    assert not asked
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=800))
    write(tmp_path / "1.0.0", shards())


def test_a_disk_that_fills_up_loses_no_shard(tmp_path):
    large = Shard("large.array_record-00000-of-00001", 1, 1, lambda: iter([np.random.default_rng(0).bytes(300_000)]))
    with disk_with(200_000):
        message = refusal(write, tmp_path / "1.0.0", [*shards(), large])
    assert "large.array_record-00000-of-00001.partial" in message
    assert not (tmp_path / "1.0.0").exists()
    write(tmp_path / "1.0.0", [*shards(), large])
    assert contents(tmp_path / "1.0.0") == [str(i).encode() for i in range(80)]


def test_two_processes_do_not_prepare_at_once(tmp_path):
    def records():
        assert "another process is writing" in refusal(write, tmp_path / "1.0.0", shards())
        yield b"x"

    write(tmp_path / "1.0.0", [Shard("set.array_record-00000-of-00001", 1, 1, records)])
    assert contents(tmp_path / "1.0.0") == [b"x"]


def test_a_bucket_is_not_written_to():
    for call in (lambda: prepare("mnist", "gs://bucket/tfds"), lambda: convert("digits", None, "gs://bucket/tfds")):
        assert "prepare into a local directory, then copy it: gcloud storage cp" in refusal(call)


@pytest.mark.tensorflow
def test_tfrecord_is_converted_by_the_command_that_the_error_names(tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs TensorFlow (the `prepare` extra)")
    old, new, truth = (tmp_path / name for name in ("old", "new", "truth"))
    splits = {"train": 30, "test": 10}
    prepare_like("mnist", truth, splits)
    call = f"from tests.datasets import prepare_like; prepare_like('mnist', {str(old)!r}, {splits}, 'tfrecord')"
    assert run("-c", call).returncode == 0
    with pytest.raises(EcaJaxError, match="as tfrecord") as error:
        open_source("mnist", "train", str(old))
    command = str(error.value).split("`")[3].replace("NEW_DATA_DIR", str(new)).split()
    assert command[:2] == ["eca-jax", "prepare"]

    assert run(ECA_JAX, *command[1:]).returncode == 0
    for split in splits:
        expected = list(open_source("mnist", split, str(truth)))
        assert list(open_source("mnist", split, str(new))) == expected
        assert len(expected) == splits[split]
    assert "tensorflow" not in sys.modules

    again = run(ECA_JAX, *command[1:])
    assert again.returncode == 2
    assert "is already there" in again.stderr

    shard = old / "mnist" / "3.0.1" / "mnist-train.tfrecord-00000-of-00001"
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-20])
    other = tmp_path / "other"
    torn = run(ECA_JAX, *command[1:-1], str(other))
    assert torn.returncode == 2
    assert f"cannot read {shard} after record 29" in torn.stderr
    assert not (other / "mnist" / "3.0.1").exists()
    shard.write_bytes(intact)
    assert run(ECA_JAX, *command[1:-1], str(other)).returncode == 0
    assert list(open_source("mnist", "test", str(other))) == list(open_source("mnist", "test", str(truth)))


def test_digits_are_prepared_with_one_line(tmp_path, capsys):
    assert len(open_source("digits", "train[:3]", str(tmp_path))) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"note: digits, from scikit-learn, are now in {tmp_path / 'digits' / '1.0.0'}\n"
    open_source("digits", "train[:3]", str(tmp_path))
    assert capsys.readouterr() == ("", "")
