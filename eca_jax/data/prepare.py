"""Finds, makes and converts prepared TFDS data sets. All but `digits` need TensorFlow for this, once."""

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT, convert_path_to_file_format
from tensorflow_datasets.core.hashing import Hasher
from tensorflow_datasets.core.naming import parse_builder_name_kwargs
from tensorflow_datasets.core.registered import DatasetNotFoundError
from tensorflow_datasets.core.utils.shard_utils import ShardConfig, get_shard_boundaries

from eca_jax.data import csv_records, folders
from eca_jax.data.archives import IMAGES, Image, find_archives, read_archive, read_image
from eca_jax.data.digits import Digits
from eca_jax.data.shards import ARRAY_RECORD, Shard, write_data_set
from eca_jax.errors import EcaJaxError, nearest

ARCHIVES = {"imagenet2012": ("train", "validation"), "imagenet2012_real": ("validation",)}
"""Data sets that are made from ImageNet's official tar files -> the splits of the files that they need."""
HUGGING_FACE = "huggingface:"
"""TFDS's prefix for the data sets of Hugging Face."""
PACKAGES = {"google storage": "gcsfs", "'tensorflow'": "'eca-jax[prepare]'"}
"""A word in TFDS's error about a missing package -> the package to install."""
RECORD_BYTES = 256
"""An upper bound on the bytes of a record besides its image."""


def tfds_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set, prepared or not."""
    if name.startswith(HUGGING_FACE):  # TFDS asks the network for the names of all there are
        raise EcaJaxError(
            f"data.name: {name!r}: data sets of Hugging Face are not read; save its images as folder:/path or csv:/path"
        )
    if data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise EcaJaxError(f"data.data_dir: {data_dir} is a file; expected a directory")
    try:
        parse_builder_name_kwargs(name)
    except ValueError:  # a page about names
        raise _unknown(name, ()) from None
    try:
        if name == "digits":
            return Digits(data_dir=data_dir, file_format="array_record")
        return tfds.builder(name, data_dir=data_dir)
    except ParseError as error:
        raise EcaJaxError(
            f"data set {name!r}: its dataset_info.json is damaged ({error}); remove its directory and prepare it anew"
        ) from error
    except ImportError as error:
        raise _not_installed(name, error) from error
    except DatasetNotFoundError:
        raise _unknown(name, ["digits", *tfds.list_builders(with_community_datasets=False)]) from None
    except (ValueError, TypeError, AssertionError) as error:  # a configuration, a version, an argument
        raise EcaJaxError(f"data.name: {name!r}: {' '.join(str(error).split())[:300]}") from error


def _not_installed(name: str, error: ImportError) -> EcaJaxError:
    """The error for a missing package that TFDS needs for a data set or for its storage."""
    text = " ".join(str(error).split())
    advice = next((f": pip install {package}" for word, package in PACKAGES.items() if word in text.lower()), "")
    return EcaJaxError(f"data set {name!r}: {text}{advice}")


def _unknown(name: str, known: Sequence[str]) -> EcaJaxError:
    """The error for an unknown data set. It suggests the folder or table of this name, or similar names of TFDS."""
    path = os.path.expanduser(name)
    if os.path.isdir(path) or (path.endswith(".csv") and os.path.isfile(path)):
        hint = f" Did you mean {shlex.quote(('folder:' if os.path.isdir(path) else 'csv:') + name)}?"
    elif known:
        hint = f"{nearest(name, known)} Or folder:/path."
    else:
        hint = " Expected digits, a name of TFDS such as cifar10, folder:/path or csv:/path."
        hint += f" (There is no directory {path}.)" if "/" in name else ""
    return EcaJaxError(f"data.name: unknown data set {name!r}.{hint}")


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
    """Downloads a data set if necessary, and writes it as ArrayRecord; returns its directory.

    Args:
      manual_dir: the directory of files that the user has to download; None is TFDS's, DATA_DIR/downloads/manual.

    Raises:
      EcaJaxError: unknown data set; TensorFlow is missing; files that the user has to download are missing or damaged;
        the disk is too small.
    """
    if name.startswith((folders.PREFIX, csv_records.PREFIX)):
        raise EcaJaxError(f"data set {name!r} needs no preparation: it is read as it is, as data.name")
    _require_local_disk(data_dir or os.environ.get("TFDS_DATA_DIR", ""))
    builder = tfds_builder(name, data_dir)
    if builder.info.splits:
        return str(builder.data_path)
    if name != "digits":
        _require_tensorflow(name)
    by_hand = pathlib.Path(manual_dir or os.path.join(builder.data_dir_root, "downloads", "manual")).expanduser()
    images = _read_archives(by_hand, ARCHIVES.get(builder.name, ()))
    if name == "digits" or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        if builder.name == "imagenet2012":
            _prepare_imagenet(builder, by_hand, images)
        else:
            config = tfds.download.DownloadConfig(manual_dir=by_hand)
            with _digits_told(builder) if name == "digits" else contextlib.nullcontext():
                builder.download_and_prepare(file_format=ARRAY_RECORD, download_config=config)
    except AssertionError as error:  # TFDS's way to say that files have to be fetched by hand
        raise EcaJaxError(f"data set {name!r}: {' '.join(str(error).split())}; see --manual-dir") from error
    except OSError:
        # Another process may have prepared it meanwhile: the last step is a rename onto the same directory.
        if not tfds_builder(name, data_dir).info.splits:
            raise
    return str(builder.data_path)


@contextlib.contextmanager
def _digits_told(builder: Any) -> Iterator[None]:
    """Replaces TFDS's two lines on stdout, about a download of "Unknown size", by one line about the digits."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
    print(f"note: digits, from scikit-learn, are now in {builder.data_path}", file=sys.stderr)


def _read_archives(directory: pathlib.Path, splits: Sequence[str]) -> dict[str, list[Image]]:
    """The images in ImageNet's tar files, by split; prints a note if a file has only a part of them."""
    images = {split: read_archive(path, split) for split, path in find_archives(directory, splits).items()}
    for split, found in images.items():
        if len(found) != IMAGES[split]:
            print(f"note: {len(found):,} of ImageNet's {IMAGES[split]:,} {split} images are there", file=sys.stderr)
    return images


def _prepare_imagenet(builder: Any, directory: pathlib.Path, images: dict[str, list[Image]]) -> None:
    """Writes shard by shard what TFDS's builder would write: the same examples in the same order in the same shards.

    (TFDS reads the examples in the order of the archives, so it shuffles all of them through temporary files, and
    starts again after an interruption. But the final order depends only on the names, so each shard can read its images
    from their places in the archives.)
    """
    builder.info.set_file_format(ARRAY_RECORD, override=True)
    shards: dict[str, list[Shard]] = {}
    with contextlib.ExitStack() as files:
        for generator in builder._split_generators(_Archives(directory)):
            split = str(generator.name)
            if split in images:  # the unlabelled test images are left out
                file = files.enter_context(open(generator.gen_kwargs["archive"], "rb"))
                shards[split] = _shards(builder, split, images[split], generator.gen_kwargs, file.fileno())

        def finish(directory: pathlib.Path) -> None:
            builder.info.set_splits(
                tfds.core.SplitDict([_split_info(builder, directory, *item) for item in shards.items()])
            )
            builder.info.write_to_directory(directory)

        origin = {split: hashlib.sha256(repr(images[split]).encode()).hexdigest() for split in shards}
        everything = [shard for split in shards.values() for shard in split]
        write_data_set(pathlib.Path(builder.data_path), everything, origin=origin, finish=finish)


class _Archives:
    """The part of TFDS's download manager that the builder uses."""

    def __init__(self, directory: pathlib.Path):
        self.manual_dir = str(directory)

    def iter_archive(self, path: str) -> str:
        return path


def _shards(builder: Any, split: str, images: Sequence[Image], settings: dict, descriptor: int) -> list[Shard]:
    """The shards of a split, divided and ordered as by `tfds.core.writer`."""
    serializer = tfds.core.ExampleSerializer(builder.info.features.get_serialized_info())
    hasher = Hasher(split)
    ordered = sorted(images, key=lambda image: hasher.hash_key(image.name))
    n = ShardConfig.calculate_number_shards(sum(image.size for image in images), len(images))
    template = builder._get_filename_template(split)

    def record(image: Image) -> bytes:
        _, example = next(builder._generate_examples(**settings | {"archive": [read_image(descriptor, image)]}))
        return serializer.serialize_example(builder.info.features.encode_example(example))

    def shard(index: int, part: Sequence[Image]) -> Shard:
        file = template.sharded_filepath(shard_index=index, num_shards=n).name
        size = sum(image.size + RECORD_BYTES for image in part)
        return Shard(file, len(part), size, lambda: map(record, part))

    bounds = [0, *get_shard_boundaries(len(images), n)]
    return [shard(i, ordered[bounds[i] : bounds[i + 1]]) for i in range(n)]


def _split_info(builder: Any, directory: pathlib.Path, split: str, shards: Sequence[Shard]) -> tfds.core.SplitInfo:
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard.length for shard in shards],
        num_bytes=sum((directory / shard.file).stat().st_size for shard in shards),
        filename_template=builder._get_filename_template(split),
    )


def convert(name: str, data_dir: str | None, to: str) -> str:
    """Copies a prepared data set to another data directory as ArrayRecord, the records byte for byte, shard by shard.

    The copy gets its name when it is complete; after an interruption the same call continues.
    (`tfds convert_format` of TFDS 4.9.10 needs Apache Beam for this.)

    Raises:
      EcaJaxError: not prepared; already there; a shard with fewer or more records than the data set says; the disk is
        too small.
    """
    builder: Any = tfds_builder(name, data_dir)
    if not builder.info.splits:
        raise EcaJaxError(f"data set {name!r} is not prepared in {builder.data_path}; expected one to convert")
    _require_local_disk(to)
    _require_tensorflow(name)
    source, target = pathlib.Path(builder.data_path), pathlib.Path(to).expanduser() / builder.info.full_name
    if target.exists():
        raise EcaJaxError(f"--convert-to: {target} is already there; remove it to convert once more")
    splits = builder.info.splits.values()
    lengths = {file: n for split in splits for file, n in zip(split.filepaths, split.shard_lengths, strict=True)}
    sizes = {file: pathlib.Path(file).stat().st_size for file in lengths}
    shards = [
        Shard(
            convert_path_to_file_format(pathlib.Path(file), ARRAY_RECORD).name,
            length,
            sizes[file] + length * RECORD_BYTES,
            functools.partial(_records, file, length, builder.info.file_format),
        )
        for file, length in lengths.items()
    ]

    def finish(directory: pathlib.Path) -> None:
        names = {file.name for file in lengths}
        shutil.copytree(source, directory, ignore=lambda *_: names, dirs_exist_ok=True)
        info = json.loads((source / "dataset_info.json").read_text())
        (directory / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": ARRAY_RECORD.value}, indent=2))

    origin = {split.name: [split.num_bytes, *split.shard_lengths] for split in splits}
    write_data_set(target, shards, origin=origin, finish=finish)
    return str(target)


def _records(source: os.PathLike, length: int, file_format: Any) -> Iterator[bytes]:
    """The records of a shard; their number is checked."""
    read = 0
    try:
        records: Any = ADAPTER_FOR_FORMAT[file_format].make_tf_data(source).as_numpy_iterator()
        for record in records:
            yield record
            read += 1
    except Exception as error:  # whatever TensorFlow says of damaged bytes, the user has to know which file it was
        raise EcaJaxError(f"cannot read {source} after record {read}: {error}; prepare the data set anew") from error
    if read != length:
        raise EcaJaxError(f"{source} has {read} records, expected {length}: it is damaged; prepare the data set anew")


def _require_local_disk(directory: str | os.PathLike) -> None:
    if "://" in str(directory):
        raise EcaJaxError(
            f"cannot write {directory}: prepare into a local directory, then copy it: gcloud storage cp -r DIR BUCKET"
        )


def _require_tensorflow(name: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise EcaJaxError(f"preparing {name!r} needs TensorFlow, once: pip install 'eca-jax[prepare]'")
