"""What is wrong with a checkpoint is said in one line; the arrays are two numbers here."""

import gc
import json
import logging
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import pytest

from eca_jax.runs.checkpoint import Checkpoints
from tests.damage import refusal

RUN = {"config": {}, "class_names": [], "num_examples": 1}


def state(step: int) -> dict[str, jax.Array]:
    return {"step": jnp.asarray(step, jnp.int32), "w": jnp.full((3,), step, jnp.float32)}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run with the checkpoints 22 and 44."""
    run = tmp_path_factory.mktemp("template")
    with Checkpoints(run, keep=2, score="top1") as checkpoints:
        for step in (22, 44):
            checkpoints.save(step, state(step), RUN, {"top1": step / 100})
        checkpoints.wait()
    return run


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template, tmp_path / "run")


def newest(run: pathlib.Path) -> tuple[int, float]:
    """The step that training goes on from, and a number of its arrays."""
    with Checkpoints(run, keep=2, score="top1") as checkpoints:
        step, found = checkpoints.restore_newest(jax.eval_shape(lambda: state(0)), lambda step: None)
        return step, float(found["w"][0])


def damage_arrays(checkpoint: pathlib.Path) -> None:
    for file in checkpoint.glob("state/**/d/*"):
        file.write_bytes(b"\0" * file.stat().st_size)


def test_a_renamed_checkpoint_is_not_taken_for_the_step_of_its_name(run, capsys):
    (run / "checkpoints" / "44").rename(run / "checkpoints" / "66")
    assert newest(run) == (22, 22.0)
    assert "checkpoints/66: it is damaged" in (said := capsys.readouterr().err)
    assert "it holds step 44: the directory was renamed or copied" in said
    (run / "checkpoints-damaged" / "66").rename(run / "checkpoints" / "44")
    assert newest(run) == (44, 44.0)


@pytest.mark.parametrize("content", [5, None, [], "text", {"top1": 0.5}])
def test_an_evaluation_of_another_form_is_damage(run, content, capsys):
    (run / "checkpoints" / "44" / "evaluation" / "metadata").write_text(json.dumps(content))
    assert newest(run) == (22, 22.0)
    assert "checkpoints/44: it is damaged" in capsys.readouterr().err


def test_only_checkpoints_that_may_be_whole_are_named(run, caplog, capsys):
    damage_arrays(run / "checkpoints" / "44")
    assert newest(run)[0] == 22
    assert "the others there are of steps [22]; moved 44" in capsys.readouterr().err
    (run / "checkpoints-damaged" / "44").rename(run / "checkpoints" / "44")
    damage_arrays(run / "checkpoints" / "22")
    message = refusal(newest, run)
    assert "checkpoints/44: it is damaged" in message
    assert message.endswith("; the others there are of steps (none)")
    assert "bound method" not in message
    gc.collect()  # asyncio complains then
    assert not [record.getMessage() for record in caplog.records]


def test_metadata_of_orbax_that_are_garbage_change_nothing(run, caplog):
    with caplog.at_level(logging.WARNING):
        for file in (run / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
            file.write_text("{{{")
        assert newest(run) == (44, 44.0)
    assert not [record.getMessage() for record in caplog.records]


def test_reads_end_before_a_damaged_checkpoint_is_refused(tmp_path, caplog, monkeypatch):
    """Else they end in a loop that is closed, and say so where nobody can do anything about it."""
    arrays = {f"w{i}": jnp.full((30, 7), i, jnp.float32) for i in range(60)} | {"step": jnp.asarray(1, jnp.int32)}
    with Checkpoints(tmp_path, score="top1") as checkpoints:
        checkpoints.save(1, arrays, RUN, None)
    damage_arrays(tmp_path / "checkpoints" / "1")
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(unraisable.exc_value))
    for _ in range(20):
        with Checkpoints(tmp_path, score="top1", read_only=True) as checkpoints:
            refusal(checkpoints.read_state, 1, jax.eval_shape(lambda: arrays))
    gc.collect()
    assert not said
    assert not [record.getMessage() for record in caplog.records]
