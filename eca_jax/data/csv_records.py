"""Data sets that are tables: `csv:/path`, with a row `path,label` or `path,label;label` for each image.

    path,label
    images/1.jpg,beach;dog
    images/2.jpg,

The path of `csv:` is a file, whose one split is called 'train' ('train[:90%]' and 'train[90%:]' make a training and a
held-out set), or a directory with a file for each split, `train.csv` and `val.csv`. Paths of images are relative to the
file; labels are separated by semicolons, and an image may have none. The first row is the heading; the two columns
are found by their names, and others are not looked at.
"""

import csv
import dataclasses
import hashlib
import io
import pathlib
import stat

from eca_jax.data.records import Label, Source, digest_of_files, path_in_name
from eca_jax.data.splits import check_split, held_out, select, split_names
from eca_jax.errors import EcaJaxError, printable

PREFIX = "csv:"
HEADING = ["path", "label"]
FILE_SPLIT = "train"
"""What all rows of a table that is a data set by itself are called, whatever its file is."""


@dataclasses.dataclass(frozen=True)
class CsvRecords:
    """The images that a table lists."""

    root: pathlib.Path
    files: tuple[pathlib.Path, ...]
    labels: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        return self.files[index].read_bytes(), self.labels[index]

    def fingerprint(self) -> str:
        return digest_of_files(self.root, self.files, self.labels)


def open_csv(name: str, split: str | None, data_dir: str | None = None) -> Source:
    """A split of the table. It is multi-label where some row of some split does not have exactly one label.

    With no split it is the held-out one of a directory, and all of a file.

    The order mixes the rows of a file and depends on the paths in it alone.

    Raises:
      EcaJaxError: no such file or split, or a row that is not as it should be, with its number.
    """
    root, tables = _tables(name)
    if split is None:
        split = held_out(name, list(tables)) if root.is_dir() else FILE_SPLIT
    check_split(name, split, sorted(tables))
    rows = {s: _read(path) for s, path in tables.items()}
    class_names = sorted({label for table in rows.values() for _, labels in table for label in labels})
    if not class_names and any(rows.values()):
        raise EcaJaxError(f"data set {name!r}: no image has a label; expected rows such as 'images/1.jpg,dog'")
    numbers = {label: number for number, label in enumerate(class_names)}
    multi_label = any(len(labels) != 1 for table in rows.values() for _, labels in table)

    def encode(labels: tuple[str, ...]) -> Label:
        found = tuple(sorted(numbers[label] for label in labels))
        return found if multi_label else found[0]

    wanted = {s: rows[s] for s in split_names(split)}
    chosen, parts = select(name, split, wanted)
    files, labels = zip(*chosen, strict=True)
    records = CsvRecords(root if root.is_dir() else root.parent, files, tuple(map(encode, labels)))
    return Source(name, split, records, tuple(class_names), multi_label, parts=parts)


def csv_splits(name: str) -> list[str]:
    """The names of the tables."""
    return list(_tables(name)[1])


def _tables(name: str) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """(the path that the data set's name has, the table of each split)."""
    root = path_in_name(name)
    tables = {path.stem: path for path in sorted(root.glob("*.csv"))} if root.is_dir() else {FILE_SPLIT: root}
    if odd := [path for path in tables.values() if path.exists() and not path.is_file()]:
        raise EcaJaxError(f"data.name: {name!r}: {odd[0]} is no regular file; expected a table")
    if not tables or not all(path.is_file() for path in tables.values()):
        raise EcaJaxError(f"data.name: {name!r}: there is no table {root if root.suffix else root / 'train.csv'}")
    return root, tables


def _read(path: pathlib.Path) -> list[tuple[pathlib.Path, tuple[str, ...]]]:
    """The rows of a table: (image file, labels). Blank lines at the end are ignored."""
    found = {}
    table = csv.reader(io.StringIO(_text(path).rstrip("\r\n"), newline=""), strict=True)
    try:
        if not {*HEADING} <= {*(heading := next(table, []))}:
            raise EcaJaxError(
                f"{path}, line 1: expected the heading 'path,label', got {','.join(heading)!r} "
                "(it is in small letters, with a comma and no spaces)"
            )
        for row in table:
            where, fields = f"{path}, line {table.line_num}", dict(zip(heading, row, strict=False))
            if len(row) != len(heading) or not fields["path"]:
                expected = f"{','.join(heading)} or, of several labels, label;label"
                raise EcaJaxError(f"{where}: expected {expected}, got {','.join(row)!r}")
            if (name := fields["path"]) in found:
                raise EcaJaxError(f"{where}: {printable(name)} is there twice; give all its labels in one row")
            _check_image(where, path.parent / name)
            found[name] = tuple(dict.fromkeys(label.strip() for label in fields["label"].split(";") if label.strip()))
    except csv.Error as error:
        raise EcaJaxError(f"{path}, line {table.line_num}: {error}") from error
    order = sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [(path.parent / name, found[name]) for name in order]


def _text(path: pathlib.Path) -> str:
    """What is in the table, without the byte-order mark that Excel puts first."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EcaJaxError(f"cannot read the table {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EcaJaxError(f"{path} is no table in UTF-8 (line {line}: {error.reason}): save it as CSV UTF-8") from error


def _check_image(where: str, file: pathlib.Path) -> None:
    """Refuses a row whose file is not there: no file, no regular one, or one that cannot be asked for."""
    try:
        if stat.S_ISREG(file.stat().st_mode):
            return
        why = "{} is no regular file; expected an image"
    except (FileNotFoundError, NotADirectoryError):
        why = "there is no file {}"
    except (OSError, ValueError) as error:  # too long, not permitted; with a null character
        why = f"cannot open {{}}: {getattr(error, 'strerror', None) or error}"
    raise EcaJaxError(f"{where}: {why.format(printable(str(file))[:300])}")
