"""Models with trained weights: from a file, a training run, or the Hugging Face hub with its cache."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from flax import nnx

from eca_jax.convert.files import ENDINGS, WeightFile, read_weights
from eca_jax.convert.infer import infer
from eca_jax.convert.leaves import COUNTER
from eca_jax.convert.state_dict import (
    NATIVE,
    from_state_dict,
    momentum_from_state_dict,
    parameter_order,
    to_state_dict,
)
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture, Backbone

if TYPE_CHECKING:
    from eca_jax.training.loop import Run

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Names of the files in timm's repositories on the hub."""


def load_pretrained(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    skip: Sequence[str] = (),
    rngs: nnx.Rngs | None = None,
    **settings,
) -> Backbone:
    """A trained model in evaluation mode; what it is comes from the weights themselves.

    `model.architecture` says what was found, `model.preprocess` how its images are made.

    Args:
      source: a weight file (`.safetensors`, `.pth`, `.pth.tar`: the authors', torchvision's, timm's, our own); the
        directory of a training run, or one with timm's `model.safetensors` and `config.json`; or a name on the
        Hugging Face hub, 'ecaresnet50d.miil_in1k' or 'owner/repository', which is downloaded once.
      name: the model that is expected; other weights are refused.
      num_classes, skip: for another head: `num_classes=10, skip=("fc.*",)`.
      rngs: for what is skipped.
      settings: `dtype`, `batch_norm_group`, ... of `create_model`.

    Raises:
      EcaJaxError: there is no such file, directory or name, or the weights do not fit; all faults are named at once.
    """
    return load(source, name=name, num_classes=num_classes, skip=skip, rngs=rngs, **settings).model


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model, where it came from, and what else was there."""

    model: Backbone
    origin: str
    """'ecanet', 'torchvision', 'timm' or 'eca_jax'."""
    momentum: nnx.State | None = None
    """SGD's, a tree like the model's parameters."""
    epoch: int | None = None
    """Epochs done."""
    run: "Run | None" = None


def load(source: str | os.PathLike, *, skip: Sequence[str] = (), **wanted) -> Loaded:
    """`load_pretrained`, with the state of the training where there is one and nothing of the model is skipped."""
    path = locate(source)
    if path.is_dir():
        from eca_jax.training.loop import epochs_ended, read_run

        run = read_run(path)
        tensors, architecture = to_state_dict(run.model, NATIVE), run.model.architecture
        model = from_state_dict(tensors, source=NATIVE, architecture=architecture, skip=skip, **wanted)
        model.preprocess = run.config.preprocess
        epoch = epochs_ended(run.step, run.num_examples, run.config.batch_size)
        return Loaded(model, NATIVE, None if skip else run.momentum, epoch, run)
    file = read_weights(path)
    origin, architecture = identify(file)
    model = from_state_dict(file.tensors, source=origin, architecture=architecture, skip=skip, **wanted)
    model.preprocess = preprocessing(file, path)
    momentum = None
    if file.momentum is not None and not skip:
        names = parameter_order(model, origin)
        if len(names) != len(file.momentum):
            raise EcaJaxError(
                f"{path}: the optimiser has the momentum of {len(file.momentum)} parameters, the model {len(names)}"
            )
        momentum = momentum_from_state_dict(model, dict(zip(names, file.momentum, strict=True)), origin)
    return Loaded(model, origin, momentum, file.epoch)


def locate(source: str | os.PathLike) -> pathlib.Path:
    """The weight file or the directory of a run that `source` means; downloads from the hub what is not here."""
    path = pathlib.Path(source)
    if path.is_dir() and (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if path.exists():
        return path
    text = str(source)
    if path.suffix in ENDINGS or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise EcaJaxError(f"there is no file or directory {text}")
    return _download(text if "/" in text else f"timm/{text}")


def _download(repository: str) -> pathlib.Path:
    import huggingface_hub

    def get(file: str) -> pathlib.Path:
        try:  # what is in the cache needs no network, not even to find out that there is none
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file))

    try:
        get(CONFIG)
        return get(WEIGHTS)
    except Exception as error:  # no network, offline mode, no such repository: the hub has an exception for each
        reason = " ".join(str(error).split())[:200]
        raise EcaJaxError(
            f"there is no file {repository}, and {WEIGHTS} and {CONFIG} of {repository!r} are neither in the cache "
            f"of the Hugging Face hub nor could they be downloaded ({type(error).__name__}: {reason}). "
            "Without a network, put both files into a directory and give its path"
        ) from error


def identify(file: WeightFile) -> tuple[str, Architecture]:
    """(source, architecture) of the weights in a file."""
    if file.metadata:
        try:
            return NATIVE, msgspec.convert(file.metadata["architecture"], Architecture)
        except (KeyError, msgspec.ValidationError) as error:
            raise EcaJaxError(f"the metadata of the weights is of another version of eca_jax: {error}") from error
    shapes = {key.removeprefix("module."): value.shape for key, value in file.tensors.items()}
    return infer({key: shape for key, shape in shapes.items() if not key.endswith(COUNTER)})


def preprocessing(file: WeightFile, path: pathlib.Path) -> PreprocessConfig:
    """From our own metadata, or timm's config.json beside the file; else ImageNet's usual 256 and 224 pixels."""
    if file.metadata:
        try:
            return msgspec.convert(file.metadata["preprocess"], PreprocessConfig)
        except (KeyError, msgspec.ValidationError) as error:
            raise EcaJaxError(f"the metadata of {path} is of another version of eca_jax: {error}") from error
    config = path.parent / CONFIG
    if not config.is_file():
        return PreprocessConfig()
    try:
        values: dict[str, Any] = json.loads(config.read_text())["pretrained_cfg"]
        return PreprocessConfig.from_crop_share(
            values["input_size"][1],
            values["crop_pct"],
            interpolation=values["interpolation"],
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise EcaJaxError(f"{config} does not say as timm does how images are made: {error!r}") from error


def own_metadata(model: Backbone) -> dict[str, Any]:
    """What our safetensors say of the model that they hold."""
    return {
        "architecture": msgspec.to_builtins(model.architecture),
        "preprocess": msgspec.to_builtins(model.preprocess),
    }


def describe(origin: str, architecture: Architecture) -> str:
    """'eca_resnet50 of ecanet: attention eca, kernel sizes released, 1000 classes'."""
    attention = architecture.attention
    parts = [f"attention {attention.kind}"]
    if attention.kind in ("eca", "eca_ns"):
        sizes = attention.kernel_sizes
        parts.append(f"kernel sizes {' '.join(map(str, sizes)) if isinstance(sizes, tuple) else sizes}")
    parts.append(f"{architecture.num_classes} classes")
    for field in dataclasses.fields(architecture):
        value = getattr(architecture, field.name)
        if field.name in ("small_stem", "width_multiplier") and value != field.default:
            parts.append(f"{field.name} {value}")
    return f"{architecture.name} of {origin}: {', '.join(parts)}"
