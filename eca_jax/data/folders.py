"""Data sets that are directories: `folder:/path`, with a folder of image files for each class.

What torchvision's `ImageFolder` takes is taken, in its order: files below a class folder, at any depth, whose ending is
an image's. Hidden files and folders are left out too, and a name that is not a file's (a pipe, a link to nothing).
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from eca_jax.data.image_files import check_image_file
from eca_jax.data.records import Source, digest_of_files, path_in_name
from eca_jax.data.splits import HELD_OUT, check_split, held_out, select, split_names
from eca_jax.errors import EcaJaxError, printable

PREFIX = "folder:"
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""torchvision's, and GIF."""
LIKE_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""A folder of this name that has images in its folders alone is not taken for a class."""


NO_FILE = "no regular file"
"""A pipe, a socket, a device, or a link to nothing or to itself, with an image's ending.

What opens such a one may wait for ever.
"""


class LeftOut(NamedTuple):
    """What lies in the folder and is no image of a class."""

    path: pathlib.Path
    why: str


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """Of a directory of class folders."""

    root: pathlib.Path
    files: tuple[pathlib.Path, ...]
    labels: tuple[int, ...]
    left_out: tuple[LeftOut, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.files[index].read_bytes(), self.labels[index]

    def fingerprint(self) -> str:
        return digest_of_files(self.root, self.files, self.labels)


@contextlib.contextmanager
def _permitted() -> Iterator[None]:
    """What may not be read is named, with what to do."""
    try:
        yield
    except PermissionError as error:
        raise EcaJaxError(
            f"{error.filename} may not be read by this user: grant it (chmod a+rX), or move it out of the data set"
        ) from error


@_permitted()
def open_folder(name: str, split: str | None, data_dir: str | None = None) -> Source:
    """`/path/SPLIT/CLASS/image.jpg`, or `/path/CLASS/image.jpg` whose one split is called 'train'.

    Without folders of splits the order mixes the classes and depends on the names of the files alone, so that
    'train[:90%]' and 'train[90%:]' make a training and a held-out set. What is left out is named on stderr, once.

    Raises:
      EcaJaxError: no such directory or split, no class folders, a class folder without images or one that may not be
        read.
    """
    root = _root(name)
    folders = {path.name: path for path in _folders(root)}
    split = held_out(name, list(folders)) if split is None else split
    wanted = split_names(split)
    roots = {"train": root} if wanted == {"train"} and "train" not in folders else folders
    classes_only = not LIKE_SPLITS & {folder.lower() for folder in folders}
    check_split(name, split, sorted({"train"} | (wanted & {*roots}) if classes_only else roots))
    if not wanted:
        raise EcaJaxError(
            f"data set {name!r}: cannot read split {split!r}; expected one such as 'train' or 'train[:90%]'"
        )
    found = {s: _scan(roots[s]) for s in sorted(wanted)}
    class_names = {s: tuple(classes) for s, (classes, _) in found.items()}
    names = next(iter(class_names.values()))
    if any(other != names for other in class_names.values()):
        raise EcaJaxError(f"data set {name!r}: the splits of {split!r} have different class folders: {class_names}")

    examples: dict[str, list[tuple[pathlib.Path, int]]] = {}
    for s, (classes, left_out) in found.items():
        _say_once(_note(roots[s], left_out))
        examples[s] = [(file, label) for label, files in enumerate(classes.values()) for file in files]
        if roots[s] == root:
            _check_classes(root, classes)
            examples[s].sort(key=lambda e: _shuffled(e[0].relative_to(root)))
    chosen, parts = select(name, split, examples)
    files, labels = zip(*chosen, strict=True)
    everything = tuple(left for _, left_out in found.values() for left in left_out)
    return Source(name, split, FolderRecords(root, files, labels, everything), names, parts=parts)


def _shuffled(path: pathlib.Path) -> bytes:
    """The place of a file in an order that depends on the names alone; these need not be UTF-8."""
    return hashlib.sha256(path.as_posix().encode(errors="surrogateescape")).digest()


@_permitted()
def folder_splits(name: str) -> list[str]:
    """The splits that the directory has: its folders, where one of them is called as a split is, or 'train' alone."""
    names = [path.name for path in _folders(_root(name))]
    return names if {"train", *HELD_OUT} & {*names} else ["train"]


@_permitted()
def find_images(paths: Sequence[str]) -> list[str]:
    """Image files as they are given, and in place of a directory the files below it that have an image's ending.

    These are sorted as those of a class are. What is left out of a directory is named on stderr, once.

    Raises:
      EcaJaxError: names a file that is not there or is none, or a directory in which there are no images.
    """
    return [
        file for path in paths for file in (_images_below(path) if os.path.isdir(path) else [check_image_file(path)])
    ]


def _images_below(directory: str) -> list[str]:
    root = pathlib.Path(directory)
    files, left_out = _split(_walk(root, (_identity(root),)))
    _say_once(_note(root, left_out))
    if not files:
        raise EcaJaxError(f"the directory {root} has no images: expected files that end in {', '.join(ENDINGS)}")
    return [str(file) for file in files]


def _root(name: str) -> pathlib.Path:
    root = path_in_name(name)
    if not root.is_dir():
        raise EcaJaxError(f"data.name: {name!r}: {root} is not a directory")
    return root


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _hidden(path.name))


def _scan(root: pathlib.Path) -> tuple[dict[str, list[pathlib.Path]], list[LeftOut]]:
    """The image files of every class folder, both in torchvision's order; and what is left out."""
    folders = _folders(root)
    if not folders:
        raise EcaJaxError(f"{root} has no class folders: expected {root}/CLASS/image.jpg")
    left_out = [
        LeftOut(path, _hidden(path.name) or "in no class folder")
        for path in sorted(root.iterdir())
        if not path.is_dir() or _hidden(path.name)
    ]
    classes: dict[str, list[pathlib.Path]] = {}
    for folder in folders:
        classes[folder.name], others = _split(_walk(folder, (_identity(root), _identity(folder))))
        if not classes[folder.name]:
            what = f" ({others[0].path.name}: {others[0].why})" if others else ""
            raise EcaJaxError(f"class folder {folder} has no images{what}: fill it or remove it")
        left_out += others
    return classes, left_out


def _walk(folder: pathlib.Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[pathlib.Path, str | None]]:
    """(path, why it is left out or None) of all files below a folder; links are followed, but never in a circle."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            nowhere = entry.is_symlink() and not os.path.exists(path)  # a link to nothing, or to itself
            if why := _hidden(entry.name):
                yield path, why
            elif not nowhere and entry.is_dir():
                if (identity := _identity(path)) in above:
                    yield path, "a link to a folder that it is in"
                else:
                    yield from _walk(path, (*above, identity))
            elif not entry.name.lower().endswith(ENDINGS):
                yield path, "without an image's ending"
            else:
                yield path, NO_FILE if nowhere or not entry.is_file() else None


def _split(
    found: Iterable[tuple[pathlib.Path, str | None]],
) -> tuple[list[pathlib.Path], list[LeftOut]]:
    """What `_walk` finds -> the images in torchvision's order, and the others."""
    everything = list(found)
    images = sorted((path for path, why in everything if not why), key=lambda file: (str(file.parent), file.name))
    return images, [LeftOut(path, why) for path, why in everything if why]


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _hidden(name: str) -> str | None:
    """Of macOS too, which puts a folder of such files beside the others of a zip archive."""
    return "hidden" if name.startswith(".") or name == "__MACOSX" else None


def _check_classes(root: pathlib.Path, classes: dict[str, list[pathlib.Path]]) -> None:
    """Refuses to take folders of splits for classes."""
    for name, files in classes.items():
        if name.lower() in LIKE_SPLITS and all(file.parent != root / name for file in files):
            raise EcaJaxError(
                f"{root / name} looks like a split, with images in folders of its own, and {root} has no folder "
                f"'train': say data.train_split and data.eval_split, or rename it if it is a class"
            )


def _note(root: pathlib.Path, left_out: Sequence[LeftOut]) -> str:
    """'note: /path: left out 3: 2 hidden (a/.x, …), 1 without an image's ending (a/y.txt)'; '' where nothing was."""
    groups = collections.defaultdict(list)
    for path, why in left_out:
        groups[why].append(printable(path.relative_to(root).as_posix()))
    what = (f"{len(names)} {why} ({names[0]}{', …' if names[1:] else ''})" for why, names in groups.items())
    return f"note: {root}: left out {len(left_out)}: {', '.join(what)}" if left_out else ""


@functools.cache
def _say_once(line: str) -> None:
    if line:
        print(line, file=sys.stderr)
