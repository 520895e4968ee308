"""A run knows its data by what they are: relative paths and sizes, wherever they lie."""

import pathlib
import shutil

import pytest

from eca_jax.config import Config, DataConfig
from eca_jax.convert.files import read_weights
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.runs.directory import check_continues, claim_directory, open_run
from eca_jax.runs.run import describe_run
from eca_jax.runs.writers import Writer
from eca_jax.tasks import Classification
from tests.damage import refusal


class Saved:
    """A checkpoint that says what it was given."""

    def __init__(self, description: dict):
        self.description = description

    def read_run(self, step: int) -> dict:
        return self.description

    def path(self, step: int) -> pathlib.Path:
        return pathlib.Path("run/checkpoints") / str(step)


def folder(root: pathlib.Path) -> pathlib.Path:
    """Bytes in place of images: nothing is opened here."""
    for split, count in (("train", 3), ("val", 1)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(bytes(10 + i))
    return root


def describe(root: pathlib.Path | str, train_split: str = "train") -> dict:
    config = Config(data=DataConfig(f"folder:{root}", train_split=train_split, eval_split="val"))
    return describe_run(config, open_source(config.data.name, config.data.train_split))


def test_a_run_follows_a_folder_that_was_moved(tmp_path):
    saved = Saved(describe(folder(tmp_path / "here")))
    shutil.move(tmp_path / "here", tmp_path / "there")
    check_continues(saved, 1, describe(tmp_path / "there"))
    check_continues(saved, 1, describe(f"{tmp_path}/there/"))


@pytest.mark.parametrize("change", ["size", "name", "more"])
def test_a_folder_that_changed_is_refused(tmp_path, change):
    root = folder(tmp_path / "images")
    saved = Saved(describe(root))
    first = root / "train" / "cat" / "0.png"
    if change == "size":
        first.write_bytes(bytes(99))
    elif change == "name":
        first.rename(first.with_name("other.png"))
    else:
        (root / "train" / "cat" / "more.png").write_bytes(bytes(1))
    with pytest.raises(EcaJaxError, match="the training data, which has other files or sizes"):
        check_continues(saved, 1, describe(root))


def test_no_file_is_opened_for_it(tmp_path, monkeypatch):
    root = folder(tmp_path / "images")
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: pytest.fail(f"{args} was opened"))
    assert describe(root)["data"] == describe(f"{root}/")["data"]


def test_of_a_tfds_data_set_the_split_counts(data_dir):
    digits = {split: open_source("digits", split).fingerprint() for split in ("train", "test", "train[:90%]")}
    assert len(set(digits.values())) == 3
    assert open_source("digits", "train").fingerprint() == digits["train"]


def test_a_checkpoint_of_version_0_1_0_knows_its_data_by_name(tmp_path):
    old = {key: value for key, value in describe(folder(tmp_path / "images")).items() if key != "data"}
    check_continues(Saved(old), 1, describe(f"{tmp_path}/images/"))
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    with pytest.raises(EcaJaxError, match=r"data.name: folder:.*images -> folder:.*copy"):
        check_continues(Saved(old), 1, describe(tmp_path / "copy"))


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints-damaged", "tensorboard"])
def test_a_file_where_a_directory_belongs_is_refused_at_the_start(tmp_path, name):
    config = Config(workdir=str(tmp_path))
    claim_directory(tmp_path, config)
    (tmp_path / name).touch()
    message = refusal(claim_directory, tmp_path, config)
    assert message.startswith(f"workdir: {tmp_path / name} is a file; expected a directory of the run: move")


def open_writer(run: pathlib.Path) -> Writer:
    return Writer(run, Classification(), start=9, evaluation_due=False, total=10, batch_size=1)


def test_metrics_that_are_no_text_are_named_by_their_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "train", "step": 1}\n\xff\xfe{}\n')
    message = refusal(open_writer, tmp_path)
    assert f"{tmp_path}/metrics.jsonl, line 2: " in message
    assert message.endswith("is not a row of metrics; remove it")


@pytest.mark.parametrize("call", [lambda p: claim_directory(p, Config(workdir=str(p))), open_run, read_weights])
def test_a_name_that_is_no_text_is_refused(tmp_path, call):
    """In the C locale with PYTHONUTF8=0 every name is such a one that has more than ASCII; Orbax cannot open it."""
    name = b"gr\xf6sse.safetensors".decode("utf-8", "surrogateescape")
    message = refusal(call, tmp_path / name)
    assert (
        "gr\\udcf6sse.safetensors' is no text in this locale, whose file names are utf-8; set PYTHONUTF8=1" in message
    )
