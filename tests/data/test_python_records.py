"""Examples given in Python: what may be given, what becomes of it, what is refused, by what they are known."""

import io

import numpy as np
import pytest
from PIL import Image

from eca_jax.data.loader import eval_batches, train_batches
from eca_jax.data.preprocess import PreprocessConfig, decode
from eca_jax.data.python_records import SAMPLE, as_ppm, encoded, python_source
from eca_jax.data.records import Source
from eca_jax.data.transform import Transformed
from eca_jax.errors import EcaJaxError
from eca_jax.sharding import batch_sharding, make_mesh
from eca_jax.tasks import Classification, MultiLabel

TASK = Classification(PreprocessConfig(16, eval_resize=18, randaugment=7.0))


def png(image: np.ndarray | Image.Image) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, "PNG")
    return file.getvalue()


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def images(rng: np.random.Generator, number: int, *, grey: bool = False) -> list[np.ndarray]:
    """Of different sizes."""
    sizes = rng.integers(17, 40, (number, 2))
    return [rng.integers(0, 256, (h, w) if grey else (h, w, 3), np.uint8) for h, w in sizes]


def batches(source: Source, task=TASK, epochs: int = 2, **fields) -> list[dict]:
    """Of training and evaluation."""
    common = {"batch_size": 8, "sharding": batch_sharding(make_mesh(), 8), "num_threads": 2}
    steps = range(epochs * len(source) // 8)
    trained = train_batches(source, task, seed=3, steps=steps, **common, **fields)
    return [*trained, *eval_batches(source, task, **common)]


def assert_same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(a[name], b[name])


def refusal(*args, **fields) -> str:
    with pytest.raises(EcaJaxError) as caught:
        python_source(*args, **fields)
    return str(caught.value)


class Rows:
    """A data set of somebody's own: a length and rows by number, which is not a list."""

    def __init__(self, rows: list):
        self.rows, self.read = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        assert type(index) is int  # Hugging Face's data sets take no other
        self.read.append(index)
        return self.rows[index]


@pytest.mark.parametrize("grey", [False, True])
def test_arrays_give_the_batches_of_png_files_with_the_same_pixels(rng, grey):
    found, labels = images(rng, 12, grey=grey), [int(n) for n in rng.integers(0, 3, 12)]
    files = python_source([(png(image), n) for image, n in zip(found, labels, strict=True)], "train")
    arrays = list(zip(found, np.asarray(labels), strict=True))
    assert_same(batches(python_source(arrays, "train")), batches(files))


FORMS = {
    "channel of one": lambda image: image[:, :, None],
    "by columns": np.asfortranarray,
    "bytearray": lambda image: bytearray(png(image)),
    "memoryview": lambda image: memoryview(png(image)),
    "PIL": Image.fromarray,
    "PIL with a palette": lambda image: Image.fromarray(image).convert("P"),
    "Hugging Face, undecoded": lambda image: {"bytes": png(image), "path": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_an_image(rng, form):
    image = rng.integers(0, 256, (5, 7), np.uint8)
    expected = np.repeat(image[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(encoded(FORMS[form](image))), expected)


def test_an_image_by_its_path_and_a_view_that_is_not_in_one_piece(rng, tmp_path):
    image = rng.integers(0, 256, (5, 7, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png(image))
    np.testing.assert_array_equal(decode(encoded({"bytes": None, "path": str(tmp_path / "a.png")})), image)
    np.testing.assert_array_equal(decode(as_ppm(image[::-1, ::2])), image[::-1, ::2])


def test_rows_with_names_are_read_by_their_keys(rng):
    """As Hugging Face's `datasets` gives them."""
    found = images(rng, 9)
    tuples = python_source([(image, n % 2) for n, image in enumerate(found)], "train")
    named = [{"image": Image.fromarray(image), "label": n % 2, "id": n} for n, image in enumerate(found)]
    assert_same(batches(python_source(Rows(named), "train")), batches(tuples))
    other = [{"img": row["image"], "fine_label": row["label"]} for row in named]
    assert_same(batches(python_source(Rows(other), "train", keys=("img", "fine_label"))), batches(tuples))
    message = refusal(Rows(other), "train", ["a", "b"])
    assert message == (
        "train[0]: it has no 'image', but 'img', 'fine_label'; say which of them are the image and the label: "
        "data.image_key and data.label_key of the configuration"
    )


def test_classes_are_numbered_where_they_have_no_names(rng):
    rows = [(image, np.int64(n)) for image, n in zip(images(rng, 3), (4, 0, 2), strict=True)]
    source = python_source(rows, "train")
    assert source.class_names == ("0", "1", "2", "3", "4")
    assert [label for _, label in source] == [4, 0, 2]
    assert python_source(rows, "train", np.array(list("abcde"))).class_names == ("a", "b", "c", "d", "e")


def test_images_with_several_labels_or_none(rng):
    rows = [(image, label) for image, label in zip(images(rng, 3), ([0, 2], np.array([1]), ()), strict=True)]
    source = python_source(rows, "train")
    assert (source.multi_label, len(source.class_names)) == (True, 3)
    (batch,) = eval_batches(
        source, MultiLabel(TASK.preprocess), batch_size=8, sharding=batch_sharding(make_mesh(), 8), num_threads=1
    )
    expected = np.zeros((8, 3), bool)
    expected[0, [0, 2]] = expected[1, 1] = True
    np.testing.assert_array_equal(batch["label"], expected)


IMAGE = np.zeros((4, 4, 3), np.uint8)
WRONG = {
    "float": ((IMAGE / 255, 0), "image: expected uint8 (h, w, 3) or (h, w), got float64 (4, 4, 3); of values from 0"),
    "int64": ((IMAGE.astype(int), 0), "image: expected uint8 (h, w, 3) or (h, w), got int64 (4, 4, 3)"),
    "channels first": ((IMAGE.transpose(2, 0, 1), 0), "image: expected uint8 (h, w, 3) or (h, w), got uint8 (3, 4, 4)"),
    "four channels": ((np.zeros((4, 4, 4), np.uint8), 0), "got uint8 (4, 4, 4)"),
    "no pixels": ((IMAGE[:0], 0), "got uint8 (0, 4, 3)"),
    "a path": (("a.png", 0), "image: expected uint8 (h, w, 3) or (h, w), got <U5 ()"),
    "16 bits": ((Image.fromarray(np.zeros((4, 4), np.uint16)), 0), "its pixels have more than 8 bits (mode I;16)"),
    "too large": ((IMAGE, 3), "label 3: expected the number of a class, 0 to 1"),
    "negative": ((IMAGE, -1), "label -1: expected the number of a class, 0 to 1"),
    "a name": ((IMAGE, "cat"), "label 'cat': expected the number of a class (0, 1, ...), or a sequence of all"),
    "a float": ((IMAGE, 1.0), "label 1.0: expected the number of a class"),
    "a bool": ((IMAGE, True), "label True: expected the number of a class"),
    "bools": ((IMAGE, np.array([True, False])), "label array([ True, False]): expected the number of a class"),
    "twice": ((IMAGE, [0, 1, 1]), "label (0, 1, 1): it names a class twice; of a 0 or 1 for each class"),
    "several": ((IMAGE, [0, 1]), "label (0, 1): expected one whole number, as in the first row"),
    "no pair": ((IMAGE, 0, 1), "expected (image, label), got a tuple"),
    "alone": (IMAGE, "expected (image, label), got a ndarray; of two arrays give list(zip(images, labels))"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_row_that_is_not_as_it_should_be_is_named(what):
    row, message = WRONG[what]
    rows = [(IMAGE, 0), (IMAGE, 1), row]
    assert refusal(rows, "held_out", ["a", "b"]).startswith("held_out[2]: ")
    assert message in refusal(rows, "held_out", ["a", "b"])


def test_what_is_no_data(rng):
    assert "train: expected examples with a length" in refusal(iter([(IMAGE, 0)]), "train")
    assert "got a generator" in refusal((row for row in [(IMAGE, 0)]), "train")
    assert refusal([], "train") == "train: there are no examples in it"
    assert "list(zip(images, labels))" in refusal((np.zeros((2, 4, 4, 3), np.uint8), [0, 1]), "train")
    assert refusal([(IMAGE, 0)], "train", "cat") == "class_names: expected a list of names, got 'cat'"
    assert "train[0]: cannot be read: KeyError: 0" in refusal({"train": [(IMAGE, 0)]}, "train")


def test_what_rows_raise_is_the_cause(rng):
    class Broken(Rows):
        def __getitem__(self, index: int):
            return super().__getitem__(index)["nothing"]

    with pytest.raises(EcaJaxError, match=r"train\[0\]: cannot be read: TypeError") as caught:
        python_source(Broken([(IMAGE, 0)]), "train", ["a", "b"])
    assert isinstance(caught.value.__cause__, TypeError)


def test_data_are_known_by_a_sample_of_pixels_and_labels(rng):
    rows = [(image, n % 2) for n, image in enumerate(images(rng, 20))]
    known = python_source(rows, "train").fingerprint()
    files = [(Image.fromarray(image), label) for image, label in rows]
    assert python_source(files, "held_out", ["a", "b"]).fingerprint() == known  # the same pixels
    assert python_source(rows[:19], "train").fingerprint() != known
    assert python_source([*rows[1:], rows[0]], "train").fingerprint() != known
    assert python_source([*rows[:7], (rows[7][0], 0), *rows[8:]], "train").fingerprint() != known
    assert python_source([*rows[:7], (rows[7][0] ^ 1, 1), *rows[8:]], "train").fingerprint() != known


def test_of_large_data_only_a_sample_is_read_where_the_classes_have_names():
    rows = Rows([(IMAGE, 0)] * 5000)
    source = python_source(rows, "train", ["a", "b"])
    assert source.fingerprint() == source.fingerprint()
    assert len(set(rows.read)) == SAMPLE
    assert {0, 4999} < set(rows.read)
    assert len(rows.read) == SAMPLE + 1  # the first says whether there are several labels


def test_a_row_outside_of_the_sample_stops_the_run_or_counts_as_bad(rng):
    rows = Rows([(IMAGE, 0)] * 1000)
    source = python_source(rows, "train", ["a", "b"])
    unread = next(i for i in range(1000) if i not in rows.read)
    rows.rows[unread] = (IMAGE, 2)
    with pytest.raises(
        EcaJaxError, match=rf"cannot read record {unread} of 'python', split 'train': label 2: expected"
    ):
        batches(source, epochs=1)


def negative(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image[:] = 255 - image
    return image


def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, image.shape, np.uint8) // 2 + image // 2


def test_a_transform_sees_decoded_training_images_before_the_augmentation(rng):
    rows = [(jpeg(image), n % 2) for n, image in enumerate(images(rng, 8))]
    changed = [(255 - np.asarray(decode(data)), label) for data, label in rows]
    transformed = batches(python_source(rows, "train"), Transformed(TASK, negative))
    assert_same(transformed[:2], batches(python_source(changed, "train"))[:2])
    assert_same(transformed[2:], batches(python_source(rows, "train"))[2:])  # evaluation


def test_what_a_transform_draws_is_of_seed_epoch_and_example(rng):
    rows = [(image, n % 2) for n, image in enumerate(images(rng, 8))]
    source, task = python_source(rows, "train"), Transformed(TASK, noisy)
    once = batches(source, task)
    assert_same(once, batches(source, task))
    order = [np.argsort(np.asarray(batch["label"]), kind="stable") for batch in once[:2]]
    assert not np.array_equal(once[0]["image"][order[0]], once[1]["image"][order[1]])
    copies = batches(source, task, repeats=2)[0]["image"]
    assert not np.array_equal(copies[:4], copies[4:])


def test_an_image_of_the_size_wanted_passes_through_untouched(rng):
    """So a transform can stand in for the whole augmentation: augment 'none' and no flip."""
    task = Classification(PreprocessConfig(8, eval_resize=8, augment="none", flip=False))
    made = rng.integers(0, 256, (8, 8, 3), np.uint8)
    source = python_source([(image, n % 2) for n, image in enumerate(images(rng, 8))], "train")
    for batch in batches(source, Transformed(task, lambda image, rng: made))[:2]:
        np.testing.assert_array_equal(batch["image"], np.broadcast_to(made, (8, 8, 8, 3)))


class Mine(Exception):
    pass


def test_what_a_transform_raises_comes_out_as_it_is(rng):
    def fails(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        try:
            raise KeyError("inside")
        except KeyError as error:
            raise Mine("no such thing") from error

    source = python_source([(image, n % 2) for n, image in enumerate(images(rng, 8))], "train")
    with pytest.raises(Mine, match="no such thing") as caught:
        batches(source, Transformed(TASK, fails))
    assert isinstance(caught.value.__cause__, KeyError)
    assert any("fails" in str(entry.name) for entry in caught.traceback)
    assert caught.value.__notes__[0].startswith("at record ")


def test_a_transform_that_gives_no_image(rng):
    source = python_source([(image, n % 2) for n, image in enumerate(images(rng, 8))], "train")
    with pytest.raises(EcaJaxError, match=r"the transform's result: expected uint8 \(h, w, 3\), got float64"):
        batches(source, Transformed(TASK, lambda image, rng: image / 255))
    with pytest.raises(EcaJaxError, match="the transform's result: expected uint8"):
        batches(source, Transformed(TASK, lambda image, rng: image[:, :, 0]))
    with pytest.raises(EcaJaxError, match=r"the transform's result: expected uint8 \(h, w, 3\), got object \(\)"):
        batches(source, Transformed(TASK, lambda image, rng: None))
