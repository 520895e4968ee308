"""Random access to encoded images and their labels: prepared TFDS data sets and directories of class folders.

No TensorFlow: TFDS reads ArrayRecord without it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from eca_jax.data.config import DataConfig
from eca_jax.data.csv_records import csv_splits, open_csv
from eca_jax.data.folders import folder_splits, open_folder
from eca_jax.data.imagenet import TRAINING_EXAMPLES, candidates
from eca_jax.data.prepare import prepare, tfds_builder
from eca_jax.data.records import PYTHON, SOURCES, Label, Opener, Source, digest
from eca_jax.data.splits import absolute, cannot_read_split, check_split, held_out, split_names
from eca_jax.errors import EcaJaxError, nearest


def open_source(
    name: str, split: str | None, data_dir: str | None = None, keys: tuple[str | None, str | None] = (None, None)
) -> Source:
    """Opens a split of a data set for random access; prepares `digits` on first use.

    Args:
      name: a TFDS name ('digits', 'imagenet2012', 'imagenette', 'cifar10', ...), 'folder:/path', 'csv:/path' (see
        `eca_jax.data.csv_records`), or one whose prefix a plugin has registered in `SOURCES`.
      split: TFDS's notation: 'train', 'train[:90%]', 'train+test'; None is the held-out one.
      data_dir: where TFDS data sets are; None is TFDS's own default (TFDS_DATA_DIR, ~/tensorflow_datasets).
      keys: of a TFDS data set, which features are the image and the label; None: what it says, or the only one.

    Raises:
      EcaJaxError: unknown or unprepared data set, one prepared as TFRecord, unknown split, folder without images.
    """
    opener = _opener(name)
    if opener is None:
        return _open_tfds(name, split, data_dir, keys)
    if any(keys):
        raise EcaJaxError(f"data.image_key and data.label_key are of TFDS data sets, not of {name!r}; leave them out")
    return opener(name, split, data_dir)


def known_splits(name: str, data_dir: str | None = None) -> list[str]:
    """The splits that a data set has by name.

    Raises:
      EcaJaxError: as `open_source`; a plugin's data set does not say.
    """
    prefix = name.partition(":")[0]
    if _opener(name) is None:
        return list(_prepared(name, data_dir).info.splits)
    if prefix not in SPLITS:
        raise EcaJaxError(f"data set {name!r}: give --split; what the plugin opens does not say which there are")
    return SPLITS[prefix](name)


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
    if _opener(config.name) is not None or config.name in ("digits", PYTHON):
        if num_classes and num_examples:
            return num_classes, num_examples
        source = open_source(config.name, config.train_split, config.data_dir, config.keys)
        return num_classes or len(source.class_names), num_examples or len(source)
    builder: Any = tfds_builder(config.name, config.data_dir)
    if num_classes is None:
        label = _label_and_key(config.name, builder.info, config.label_key)[0]
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


def _prepared(name: str, data_dir: str | None) -> Any:
    """The builder of a data set that is there as ArrayRecord."""
    if name == PYTHON:
        raise EcaJaxError(
            "the data set 'python' is whatever was given to `eca_jax.training.train(config, train=..., held_out=...)` "
            "and is not known outside of that program: give other data with --data (of eca-jax train: --data.name), "
            "such as --data folder:/path, or call train or evaluate_run in Python"
        )
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
    return builder


def _feature(name: str, info: Any, kind: str, fits: Callable[[Any], bool], given: str | None) -> str | None:
    """The key of the 'image' or the 'label' of a TFDS data set: what is given, or what it says, or the only one."""
    found = sorted(key for key, feature in dict(info.features).items() if fits(feature))
    if given is not None and given not in found:
        raise EcaJaxError(f"data.{kind}_key: data set {name!r} has no {kind} {given!r}.{nearest(given, found)}")
    said = (info.supervised_keys or (None, None))[("image", "label").index(kind)]
    key = given if given is not None else said if said in found else None
    if key is None and len(found) > 1:
        raise EcaJaxError(
            f"data set {name!r} has several {kind}s; say which: data.{kind}_key (of eca-jax evaluate and check: "
            f"--{kind}-key), one of {', '.join(found)}"
        )
    return key or next(iter(found), None)


def _image_key(name: str, info: Any, given: str | None) -> str | None:
    return _feature(name, info, "image", lambda feature: isinstance(feature, tfds.features.Image), given)


def _label_and_key(name: str, info: Any, given: str | None) -> tuple[Any, str | None]:
    """A ClassLabel or a sequence of them, and its key."""

    def fits(feature: Any) -> bool:
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        return isinstance(inner, tfds.features.ClassLabel)

    key = _feature(name, info, "label", fits, given)
    return dict(info.features).get(key), key


def _open_tfds(name: str, split: str | None, data_dir: str | None, keys: tuple[str | None, str | None]) -> Source:
    builder = _prepared(name, data_dir)
    image_key = _image_key(name, builder.info, keys[0])
    label, label_key = _label_and_key(name, builder.info, keys[1])
    if image_key is None or label_key is None:
        features = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in builder.info.features.items())
        raise EcaJaxError(f"data set {name!r} is not for image classification: its features are {features}")
    multi_label = isinstance(label, tfds.features.Sequence)
    classes: Any = label.feature if multi_label else label
    split = held_out(name, list(builder.info.splits)) if split is None else split
    check_split(name, split, list(builder.info.splits))
    pictures = (key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image))
    skipped = {key: tfds.decode.SkipDecoding() for key in pictures}
    parts = absolute(name, split, {s: builder.info.splits[s].num_examples for s in split_names(split)})
    try:
        if builder.info.splits[split].num_examples <= 0:
            raise EcaJaxError(f"data set {name!r}: split {split!r} has no examples")
        data_source = builder.as_data_source(split=split, decoders=skipped)
    except EcaJaxError:
        raise
    except (ValueError, AssertionError) as error:
        raise cannot_read_split(name, split, error) from error
    records = TfdsRecords(data_source, image_key, label_key, builder.info, split)
    return Source(name, split, records, tuple(classes.names), multi_label, candidates(builder.name), parts)


OPENERS: dict[str, Opener] = {"folder": open_folder, "csv": open_csv}
"""What opens our own data sets whose names begin with such a prefix and a colon."""
SPLITS: dict[str, Callable[[str], list[str]]] = {"folder": folder_splits, "csv": csv_splits}
"""The splits that such a data set has."""
