"""ImageNet's two official tar files: which images they contain, where, and whether the files are complete.

Only the headers are read. So a file that was cut off, or packed again in another way, is refused before anything is
written. (TFDS takes the labels of the validation images from the order of the files.)
"""

import io
import math
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import tqdm

from eca_jax.data.imagenet import synsets
from eca_jax.errors import EcaJaxError

PAGE = "https://image-net.org/download-images"
FILES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
IMAGES = {"train": 1_281_167, "validation": 50_000}
"""The numbers of images in the official files."""
BLOCK = tarfile.BLOCKSIZE


class Image(NamedTuple):
    """Where an image is in a tar file; offsets and size in bytes."""

    name: str
    """'n01440764_18.JPEG' or 'ILSVRC2012_val_00000001.JPEG'."""
    header: int
    data: int
    size: int
    synset: str | None
    """The class of a training image, whose tar file inside the tar file contains it; None for a validation image."""


def find_archives(directory: str | os.PathLike, splits: Sequence[str]) -> dict[str, pathlib.Path]:
    """The tar files of the splits in a directory.

    Raises:
      EcaJaxError: a file is missing; the message says where to get it and where to put it.
    """
    files = {split: pathlib.Path(directory).expanduser() / FILES[split] for split in splits}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise EcaJaxError(
            f"there is no {' and no '.join(missing)} in {directory}: register at {PAGE}, download the "
            "'Training images (Task 1 & 2)' and 'Validation images (all tasks)' of ILSVRC2012, leave them packed, and "
            "name their directory with --manual-dir"
        )
    return files


def read_archive(path: pathlib.Path, split: str) -> list[Image]:
    """The images in one of the official tar files, in the file's order.

    Raises:
      EcaJaxError: the file is cut off or damaged, or is packed in another way than the official one.
    """
    with path.open("rb") as file:
        images = list(_training_images(file) if split == "train" else _validation_images(file))
    if not images:
        raise EcaJaxError(f"{path} has no images in it; download it again from {PAGE}")
    if split == "validation":
        _check_numbers(path, images)
    if len({image.name for image in images}) < len(images):
        raise EcaJaxError(f"{path} has several images of the same name; download it again from {PAGE}")
    return images


def read_image(descriptor: int, image: Image) -> tuple[str, BinaryIO]:
    """(name, file) for one image of the open tar file, as TFDS's builder expects it.

    The file is the image, or for training a tar file of the class that contains only this image.
    """
    if image.synset is None:
        return image.name, io.BytesIO(os.pread(descriptor, image.size, image.data))
    member = os.pread(descriptor, image.data - image.header + image.size, image.header)
    return f"{image.synset}.tar", io.BytesIO(member + bytes(-len(member) % BLOCK + 2 * BLOCK))


def _training_images(file: BinaryIO) -> Iterator[Image]:
    classes = list(_members(file, file.name))
    for inner in tqdm.tqdm(classes, desc=pathlib.Path(file.name).name, unit="class", disable=None):
        synset = inner.name.removesuffix(".tar")
        if f"{synset}.tar" != inner.name or synset not in synsets():
            raise _other_layout(file.name, inner.name, "tar files of ImageNet's 1000 classes, n01440764.tar and so on")
        name = f"{file.name}: {inner.name}"
        for info in _members(file, name, inner.offset_data, inner.offset_data + inner.size):
            if not re.fullmatch(rf"{synset}_\d+\.JPEG", info.name):
                raise _other_layout(name, info.name, f"images {synset}_1.JPEG and so on")
            yield Image(info.name, info.offset, info.offset_data, info.size, synset)


def _validation_images(file: BinaryIO) -> Iterator[Image]:
    for info in _members(file, file.name):
        yield Image(info.name, info.offset, info.offset_data, info.size, None)


def _check_numbers(path: pathlib.Path, images: list[Image]) -> None:
    """The builder knows a validation image's label by its place in the order of the names."""
    expected = {f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(images) + 1)}
    foreign = sorted({image.name for image in images} - expected)
    if foreign or len(images) > IMAGES["validation"]:
        name = foreign[0] if foreign else f"{len(images)} files"
        raise _other_layout(
            path, name, "images ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG, none left out"
        )


def _members(file: BinaryIO, name: str, start: int = 0, stop: float = math.inf) -> Iterator[tarfile.TarInfo]:
    """The headers of the tar file in the bytes `start` to `stop`, up to its end mark; offsets count from the file."""
    end = start
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                yield info
                end = info.offset_data + info.size + -info.size % BLOCK
    except tarfile.TarError as error:
        raise _cut_off(name, end - start) from error
    file.seek(end)
    if end + BLOCK > stop or file.read(BLOCK) != bytes(BLOCK):
        raise _cut_off(name, end - start)


def _cut_off(name: str, whole: int) -> EcaJaxError:
    return EcaJaxError(f"{name} is cut off or damaged after byte {whole}; download it again from {PAGE}")


def _other_layout(path: str | os.PathLike, found: str, expected: str) -> EcaJaxError:
    return EcaJaxError(f"{path} has {found} in it; expected {expected}: the official file as it is, from {PAGE}")
