"""Predictions on files: in batches they are those on each image by itself, whatever the batch and the devices."""

import dataclasses
import io
import json
import os
import pathlib
import signal
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from eca_jax import memory
from eca_jax.data.folders import find_images
from eca_jax.data.preprocess import PreprocessConfig, eval_image
from eca_jax.errors import EcaJaxError
from eca_jax.models.registry import create_model
from eca_jax.tasks import TASKS, Classification, MultiLabel, Task
from eca_jax.training import predict
from eca_jax.training.predict import predict_files
from tests import boxes
from tests.commands import start
from tests.damage import refusal
from tests.tiny import brought_from_outside, register

PREPROCESS = PreprocessConfig(image_size=8, eval_resize=10)


@pytest.fixture(scope="module")
def model():
    """eca_tiny with random weights and statistics, and 7 classes."""
    with brought_from_outside():
        register()
        model = create_model("eca_tiny", num_classes=7, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, norm in nnx.iter_modules(model):
        if hasattr(norm, "mean") and hasattr(norm, "var"):
            norm.mean.set_value(jnp.asarray(rng.normal(size=norm.mean.shape), jnp.float32))
            norm.var.set_value(jnp.asarray(rng.uniform(0.5, 2, norm.var.shape), jnp.float32))
    model.eval()
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Eleven images of as many sizes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for i in range(11):
        pixels = rng.integers(0, 256, 3) * rng.uniform(0.5, 1, (10 + i, 21 - i, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def by_hand(file: str, model) -> np.ndarray:
    """The logits of an image by itself, normalised by NumPy."""
    pixels = eval_image(pathlib.Path(file).read_bytes(), PREPROCESS).astype(np.float32) / 255
    image = (pixels - np.float32(PREPROCESS.mean)) / np.float32(PREPROCESS.std)
    return np.asarray(model(jnp.asarray(image[None])), np.float64)[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


def test_a_batch_of_files_is_each_file_by_itself(model, files):
    found = list(predict_files(files, model=model, task=Classification(PREPROCESS), batch_size=5))  # on five devices
    assert [file for file, _ in found] == files
    for file, probabilities in found:
        np.testing.assert_allclose(probabilities, softmax(by_hand(file, model)), atol=1e-6)
    assert np.ptp([probabilities for _, probabilities in found], axis=0).max() > 0.01, "the images differ"
    (_, alone), *_ = predict_files(files[:1], model=model, task=Classification(PREPROCESS))
    np.testing.assert_allclose(found[0][1], alone, atol=1e-6)


def test_one_device_says_what_eight_say(model, files, one_device, monkeypatch):
    task = MultiLabel(PREPROCESS)
    few = list(predict_files(files, model=model, task=task, batch_size=3))  # 3, 3, 3 and 2
    monkeypatch.undo()
    many = list(predict_files(files, model=model, task=task))  # one batch, of 16 on 8
    for (file, one), (_, eight) in zip(few, many, strict=True):
        np.testing.assert_allclose(one, eight, atol=1e-6)
        np.testing.assert_allclose(one, 1 / (1 + np.exp(-by_hand(file, model))), atol=1e-6)


@dataclasses.dataclass(frozen=True)
class AsTheyAre(Task):
    """Somebody else's: images keep their sizes, and a prediction is a tree."""

    name: ClassVar[str] = "as_they_are"
    best: ClassVar[str] = "loss"

    def predict_example(self, data):
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return {"image": image}

    def predict(self, model, batch):
        image = batch["image"].astype(jnp.float32)
        return {"mean": image.mean((1, 2)), "height": jnp.full(len(image), image.shape[1])}


def test_images_of_several_sizes_are_predicted_one_at_a_time(tmp_path, rng):
    """Where the shapes of a batch are equal by chance, all at once."""
    sizes = [(9, 5), (6, 7), (6, 7), (4, 8), (4, 8), (4, 8), (4, 8)]
    expected = []
    for i, size in enumerate(sizes):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        expected.append((size[0], pixels.mean((0, 1))))
    files = [str(tmp_path / f"{i}.png") for i in range(len(sizes))]
    found = list(predict_files(files, model=nnx.Dict(), task=AsTheyAre(), batch_size=3))
    assert [file for file, _ in found] == files
    for (_, prediction), (height, mean) in zip(found, expected, strict=True):
        assert prediction["height"] == height
        np.testing.assert_allclose(prediction["mean"], mean, rtol=1e-5)


def test_a_file_is_decoded_a_batch_before_it_is_due_and_not_sooner(model, files, monkeypatch):
    decoded = []
    original = Classification.predict_example

    def counting(self, data):
        decoded.append(1)
        return original(self, data)

    monkeypatch.setattr(Classification, "predict_example", counting)
    monkeypatch.setattr(predict.DataConfig, "num_threads", 2)
    many = files * 20
    next(predict_files(many, model=model, task=Classification(PREPROCESS), batch_size=8))
    assert 8 <= len(decoded) <= 8 * 3 + 2 < len(many)


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(model, files, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(pathlib.Path(files[0]).read_bytes()[:99])
    given = [*files[:3], str(torn), *files[3:], str(tmp_path / "nowhere.png")]
    errors = []
    run = {"model": model, "task": Classification(PREPROCESS), "batch_size": 4}
    found = list(predict_files(given, **run, unreadable=errors.append))
    assert [file for file, _ in found] == files
    first, second = (str(error) for error in errors)
    assert first.startswith(f"cannot read {torn} as an image: ")
    assert second.startswith(f"cannot read {tmp_path}/nowhere.png as an image: [Errno 2] No such file")
    assert refusal(lambda: list(predict_files(given, **run))) == first
    assert list(predict_files([str(torn)], **run, unreadable=errors.append)) == []
    assert list(predict_files([], **run)) == []


def test_a_pipe_where_an_image_file_goes_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for file in (str(tmp_path / "pipe.jpg"), "/dev/null"):
        assert refusal(find_images, [file]) == (
            f"{file} is no regular file but a pipe, a socket or a device; give an image file"
        )
    with pytest.raises(EcaJaxError, match=r"the directory .* has no images"):
        find_images([str(tmp_path)])  # nothing waits for the pipe

    class Length(AsTheyAre):
        def predict_example(self, data):
            return {"image": np.full((1, 1, 3), len(data))}

    read, write = os.pipe()
    os.write(write, b"four")
    os.close(write)
    (file,) = find_images([f"/dev/fd/{read}"])  # `predict <(curl ...)`
    ((_, prediction),) = predict_files([file], model=nnx.Dict(), task=Length())
    assert prediction["mean"].tolist() == [4, 4, 4]
    os.close(read)


def test_links_are_followed_but_not_in_a_circle(tmp_path, capsys):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "deep" / "1.png").touch()
    (tmp_path / "images" / "deep" / "up").symlink_to(tmp_path / "images")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for name in ("images", "link"):
        assert find_images([f"{tmp_path}/{name}/"]) == [f"{tmp_path}/{name}/deep/1.png"]
        assert capsys.readouterr().err == (
            f"note: {tmp_path}/{name}: left out 1: 1 a link to a folder that it is in (deep/up)\n"
        )


def test_what_does_not_fit_into_memory_is_a_line(model, files, monkeypatch):
    task = Classification(PREPROCESS)
    for available, message in (
        (2**9, "loading a prediction on 3 images of 8 x 8 pixels needs at least 0.0 MiB, and this machine has"),
        (2**13, "out of memory: a prediction on 3 images of 8 x 8 pixels needs"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(memory, "_available", lambda root, n=available: n)
            said = refusal(lambda: list(predict_files(files, model=model, task=task, batch_size=3)))
        assert message in said
        assert said.endswith("(1) a smaller --batch-size, (2) a smaller --preprocess.image-size")

    def exhausted(self, data):
        raise MemoryError("in a thread")

    monkeypatch.setattr(Classification, "predict_example", exhausted)
    with pytest.raises(EcaJaxError, match=r"^out of memory: none is left for a prediction on 16 images .*in a thread"):
        list(predict_files(files, model=model, task=task))


def test_a_task_that_predicts_as_tasks_did_before_is_told_what_has_changed():
    class Old(boxes.Boxes):
        name: ClassVar[str] = "old"
        predict = Task.predict

        def predictor(self, model): ...

    with brought_from_outside():
        assert refusal(TASKS.register, "old", Old).endswith(
            "its method `predictor` has become two, `predict_example(data)` and `predict(model, batch)`"
        )


# `eca-jax predict` of a network that nobody has trained.
COMMAND = """
import sys
from flax import nnx
from eca_jax import cli
from eca_jax.models.registry import create_model
from eca_jax.tasks import Classification
from tests.tiny import register
from tests.training.test_predict import PREPROCESS

register()
model = create_model("eca_tiny", num_classes=7, rngs=nnx.Rngs(0))
model.eval()
cli._to_predict_with = lambda args: (model, Classification(PREPROCESS), "abcdefg")
sys.exit(cli.main(["predict", *sys.argv[1:]]))
"""


@pytest.mark.system
@pytest.mark.parametrize("way", ["Ctrl-C", "the reader leaves"])
def test_a_stream_that_is_ended(way, files, tmp_path):
    """Among thousands of images: `| head -1`, and Ctrl-C with the rows that there are kept."""
    out = tmp_path / "out.jsonl"
    many = [*files] * 2000
    args = ["--batch-size", "8", *(["--output", str(out)] if way == "Ctrl-C" else ["--format", "jsonl"])]
    process = start("-c", COMMAND, *args, *many)
    partial = tmp_path / "out.jsonl.partial"
    if way == "Ctrl-C":
        while not (partial.exists() and partial.read_bytes().count(b"\n") > 20):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        expected = (130, "interrupted\n")
    else:
        assert json.loads(process.stdout.readline())["path"] == files[0]
        process.stdout.close()
        expected = (141, "")
    assert (process.wait(60), process.stderr.read()) == expected
    if way == "Ctrl-C":
        assert not out.exists()
        paths = [json.loads(line)["path"] for line in partial.read_text().splitlines()]
        assert paths == many[: len(paths)]
        assert 20 < len(paths) < len(many)
