"""Prepared TFDS data sets: finding, making and converting them. Needs TensorFlow, once, for all but `digits`."""

import importlib.util
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import tensorflow_datasets as tfds
import tqdm
from google.protobuf.json_format import ParseError
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT, convert_path_to_file_format
from tensorflow_datasets.core.registered import DatasetNotFoundError

from eca_jax.data.digits import Digits
from eca_jax.errors import EcaJaxError, nearest

ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD


def tfds_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set, prepared or not."""
    try:
        if name == "digits":
            return Digits(data_dir=data_dir, file_format="array_record")
        return tfds.builder(name, data_dir=data_dir)
    except ParseError as error:
        raise EcaJaxError(
            f"data set {name!r}: its dataset_info.json is damaged ({error}); remove its directory and prepare it anew"
        ) from error
    except DatasetNotFoundError:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        raise EcaJaxError(
            f"data.name: unknown data set {name!r}.{nearest(name, known)[:300]} Or folder:/path."
        ) from None


def prepare(name: str, data_dir: str | None = None) -> str:
    """Downloads a data set where that is needed, and writes ArrayRecord; returns its directory.

    Raises:
      EcaJaxError: unknown data set; TensorFlow is missing.
    """
    builder = tfds_builder(name, data_dir)
    if builder.info.splits:
        return str(builder.data_path)
    if name != "digits":
        _require_tensorflow(name)
    if name == "digits" or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(file_format=ARRAY_RECORD)
    except OSError:
        # Another process may have prepared it meanwhile: the last step is a rename onto the same directory.
        if not tfds_builder(name, data_dir).info.splits:
            raise
    return str(builder.data_path)


def convert(name: str, data_dir: str | None, to: str) -> str:
    """Copies a prepared data set to another data directory as ArrayRecord, the records byte for byte, shard by shard.

    The copy gets its name when it is complete. (`tfds convert_format` of TFDS 4.9.10 needs Apache Beam for this.)

    Raises:
      EcaJaxError: not prepared; already there; a shard with fewer or more records than the data set says.
    """
    builder: Any = tfds_builder(name, data_dir)
    if not builder.info.splits:
        raise EcaJaxError(f"data set {name!r} is not prepared in {builder.data_path}; expected one to convert")
    _require_tensorflow(name)
    source, target = pathlib.Path(builder.data_path), pathlib.Path(to).expanduser() / builder.info.full_name
    if target.exists():
        raise EcaJaxError(f"--convert-to: {target} is already there; remove it to convert once more")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".incomplete.") as temporary:
        copy = pathlib.Path(temporary) / target.name
        splits = builder.info.splits.values()
        shutil.copytree(source, copy, ignore=lambda *_: {file for split in splits for file in split.filenames})
        for split in splits:
            shards = list(zip(split.filepaths, split.shard_lengths, strict=True))
            for file, length in tqdm.tqdm(shards, desc=f"{name}, {split.name}", unit="shard", disable=None):
                _convert_shard(
                    file, convert_path_to_file_format(copy / file.name, ARRAY_RECORD), length, builder.info.file_format
                )
        info = json.loads((copy / "dataset_info.json").read_text())
        (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": ARRAY_RECORD.value}, indent=2))
        os.rename(copy, target)
    return str(target)


def _convert_shard(source: os.PathLike, target: os.PathLike, length: int, file_format: Any) -> None:
    records: Any = ADAPTER_FOR_FORMAT[file_format].make_tf_data(source).as_numpy_iterator()
    written = 0

    def counted():
        nonlocal written
        for record in records:
            yield written, record
            written += 1

    try:
        ADAPTER_FOR_FORMAT[ARRAY_RECORD].write_examples(target, counted())
    except Exception as error:  # whatever TensorFlow says of damaged bytes, the user has to know which file it was
        raise EcaJaxError(f"cannot read {source} after record {written}: {error}; prepare the data set anew") from error
    if written != length:
        raise EcaJaxError(
            f"{source} has {written} records, expected {length}: it is damaged; prepare the data set anew"
        )


def _require_tensorflow(name: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise EcaJaxError(f"preparing {name!r} needs TensorFlow, once: pip install 'eca-jax[prepare]'")
