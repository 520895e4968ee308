"""A data set as the rest of the package sees it: records by number, and their classes."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from eca_jax.errors import EcaJaxError, printable
from eca_jax.plugins import Registry

Label = int | tuple[int, ...]
"""The label of an image; a tuple of all its labels if images may have several or none."""
PYTHON = "python"
"""The name of data that were given in Python, as objects: a run notes it, and nothing opens them by it."""


class Part(NamedTuple):
    """The records from `start` up to, but not including, `stop` of a named split of a data set."""

    split: str
    start: int
    stop: int


class Records(Protocol):
    """Encoded images and labels by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[bytes, Label]: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set: `source[i]` is (encoded image, label)."""

    name: str
    split: str
    records: Records
    class_names: tuple[str, ...]
    multi_label: bool = False
    """Whether labels are tuples."""
    candidates: tuple[int, ...] | None = None
    """The labels that a prediction may have; None means all."""
    parts: tuple[Part, ...] = ()
    """The records of the split by their numbers in the named splits; empty if the source does not say (plugins)."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        return self.records[index]

    def __iter__(self) -> Iterator[tuple[bytes, Label]]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self) -> str:
        """Identifies the records, but not their place: the same for a folder that was moved, another for other files.

        Of files by their sorted relative paths and sizes, of TFDS by name, version and the sizes of the shards; no file
        is opened. Records of a plugin may have a method `fingerprint`; else their name and number counts.
        """
        own = getattr(self.records, "fingerprint", None)
        return own() if own is not None else digest([f"{self.name} {self.split} {len(self)}"])

    def describe(self, index: int) -> str:
        """The name of a record for an error message."""
        files = getattr(self.records, "files", None)
        where = f"record {index}" if files is None else printable(str(files[index]))
        return f"{where} of {self.name!r}, split {self.split!r}"

    def path(self, index: int) -> str:
        """The file of a record, relative to the data set's directory where it lies in it; '' where it has none."""
        files, root = (getattr(self.records, name, None) for name in ("files", "root"))
        return "" if files is None else _below(root, files[index])


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of the lines, independent of their order."""
    result = hashlib.sha256()
    for line in sorted(lines):
        result.update(line.encode(errors="surrogateescape") + b"\n")
    return result.hexdigest()


def digest_of_files(root: pathlib.Path, files: Sequence[pathlib.Path], labels: Sequence[Label]) -> str:
    """`digest` of the paths of files below `root`, their sizes and labels."""
    lines = zip(files, labels, strict=True)
    return digest(f"{_below(root, file)} {file.stat().st_size} {label}" for file, label in lines)


def _below(root: pathlib.Path | None, file: pathlib.Path) -> str:
    """The path of a file from `root` on, or the whole of it: a table may name files that lie elsewhere."""
    return (file.relative_to(root) if root is not None and file.is_relative_to(root) else file).as_posix()


def path_in_name(name: str) -> pathlib.Path:
    """'folder:~/images' -> the path after the prefix, with the home directory in place of '~'.

    Raises:
      EcaJaxError: there is none, or no such user.
    """
    prefix, _, path = name.partition(":")
    if not path.strip():
        raise EcaJaxError(f"data.name: {name!r} has no path; expected {prefix}:/path")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        user = path.partition("/")[0]
        raise EcaJaxError(f"data.name: {name!r}: {user} is no user's home directory; give the whole path") from error


def check_classes(source: Source, expected: tuple[str, ...], owner: str) -> None:
    """Refuses data with other classes, or in another order, than those on which the owner was trained."""
    if source.class_names != expected:
        raise EcaJaxError(
            f"data set {source.name!r}, split {source.split!r}, has other classes than {owner}: "
            f"{class_difference(expected, source.class_names)}"
        )


def shared_records(train: Source, other: Source) -> int:
    """The number of examples of a split that are also in `train`; copies under another name are not recognised."""
    if not train.parts:
        return len(other) if train.fingerprint() == other.fingerprint() else 0
    shared = sum(
        max(0, min(ours.stop, theirs.stop) - max(ours.start, theirs.start))
        for ours in train.parts
        for theirs in other.parts
        if ours.split == theirs.split
    )
    return min(shared, len(other))


def check_disjoint(train: Source, held_out: Source) -> None:
    """Refuses two splits of a data set that share records; copies under another name are not recognised."""
    if shared := shared_records(train, held_out):
        raise EcaJaxError(
            f"data set {train.name!r}: {shared} of the {len(held_out)} examples of data.eval_split "
            f"{held_out.split!r} are in data.train_split {train.split!r} too, and so are not held out: give parts that "
            f"share none, such as 'train[:90%]' and 'train[90%:]'; `eca-jax evaluate --split {train.split!r}` scores "
            "training images"
        )


def class_difference(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    """Describes how the classes of two data sets differ."""
    missing, new = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if not missing and not new:
        return "they are in another order"
    return "; ".join(
        f"{len(names)} only in the {which}: {', '.join(map(printable, names[:5]))}"
        for which, names in (("first", missing), ("second", new))
        if names
    )


Opener = Callable[[str, str | None, str | None], Source]
"""(name, split, data_dir) -> a split of a data set; the arguments are those of `eca_jax.data.sources.open_source`."""
SOURCES: Registry[Opener] = Registry(
    "data source", {}, lambda name, opener: None if callable(opener) else f"expected a function, got {opener!r}"
)
"""The data sources of plugins: prefix -> the function that opens data sets whose names begin with 'prefix:'."""
