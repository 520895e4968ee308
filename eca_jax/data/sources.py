"""Random access to encoded images and their labels: prepared TFDS data sets and directories of class folders.

No TensorFlow: TFDS reads ArrayRecord without it.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from eca_jax.data.config import DataConfig
from eca_jax.data.csv_records import open_csv
from eca_jax.data.imagenet import TRAINING_EXAMPLES, candidates
from eca_jax.data.prepare import prepare, tfds_builder
from eca_jax.data.records import SOURCES, Label, Opener, Source, digest, digest_of_files
from eca_jax.data.splits import absolute, cannot_read_split, check_split, held_out, select, split_names
from eca_jax.errors import EcaJaxError

FOLDER = "folder:"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def open_source(name: str, split: str | None, data_dir: str | None = None) -> Source:
    """Opens a split of a data set for random access; prepares `digits` on first use.

    Args:
      name: a TFDS name ('digits', 'imagenet2012', 'imagenette', 'cifar10', ...), 'folder:/path', 'csv:/path' (see
        `eca_jax.data.csv_records`), or one whose prefix a plugin has registered in `SOURCES`.
      split: TFDS's notation: 'train', 'train[:90%]', 'train+test'; None is the held-out one.
      data_dir: where TFDS data sets are; None is TFDS's own default (TFDS_DATA_DIR, ~/tensorflow_datasets).

    Raises:
      EcaJaxError: unknown or unprepared data set, one prepared as TFRecord, unknown split, folder without images.
    """
    return (_opener(name) or _open_tfds)(name, split, data_dir)


def _opener(name: str) -> Opener | None:
    """What opens the data sets with this prefix; None is TFDS, of which 'mnist:3.0.1' is a name too."""
    prefix, colon, _ = name.partition(":")
    return (OPENERS.get(prefix) or SOURCES.get(prefix)) if colon else None


def declared_size(
    config: DataConfig, num_classes: int | None = None, num_examples: int | None = None
) -> tuple[int, int]:
    """(classes, training examples) of a data set that need not be here; what is given is taken as it is.

    TFDS knows the classes of a data set before it is prepared. Of one that is not, the examples count as ImageNet's:
    only schedules depend on them. Others have to be there: a folder, a table, what a plugin opens.

    Raises:
      EcaJaxError: names the option to give, where the data set does not say.
    """
    if _opener(config.name) is not None or config.name == "digits":
        if num_classes and num_examples:
            return num_classes, num_examples
        source = open_source(config.name, config.train_split, config.data_dir)
        return num_classes or len(source.class_names), num_examples or len(source)
    builder: Any = tfds_builder(config.name, config.data_dir)
    if num_classes is None:
        label = dict(builder.info.features).get((builder.info.supervised_keys or ("", ""))[1])
        if not isinstance(label, tfds.features.ClassLabel):
            raise EcaJaxError(f"data set {config.name!r} does not say how many classes it has: give --num-classes")
        num_classes = int(label.num_classes or 0)
    if num_examples is None and builder.info.splits:
        check_split(config.name, config.train_split, list(builder.info.splits))
        num_examples = builder.info.splits[config.train_split].num_examples
    return num_classes, num_examples or TRAINING_EXAMPLES


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """Of a prepared TFDS data set."""

    data_source: Sequence[Any]
    image_key: str
    label_key: str
    info: Any
    """TFDS's DatasetInfo."""
    split: str

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        example = self.data_source[index]
        label = np.asarray(example[self.label_key])
        return example[self.image_key], tuple(map(int, label)) if label.ndim else int(label)

    def fingerprint(self) -> str:
        splits = (self.info.splits[name] for name in sorted(split_names(self.split)))
        shards = (f"{split.name} {split.shard_lengths} {split.num_bytes}" for split in splits)
        return digest([self.info.full_name, self.split, *shards])


def _open_tfds(name: str, split: str | None, data_dir: str | None) -> Source:
    builder: Any = tfds_builder(name, data_dir)
    if name == "digits" and not builder.info.splits:
        prepare(name, data_dir)
        builder = tfds_builder(name, data_dir)
    if not builder.info.splits:
        raise EcaJaxError(
            f"data set {name!r} is not prepared in {builder.data_path}: run `pip install 'eca-jax[prepare]'` and "
            f"`eca-jax prepare {name}` once (needs TensorFlow), or point data.data_dir at where it is"
        )
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise EcaJaxError(
            f"data set {name!r} in {builder.data_path} was prepared as {builder.info.file_format.value}, which has no "
            "random access; convert it once: `pip install 'eca-jax[prepare]'` and "
            f"`eca-jax prepare {name} --data-dir {builder.data_dir_root} --convert-to NEW_DATA_DIR`, "
            "then set data.data_dir to NEW_DATA_DIR"
        )
    features = builder.info.features
    image_key, label_key = builder.info.supervised_keys or ("", "")
    image, label = (dict(features).get(key) for key in (image_key, label_key))
    multi_label = isinstance(label, tfds.features.Sequence)
    label = label.feature if multi_label else label
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise EcaJaxError(f"data set {name!r} is not for image classification: its features are {features}")
    split = held_out(name, list(builder.info.splits)) if split is None else split
    check_split(name, split, list(builder.info.splits))
    parts = absolute(name, split, {s: builder.info.splits[s].num_examples for s in split_names(split)})
    try:
        if builder.info.splits[split].num_examples <= 0:
            raise EcaJaxError(f"data set {name!r}: split {split!r} has no examples")
        data_source = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    except EcaJaxError:
        raise
    except (ValueError, AssertionError) as error:
        raise cannot_read_split(name, split, error) from error
    records = TfdsRecords(data_source, image_key, label_key, builder.info, split)
    return Source(name, split, records, tuple(label.names), multi_label, candidates(builder.name), parts)


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """Of a directory of class folders."""

    root: pathlib.Path
    files: tuple[pathlib.Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.files[index].read_bytes(), self.labels[index]

    def fingerprint(self) -> str:
        return digest_of_files(self.root, self.files, self.labels)


def _open_folder(name: str, split: str | None, data_dir: str | None = None) -> Source:
    """`/path/SPLIT/CLASS/image.jpg`, or `/path/CLASS/image.jpg` whose one split is called 'train'.

    Without folders of splits the order mixes the classes and depends on the names of the files alone, so that
    'train[:90%]' and 'train[90%:]' make a training and a held-out set.
    """
    root = pathlib.Path(name.removeprefix(FOLDER)).expanduser()
    if not root.is_dir():
        raise EcaJaxError(f"data.name: {name!r}: {root} is not a directory")
    split = held_out(name, [path.name for path in _visible(root) if path.is_dir()]) if split is None else split
    wanted = split_names(split)
    if wanted == {"train"} and not (root / "train").is_dir():
        roots = {"train": root}
    else:
        roots = {path.name: path for path in _visible(root) if path.is_dir()}
        check_split(name, split, sorted(roots))
    if not wanted:
        raise EcaJaxError(
            f"data set {name!r}: cannot read split {split!r}; expected one such as 'train' or 'train[:90%]'"
        )
    found = {s: _scan(roots[s]) for s in sorted(wanted)}
    class_names = {s: tuple(classes) for s, classes in found.items()}
    names = next(iter(class_names.values()))
    if any(other != names for other in class_names.values()):
        raise EcaJaxError(f"data set {name!r}: the splits of {split!r} have different class folders: {class_names}")

    examples: dict[str, list[tuple[pathlib.Path, int]]] = {}
    for s, classes in found.items():
        examples[s] = [(file, label) for label, files in enumerate(classes.values()) for file in files]
        if roots[s] == root:
            examples[s].sort(key=lambda e: hashlib.sha256(e[0].relative_to(root).as_posix().encode()).digest())
    chosen, parts = select(name, split, examples)
    files, labels = zip(*chosen, strict=True)
    return Source(name, split, FolderRecords(root, files, labels), names, parts=parts)


def _scan(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The image files of every class folder, both in the order of their names; hidden files do not count."""
    stray = next((path for path in _visible(root) if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES), None)
    if stray is not None:
        raise EcaJaxError(f"{stray} is in no class folder: expected {root}/CLASS/image.jpg; move or remove it")
    classes = {folder.name: _visible(folder) for folder in _visible(root) if folder.is_dir()}
    if not classes:
        raise EcaJaxError(f"{root} has no class folders: expected {root}/CLASS/image.jpg")
    for name, files in classes.items():
        foreign = next((file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES), None)
        if foreign is not None:
            raise EcaJaxError(
                f"{foreign} is not an image file: expected {root}/CLASS/image with the ending "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        if not files:
            raise EcaJaxError(f"class folder {root / name} has no images: fill it or remove it")
    return classes


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


OPENERS: dict[str, Opener] = {"folder": _open_folder, "csv": open_csv}
"""What opens our own data sets whose names begin with such a prefix and a colon."""
