"""A run knows its data by what they are: relative paths and sizes, wherever they lie."""

import errno
import os
import pathlib
import shutil
import tempfile

import pytest

from eca_jax.config import Config, DataConfig
from eca_jax.convert.files import read_weights
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.runs.directory import (
    PLACES,
    check_continues,
    claim_directory,
    open_run,
    stops_where_nothing_can_be_written,
)
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


@pytest.mark.parametrize("name", PLACES)
def test_what_is_not_of_its_kind_is_refused_at_the_start(tmp_path, name):
    config, place = Config(workdir=str(tmp_path)), tmp_path / name
    claim_directory(tmp_path, config)
    place.unlink(missing_ok=True)
    found, expected = ("file", "directory") if PLACES[name] == "directory" else ("directory", "file")
    (place.touch if found == "file" else place.mkdir)()
    said = f": {place} is a {found}; expected a {expected} of the run: move the {found} away, or choose another --"
    assert refusal(claim_directory, tmp_path, config) == f"workdir{said}workdir"
    assert refusal(open_run, tmp_path) == f"run{said}run"


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    for name in ("nowhere", "file", "loop"):
        (tmp_path / name).symlink_to({"nowhere": "gone", "file": "plain", "loop": "loop"}[name])
    (tmp_path / "plain").touch()

    def said(name: str) -> str:
        run = tmp_path / name
        return refusal(claim_directory, run, Config(workdir=str(run)))

    assert (
        said("nowhere") == f"workdir: {tmp_path}/nowhere is a link to gone, which leads nowhere; expected a directory"
    )
    assert said("nowhere/run") == said("nowhere")
    assert "is a link to loop, which leads nowhere" in said("loop")
    assert said("file") == f"workdir: {tmp_path}/file is a file; expected a directory"
    assert "(Not a directory); choose another --workdir" in said("plain/run")
    assert "(File name too long); choose another --workdir" in said("x" * 300)


@pytest.mark.parametrize("name", ["config.json", "checkpoints"])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, name):
    """Caused at the call: nothing is forbidden to root, who may run this test."""
    config = Config(workdir=str(tmp_path))
    claim_directory(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()

    def forbidden(function):
        def wrapped(path, *args, **kwargs):
            if path == tmp_path / name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(os, "scandir", forbidden(os.scandir))
    monkeypatch.setattr("builtins.open", forbidden(open))
    said = f": cannot read {tmp_path / name} (Permission denied); make it readable"
    with stops_where_nothing_can_be_written(tmp_path):
        assert refusal(claim_directory, tmp_path, config) == f"workdir{said}"
    assert refusal(open_run, tmp_path) == f"run{said}"


def test_checkpoints_that_may_not_be_written_are_named_at_the_start(tmp_path, monkeypatch):
    config, place = Config(workdir=str(tmp_path)), tmp_path / "checkpoints"
    claim_directory(tmp_path, config)
    place.mkdir()
    make = tempfile.TemporaryFile

    def temporary_file(dir):
        if dir == place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)

    def start() -> None:
        with stops_where_nothing_can_be_written(tmp_path):
            claim_directory(tmp_path, config)

    assert refusal(start).startswith(f"workdir: cannot write into {tmp_path} (Permission denied; ")


def test_the_rows_of_a_run_whose_checkpoints_are_gone_are_not_replaced(tmp_path):
    config, rows = Config(workdir=str(tmp_path)), tmp_path / "metrics.jsonl"
    claim_directory(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    rows.write_text('{"kind": "train", "step": 4}\n')
    claim_directory(tmp_path, config)  # it died before its first checkpoint
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    message = refusal(claim_directory, tmp_path, config)
    assert message.startswith(f"workdir: {rows} has rows of a run whose checkpoints are gone")
    assert f"put {tmp_path}/checkpoints back to go on; or, to start anew, move metrics.jsonl away" in message
    rows.unlink()
    claim_directory(tmp_path, config)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("null", " is damaged: expected a JSON object, got 'null'"),
        ("[]", " is damaged: expected a JSON object, got '[]'"),
        ("[" * 100_000, " is damaged: it is nested too deeply"),
        ('{"model"', " is damaged: Expecting ':' delimiter: line 1 column 9 (char 8)"),
        ("{}", ": config: Object missing required field `model`"),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, text, why):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "checkpoints").mkdir()
    assert refusal(open_run, tmp_path) == f"{tmp_path}/config.json{why}"


def open_writer(run: pathlib.Path, start: int = 9, evaluated: tuple[int, ...] = ()) -> Writer:
    return Writer(run, Classification(), start=start, evaluation_due=False, evaluated=evaluated, total=10, batch_size=1)


@pytest.mark.parametrize("damage", ["none", "gone", "torn"])
def test_rows_that_are_lost_are_noted(tmp_path, capsys, damage):
    metrics = tmp_path / "metrics.jsonl"
    rows = ['{"kind": "train", "step": 4}\n', '{"kind": "eval", "step": 5}\n', '{"kind": "eval", "step": 9}\n']
    if damage != "gone":
        metrics.write_text("".join(rows)[: -9 if damage == "torn" else None])
    with open_writer(tmp_path, evaluated=(5, 9)):
        pass
    lost = {"none": None, "gone": [5, 9], "torn": [9]}[damage]
    said = f"note: {metrics} has no rows of the evaluations at steps {lost}, which checkpoints have: rows were lost"
    assert capsys.readouterr().err.startswith(said) if lost else not capsys.readouterr().err
    assert metrics.read_text() == {"none": "".join(rows), "gone": "", "torn": "".join(rows[:2])}[damage]


def test_rows_of_a_run_that_starts_anew_are_noted(tmp_path, capsys):
    metrics = tmp_path / "metrics.jsonl"
    for rows, note in (
        ("", ""),
        (
            '{"kind": "train", "step": 4}\n',
            f"note: there is no checkpoint: training starts anew, and so does {metrics}\n",
        ),
    ):
        metrics.write_text(rows)
        with open_writer(tmp_path, start=0):
            pass
        assert capsys.readouterr().err == note
        assert metrics.read_text() == ""


@pytest.mark.parametrize("row", [b"\xff\xfe{}", b"[" * 100_000, b"5", b'{"step": "1"}', b"{}"])
def test_what_is_no_row_of_metrics_is_named_by_its_line(tmp_path, row):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "train", "step": 1}\n' + row + b"\n")
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
