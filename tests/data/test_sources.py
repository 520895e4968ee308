"""Data sets by name: what is read is what was written, and what cannot be read is refused with the way out."""

import dataclasses
import errno
import io
import os
import pathlib
import socket
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from eca_jax.cli import main
from eca_jax.config import Config, DataConfig
from eca_jax.data import sources
from eca_jax.data.digits import png
from eca_jax.data.records import SOURCES, Source
from eca_jax.data.sources import declared_size, known_splits, open_source
from eca_jax.errors import EcaJaxError
from eca_jax.training.start import open_sources
from tests.damage import refusal
from tests.datasets import prepare_like
from tests.tiny import brought_from_outside


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_digits_are_scikit_learn_s():
    digits = load_digits()
    seen = []
    for split, held_out in (("train", False), ("test", True)):
        source = open_source("digits", split)
        expected = {
            (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
            for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True))
            if (i % 5 == 0) == held_out
        }
        seen.append({(pixels(data).tobytes(), label) for data, label in source})
        assert seen[-1] == expected
        assert source.class_names == tuple("0123456789")
    assert len(open_source("digits", "train")) + len(open_source("digits", "test")) == 1797
    assert not seen[0] & seen[1]


def test_no_tensorflow():
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("imagenet2012", "validation"),
        ("imagenette", "validation"),
        ("cifar10", "test"),
        ("fashion_mnist", "test"),
        ("mnist", "test"),
    ],
)
def test_a_prepared_tfds_data_set_is_read_by_its_name(tmp_path, name, held_out):
    prepare_like(name, tmp_path, {"train": 30, held_out: 10})
    source = open_source(name, "train[:50%]", str(tmp_path))
    assert len(source) == 15
    assert len(source.class_names) == (1000 if name == "imagenet2012" else 10)
    values = {int(pixels(data).flat[0]): label for data, label in open_source(name, "train", str(tmp_path))}
    assert values == {i: i % len(source.class_names) for i in range(30)}
    with pytest.raises(EcaJaxError, match=rf"unknown split 'val' in 'val'.*{held_out}"):
        open_source(name, "val", str(tmp_path))
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["imagenet2012", "imagenette", "cifar10", "fashion_mnist", "mnist"])
def test_a_data_set_that_is_not_prepared_is_answered_with_the_command(tmp_path, name):
    with pytest.raises(EcaJaxError, match=rf"{name}' is not prepared in .*`eca-jax prepare {name}`"):
        open_source(name, "train", str(tmp_path))
    assert "tensorflow" not in sys.modules


def test_tfrecord_is_answered_with_the_command_that_converts_it(tmp_path):
    prepare_like("mnist", tmp_path, {"train": 3})
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(EcaJaxError, match=rf"as tfrecord.*`eca-jax prepare mnist --data-dir {tmp_path} --convert-to "):
        open_source("mnist", "train", str(tmp_path))


def test_an_unknown_data_set_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(EcaJaxError, match=r"unknown data set 'imagenet2021'. Did you mean imagenet2012"):
        open_source("imagenet2021", "train", str(tmp_path))


def two_pictures(directory, monkeypatch, **features) -> str:
    """A TFDS data set of six examples that does not say which features are to be learned; returns its name."""
    f = tfds.features
    every = {
        "photo": f.Image(shape=(None, None, 3), encoding_format="png"),
        "drawing": f.Image(shape=(None, None, 3), encoding_format="png"),
        "kind": f.ClassLabel(names=["a", "b"]),
        "place": f.ClassLabel(names=["x", "y", "z"]),
        "places": f.Sequence(f.ClassLabel(names=["x", "y", "z"])),
        "title": f.Text(),
    }

    class TwoPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict({key: every[key] for key in features}))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                example = {"photo": png(np.full((4, 4, 3), i)), "drawing": png(np.full((4, 4, 3), 100 + i))}
                example |= {"kind": i % 2, "place": i % 3, "places": [i % 3], "title": f"number {i}"}
                yield i, {key: example[key] for key in features}

    builder = TwoPictures(data_dir=str(directory), file_format="array_record")
    builder.download_and_prepare()
    monkeypatch.setattr(sources, "tfds_builder", lambda name, data_dir: builder)
    return "two_pictures"


def seen(source) -> list[tuple[int, object]]:
    return sorted((int(pixels(data).flat[0]), label) for data, label in source)


def test_a_data_set_with_one_image_and_one_label_need_not_say_so(tmp_path, monkeypatch):
    name = two_pictures(tmp_path, monkeypatch, photo=1, kind=1, title=1)
    source = open_source(name, "train")
    assert source.class_names == ("a", "b")
    assert seen(source) == [(i, i % 2) for i in range(6)]
    assert declared_size(DataConfig(name)) == (2, 6)


def test_of_several_images_and_labels_one_is_chosen_by_its_key(tmp_path, monkeypatch):
    name = two_pictures(tmp_path, monkeypatch, photo=1, drawing=1, kind=1, place=1, places=1, title=1)
    assert refusal(open_source, name, "train") == (
        "data set 'two_pictures' has several images; say which: data.image_key (of eca-jax evaluate and check: "
        "--image-key), one of drawing, photo"
    )
    message = refusal(open_source, name, "train", None, ("photo", None))
    assert "has several labels; say which: data.label_key" in message
    assert message.endswith("one of kind, place, places")
    assert seen(open_source(name, "train", None, ("drawing", "kind"))) == [(100 + i, i % 2) for i in range(6)]
    assert seen(open_source(name, "train", None, ("photo", "places"))) == [(i, (i % 3,)) for i in range(6)]
    assert "data.image_key: data set 'two_pictures' has no image 'foto'. Did you mean photo?" in refusal(
        open_source, name, "train", None, ("foto", "kind")
    )
    data = DataConfig(name, image_key="photo", label_key="place", train_split="train[:4]", eval_split="train[4:]")
    assert declared_size(data) == (3, 4)
    assert [len(source) for source in open_sources(Config(data=data, batch_size=2))[1:]] == [4, 2]
    assert main(["check", name, "--split", "train", "--image-key", "photo", "--label-key", "place"]) == 0
    assert "tensorflow" not in sys.modules
    assert "are of TFDS data sets, not of 'csv:x'" in refusal(open_source, "csv:x", "train", None, ("photo", None))


def test_a_data_set_without_classes_is_refused_in_one_line(tmp_path, monkeypatch):
    name = two_pictures(tmp_path, monkeypatch, photo=1, title=1)
    assert refusal(open_source, name, "train").endswith("classification: its features are photo (Image), title (Text)")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("{here}/photos", "Did you mean folder:{here}/photos?"),
        ("my photos", "Did you mean 'folder:my photos'?"),
        ("photos", "Did you mean folder:photos?"),
        ("./photos/", "Did you mean folder:./photos/?"),
        ("{here}/table.csv", "Did you mean csv:{here}/table.csv?"),
        ("", "Expected digits, a name of TFDS such as cifar10, folder:/path or csv:/path."),
        ("no photos", "Expected digits, a name of TFDS such as cifar10, folder:/path or csv:/path."),
        ("{here}/nowhere", "(There is no directory {here}/nowhere.)"),
        ("x" * 5000, "Or folder:/path."),
    ],
)
def test_a_path_where_a_name_goes_is_answered_with_what_is_there(tmp_path, monkeypatch, name, answer):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "my photos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "table.csv").write_text("path,label\n")
    name, answer = (text.format(here=tmp_path) for text in (name, answer))
    message = refusal(open_source, name, "train", str(tmp_path))
    assert message.startswith(f"data.name: unknown data set {name!r}.")
    assert message.endswith(answer)


@pytest.mark.parametrize("name", ["mnist/nope", "mnist:9.9.9", "mnist/x=3"])
def test_a_configuration_or_version_that_tfds_has_not_is_refused_in_one_line(tmp_path, name):
    assert refusal(open_source, name, "train", str(tmp_path)).startswith(f"data.name: {name!r}: Failed to construct")


def make_folder(root, splits=("train", "val"), classes=("cat", "dog"), n=5):
    for split in splits:
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                (root / split / name / f"{i}.png").write_bytes(png(np.full((4, 4), 10 * label + i)))
    return root


def test_folder_with_splits(tmp_path):
    make_folder(tmp_path)
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.class_names == ("cat", "dog")
    assert [(int(pixels(data)[0, 0]), label) for data, label in source] == [
        (10 * label + i, label) for label in range(2) for i in range(5)
    ]
    assert len(open_source(f"folder:{tmp_path}", "train[:20%]+val")) == 12
    assert open_source(f"folder:{tmp_path}", None).split == "val"
    with pytest.raises(EcaJaxError, match=r"has no split validation or test or val; say which: cat, dog"):
        open_source(f"folder:{tmp_path / 'val'}", None)
    with pytest.raises(EcaJaxError, match=r"unknown split 'vall' in 'vall'. Did you mean val"):
        open_source(f"folder:{tmp_path}", "vall")


def test_folder_of_classes_is_cut_into_disjoint_mixed_parts(tmp_path):
    root = make_folder(tmp_path, splits=("",), n=50)
    first, second = (open_source(f"folder:{root}", split) for split in ("train[:80%]", "train[80%:]"))
    parts = [{(data, label) for data, label in source} for source in (first, second)]
    assert len(first) == 80
    assert len(second) == 20
    assert len(parts[0] | parts[1]) == 100
    assert {label for _, label in parts[1]} == {0, 1}


def test_splits_are_not_taken_for_classes(tmp_path):
    make_folder(tmp_path, splits=("training", "val"))
    with pytest.raises(EcaJaxError, match="training looks like a split, with images in folders of its own"):
        open_source(f"folder:{tmp_path}", "train")


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(EcaJaxError, match="nowhere is not a directory"):
        open_source(f"folder:{tmp_path}/nowhere", "train")
    make_folder(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(EcaJaxError, match="empty has no images: fill it or remove it"):
        open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "train" / "empty" / "notes.txt").write_text("x")
    with pytest.raises(EcaJaxError, match=r"empty has no images \(notes.txt: without an image's ending\)"):
        open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "bare").mkdir()
    with pytest.raises(EcaJaxError, match="bare has no class folders"):
        open_source(f"folder:{tmp_path}", "bare")


def test_a_folder_is_read_whatever_lies_beside_its_images(tmp_path, capsys):
    """Folders in class folders are a part of these; what is no image is left out, and named once."""
    root = make_folder(tmp_path / "images", splits=("train",))
    expected = list(open_source(f"folder:{root}", "train"))
    assert capsys.readouterr().err == ""
    train = root / "train"
    (train / "cat" / "more" / "still").mkdir(parents=True)
    (train / "cat" / "more" / "still" / "X.JPEG").write_bytes(b"last of the cats")
    (train / "dog" / "again").symlink_to(train / "dog")
    (train / "dog" / "nothing.jpg").symlink_to(root / "nothing.jpg")
    (train / "dog" / "Thumbs.db").write_bytes(b"")
    (train / ".git").mkdir()
    for file in (train / "stray.png", train / "cat" / ".DS_Store", train / "cat" / "._0.png", train / "cat" / "b.txt"):
        file.write_bytes(b"")
    os.mkfifo(train / "cat" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(train / "dog", os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/socket.jpg")  # a socket's path may have 108 characters
        os.close(folder)
        source = open_source(f"folder:{root}", "train")
    assert list(source) == [*expected[:5], (b"last of the cats", 0), *expected[5:]]
    open_source(f"folder:{root}", "train[:3]")
    assert capsys.readouterr().err == (
        f"note: {train}: left out 10: 3 hidden (.git, …), 1 in no class folder (stray.png), "
        "2 without an image's ending (cat/b.txt, …), 3 no regular file (cat/pipe.jpg, …), "
        "1 a link to a folder that it is in (dog/again)\n"
    )


def test_names_need_not_be_utf_8(tmp_path):
    root = make_folder(tmp_path, splits=("",), classes=("cat",))
    os.mkdir(os.fsencode(root) + b"/caf\xe9")
    (root / os.fsdecode(b"caf\xe9/\xff.png")).write_bytes(png(np.zeros((4, 4))))
    source = open_source(f"folder:{root}", "train")
    assert sorted(label for _, label in source) == [0] + [1] * 5
    (index,) = (i for i in range(len(source)) if source[i][1] == 0)
    assert r"caf\udce9/\udcff.png of " in source.describe(index)


def test_a_link_to_itself_is_left_out_as_one_to_nothing_is(tmp_path):
    root = make_folder(tmp_path)
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    source = open_source(f"folder:{root}", "train")
    assert len(source) == 10
    assert source.records.left_out == ((root / "train" / "cat" / "loop.png", "no regular file"),)


def test_what_may_not_be_read_is_named_with_what_to_do(tmp_path, monkeypatch):
    root = make_folder(tmp_path)
    scandir = os.scandir

    def refused(path):  # as to whoever is not root
        if pathlib.Path(path) == root / "train" / "dog":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    message = refusal(open_source, f"folder:{root}", "train")
    assert message.startswith(f"{root}/train/dog may not be read by this user: grant it (chmod a+rX), or move it out")


@pytest.mark.parametrize("prefix", ["folder", "csv"])
@pytest.mark.parametrize(
    ("path", "message"),
    [("", "has no path; expected {}:/path"), ("~no_such_user/x", "~no_such_user is no user's home directory")],
)
def test_a_path_in_a_name_is_one(prefix, path, message):
    for call in (known_splits, lambda name: open_source(name, "train")):
        assert message.format(prefix) in refusal(call, f"{prefix}:{path}")


def test_classes_are_not_offered_as_splits(tmp_path):
    root = make_folder(tmp_path, splits=("",), classes=("a", "vat"))
    assert refusal(open_source, f"folder:{root}", "val").endswith("unknown split 'val' in 'val'. Known: train.")


def test_macos_s_folder_beside_the_classes_is_left_out(tmp_path):
    root = make_folder(tmp_path, splits=("",))
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._0.png").write_bytes(b"")
    assert open_source(f"folder:{root}", "train").class_names == ("cat", "dog")


def test_what_is_left_out_is_said_in_one_line(tmp_path, capsys):
    root = make_folder(tmp_path)
    (root / "train" / "cat" / "two\nlines.txt").write_bytes(b"")
    (root / "train" / "cat" / "two\nlines.png").write_bytes(b"")
    source = open_source(f"folder:{root}", "train")
    assert r"two\nlines.png of " in source.describe(5)
    assert capsys.readouterr().err.splitlines() == [
        rf"note: {root}/train: left out 1: 1 without an image's ending (cat/two\nlines.txt)"
    ]


def tables(tmp_path, root):
    """The images of a folder as a table."""
    files = sorted(root.glob("train/*/*.png"))
    rows = "".join(f"{file},{file.parent.name}\n" for file in files)
    (tmp_path / "table.csv").write_text("path,label\n" + rows)
    return f"csv:{tmp_path / 'table.csv'}"


def test_a_table_as_excel_writes_it_is_read(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\na.png,x\r\nb.png,\xc3\xa9\r\n\r\n")
    source = open_source(f"csv:{tmp_path / 't.csv'}", "train")
    assert sorted((data, source.class_names[label]) for data, label in source) == [(b"a", "x"), (b"b", "é")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"Path,Label\na.png,x\n", "line 1: expected the heading 'path,label', got 'Path,Label' (it is in small"),
        (b"path,label\n\na.png,\xe9\n", "t.csv is no table in UTF-8 (line 3: invalid continuation byte): save it as"),
        (b"path,label\n" + b"x" * 300 + b",x\n", "t.csv, line 2: cannot open {here}/xxx"),
        (b"path,label\na\0b.png,x\n", r"t.csv, line 2: cannot open {here}/a\x00b.png: "),
        (b'path,label\n"a\nb.png",x\n', r"t.csv, line 3: there is no file {here}/a\nb.png"),
        (b"path,label\npipe.png,x\n", "t.csv, line 2: {here}/pipe.png is no regular file; expected an image"),
        (b"path,label\na.png,\n", "no image has a label; expected rows such as 'images/1.jpg,dog'"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_with_its_line(tmp_path, table, message):
    (tmp_path / "a.png").write_bytes(b"a")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "t.csv").write_bytes(table)
    assert message.format(here=tmp_path) in refusal(open_source, f"csv:{tmp_path / 't.csv'}", "train")


def test_a_table_may_name_images_that_lie_elsewhere(tmp_path):
    for folder in ("tables", "images"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(np.full((2, 2), i)))
    table = tmp_path / "tables" / "train.csv"
    for start in (tmp_path / "images", pathlib.Path("../images")):
        table.write_text(f"path,label\n{start}/0.png,a\n{start}/1.png,b\n")
        source = open_source(f"csv:{table}", "train")
        assert sorted(source.path(i) for i in range(2)) == [f"{start}/0.png", f"{start}/1.png"]
        before = source.fingerprint()
        (tmp_path / "images" / "1.png").write_bytes(png(np.full((3, 2), 1)))
        assert source.fingerprint() != before
        (tmp_path / "images" / "1.png").write_bytes(png(np.full((2, 2), 1)))


def test_a_table_is_a_regular_file(tmp_path, monkeypatch):
    assert "/dev/null is no regular file; expected a table" in refusal(open_source, "csv:/dev/null", "train")
    (tmp_path / "t.csv").write_bytes(b"")

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "read_bytes", refused)
    message = refusal(open_source, f"csv:{tmp_path / 't.csv'}", "train")
    assert message == f"cannot read the table {tmp_path / 't.csv'}: Permission denied"


@pytest.fixture(params=["digits", "tfds", "folder", "csv"])
def with_train(request, tmp_path) -> DataConfig:
    """A data set that has a split 'train'."""
    if request.param == "digits":
        return DataConfig("digits")
    if request.param == "tfds":
        prepare_like("mnist", tmp_path, {"train": 30, "test": 10})
        return DataConfig("mnist", str(tmp_path))
    root = make_folder(tmp_path / "images", n=10)
    return DataConfig(f"folder:{root}" if request.param == "folder" else tables(tmp_path, root))


@pytest.mark.parametrize(
    ("train_split", "eval_split"),
    [("train", "train"), ("train[:95%]", "train[90%:]"), ("train[5:9]", "train[:2]+train[8:]")],
)
def test_held_out_examples_that_are_trained_on_are_refused(with_train, train_split, eval_split):
    data = dataclasses.replace(with_train, train_split=train_split, eval_split=eval_split)
    message = refusal(open_sources, Config(data=data, batch_size=2))
    train, held_out = (set(open_source(data.name, split, data.data_dir)) for split in (train_split, eval_split))
    count = f": {len(train & held_out)} of the {len(held_out)} examples of data.eval_split {eval_split!r} are in data."
    assert count in message
    assert "give parts that share none, such as 'train[:90%]' and 'train[90%:]'" in message


def test_splits_that_touch_are_not_refused(with_train):
    data = dataclasses.replace(with_train, train_split="train[:90%]", eval_split="train[90%:]")
    _, train, held_out = open_sources(Config(data=data, batch_size=2))
    assert len(train) + len(held_out) == len(open_source(data.name, "train", data.data_dir))


def test_of_a_plugin_s_data_the_same_split_is_refused():
    class Numbers(list):
        pass

    with brought_from_outside():
        SOURCES.register("numbers", lambda name, split, _: Source(name, split, Numbers([(b"", 0)] * 4), ("a", "b")))
        data = DataConfig("numbers:4", train_split="a", eval_split="a")
        assert "4 of the 4 examples" in refusal(open_sources, Config(data=data, batch_size=2))
        open_sources(Config(data=dataclasses.replace(data, eval_split="b"), batch_size=2))
