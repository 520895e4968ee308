"""`eca-jax check`: every image is read, and every one that cannot be, or is not as one would expect, is named."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from eca_jax import cli
from tests.datasets import prepare_like


def write(path: pathlib.Path, size: tuple[int, int], kind: str, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, 77).save(path, kind, **options)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Two classes in two splits, all as it should be."""
    for split in ("train", "val"):
        write(tmp_path / split / "cat" / "1.jpg", (20, 30), "JPEG")
        write(tmp_path / split / "cat" / "deeper" / "2.png", (7, 4), "PNG")
        write(tmp_path / split / "dog" / "3.webp", (100, 2), "WEBP")
    return tmp_path


def checked(capsys, *args: str) -> tuple[int, list[str]]:
    status = cli.main(["check", *args])
    return status, capsys.readouterr().out.splitlines()


def test_a_sound_folder(folder, capsys):
    status, lines = checked(capsys, f"folder:{folder}")
    assert status == 0
    assert lines == [
        line
        for split in ("train", "val")
        for line in (
            f"folder:{folder}, split '{split}': 3 of 3 images can be read, 2 classes",
            "        2  cat",
            "        1  dog",
            f"smallest: 7 x 4, {folder}/{split}/cat/deeper/2.png of 'folder:{folder}', split '{split}'",
            f"largest: 20 x 30, {folder}/{split}/cat/1.jpg of 'folder:{folder}', split '{split}'",
        )
    ]


def test_everything_that_is_unreadable_or_odd_is_named(folder, capsys):
    cat = folder / "train" / "cat"
    whole = (cat / "1.jpg").read_bytes()
    (cat / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (cat / "empty.png").write_bytes(b"")
    (cat / "text.gif").write_text("no image")
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(cat / "deep.png")
    os.mkfifo(cat / "pipe.jpg")
    (cat / "Thumbs.db").write_bytes(b"")
    write(cat / "really_png.jpg", (3, 3), "PNG")
    write(cat / "film.gif", (3, 3), "GIF", save_all=True, append_images=[Image.new("RGB", (3, 3), i) for i in (1, 2)])
    status, lines = checked(capsys, f"folder:{folder}", "--split", "train")
    assert status == 1
    assert lines[0].endswith("split 'train': 5 of 9 images can be read, 2 classes")
    expected = {
        "cut.jpg": ("unreadable", "runcated"),
        "empty.png": ("unreadable", "no known image format"),
        "text.gif": ("unreadable", "no known image format"),
        "deep.png": ("unreadable", "more than 8 bits"),
        "pipe.jpg": ("unreadable", "no regular file"),
        "Thumbs.db": ("left out", "without an image's ending"),
        "really_png.jpg": ("odd", "it is PNG, whatever its ending says"),
        "film.gif": ("odd", "it has 3 pictures, of which the first counts"),
    }
    said = [line for line in lines if line.startswith(("unreadable: ", "odd: ", "left out: "))]
    assert len(said) == len(expected)
    for name, (kind, why) in expected.items():
        (line,) = [line for line in said if f"/{name}" in line]
        assert line.startswith(f"{kind}: ")
        assert why in line


def test_classes_that_differ_between_splits_are_said(folder, capsys):
    (folder / "val" / "dog").rename(folder / "val" / "d\nog")
    status, lines = checked(capsys, f"folder:{folder}")
    assert status == 1
    assert lines[-1] == (
        r"classes differ: split 'train' (the first) and 'val' (the second): "
        r"1 only in the first: dog; 1 only in the second: d\nog"
    )
    assert r"        1  d\nog" in lines


def test_a_large_image_is_read_without_a_warning(folder, capsys, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert checked(capsys, f"folder:{folder}")[0] == 0
    assert not [warning for warning in recwarn if warning.category is Image.DecompressionBombWarning]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    status, lines = checked(capsys, f"folder:{folder}", "--split", "train")
    assert status == 1
    assert "600 pixels" in lines[-1]


def test_names_that_are_not_utf_8_are_shown_escaped(tmp_path, capsys):
    write(tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.png"), (2, 2), "PNG")
    (tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xfe.txt")).write_text("")
    status, lines = checked(capsys, f"folder:{tmp_path}")
    assert status == 0
    assert lines[1] == r"        1  caf\udce9"
    assert lines[-1] == rf"left out: {tmp_path}/caf\udce9/\udcfe.txt: without an image's ending"


def test_digits_tfds_data_sets_and_tables(folder, tmp_path, capsys):
    status, lines = checked(capsys, "digits")
    assert status == 0
    assert [line for line in lines if "images" in line] == [
        "digits, split 'train': 1437 of 1437 images can be read, 10 classes",
        "digits, split 'test': 360 of 360 images can be read, 10 classes",
    ]
    prepare_like("mnist", tmp_path / "tfds", {"train": 30, "test": 10})
    capsys.readouterr()
    status, lines = checked(capsys, "mnist", "--split", "test", "--data-dir", str(tmp_path / "tfds"))
    assert status == 0
    assert lines[0] == "mnist, split 'test': 10 of 10 images can be read, 10 classes"
    assert lines[1:11] == [f"        1  {i}" for i in range(10)]
    table = folder / "table.csv"
    table.write_text("path,label\ntrain/cat/1.jpg,a;b\ntrain/dog/3.webp,\n")
    (folder / "train" / "dog" / "3.webp").write_bytes(b"torn")
    status, lines = checked(capsys, f"csv:{table}")
    assert status == 1
    assert lines[:3] == [
        f"csv:{table}, split 'train': 1 of 2 images can be read, 2 classes",
        "        1  a",
        "        1  b",
    ]
    assert cli.main(["check", str(folder)]) == 2
    assert f"Did you mean folder:{folder}?" in capsys.readouterr().err
