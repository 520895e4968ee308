"""Examples that are given in Python: whatever has a length and gives (image, label) by number.

A list, `list(zip(images, labels))` of NumPy arrays, a map-style data set of PyTorch or torchvision, a data set of
Hugging Face's `datasets`. To the rest of the package it is a `Source` like any other, whose records are encoded images:
an array is handed on as a PPM file, which is its pixels behind a line of text. So an array and a PNG file with the same
pixels give the same batches.
"""

import contextlib
import dataclasses
import functools
import hashlib
import operator
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from eca_jax.data.preprocess import as_rgb
from eca_jax.data.records import PYTHON, Label, Source, digest
from eca_jax.errors import EcaJaxError
from eca_jax.plugins import describe_fault

KEYS = ("image", "label")
"""What a row that is a mapping calls the two, where `data.image_key` and `data.label_key` do not say."""
SAMPLE = 256
"""As many rows, evenly spaced, are read and checked before a run begins, and the data are known by them."""


class Rows(Protocol):
    """Examples by number: `rows[i]` is (image, label), or a mapping with the two by name, as `datasets` has it.

    The image is uint8 (h, w, 3), (h, w, 1) or (h, w), or the bytes of an image file, or a PIL image, or a mapping with
    the `bytes` or the `path` of a file (what `datasets.Image(decode=False)` gives). The label is the number of a class,
    from 0; of an image that may have several, or none, a sequence of such numbers.

    A row is asked for whenever it is needed, by several threads at once, and has to be the same each time.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class PythonRecords:
    """Rows as encoded images and labels."""

    rows: Rows
    split: str
    keys: tuple[str, str]
    num_classes: int
    multi_label: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        image, label = fields(self.rows, int(index), self.keys)  # NumPy's whole numbers are not everywhere an index
        return encoded(image), self._checked(as_label(label))

    def _checked(self, label: Label) -> Label:
        numbers = label if isinstance(label, tuple) else (label,)
        if isinstance(label, tuple) != self.multi_label:
            expected = "several, in a sequence" if self.multi_label else "one whole number"
            raise EcaJaxError(f"label {label}: expected {expected}, as in the first row")
        if wrong := [number for number in numbers if not 0 <= number < self.num_classes]:
            raise EcaJaxError(f"label {wrong[0]}: expected the number of a class, 0 to {self.num_classes - 1}")
        return label

    def fingerprint(self) -> str:
        """Of the number of rows, and of image and label of `SAMPLE` of them: to read all could take minutes.

        Raises:
          EcaJaxError: names the first of these rows that is not as it should be.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        lines = [f"{len(self)}"]
        for index in map(int, np.unique(np.linspace(0, len(self) - 1, SAMPLE).astype(int))):
            with _names_row(self.split, index):
                image, label = self[index]
            lines.append(f"{index} {hashlib.sha256(image).hexdigest()} {label}")
        return digest(lines)


def python_source(
    rows: Rows,
    split: str,
    class_names: Sequence[str] | None = None,
    keys: tuple[str | None, str | None] = (None, None),
) -> Source:
    """What is given in Python as a split of the data set 'python'. A sample of it is read and checked.

    Args:
      rows: the examples.
      split: what the split is called, also in errors.
      class_names: None reads the labels of all rows, and calls the classes '0', '1', ... up to the largest.
      keys: of the image and the label in rows that are mappings; None is 'image' and 'label'.

    Raises:
      EcaJaxError: it is no such thing, or is empty; or names a row, and what is wrong with it.
    """
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise EcaJaxError(
            f"{split}: expected examples with a length and a number each, such as a list of (image, label) or "
            f"list(zip(images, labels)), got a {type(rows).__name__}"
        )
    if len(rows) == 0:
        raise EcaJaxError(f"{split}: there are no examples in it")
    if isinstance(class_names, str):
        raise EcaJaxError(f"class_names: expected a list of names, got {class_names!r}")
    names = KEYS[0] if keys[0] is None else keys[0], KEYS[1] if keys[1] is None else keys[1]
    classes = _numbered_classes(rows, split, names) if class_names is None else tuple(map(str, class_names))
    with _names_row(split, 0):
        multi_label = isinstance(as_label(fields(rows, 0, names)[1]), tuple)
    records = PythonRecords(rows, split, names, len(classes), multi_label)
    records.fingerprint()
    return Source(PYTHON, split, records, classes, multi_label)


def _numbered_classes(rows: Rows, split: str, keys: tuple[str, str]) -> tuple[str, ...]:
    largest = -1
    for index in range(len(rows)):
        with _names_row(split, index):
            label = as_label(fields(rows, index, keys)[1])
        largest = max(largest, *(label if isinstance(label, tuple) else (label,)), -1)
    return tuple(map(str, range(largest + 1)))


def fields(rows: Rows, index: int, keys: tuple[str, str]) -> tuple[Any, Any]:
    """(image, label) of a row, as they are given."""
    row = rows[index]
    if isinstance(row, Mapping):
        if missing := [key for key in keys if key not in row]:
            raise EcaJaxError(
                f"it has no {missing[0]!r}, but {', '.join(map(repr, row))}; say which of them are the image and the "
                "label: data.image_key and data.label_key of the configuration"
            )
        return row[keys[0]], row[keys[1]]
    if not isinstance(row, tuple | list) or len(row) != 2:
        raise EcaJaxError(
            f"expected (image, label), got a {type(row).__name__}; of two arrays give list(zip(images, labels))"
        )
    return row[0], row[1]


def as_label(given: Any) -> Label:
    """The number of a class, or several of them; also as NumPy's or another library's numbers and arrays."""
    try:
        if np.ndim(given) == 0:
            return _whole(given)
        label = tuple(map(_whole, given))
    except (TypeError, ValueError):
        raise EcaJaxError(
            f"label {given!r:.60}: expected the number of a class (0, 1, ...), or a sequence of all that the image has "
            "(np.flatnonzero(row), of a row with a 0 or 1 for each class)"
        ) from None
    if len(set(label)) < len(label):
        raise EcaJaxError(f"label {label}: it names a class twice; of a 0 or 1 for each class take np.flatnonzero(row)")
    return label


def _whole(number: Any) -> int:
    if isinstance(number, bool | np.bool_):
        raise TypeError("a bool")
    return operator.index(number)


def encoded(image: Any) -> bytes:
    """An image as the bytes of a file with these pixels; bytes as they are. See `Rows` for what there may be."""
    if isinstance(image, Mapping):
        image = image["bytes"] if image.get("bytes") is not None else pathlib.Path(image["path"]).read_bytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    return as_ppm(np.asarray(as_rgb(image) if isinstance(image, Image.Image) else image))


def as_ppm(pixels: np.ndarray) -> bytes:
    """uint8 (h, w, 3), (h, w, 1) or (h, w) -> a PPM file, or PGM of grey pixels, which is not compressed."""
    expect_pixels("image", pixels, channels=(1, 3))
    height, width = pixels.shape[:2]
    kind = 6 if pixels.shape[2:] == (3,) else 5
    return f"P{kind}\n{width} {height}\n255\n".encode() + pixels.tobytes()


def expect_pixels(what: str, pixels: np.ndarray, *, channels: Sequence[int]) -> None:
    """Refuses what is not uint8 (h, w, channels), where one channel may be left out."""
    channel = 1 if pixels.ndim == 2 else pixels.shape[2] if pixels.ndim == 3 else 0
    if pixels.dtype == np.uint8 and channel in channels and pixels.size:
        return
    shapes = "(h, w, 3) or (h, w)" if 1 in channels else "(h, w, 3)"
    hint = "; of values from 0 to 1: np.uint8(np.round(255 * image))" if pixels.dtype.kind == "f" else ""
    raise EcaJaxError(f"{what}: expected uint8 {shapes}, got {pixels.dtype} {pixels.shape}{hint}")


@contextlib.contextmanager
def _names_row(split: str, index: int) -> Iterator[None]:
    """'train[3]: what is wrong'; where the rows themselves cannot be read, with their own error as the cause."""
    try:
        yield
    except EcaJaxError as error:
        raise EcaJaxError(f"{split}[{index}]: {error}") from None
    except Exception as error:  # whatever the user's own rows raise
        raise EcaJaxError(f"{split}[{index}]: cannot be read: {describe_fault(error)}") from error
