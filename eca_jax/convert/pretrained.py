"""Models with trained weights: from a file, a training run, or the Hugging Face hub with its cache."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

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
    unwrapped,
)
from eca_jax.convert.timm_directory import CONFIG, WEIGHTS, TimmConfig, read_config
from eca_jax.data.imagenet import CLASSES, class_names, synsets
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.records import Source, check_classes
from eca_jax.errors import EcaJaxError
from eca_jax.models import registry
from eca_jax.models.base import Architecture, Backbone
from eca_jax.models.registry import INSIDE, MODELS, PAPER, attention_from_old
from eca_jax.models.resnet import VARIANTS
from eca_jax.models.settings import checked
from eca_jax.nn.attention import ATTENTIONS, AttentionConfig
from eca_jax.optim import epochs_ended
from eca_jax.plain import from_plain, to_plain
from eca_jax.plugins import with_missing_plugins
from eca_jax.runs.run import Run, read_run
from eca_jax.tasks import TASKS, Classification, Task
from eca_jax.tasks.registry import task_from_dict

METADATA = "the metadata of the weights (is the file of another version of eca_jax?)"
HUB, TIMM, HUB_TIMEOUT = "hf-hub:", "timm/", 5
"""How timm marks a name on the hub; the owner of a name without one; seconds to wait for the hub's first answer."""
FORMAT = 1
"""Of what our files say of themselves. Version 0.1.0 gave none: it wrote the options of all attentions, and no task and
class names."""


def create_model(
    name: str,
    *,
    rngs: nnx.Rngs,
    num_classes: int | None = None,
    in_channels: int | None = None,
    output_stride: int | None = None,
    pretrained: str | os.PathLike | None = None,
    skip: Sequence[str] = (),
    **settings,
) -> Backbone:
    """A model in training mode, fresh or with trained weights: normalised images (b, h, w, c) -> (b, num_classes).

    Args:
      name: one of `list_models()`.
      rngs: for the initialisation, e.g. `nnx.Rngs(0)`.
      num_classes: width of the logits; None is 1000, or what the pretrained weights have.
      in_channels: c; None is 3, or what the pretrained weights have. Where those have another number, the first
        convolution's are summed (for 1) or repeated and scaled, exactly as timm does.
      output_stride: 16 or 8: the last stages are dilated instead of strided, and their outputs that much larger. None
        is 32, or what the pretrained weights say, which may be used with any.
      pretrained: weights that `load_pretrained` finds; they decide the attention, the stem and the widths, and what the
        arguments say of those has to agree. None is fresh weights.
      skip: names of the pretrained weights that start anew, as shell patterns: `skip=("fc.*",)` for another head.
      settings: of `eca_jax.models.create_model`: `attention`, `small_stem`, `width_multiplier`, `dropout`, `drop_path`,
        `rematerialise`, `batch_norm_group`, `batch_norm_momentum`, `dtype`, `param_dtype`.

    Raises:
      EcaJaxError: for an unknown name (the nearest are named), an attention that does not fit, or weights that are not
        there or not of this model.

    Example:
      >>> import eca_jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = eca_jax.create_model(
      ...     "eca_resnet18", num_classes=10, small_stem=True, width_multiplier=0.125, rngs=nnx.Rngs(0)
      ... )
      >>> model(jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
    """
    if pretrained is None and skip:
        raise EcaJaxError(f"skip: {skip!r} is of pretrained weights: give pretrained=, or leave it out")
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "output_stride": output_stride}
    settings |= {key: value for key, value in sizes.items() if value is not None}
    if pretrained is None:
        return registry.create_model(name, rngs=rngs, **settings)
    model = load_pretrained(pretrained, name=name, skip=skip, rngs=rngs, **settings)
    model.train()
    return model


def load_pretrained(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    output_stride: int | None = None,
    skip: Sequence[str] = (),
    rngs: nnx.Rngs | None = None,
    **settings,
) -> Backbone:
    """A trained model in evaluation mode; what it is comes from the weights themselves.

    `model.architecture` says what was found, `model.preprocess` how its images are made.

    Args:
      source: a weight file (`.safetensors`, `.pth`, `.pth.tar`: the authors', torchvision's, timm's, our own); the
        directory of a training run, or one with timm's `model.safetensors` and `config.json`, as `eca-jax convert
        --to timm` writes it; or a name on the
        Hugging Face hub, 'ecaresnet50d.miil_in1k' or 'owner/repository', which is downloaded once.
      name: the model that is expected; other weights are refused. A plain backbone's name means one without attention,
        unless `attention` says its kind, or the weights were trained under that name.
      num_classes, skip: for another head: `num_classes=10, skip=("fc.*",)`.
      in_channels, output_stride: as in `create_model`.
      rngs: for what is skipped.
      settings: `dtype`, `batch_norm_group`, ... of `create_model`; `attention`, `small_stem` and `width_multiplier`
        have to be those of the weights.

    Raises:
      EcaJaxError: there is no such file, directory or name, or the weights do not fit; all faults are named at once.

    Example:
      After `eca-jax train`:

      >>> import eca_jax
      >>> model = eca_jax.load_pretrained("runs/digits")
      >>> model.architecture.name, model.architecture.attention.options.kernel_sizes, model.preprocess.image_size
      ('eca_resnet18', 'released', 8)
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "output_stride": output_stride}
    return load(source, name=name, skip=skip, rngs=rngs, **sizes, **settings).model


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
    run: Run | None = None
    task: Task = Classification()
    """What the model was trained to do."""
    class_names: tuple[str, ...] | None = None
    """None where the weights do not say them."""
    assumed: bool = False
    """Whether `model.preprocess` is ImageNet's usual one, because the weights do not say how their images are made."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, for people: ImageNet's where there are 1000 and the weights do not say, else numbers."""
        return self.class_names or class_names(self.model.architecture.num_classes)

    def describe_preprocess(self, preprocess: PreprocessConfig) -> str:
        """`preprocess` in a line, and whether nobody has said it."""
        assumed = " (ImageNet's usual where nothing else is given: the weights do not say)" if self.assumed else ""
        return preprocess.describe_evaluation() + assumed

    def check_data(self, source: Source, weights: str) -> None:
        """Refuses data of other classes; `weights` is what the user called these.

        Of weights that do not name theirs, a thousand are taken for ImageNet's; others must be as many as the data's.
        """
        num_classes = self.model.architecture.num_classes
        if self.class_names is not None:
            check_classes(source, self.class_names, f"the weights {weights}")
        elif num_classes == CLASSES:
            check_classes(source, tuple(synsets()), f"ImageNet, which {weights} is taken to be for")
        elif num_classes != len(source.class_names):
            raise EcaJaxError(
                f"data set {source.name!r} has {len(source.class_names)} classes, "
                f"the weights {weights} have {num_classes}"
            )


def _same_arrays(model: Backbone, architecture: Architecture, skip: Sequence[str]) -> bool:
    """Whether the model has every array of the weights, which are of `architecture`, as it was trained."""
    return not skip and model.architecture.in_channels == architecture.in_channels


def load(
    source: str | os.PathLike, *, skip: Sequence[str] = (), checkpoint: str | int | None = None, **wanted
) -> Loaded:
    """`load_pretrained`, with the state of the training where there is one and every array is as it was trained.

    `checkpoint` is of a run: 'latest' (None too), 'best' or a step.
    """
    path = locate(source)
    if path.is_dir():
        run = read_run(path, checkpoint or "latest")
        architecture = run.model.architecture
        wanted = undecided(architecture, wanted)
        tensors = to_state_dict(run.model, NATIVE)
        model = from_state_dict(tensors, source=NATIVE, architecture=architecture, skip=skip, **wanted)
        model.preprocess = run.config.task.preprocess
        epoch = epochs_ended(run.step, run.num_examples, run.config.batch_size)
        names = run.class_names if model.architecture.num_classes == len(run.class_names) and not skip else None
        momentum = run.momentum if _same_arrays(model, architecture, skip) else None
        return Loaded(model, NATIVE, momentum, epoch, run, run.config.task, names)
    if checkpoint:
        raise EcaJaxError(f"--checkpoint: {checkpoint} is one of a run's, and {source} is a weight file; leave it out")
    file = read_weights(path)
    origin, architecture = identify(file)
    timm = None if file.metadata else read_config(path.parent)
    if timm is not None:
        architecture = timm.completed(architecture)
    wanted = undecided(architecture, wanted)
    model = from_state_dict(file.tensors, source=origin, architecture=architecture, skip=skip, **wanted)
    said = preprocessing(file, timm)
    model.preprocess = said or PreprocessConfig()
    momentum = None
    if file.momentum is not None and _same_arrays(model, architecture, skip):
        names = parameter_order(model, origin)
        if len(names) != len(file.momentum):
            raise EcaJaxError(
                f"{path}: the optimiser has the momentum of {len(file.momentum)} parameters, the model {len(names)}"
            )
        momentum = momentum_from_state_dict(model, dict(zip(names, file.momentum, strict=True)), origin)
    names = None if skip else saved_class_names(file, timm, model.architecture.num_classes)
    task = saved_task(file, model.preprocess)
    return Loaded(model, origin, momentum, file.epoch, task=task, class_names=names, assumed=said is None)


def undecided(architecture: Architecture, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load_pretrained` without those that the weights decide, which have to be as the weights are.

    Raises:
      EcaJaxError: names the argument that differs, or has a wrong type.
    """
    wanted = dict(wanted) | checked({key: value for key, value in wanted.items() if value is not None})
    name, own = wanted.get("name") or architecture.name, architecture.attention.resolved()
    attention = registry.as_attention(wanted.pop("attention", AttentionConfig()))
    if (asked := own.refined(attention).resolved()) != own:
        raise EcaJaxError(f"attention: the weights are of {own}; expected the same, got {asked}")
    for key in ("small_stem", "width_multiplier"):
        if (asked := wanted.pop(key, has := getattr(architecture, key))) != has:
            raise EcaJaxError(f"{key}: the weights have {has}; expected the same, got {asked}")
    if name in MODELS and name != architecture.name and registry.resolve_attention(name, attention).kind != own.kind:
        raise EcaJaxError(
            f"the weights are of {architecture.name!r}, the model asked for is {name!r}, which is without the "
            f"attention {own.kind!r}"
        )
    return wanted


def locate(source: str | os.PathLike) -> pathlib.Path:
    """The weight file or the directory of a run that `source` means; downloads from the hub what is not here.

    What ends as a weight file does, has more than one slash, or begins with a directory that is here, is a path. A name
    on the hub may always be written as timm does, 'hf-hub:owner/repository'.
    """
    if not isinstance(source, str | os.PathLike):
        raise EcaJaxError(f"weights: expected a file, the directory of a run or a name on the hub, got {source!r}")
    if not (text := str(source)) or text == HUB:
        raise EcaJaxError(f"weights: expected a file, the directory of a run or a name on the hub, got {text!r}")
    path = pathlib.Path(source)
    if path.is_dir() and (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if path.exists():
        return path
    if text.startswith(HUB):
        return _download(text.removeprefix(HUB))
    if path.suffix.lower() in ENDINGS or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise EcaJaxError(f"there is no file or directory {text}")
    if "/" in text and path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=3)
        meant = f" Did you mean {', '.join(str(path.parent / name) for name in near)}?" if near else ""
        raise EcaJaxError(f"there is no file or directory {text}.{meant} (On the hub that would be {HUB}{text}.)")
    return _download(text if "/" in text else f"{TIMM}{text}")


def _download(repository: str) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub.utils import logging as hub_logging

    def get(file: str) -> pathlib.Path:
        try:  # what is in the cache needs no network, not even to find out that there is none
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            # Asked once: without a network the download itself would try again for half a minute, with a warning each.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file), timeout=HUB_TIMEOUT)
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file))

    hub_logging.disable_propagation()  # its warnings would come twice
    try:
        get(CONFIG)
        return get(WEIGHTS)
    except huggingface_hub.errors.HFValidationError as error:
        raise EcaJaxError(
            f"there is no file or directory {repository.removeprefix(TIMM)!r}, and it is no name on the Hugging Face "
            "hub; expected one such as 'ecaresnet50d.miil_in1k' or 'owner/repository'"
        ) from error
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
        if (written := from_plain(file.metadata.get("format", 0), int, METADATA)) > FORMAT:
            raise EcaJaxError(
                f"the weights are of format {written}, this version of eca_jax reads up to {FORMAT}: upgrade eca_jax"
            )
        try:
            return NATIVE, from_plain(_architecture_from_old(file.metadata), Architecture, METADATA)
        except EcaJaxError as error:
            raise with_missing_plugins(error, saved_plugins(file)) from error
    shapes = {key: value.shape for key, value in unwrapped(file.tensors).items()}
    return infer({key: shape for key, shape in shapes.items() if not key.endswith(COUNTER)})


def preprocessing(file: WeightFile, timm: TimmConfig | None) -> PreprocessConfig | None:
    """What our own metadata, or timm's config.json beside the file, says of the images; None where neither is there.

    Raises:
      EcaJaxError: it cannot be, or is of images so large that the file is taken to be forged.
    """
    if file.metadata:
        where, said = METADATA, from_plain(file.metadata.get("preprocess"), PreprocessConfig, METADATA)
    elif timm is not None:
        where, said = str(timm.path), timm.preprocess
    else:
        return None
    said.expect_sides(where)
    return said


def _architecture_from_old(metadata: dict[str, Any]) -> Any:
    """The architecture as today's, where the file is of version 0.1.0, which gave it no format number."""
    values = metadata.get("architecture")
    if "format" in metadata or not isinstance(values, dict) or not isinstance(values.get("attention"), dict):
        return values
    return values | {"attention": attention_from_old(values["attention"], values["attention"].get("kind"))}


def saved_task(file: WeightFile, preprocess: PreprocessConfig) -> Task:
    """The task that the weights were trained for; classification where they do not say it."""
    if "task" not in file.metadata:
        return Classification(preprocess=preprocess)
    try:
        values = from_plain(file.metadata["task"], dict[str, Any], METADATA)
        return task_from_dict({"name": "", **values, "preprocess": to_plain(preprocess)})
    except EcaJaxError as error:
        raise with_missing_plugins(error, saved_plugins(file)) from error


def saved_plugins(file: WeightFile) -> list[str]:
    """What has to be imported before the weights are understood."""
    return from_plain(file.metadata.get("plugins", []), list[str], METADATA)


def saved_class_names(file: WeightFile, timm: TimmConfig | None, num_classes: int) -> tuple[str, ...] | None:
    """The names of the classes, where the weights say them."""
    if timm is not None:
        where, names = str(timm.path), timm.label_names
    else:
        where = METADATA
        names = from_plain(file.metadata.get("class_names"), tuple[str, ...] | None, METADATA)  # pyright: ignore[reportArgumentType]
    if names is not None and len(names) != num_classes:
        raise EcaJaxError(f"{where}: {len(names)} class names, the weights have {num_classes} classes")
    return names


def own_metadata(
    model: Backbone, class_names: Sequence[str] | None = None, task: Task = Classification()
) -> dict[str, Any]:
    """What our files say of the model that they hold: safetensors, ONNX and StableHLO alike."""
    kind = model.architecture.attention.kind or "none"
    plugins = {MODELS.plugin(model.architecture.name), ATTENTIONS.plugin(kind), TASKS.plugin(task.name)} - {None}
    return {
        "format": FORMAT,
        "architecture": to_plain(model.architecture),
        "task": {key: value for key, value in task.to_dict().items() if key != "preprocess"},
        "class_names": None if class_names is None else list(class_names),
        "preprocess": to_plain(model.preprocess),
        **({"plugins": sorted(map(str, plugins))} if plugins else {}),
    }


def describe(origin: str, architecture: Architecture) -> str:
    """'eca_resnet50 of ecanet: attention eca, kernel sizes released, 1000 classes'."""
    attention = architecture.attention
    backbone, _ = MODELS[architecture.name]
    parts = [] if backbone in INSIDE else [f"attention {attention.kind}"]
    sizes = attention.given.get("kernel_sizes")
    if sizes == "released" and backbone in VARIANTS and backbone not in PAPER:
        sizes = "adaptive"  # timm's networks were published with the formula's
    if sizes is not None:
        parts.append(f"kernel sizes {' '.join(map(str, sizes)) if isinstance(sizes, tuple) else sizes}")
    parts.append(f"{architecture.num_classes} classes")
    for field in dataclasses.fields(architecture):
        value = getattr(architecture, field.name)
        if field.name not in ("name", "num_classes", "attention") and value != field.default:
            parts.append(f"{field.name} {value}")
    return f"{architecture.name} of {origin}: {', '.join(parts)}"
