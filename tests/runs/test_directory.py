"""A run knows its data by what they are: relative paths and sizes, wherever they lie."""

import pathlib
import shutil

import pytest

from eca_jax.config import Config, DataConfig
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.runs.directory import check_continues
from eca_jax.runs.run import describe_run


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
