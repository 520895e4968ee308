"""Several labels an image, or none: trained on a table, scored as scikit-learn does, known to weight files."""

import dataclasses
import json
import os
import pathlib
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from eca_jax import cli
from eca_jax.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.convert.pretrained import load
from eca_jax.data.digits import png
from eca_jax.data.preprocess import PreprocessConfig, eval_image, normalise
from eca_jax.data.sources import declared_size, open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture
from eca_jax.runs.directory import choose_step, open_run
from eca_jax.runs.run import load_run
from eca_jax.runs.writers import Writer
from eca_jax.tasks import Classification, MultiLabel
from eca_jax.training import loop
from eca_jax.training.loop import train
from tests.commands import assert_same_run
from tests.damage import refusal
from tests.training.test_loop import rows

NAMES = ("zero", None, "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = ("eight", "even", "five", "four", "large", "nine", "prime", "seven", "six", "three", "two", "zero")


def labels_of(digit: int) -> list[str]:
    """Of 'one' there is no class, so such an image has no label."""
    extra = {"even": digit % 2 == 0, "prime": digit in (2, 3, 5, 7), "large": digit > 4}
    return [name for name in (NAMES[digit], *(name for name, holds in extra.items() if holds)) if name]


def write_tables(directory: pathlib.Path, train: int, val: int) -> str:
    """Writes scikit-learn's digits as a directory of tables; returns the name of the data set."""
    digits = load_digits()
    (directory / "images").mkdir(parents=True)
    for split, numbers in {"train": range(train), "val": range(train, train + val)}.items():
        lines = ["path,label"]
        for i in numbers:
            (directory / f"images/{i}.png").write_bytes(png(digits.images[i] * 15.9375))
            lines.append(f"images/{i}.png,{';'.join(labels_of(digits.target[i]))}")
        (directory / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{directory}"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_tables(tmp_path_factory.mktemp("tables") / "digits", 320, 100)


pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture(scope="module")
def config(data, small_backbones) -> Config:
    return Config(
        model=ModelConfig(name="eca_tiny"),
        data=DataConfig(data, eval_split="val", num_threads=1),
        task=MultiLabel(
            PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False), threshold=0.3
        ),
        optim=OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=1),
        checkpoint=CheckpointConfig(keep=1),
        batch_size=64,
        epochs=8,
        log_every=6,
        eval_every_epochs=2,
    )


@pytest.fixture(scope="module")
def one_program(config):
    """All runs here compute the same: the first compiles it."""
    build, programs = loop.build_program, []

    def once(config: Config, mesh, **sizes):
        programs.append(programs[0] if programs else build(config, mesh, **sizes))
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_program", once)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config, one_program):
    """A complete run of 40 steps."""
    workdir = tmp_path_factory.mktemp("multi_label") / "run"
    return workdir, train(dataclasses.replace(config, workdir=str(workdir)))


def test_the_table_is_read(data):
    source = open_source(data, "val")
    assert (source.class_names, source.multi_label, len(source)) == (CLASSES, True, 100)
    pixels = {
        image.tobytes(): labels_of(d) for image, d in zip(load_digits().images, load_digits().target, strict=True)
    }
    some_without = False
    for encoded, label in source:
        image = np.round(eval_image(encoded, PreprocessConfig(image_size=8, eval_resize=8))[:, :, 0] / 15.9375)
        assert sorted(pixels[image.tobytes()]) == [CLASSES[i] for i in label]
        some_without |= not label
    assert some_without
    assert declared_size(DataConfig(data)) == (len(CLASSES), 320)


def test_it_learns(finished):
    workdir, result = finished
    assert result.finished
    scores = [row["map"] for row in rows(workdir) if row["kind"] == "eval"]
    assert len(scores) == 4
    assert scores[-1] > 0.75 > scores[0]  # by chance: the shares of the classes, 0.2


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean, over the positive images, of the share of positives among those that score at least as high."""
    return float(np.mean([positive[scores >= score].mean() for score in scores[positive]]))


def test_the_evaluation_is_what_scikit_learn_says_image_by_image(finished, data):
    workdir, result = finished
    model, config, class_names = load_run(workdir)
    logits_of = nnx.jit(model)
    logits, right = [], []
    for encoded, label in open_source(data, "val"):
        pixels = eval_image(encoded, config.task.preprocess).astype(np.float32) / 255
        image = (pixels - np.float32(config.task.preprocess.mean)) / np.float32(config.task.preprocess.std)
        logits.append(np.asarray(logits_of(image[None]))[0])
        right.append([name in {class_names[i] for i in label} for name in class_names])
    z, y = np.asarray(logits, np.float64), np.asarray(right)
    precision = [average_precision_score(y[:, c], z[:, c]) for c in range(len(class_names))]
    by_hand = [average_precision(z[:, c], y[:, c]) for c in range(len(class_names))]
    assert precision == pytest.approx(by_hand)
    assert not y.any(1).all()
    loss = np.mean(np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y)
    assert result.evaluation == pytest.approx({"map": np.mean(precision), "loss": loss, "count": 100}, rel=1e-4)


def test_the_best_checkpoint_has_the_highest_mean_average_precision(finished):
    workdir, _ = finished
    scores = {row["step"]: row["map"] for row in rows(workdir) if row["kind"] == "eval"}
    with open_run(workdir) as checkpoints:
        assert choose_step(checkpoints, "best") == max(scores, key=lambda step: (scores[step], step))
        assert set(checkpoints.steps()) == {40, choose_step(checkpoints, "best")}


def test_a_run_that_was_stopped_ends_the_same(tmp_path, config, finished, monkeypatch):
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    advance, calls = Writer.advance, []

    def stopping(self) -> None:
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self)

    monkeypatch.setattr(Writer, "advance", stopping)
    assert train(config).step == 7
    assert train(config).new_steps == 33
    assert_same_run(tmp_path / "run", finished[0])


def test_commands_know_the_task_and_the_classes_of_a_run_and_of_its_weights(finished, data, tmp_path, capsys):
    workdir, result = finished
    weights, image = tmp_path / "w.safetensors", tmp_path / "seven.png"
    image.write_bytes(png(load_digits().images[7] * 15.9375))

    def says(*args: str) -> str:
        assert cli.main(list(args)) == 0
        return capsys.readouterr().out

    says("convert", str(workdir), str(weights))
    loaded = load(weights)
    assert loaded.task == MultiLabel(loaded.model.preprocess, threshold=0.3)
    assert loaded.class_names == CLASSES

    scores = f"mAP {result.evaluation['map']:.2%} (100 images), loss {result.evaluation['loss']:.4f}"
    assert says("evaluate", "--weights", str(weights), "--data", data, "--split", "val").strip().endswith(scores)
    assert says("evaluate", "--run", str(workdir)).strip() == f"{workdir}, step 40: {scores}"

    lines = says("predict", str(image), "--run", str(workdir), "--top", "12").splitlines()
    assert lines[0] == str(image)
    logits = loaded.model(
        normalise(eval_image(image.read_bytes(), loaded.model.preprocess)[None], loaded.model.preprocess)
    )
    probabilities = dict(zip(CLASSES, 1 / (1 + np.exp(-np.asarray(logits, np.float64)[0])), strict=True))
    found = {}
    for line in lines[1:]:
        percent, mark, name = re.fullmatch(r" *([\d.]+)% ([* ]) (\w+)", line).groups()
        found[name] = float(percent) / 100, mark == "*"
    assert found == {name: (pytest.approx(p, abs=1e-4), p >= 0.3) for name, p in probabilities.items()}
    assert [*found] == sorted(found, key=lambda name: -probabilities[name])
    assert {mark for _, mark in found.values()} == {True, False}
    assert says("predict", str(image), "--weights", str(weights), "--top", "12").splitlines() == lines

    row = json.loads(says("predict", str(image), "--weights", str(weights), "--top", "2", "--format", "jsonl"))
    assert row["prediction"] == [name for name in found if found[name][1]], "all of them, whatever --top"
    assert row["top"] == [{"class": name, "probability": pytest.approx(probabilities[name])} for name in [*found][:2]]


def test_other_classes_are_refused(finished, tmp_path, capsys):
    workdir, _ = finished
    other = write_tables(tmp_path / "digits", 20, 10)
    text = (tmp_path / "digits/val.csv").read_text()
    (tmp_path / "digits/val.csv").write_text(text.replace("large", "big"))
    assert cli.main(["evaluate", "--run", str(workdir), "--data", other, "--split", "val"]) == 2
    assert f"has other classes than the run {workdir}: 1 only in the second: big" in capsys.readouterr().err


# Scores and loss, by hand.


def outputs(logits, label, mask) -> dict:
    return {"logits": np.asarray(logits), "label": np.asarray(label, bool), "mask": np.asarray(mask, np.float32)}


def test_scores_leave_out_padding_and_classes_that_no_image_has():
    first = outputs([[2.0, 9.0, 0.3], [1.0, 8.0, 0.1]], [[0, 0, 1], [1, 0, 0]], [1, 1])
    last = outputs([[0.0, 7.0, 0.2], [5.0, 5.0, 5.0]], [[1, 0, 1], [1, 1, 1]], [1, 0])  # the last row is padding
    found = MultiLabel().scores({"loss": 6.0, "count": 3.0}, [first, last])
    # Class 0: the right ones come second and third, (1/2 + 2/3) / 2. Class 2: first and second, 1.
    assert found == {"map": pytest.approx((7 / 12 + 1) / 2), "loss": 2.0, "count": 3.0}


def test_a_network_that_is_not_finite_has_no_score():
    broken = outputs([[np.nan, 1.0], [0.0, 1.0]], [[1, 0], [0, 1]], [1, 1])
    assert np.isnan(MultiLabel().scores({"loss": np.nan, "count": 2.0}, [broken])["map"])


def test_a_split_without_a_label_has_no_score():
    message = refusal(MultiLabel().scores, {"loss": 1.0, "count": 1.0}, [outputs([[1.0]], [[0]], [1])])
    assert message == "no image of the split has a label"


class Linear:
    """A network whose logits are the colours' averages times a matrix."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = jnp.asarray(matrix)
        self.architecture = Architecture("linear", matrix.shape[1])

    def __call__(self, x, *, rngs=None):
        return x.mean((1, 2)) @ self.matrix


def test_the_loss_is_numpys(rng):
    task = MultiLabel(PreprocessConfig(image_size=4, eval_resize=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    matrix, label, mask = rng.normal(size=(3, 5)) * 20, rng.random((6, 5)) < 0.4, np.array([1, 1, 1, 0, 1, 0])
    image = rng.integers(256, size=(6, 4, 4, 3), dtype=np.uint8)
    z = ((image.astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).mean((1, 2)) @ matrix
    probability = 1 / (1 + np.exp(-z))
    losses = -np.where(label, np.log(probability), np.log(1 - probability)).mean(1)
    with jax.enable_x64(True):
        batch = {"image": jnp.asarray(image), "label": jnp.asarray(label), "mask": jnp.asarray(mask, jnp.float32)}
        loss, sums = task.loss(Linear(matrix), batch, jax.random.key(0), jnp.float64)
        assert loss.dtype == jnp.float64
        assert float(loss) == pytest.approx(losses.mean(), rel=1e-7)  # mean and std are float32
        totals, given = task.evaluate(Linear(matrix), batch, jnp.float64, None)
    for found in (sums, totals):
        assert found == {"loss": pytest.approx((losses * mask).sum(), rel=1e-6), "count": 4}
    np.testing.assert_allclose(given["logits"], z, rtol=1e-6)


# What is refused.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.csv, line 1: expected the heading 'path,label', got ''"),
        ("a.png,cat\n", "train.csv, line 1: expected the heading 'path,label', got 'a.png,cat'"),
        (
            "path,label\na.png,cat\nb.png\n",
            "train.csv, line 3: expected path,label or, of several labels, label;label, got 'b.png'",
        ),
        (
            "path,label\na.png,cat,dog\n",
            "train.csv, line 2: expected path,label or, of several labels, label;label, got 'a.png,cat,dog'",
        ),
        ("path,label\n,cat\n", "train.csv, line 2: expected path,label or, of several labels, label;label, got ',cat'"),
        (
            "path,label\na.png,cat\n\nb.png,dog\n",
            "train.csv, line 3: expected path,label or, of several labels, label;label, got ''",
        ),
        (
            "path,label\na.png,cat\na.png,dog\n",
            "train.csv, line 3: a.png is there twice; give all its labels in one row",
        ),
        ("path,label\na.png,cat\nc.png,dog\n", "train.csv, line 3: there is no file {tmp_path}/c.png"),
        ('path,label\n"a.png,cat\n', "train.csv, line 2: unexpected end of data"),
        ("path,label\n", "split 'train' has no images"),
    ],
)
def test_a_table_that_is_not_as_it_should_be_is_refused_with_its_line(tmp_path, text, message):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "train.csv").write_text(text)
    assert message.replace("{tmp_path}", str(tmp_path)) in refusal(open_source, f"csv:{tmp_path}", "train")


def test_what_is_no_table_is_refused(tmp_path):
    assert f"there is no table {tmp_path / 'train.csv'}" in refusal(open_source, f"csv:{tmp_path}", "train")
    assert f"there is no table {tmp_path / 't.csv'}" in refusal(open_source, f"csv:{tmp_path / 't.csv'}", "train")
    (tmp_path / "train.csv").write_bytes(b"path,label\n\xff.png,cat\n")
    assert f"{tmp_path / 'train.csv'} is no table in UTF-8" in refusal(open_source, f"csv:{tmp_path}", "train")
    assert "unknown split 'val' in 'val'. Known: train" in refusal(open_source, f"csv:{tmp_path}", "val")


def test_one_table_is_cut_into_splits_and_one_label_an_image_is_classification(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(bytes([i]))
    lines = [f"{i}.png,{'dog' if i % 2 else ' cat '}\r\n" for i in range(10)]
    (tmp_path / "t.csv").write_text("path,label\r\n" + "".join(lines))
    parts = [open_source(f"csv:{tmp_path / 't.csv'}", split) for split in ("train[:70%]", "train[70%:]")]
    assert [len(part) for part in parts] == [7, 3]
    assert sorted(data[0] for part in parts for data, _ in part) == [*range(10)]
    for part in parts:
        assert (part.class_names, part.multi_label) == (("cat", "dog"), False)
        assert all(label == data[0] % 2 for data, label in part)
        Classification().check_data(part, part)
    assert len(open_source(f"csv:{tmp_path / 't.csv'}", None)) == 10  # `evaluate --data csv:/path/t.csv` needs no split


def test_the_columns_of_a_table_are_found_by_their_names(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(bytes([i]))
    rows = "".join(f"{i},{'dog' if i % 2 else 'cat'},x;y,{i}.png\n" for i in range(4))
    (tmp_path / "t.csv").write_text("id,label,notes,path\n" + rows)
    source = open_source(f"csv:{tmp_path / 't.csv'}", "train")
    assert sorted((data[0], label) for data, label in source) == [(0, 0), (1, 1), (2, 0), (3, 1)]
    (tmp_path / "t.csv").write_text("id,label,notes,path\n" + rows.replace(",x;y", "", 1))
    expected = "t.csv, line 2: expected id,label,notes,path or, of several labels, label;label, got '0,cat,0.png'"
    assert expected in refusal(open_source, f"csv:{tmp_path / 't.csv'}", "train")


def test_classification_is_not_trained_with_several_labels(data, config):
    source = open_source(data, "train")
    message = (
        f"data set {data!r} has several labels an image, which is only for `eca-jax evaluate`; the task MultiLabel"
    )
    with pytest.raises(EcaJaxError, match=re.escape(message)):
        train(dataclasses.replace(config, task=Classification(config.task.preprocess), workdir="/nowhere"))
    assert source.multi_label


def test_the_task_has_options_on_the_command_line(tmp_path, data, capsys, monkeypatch):
    from eca_jax.config import to_dict
    from eca_jax.overrides import overridden

    (tmp_path / "config.py").write_text(
        "from eca_jax.config import Config\nfrom eca_jax.tasks import MultiLabel\nconfig = Config(task=MultiLabel())\n"
    )
    args = ["--threshold", "0.7", "--preprocess.pad", "2"]
    config = overridden(str(tmp_path / "config.py"), args, prog="train.py", description="")
    assert config.task == MultiLabel(PreprocessConfig(pad=2), threshold=0.7)
    assert json.loads(json.dumps(to_dict(config)))["task"]["name"] == "multi_label"
    assert "threshold: expected 0 <= threshold < 1, got 1.5" in refusal(MultiLabel, threshold=1.5)
