"""`evaluate --per-class` and `--predictions`: what they say is what scikit-learn says of one image after the other."""

import csv
import os

import numpy as np
import pytest
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, recall_score, top_k_accuracy_score

from eca_jax import cli, create_model, save
from eca_jax.config import Config, DataConfig, ModelConfig
from eca_jax.convert.convert import convert
from eca_jax.data.digits import png
from eca_jax.data.imagenet import candidates, synsets
from eca_jax.data.preprocess import PreprocessConfig, eval_image, normalise
from eca_jax.data.records import Source
from eca_jax.data.sources import open_source
from eca_jax.tasks import Classification, MultiLabel
from eca_jax.training.evaluate import evaluate_weights
from eca_jax.training.examples import EvaluatedExamples
from tests.boxes import Boxes
from tests.damage import refusal
from tests.datasets import prepare_like

IMAGES = 75
"""No multiple of a batch, on any number of devices."""
NAMES = tuple(sorted(["zero", "one, uno", "two", "three", "four", "five", "six", 'the "7"', "eight", "nine"]))
TINY = PreprocessConfig(image_size=8, eval_resize=8)


pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits in folders of classes, of unequal sizes, and nothing of the last class but one image."""
    root, digits = tmp_path_factory.mktemp("data") / "digits", load_digits()
    for i in range(IMAGES):
        label = min(digits.target[i], 8) if i != 7 else 9
        path = root / "val" / NAMES[label] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(digits.images[i] * 15.9375))
    return f"folder:{root}"


@pytest.fixture(scope="module")
def model(small_backbones):
    model = create_model("eca_tiny", num_classes=10, rngs=nnx.Rngs(3))
    model.preprocess = TINY
    model.eval()
    return model


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save(model, path, class_names=NAMES)
    return path


def logits_of(model, source: Source) -> np.ndarray:
    """One image after the other: (n, classes)."""
    compute = nnx.jit(lambda model, x: model(normalise(x, TINY))[0])
    return np.stack([compute(model, eval_image(data, TINY)[None]) for data, _ in source])


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def table(lines: list[str]) -> dict[str, tuple[int, str]]:
    """Class -> (count, share)."""
    return {name: (int(count), share) for count, share, name in (line.split(None, 2) for line in lines)}


def test_the_files_and_tables_of_a_folder_are_scikit_learn_s(folder, model, weights, tmp_path, capsys):
    source, out = open_source(folder, "val"), tmp_path / "out.csv"
    logits, labels = logits_of(model, source), np.array([label for _, label in source])
    command = ["evaluate", "--weights", str(weights), "--data", folder]
    assert cli.main(command) == 0
    summary = capsys.readouterr().out
    assert cli.main([*command, "--per-class", "--predictions", str(out)]) == 0
    first, heading, *lines = capsys.readouterr().out.splitlines()
    assert f"{first}\n" == summary, "whether or not each example is looked at"
    assert heading.split() == ["count", "top-1", "class"]

    rows = read(out)
    assert list(rows[0]) == ["index", "path", "label", "prediction", "probability", "rank"]
    assert [row["index"] for row in rows] == [str(i) for i in range(IMAGES)]
    root = folder.removeprefix("folder:")
    for row, (data, label) in zip(rows, source, strict=True):
        with open(f"{root}/{row['path']}", "rb") as file:
            assert file.read() == data
        assert row["path"].split("/")[:2] == ["val", row["label"]] == ["val", NAMES[label]]
    best = logits.argmax(1)
    assert [row["prediction"] for row in rows] == [NAMES[i] for i in best]
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows], softmax.max(1) / softmax.sum(1), atol=1e-6, rtol=1e-5
    )
    ranks = np.array([int(row["rank"]) for row in rows])
    np.testing.assert_array_equal(ranks, 1 + (logits > logits[np.arange(IMAGES), labels][:, None]).sum(1))
    for k in (1, 5):
        assert (ranks <= k).mean() == pytest.approx(top_k_accuracy_score(labels, logits, k=k, labels=range(10)))

    predicted, right = ([row[column] for row in rows] for column in ("prediction", "label"))
    recall = recall_score(right, predicted, labels=NAMES, average=None)
    assert recall.max() > 0
    assert table(lines) == {
        name: (right.count(name), f"{share:.2%}") for name, share in zip(NAMES, recall, strict=True)
    }


def test_a_run_has_them_too(folder, model, weights, tmp_path, capsys):
    config = Config(
        model=ModelConfig("eca_tiny"),
        data=DataConfig(folder, train_split="val[:40]", eval_split="val[40:]"),
        task=Classification(TINY),
        batch_size=20,
    )
    run, out = tmp_path / "run", tmp_path / "out.csv"
    convert(weights, run, "orbax", config=config)
    assert cli.main(["evaluate", "--run", str(run), "--predictions", str(out)]) == 0
    rows, (summary,) = read(out), capsys.readouterr().out.splitlines()
    assert len(rows) == 35
    assert f"({sum(row['rank'] == '1' for row in rows)} of 35)" in summary
    held_out = open_source(folder, "val[40:]")
    assert [row["path"] for row in rows] == [held_out.path(i) for i in range(35)]
    assert [row["prediction"] for row in rows] == [NAMES[i] for i in logits_of(model, held_out).argmax(1)]


@pytest.fixture(scope="module")
def imagenets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("imagenets")
    prepare_like("imagenet2012_real", directory, {"validation": 21})
    prepare_like("imagenet_a", directory, {"test": 21})
    return str(directory)


def test_several_right_labels_and_classes_that_cannot_be(imagenets, tmp_path):
    model = create_model("eca_tiny", rngs=nnx.Rngs(1))
    model.preprocess = TINY
    # It prefers a few classes, or all its answers were wrong.
    model.fc.bias[...] = model.fc.bias[...].at[np.array([1, 2, 6, 6, 11, 13])].add(3)
    save(model, tmp_path / "m.safetensors")
    words = [*synsets().values()]
    for name, lines in (("imagenet2012_real", 1001), ("imagenet_a", 201)):
        found = []
        _, scores = evaluate_weights(str(tmp_path / "m.safetensors"), name, data_dir=imagenets, each=found.append)
        (examples,) = found
        (tmp_path / "out.csv").write_bytes(examples.to_csv())
        rows, printed = read(tmp_path / "out.csv"), table(list(examples.per_class())[1:])
        assert len(printed) == lines - 1
        scored = [row for row in rows if row["label"]]
        assert sum(row["rank"] == "1" for row in scored) / len(scored) == pytest.approx(scores["top1"])
        assert sum(int(row["rank"] or 1000) <= 5 for row in scored) / len(scored) == pytest.approx(scores["top5"])
        assert 0 < scores["top1"] < scores["top5"] < 1
        assert {row["path"] for row in rows} == {""}
        labels = [(label,) if isinstance(label, int) else label for _, label in examples.source]
        for row, label in zip(rows, labels, strict=True):
            assert row["label"] == ";".join(words[i] for i in label)
            if not label:
                assert set(list(row.values())[1:]) == {""}, "an image without a label does not count"
            elif name == "imagenet_a":
                assert words.index(row["prediction"]) in candidates("imagenet_a")
                assert (row["rank"] == "") == (label[0] not in candidates("imagenet_a"))
        counts = {name: sum(words.index(name) in label for label in labels) for name in printed}
        assert {name: count for name, (count, _) in printed.items()} == counts
        assert all((share == "-") == (count == 0) for count, share in printed.values())


def test_of_several_labels_scikit_learn_s_average_precision_of_each_class(rng):
    label = rng.random((40, 4)) < (0.5, 0.2, 0.0, 0.9)
    logits, mask = rng.normal(size=(40, 4)).astype(np.float32), (rng.random(40) < 0.8).astype(np.float32)
    outputs = {"logits": logits, "label": label, "mask": mask}
    task = MultiLabel(threshold=0.6)
    measure, counts, values = task.per_class(outputs, 4)
    counted = mask > 0
    assert measure == "AP"
    np.testing.assert_array_equal(counts, label[counted].sum(0))
    for c in (0, 1, 3):
        assert values[c] == average_precision_score(label[counted, c], logits[counted, c])
    assert np.isnan(values[2])
    mean = task.scores({"loss": 0.0, "count": counted.sum()}, [outputs])["map"]
    assert np.nanmean(values) == pytest.approx(mean, rel=1e-12)
    for row, x, present, m in zip(task.predictions(outputs, "abcd"), logits, label, mask, strict=True):
        probability = 1 / (1 + np.exp(-x.astype(float)))
        found = [c for c in range(4) if probability[c] >= 0.6]
        if not m:
            assert row == {"label": "", "prediction": "", "probability": ""}
            continue
        assert row["label"] == ";".join("abcd"[c] for c in range(4) if present[c])
        assert row["prediction"] == ";".join("abcd"[c] for c in found)
        assert [float(p) for p in row["probability"].split(";") if p] == pytest.approx(probability[found], abs=1e-6)


def test_a_table_of_several_labels(weights, tmp_path):
    (tmp_path / "images").mkdir()
    digits, lines = load_digits(), ["path,label"]
    for i in range(12):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(digits.images[i] * 15.9375))
        lines.append(f"images/{i}.png,{';'.join(str(c) for c in range(10) if c in (digits.target[i], 3))}")
    (tmp_path / "val.csv").write_text("\n".join(lines))
    model = create_model("eca_tiny", num_classes=10, rngs=nnx.Rngs(1))
    model.preprocess = TINY
    save(model, tmp_path / "m.safetensors", task=MultiLabel())
    found = []
    _, scores = evaluate_weights(str(tmp_path / "m.safetensors"), f"csv:{tmp_path}", each=found.append)
    (tmp_path / "out.csv").write_bytes(found[0].to_csv())
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["index", "path", "label", "prediction", "probability"]
    assert [f"{row['path']},{row['label']}" for row in rows] != lines[1:], "in the data set's order, which mixes"
    assert sorted(f"{row['path']},{row['label']}" for row in rows) == sorted(lines[1:])
    average = found[0].task.per_class(found[0].outputs, 10).values
    assert np.nanmean(average) == pytest.approx(scores["map"], rel=1e-12)
    assert next(found[0].per_class()).split() == ["count", "AP", "class"]


def test_where_nothing_can_be_written_nothing_is_evaluated(tmp_path, capsys):
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("nowhere/out.csv", f"there is no directory {tmp_path}/nowhere to write out.csv into"),
        ("directory", f"{tmp_path}/directory is a directory; expected the name of a file to write"),
        ("pipe", f"{tmp_path}/pipe is no regular file but a pipe, a socket or a device; expected the name of a file"),
        ("o" * 250, f"cannot write {tmp_path}/{'o' * 250}: File name too long"),
    ):
        command = ["evaluate", "--weights", "nowhere.pth", "--data", "digits", "--predictions", str(tmp_path / name)]
        assert cli.main(command) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "pipe"]


def test_predictions_that_are_no_numbers_are_not_written():
    source = Source("digits", "test", open_source("digits", "test[:2]").records, tuple("0123456789"))
    outputs = {"label": np.zeros(2, int), "mask": np.ones(2), "prediction": np.zeros(2, int), "rank": np.zeros(2, int)}
    examples = EvaluatedExamples(Classification(), source, outputs | {"probability": np.array([0.5, np.nan])})
    assert "not finite numbers: the weights are damaged" in refusal(examples.to_csv)
    assert list(examples.per_class())[1].split() == ["2", "0.00%", "0"]


def test_a_task_that_does_not_know_it_says_so():
    message = refusal(Boxes().evaluate_each, None, None, np.float32, None)
    assert message.startswith("the task 'test_boxes' does not say what it predicts of each example (evaluate_each, ")
    assert message.endswith("leave out --per-class and --predictions")
