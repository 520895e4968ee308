"""Runs that are given data, a transform or writers in Python: what they note, how they go on, what is refused."""

import dataclasses
import json
import pathlib
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from eca_jax.cli import main
from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.convert.convert import convert
from eca_jax.data.preprocess import PreprocessConfig, decode
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.runs.run import load_run
from eca_jax.runs.writers import Writer
from eca_jax.tasks import Classification, MultiLabel
from eca_jax.training.evaluate import evaluate_run, evaluate_weights
from eca_jax.training.loop import train
from eca_jax.training.start import open_sources
from tests.commands import ROOT

CONFIG = Config(
    data=DataConfig(name="digits", train_split="train[:128]", eval_split="test[:50]", num_threads=2),
    task=Classification(PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)),
    optim=OptimConfig(schedule="constant"),
    batch_size=64,
    epochs=2,
    log_every=1,
)
DIGITS = tuple("0123456789")


pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture(scope="module")
def data(data_dir) -> dict:
    """What `train` takes: the digits of the configuration, in TFDS's order, as uint8 (8, 8, 3)."""
    splits = (open_source("digits", split) for split in (CONFIG.data.train_split, CONFIG.data.eval_split))
    train, held_out = ([(np.asarray(decode(image)), np.int64(label)) for image, label in source] for source in splits)
    return {"train": train, "held_out": held_out}


def configure(workdir: pathlib.Path, **fields) -> Config:
    return dataclasses.replace(CONFIG, **{"workdir": str(workdir), "model": ModelConfig("eca_tiny"), **fields})


def refusal(function, *args, **fields) -> str:
    with pytest.raises(EcaJaxError) as caught:
        function(*args, **fields)
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A complete run on examples that were given."""
    workdir = tmp_path_factory.mktemp("from_python") / "run"
    return workdir, train(configure(workdir), **data)


def test_arrays_train_as_the_same_images_do_in_a_data_set(finished, tmp_path):
    """Equal rows, to the byte."""
    train(configure(tmp_path))
    assert (finished[0] / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()


def test_a_run_notes_that_its_data_came_from_python(finished):
    workdir, result = finished
    assert result.finished
    saved = json.loads((workdir / "config.json").read_text())["data"]
    assert (saved["name"], saved["train_split"], saved["eval_split"]) == ("python", "train", "held_out")
    model, config, class_names = load_run(workdir)
    assert config.data.name == "python"
    assert class_names == DIGITS
    assert model(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 10)


def test_a_run_goes_on_with_the_same_data_alone(finished, data):
    workdir, result = finished
    again = train(configure(workdir), **data)
    assert (again.new_steps, again.evaluation) == (0, result.evaluation)
    rows = data["train"]
    other = [(255 - image, label) for image, label in rows]
    message = refusal(train, configure(workdir, epochs=3), train=other, held_out=data["held_out"])
    assert "the training data, which are other examples" in message
    message = refusal(train, configure(workdir, epochs=3), train=rows[:127], held_out=data["held_out"])
    assert "training examples: 128 -> 127" in message
    names = [f"digit {name}" for name in DIGITS]
    assert "classes of the data set: 10 -> 10, or other names" in refusal(
        train, configure(workdir, epochs=3), class_names=names, **data
    )
    message = refusal(train, configure(workdir, epochs=3))
    assert "has its data from Python, not from 'digits': continue it in Python" in message


def test_evaluation_in_python(finished, data):
    workdir, result = finished
    step, _, scores = evaluate_run(str(workdir), which=str(result.step), data=data["held_out"])
    assert step == result.step
    assert scores == pytest.approx(result.evaluation)
    starts = []
    evaluate_run(str(workdir), data=data["train"], started=starts.append)
    assert (starts[0].images, starts[0].training_images) == (128, 128)
    assert "label 10: expected the number of a class, 0 to 9" in refusal(
        evaluate_run, str(workdir), data=[(np.zeros((8, 8), np.uint8), 10)]
    )


def test_commands_on_the_run_ask_for_data(finished, data, capsys, tmp_path):
    workdir, _ = finished
    for args in (["evaluate", "--run"], ["train", "--data.name", "python", "--workdir"], ["check", "python"]):
        assert main([*args, *([str(workdir)] if args[0] != "check" else ["--split", "train"])]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: the data set 'python' is whatever was given to `eca_jax.training.train(")
        assert "--data folder:/path" in error
        assert error.count("\n") == 1
    assert main(["evaluate", "--run", str(workdir), "--data", "digits", "--split", "test[:50]"]) == 0
    assert "data 'digits', split 'test[:50]': top-1 " in capsys.readouterr().out
    for i, (image, label) in enumerate(data["held_out"]):
        place = tmp_path / "photos" / "val" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    assert main(["evaluate", "--run", str(workdir), "--data", f"folder:{tmp_path / 'photos'}"]) == 0
    out = capsys.readouterr().out
    expected = evaluate_run(str(workdir), data=data["held_out"])
    assert expected[1].describe(expected[2]) in out
    assert main(["predict", "--run", str(workdir), str(place / f"{i}.png")]) == 0


def test_weights_of_the_run_are_converted_and_evaluated(finished, data, tmp_path):
    workdir, _ = finished
    convert(str(workdir), str(tmp_path / "w.safetensors"))
    _, scores = evaluate_weights(str(tmp_path / "w.safetensors"), data["held_out"])
    assert scores == pytest.approx(evaluate_run(str(workdir), data=data["held_out"])[2])


def test_several_labels_from_python(tmp_path, data):
    several = {name: [(image, [label % 2, 2 + (label > 4)]) for image, label in data[name]] for name in data}
    config = configure(tmp_path, task=MultiLabel(CONFIG.task.preprocess))
    noted, train_source, held_out = open_sources(config, **several)
    assert (noted.data.name, train_source.multi_label, len(held_out.class_names)) == ("python", True, 4)
    assert "several labels an image" in refusal(open_sources, configure(tmp_path), **several)


def test_what_is_missing_or_the_same(tmp_path, data):
    config = configure(tmp_path)
    assert "train: held_out is not given" in refusal(train, config, train=data["train"])
    assert "train: train is not given" in refusal(train, config, held_out=data["held_out"])
    assert "train: held_out is not given" in refusal(train, config, class_names=DIGITS)
    same = refusal(train, config, train=data["train"], held_out=list(data["train"]))
    assert same == "train and held_out are the same examples: keep some out of train, for held_out alone"
    message = refusal(train, config, train=data["train"], held_out=data["held_out"], class_names=["a", "b"])
    assert message.startswith("train[0]: label 4: expected the number of a class, 0 to 1")
    assert "transform: expected a function of (image, rng)" in refusal(train, config, transform="flip")
    assert "writers: expected a list of functions" in refusal(train, config, writers=print)
    assert not tmp_path.joinpath("config.json").exists()


def brighter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.uint8(np.minimum(image + rng.integers(0, 60), 255))


@pytest.fixture(scope="module")
def with_hooks(tmp_path_factory, data):
    """A run with a transform and two writers that was continued, and what the writers were given."""
    workdir = tmp_path_factory.mktemp("hooks") / "run"
    seen, steps = [], []

    def log(values: dict[str, float], step: int) -> None:
        seen.append((step, values))

    for epochs in (1, 2):
        hooks = {"transform": brighter, "writers": [log, lambda values, step: steps.append(step)]}
        train(configure(workdir, epochs=epochs), **hooks, **data)
    return workdir, seen, steps


def test_a_run_with_a_transform_that_was_continued_ends_as_one_that_was_not(finished, with_hooks, data, tmp_path):
    train(configure(tmp_path), transform=brighter, **data)
    at_once, continued, without = (
        (workdir / "metrics.jsonl").read_text() for workdir in (tmp_path, with_hooks[0], finished[0])
    )
    assert at_once == continued
    assert at_once != without


def test_a_run_goes_on_with_the_transform_of_that_name_alone(finished, with_hooks, data):
    workdir, *_ = with_hooks
    darker = type("darker", (), {"__call__": lambda self, image, rng: image // 2})()
    assert "transform: brighter -> None" in refusal(train, configure(workdir, epochs=3), **data)
    assert "transform: brighter -> darker" in refusal(train, configure(workdir, epochs=3), transform=darker, **data)
    message = refusal(train, configure(finished[0], epochs=3), transform=brighter, **data)
    assert "transform: None -> brighter" in message


def test_what_a_transform_raises_ends_the_run_whatever_number_of_bad_records_is_allowed(tmp_path, data, capsys):
    def fails(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise KeyError("mine")

    config = configure(tmp_path, data=dataclasses.replace(CONFIG.data, max_bad=1000))
    with pytest.raises(KeyError, match="mine"):
        train(config, transform=fails, **data)
    assert "bad record" not in capsys.readouterr().err


def test_writers_get_every_row_also_of_a_run_that_goes_on(with_hooks):
    workdir, seen, steps = with_hooks
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(written) == len(seen) == 6
    for row, (step, values) in zip(written, seen, strict=True):
        kind = row.pop("kind")
        assert row.pop("step") == step
        assert ("train/images_per_second" in values) == (kind == "train")
        known = {name: value for name, value in values.items() if name != "train/images_per_second"}
        assert known == {f"{kind}/{name}": value for name, value in row.items()}
    assert steps == [step for step, _ in seen]


def test_what_a_writer_raises_ends_the_run(tmp_path):
    def fails(values: dict[str, float], step: int) -> None:
        raise ConnectionError("offline")

    common = {"start": 0, "evaluation_due": False, "evaluated": [], "total": 4, "batch_size": 64}
    scores = {"top1": 0.5, "top5": 1.0, "loss": float("nan"), "count": 50.0}
    with (
        pytest.raises(ConnectionError, match="offline"),
        Writer(tmp_path, CONFIG.task, **common, also=[fails]) as writer,
    ):
        writer.evaluation(2, 1.0, scores)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


class WandbRun:
    """Of Weights & Biases, what the page uses: a run's `log`, with its arguments and its rule for steps."""

    def __init__(self, project: str, id: str, resume: str, config: dict):
        self.config, self.rows = config, []

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, *_) -> None:
        self.rows = tuple(self.rows)

    def log(self, data: dict[str, float], step: int | None = None, commit: bool | None = None) -> None:
        assert step is not None
        assert not self.rows or step >= self.rows[-1][0]
        self.rows.append((step, data))


def test_the_block_of_weights_and_biases(data, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "python.md").read_text()
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "wandb.init" in text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=WandbRun))
    names = {"config": configure(tmp_path), "few": data, "train": train, "dataclasses": dataclasses}
    exec(block, names)
    assert [step for step, _ in names["run"].rows] == [1, 2, 2, 3, 4, 4]
    assert names["run"].rows[1][1].keys() >= {"train/loss", "train/lr", "train/images_per_second"}
    assert names["run"].rows[-1][1].keys() >= {"eval/top1", "eval/loss"}
    assert names["run"].config["batch_size"] == 64
