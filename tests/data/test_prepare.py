"""What needs TensorFlow: each command in a process of its own, as a user runs it."""

import importlib.util
import pathlib
import sys

import pytest

from eca_jax.data.prepare import convert, prepare
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from tests.commands import run
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


def test_what_is_not_prepared_is_not_converted(tmp_path):
    with pytest.raises(EcaJaxError, match="'mnist' is not prepared in"):
        convert("mnist", str(tmp_path), str(tmp_path / "new"))


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
    shard.write_bytes(shard.read_bytes()[:-20])
    other = tmp_path / "other"
    torn = run(ECA_JAX, *command[1:-1], str(other))
    assert torn.returncode == 2
    assert f"cannot read {shard} after record 29" in torn.stderr
    assert not any((other / "mnist").iterdir())
