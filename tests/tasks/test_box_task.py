"""A task and a data source from outside: targets that are a tree, batches of two shapes, scores that need all examples.

Nothing of the package is changed for it.
"""

import dataclasses
import os
import re
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from eca_jax import cli, plugins
from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig, from_dict, plugins_of, to_dict
from eca_jax.data.loader import train_batches
from eca_jax.data.sources import declared_size, open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.registry import MODELS
from eca_jax.runs.run import load_run
from eca_jax.runs.writers import Writer
from eca_jax.sharding import batch_sharding, make_mesh
from eca_jax.training import loop
from eca_jax.training.loop import train
from tests import boxes, tiny
from tests.boxes import SIZES, Boxes, example
from tests.commands import ROOT, assert_same_run
from tests.damage import refusal
from tests.training.test_loop import rows

CONFIG = Config(
    data=DataConfig("boxes:96", num_threads=1),
    optim=OptimConfig(lr=0.05, schedule="cosine", warmup_epochs=1),
    batch_size=32,
    epochs=4,
    log_every=4,
    eval_every_epochs=2,
)


@pytest.fixture(scope="module", autouse=True)
def outside():
    with tiny.brought_from_outside():
        tiny.register()
        boxes.register()
        yield


@pytest.fixture(scope="module")
def config(outside) -> Config:
    return dataclasses.replace(CONFIG, model=ModelConfig("eca_tiny"), task=Boxes(class_weight=0.25))


@pytest.fixture(scope="module")
def compiled():
    """The shapes of the images for which a step was compiled; each once for all runs here."""
    build, compile_step, programs, steps = loop.build_program, loop.compile_step, [], {}

    def build_once(config: Config, mesh, **sizes):
        programs.append(programs[0] if programs else build(config, mesh, **sizes))
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        found = []

        def counting(step, state, batch):
            shape = batch["image"].shape
            found.append(shape)
            if shape not in steps:
                steps[shape] = compile_step(step, state, batch)
            return steps[shape]

        patch.setattr(loop, "build_program", build_once)
        patch.setattr(loop, "compile_step", counting)
        yield found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config, compiled):
    workdir = tmp_path_factory.mktemp("boxes") / "run"
    result = train(dataclasses.replace(config, workdir=str(workdir)))
    return workdir, result, [*compiled]


def test_a_step_is_compiled_once_for_each_shape(finished):
    _, result, shapes = finished
    assert (result.step, result.finished) == (12, True)
    assert shapes == [(32, size, size, 3) for size in SIZES]


def test_it_learns(finished):
    workdir, _, _ = finished
    losses = [row["loss"] for row in rows(workdir) if row["kind"] == "train"]
    assert losses[-1] < losses[0] / 2
    assert all({"loss", "valid"} <= row.keys() for row in rows(workdir))


def test_the_evaluation_is_numpys_image_by_image(finished):
    workdir, result, _ = finished
    model, config, _ = load_run(workdir)
    assert config.task == Boxes(class_weight=0.25)
    compute, preprocess = nnx.jit(model), config.task.preprocess
    losses, overlaps, errors, number = [], [], [], 0
    for data, truth in open_source("boxes:96", "validation"):
        pixels = example((data, truth), 12, flip=False)["image"].astype(np.float32) / 255
        image = (pixels - np.float32(preprocess.mean)) / np.float32(preprocess.std)
        output = np.asarray(compute(image[None]))[0].astype(np.float64)
        left, top, right, bottom = output[:4]
        per_box = []
        for *sides, kind in truth:
            sides = np.array(sides) / 24
            width, height = min(right, sides[2]) - max(left, sides[0]), min(bottom, sides[3]) - max(top, sides[1])
            both = max(width, 0) * max(height, 0)
            areas = max(right - left, 0) * max(bottom - top, 0) + (sides[2] - sides[0]) * (sides[3] - sides[1])
            overlaps.append(both / (areas - both))
            errors.extend(np.abs(output[:4] - sides))
            wrong = np.log(np.exp(output[4:]).sum()) - output[4 + kind]
            per_box.append(((output[:4] - sides) ** 2).sum() + 0.25 * wrong)
        losses.append(np.mean(per_box) if per_box else 0.0)
        number += len(truth)
    expected = {"loss": np.mean(losses), "overlap": np.mean(overlaps), "median_error": np.median(errors)}
    assert result.evaluation == pytest.approx(expected | {"valid": number / 48, "count": 48}, rel=1e-4)


def test_a_run_that_was_stopped_ends_the_same(tmp_path, config, finished, monkeypatch):
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    advance, calls = Writer.advance, []

    def stopping(self) -> None:
        calls.append(1)
        if len(calls) == 5:  # the next step has the other shape
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self)

    monkeypatch.setattr(Writer, "advance", stopping)
    assert train(config).step == 5
    assert train(config).new_steps == 7
    assert_same_run(tmp_path / "run", finished[0])


def test_commands_know_it(finished, tmp_path, capsys):
    workdir, result, _ = finished
    assert cli.main(["evaluate", "--run", str(workdir)]) == 0
    overlap, loss = result.evaluation["overlap"], result.evaluation["loss"]
    assert capsys.readouterr().out == f"{workdir}, step 12: overlap {overlap:.4f} (48 images), loss {loss:.4f}\n"
    image = tmp_path / "a.png"
    image.write_bytes(open_source("boxes:96", "train")[0][0])
    assert cli.main(["predict", str(image), "--run", str(workdir)]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{image}\n  (dark|bright)( -?\d\.\d{{3}}){{4}}\n", said)
    kind, *sides = said.split()[1:]
    assert cli.main(["predict", str(image), "--run", str(workdir), "--format", "csv"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading == "path,prediction,box_1,box_2,box_3,box_4"
    assert row.split(",")[:2] == [str(image), kind]
    assert [f"{float(side):.3f}" for side in row.split(",")[2:]] == sides


def test_a_batch_is_what_the_task_declares(config):
    mesh = make_mesh()
    batches = train_batches(
        open_source("boxes:96", "train"),
        config.task,
        seed=0,
        batch_size=32,
        steps=range(0, 2),
        sharding=batch_sharding(mesh, 32),
        num_threads=1,
    )
    small, large = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch) for batch in batches)
    assert large == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), config.task.abstract_batch(32, 2))
    assert small["image"] == ((32, 8, 8, 3), np.uint8)
    assert small["target"] == large["target"]
    assert declared_size(config.data) == (2, 96)


def test_a_run_says_what_it_needs(config):
    values = to_dict(config)
    assert values["task"]["name"] == "test_boxes"
    backbone = MODELS.plugin("eca_tiny")  # whichever module of the tests brought it first
    assert backbone is not None
    assert values["plugins"] == plugins_of(config) == sorted(["tests.boxes", backbone])
    assert from_dict(values) == config
    with tiny.brought_from_outside():
        boxes.TASKS._entries.pop("test_boxes")
        plugins._registered.discard("tests.boxes")
        message = refusal(from_dict, values)
    assert "unknown task 'test_boxes'. Known: classification, multi_label." in message
    assert message.startswith("it was written with tests.boxes: give --plugin tests.boxes, or import it before (")


def test_a_name_is_taken_once(config):
    with pytest.raises(EcaJaxError, match="the task 'classification' is registered already, by eca_jax itself"):
        boxes.TASKS.register("classification", Boxes)


@pytest.mark.parametrize("path", sorted((ROOT / "eca_jax/training").glob("*.py")), ids=lambda path: path.name)
def test_the_training_names_no_task(path):
    words = "top1|top-1|top5|mixup|cutmix|label_smoothing|multi_label|classification|logits|labels?"
    assert not re.findall(rf"\b(?:{words})\b|['\"]map['\"]", path.read_text().lower())
