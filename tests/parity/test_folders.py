"""Folders of class folders as torchvision reads them."""

import pathlib

import pytest

from eca_jax.data.sources import open_source

torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.parity


def test_the_images_are_torchvision_s_in_its_order(tmp_path):
    names = ["b/2.jpg", "b/10.JPEG", "b/a/x.png", "b/a-/y.png", "b/a/deep/er/z.webp", "b/z.tiff", "B/1.bmp", "B/é.ppm"]
    names += ["B/Thumbs.db", "B/notes.txt", "B/only/1.pgm", "stray.png", "10/x.tif", "10/README"]
    for name in names:
        file = tmp_path / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.jpg").write_text("b")
    (tmp_path / "train" / "b" / "link").symlink_to(tmp_path / "elsewhere")
    theirs = torchvision.datasets.ImageFolder(str(tmp_path / "train"))
    ours = open_source(f"folder:{tmp_path}", "train")
    assert list(ours.class_names) == theirs.classes
    assert list(ours) == [(pathlib.Path(file).read_bytes(), label) for file, label in theirs.samples]
    assert len(ours) == 11
