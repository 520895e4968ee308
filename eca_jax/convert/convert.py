"""`eca-jax convert`, one file or run into another, and `eca_jax.save`, which writes a model in memory likewise."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from eca_jax.config import Config
from eca_jax.convert.files import (
    ENDINGS,
    SAFETENSORS,
    check_new_directory,
    write_directory,
    write_safetensors,
    write_torch,
)
from eca_jax.convert.leaves import leaves
from eca_jax.convert.pretrained import Loaded, describe, load, own_metadata
from eca_jax.convert.state_dict import (
    NATIVE,
    ShapesOnly,
    build_architecture,
    momentum_to_state_dict,
    parameter_order,
    to_state_dict,
)
from eca_jax.convert.tables import TABLES
from eca_jax.convert.timm_directory import shortcomings, to_directory
from eca_jax.data.preprocess import EVALUATION, PreprocessConfig, words
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.models.config import architecture
from eca_jax.optim import peak_rate, total_steps
from eca_jax.runs.run import describe_run, write_run
from eca_jax.tasks import Classification, Task

FORMS = (*TABLES, "safetensors")
"""What a model can be written as by itself."""
TARGETS = (*FORMS, "orbax")


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str | None = None,
    *,
    config: Config | None = None,
    num_classes: int | None = None,
    skip: Sequence[str] = (),
    checkpoint: str | int | None = None,
) -> str:
    """Writes `source` in another form; returns a line that says what it was and what was written.

    Args:
      source: what `eca_jax.load_pretrained` takes.
      target: `.safetensors`; `.pth` (a bare state dict) or `.pth.tar` (with epoch and momentum, as the authors save it)
        with `to` 'ecanet', 'torchvision' or 'timm'; a new directory with `to` 'orbax', or 'timm', whose directory alone
        (`eca_jax.convert.timm_directory`) says how images are made.
      to: whose names: 'ecanet', 'torchvision', 'timm'; 'safetensors' is our own file, 'orbax' a run to be continued.
        None is one of the last two where the target says which.
      config: of the run that 'orbax' writes.
      num_classes, skip: as in `load_pretrained`.
      checkpoint: of a run: 'latest' (None too), 'best' or a step.
    """
    target = pathlib.Path(target)
    to = _form(target, to, TARGETS, "--to")
    if config is not None and to != "orbax":
        raise EcaJaxError(f"--config: is of the run that --to orbax writes, and {target} is to be none; leave it out")
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise EcaJaxError(f"{target} is what is to be converted; give another name")
    loaded = load(source, num_classes=num_classes, skip=skip, checkpoint=checkpoint)
    line = _write_run(loaded, target, config) if to == "orbax" else _write_model(loaded, target, to)
    return line + (f"; {', '.join(skip)} of it starts anew, untrained" if skip else "")


def save(
    model: Backbone,
    path: str | os.PathLike,
    to: str | None = None,
    class_names: Sequence[str] | None = None,
    task: Task = Classification(),
) -> str:
    """Writes a model of this process, whoever trained it, as `eca-jax convert` writes one that is in a file or a run.

    `load_pretrained(path)` gives the model back, its arrays bit for bit. It does not matter whether the model is in
    training or in evaluation mode, on how many devices its arrays lie, and of which floating-point type they are.

    Args:
      model: of `create_model` or `load_pretrained`. `model.preprocess` says how its images are made.
      path: a `.safetensors` file of our own; with `to`, a file with PyTorch's names (`.pth`, `.pth.tar` or
        `.safetensors`), or for 'timm' also a new directory, which timm's `create_model("local-dir:PATH")` takes. A file
        that is there is replaced, a directory is not.
      to: whose names: 'ecanet', 'torchvision', 'timm'; 'safetensors' or None is our own file.
      class_names: one for each logit. Our own file and timm's directory keep them.
      task: what the model was trained to do. Our own file keeps it: it says what `eca-jax predict` makes of the logits.

    Returns: a line that says what was written, and what the form cannot say of this model.

    Raises:
      EcaJaxError: the path and `to` do not fit, the model has no such form, or there is no room on the disk.

    Example:
      >>> import eca_jax
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", num_classes=2, width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> eca_jax.save(model, "animals.safetensors", class_names=("cat", "dog"))
      'eca_resnet18 of eca_jax: attention eca, kernel sizes released, 2 classes, ... animals.safetensors'
      >>> eca_jax.load_pretrained("animals.safetensors").architecture.num_classes
      2
    """
    path = pathlib.Path(path)
    to = _form(path, to, FORMS, "to")
    _check_arrays(model)
    if class_names is not None:
        class_names = _checked_names(class_names, model.architecture.num_classes)
    if not isinstance(task, Task):
        raise EcaJaxError(f"task: expected one such as eca_jax.tasks.Classification(), got {task!r}")
    line = _write_model(Loaded(model, NATIVE, task=task, class_names=class_names), path, to)
    kept = class_names is None or to == "safetensors" or path.suffix not in ENDINGS
    return line if kept else f"{line}; not in the file: the class names"


def _form(target: pathlib.Path, to: str | None, forms: Sequence[str], option: str) -> str:
    """Which of the forms is to be written; None is the one that the target's ending says.

    Raises:
      EcaJaxError: it says none, or one that is not written to such a target. `option` is what the user calls `to`.
    """
    suffix = target.suffix
    if to is None:
        to = "safetensors" if suffix in SAFETENSORS else "orbax" if not suffix and "orbax" in forms else None
    if to is None or to not in forms:
        said = f"{target} does not say whose names it is to have" if to is None else f"unknown {to!r}"
        raise EcaJaxError(f"{option}: {said}; expected one of {', '.join(forms)}")
    if to == "safetensors" and suffix not in SAFETENSORS:
        raise EcaJaxError(f"{option} safetensors: expected a file that ends in .safetensors, got {target}")
    if to == "timm" and suffix not in ENDINGS:
        check_new_directory(target)
    elif to in TABLES and suffix not in ENDINGS:
        raise EcaJaxError(f"{option} {to}: expected a file that ends in {', '.join(ENDINGS)}, got {target}")
    return to


def _check_arrays(model: Backbone) -> None:
    """Refuses what is no model of ours, and one whose layers were exchanged: its file could not be loaded."""
    if not isinstance(model, Backbone):
        raise EcaJaxError(f"model: expected one of eca_jax.create_model, got {type(model).__name__}")
    usual = nnx.eval_shape(lambda: build_architecture(model.architecture, ShapesOnly()))
    found, wanted = ({leaf.path: leaf.variable.shape for leaf in leaves(m)} for m in (model, usual))
    odd = [path for path in {**wanted, **found} if found.get(path) != wanted.get(path)]
    if odd:
        has, expected = (shapes.get(odd[0], "nothing") for shapes in (found, wanted))
        raise EcaJaxError(
            f"model: {len(odd)} of its arrays are not those of model.architecture ({model.architecture.name!r}, "
            f"{model.architecture.num_classes} classes), such as {odd[0]}: expected {expected}, got {has}; "
            "make it with the arguments of create_model"
        )


def _checked_names(class_names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise EcaJaxError(f"class_names: expected the names of the classes in their order, got {class_names!r}")
    if len(class_names) != num_classes:
        raise EcaJaxError(f"class_names: expected {num_classes}, one for each logit, got {len(class_names)}")
    return tuple(map(str, class_names))


def _write_model(loaded: Loaded, target: pathlib.Path, to: str) -> str:
    """Writes it in one of `FORMS`; returns a line on what was written."""
    if to == "safetensors":
        own = own_metadata(loaded.model, loaded.class_names, loaded.task)
        write_safetensors(target, to_state_dict(loaded.model, NATIVE), own)
        extra = ""
    elif target.suffix in ENDINGS:
        extra = _write_state_dict(loaded, target, to)
    else:
        extra = _write_timm_directory(loaded, target)
    return f"{describe(loaded.origin, loaded.model.architecture)} -> {to}, {target}{extra}"


def _write_timm_directory(loaded: Loaded, target: pathlib.Path) -> str:
    """Returns what is in it, and what it lacks."""
    model, task = loaded.model, loaded.task
    about = describe(loaded.origin, model.architecture)
    if loaded.run is not None and loaded.run.metrics is not None:
        data = loaded.run.config.data
        scores = task.describe(loaded.run.metrics)
        about += f", trained on {data.name} ({data.train_split}), at step {loaded.run.step} held-out {scores}"
    files = to_directory(model, to_state_dict(model, "timm"), class_names=loaded.class_names, task=task, about=about)
    write_directory(target, files)
    notes = [f"but {clause}" for clause in shortcomings(model, task)]
    if loaded.assumed:
        notes.append(f"assumed, as the weights do not say it: {model.preprocess.describe_evaluation()}")
    return "; ".join([f" ({', '.join(files)})", *notes])


def _write_state_dict(loaded: Loaded, target: pathlib.Path, to: str) -> str:
    """Returns what is in the file besides, and what is not."""
    tensors, extra = to_state_dict(loaded.model, to), ""
    if target.suffix in SAFETENSORS:
        write_safetensors(target, tensors)
    elif target.suffix == ".tar":
        write_torch(target, _training_checkpoint(loaded, tensors, to))
        extra = ", with momentum" if loaded.momentum is not None else ", without momentum"
    else:
        write_torch(target, tensors)
    if (stride := loaded.model.architecture.output_stride) != 32:
        extra += f"; not in the file: output_stride {stride}"
    options = preprocess_options(loaded.model.preprocess)
    if options:
        instead = "a directory for DST has it in timm's config.json, or " if to == "timm" else ""
        extra += f"; not in the file: how its images are made ({instead}evaluate and predict with {options})"
    return extra


def preprocess_options(preprocess: PreprocessConfig) -> str:
    """'--preprocess.image-size 64 --preprocess.eval-resize 64': what is not as where weights say nothing."""
    usual = PreprocessConfig()
    return " ".join(
        f"--preprocess.{name.replace('_', '-')} {' '.join(words(getattr(preprocess, name)))}"
        for name in EVALUATION
        if getattr(preprocess, name) != getattr(usual, name)
    )


def _training_checkpoint(loaded: Loaded, tensors: dict[str, np.ndarray], to: str) -> dict[str, Any]:
    """What the authors' main.py saves, and torch.optim.SGD loads."""
    content: dict[str, Any] = {
        "arch": loaded.model.architecture.name,
        "state_dict": tensors,
        "epoch": loaded.epoch or 0,
    }
    if loaded.run is not None and loaded.run.metrics is not None:
        content["best_prec1"] = 100 * loaded.run.metrics[loaded.task.best]
    if loaded.momentum is not None:
        buffers = momentum_to_state_dict(loaded.model, loaded.momentum, to)
        names = parameter_order(loaded.model, to)
        group: dict[str, Any] = {"params": list(range(len(names))), "dampening": 0, "nesterov": False}
        if loaded.run is not None:
            optim, rate = loaded.run.config.optim, peak_rate(loaded.run.config.optim, loaded.run.config.batch_size)
            group |= {"lr": rate, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
        content["optimizer"] = {
            "state": {i: {"momentum_buffer": buffers[name]} for i, name in enumerate(names)},
            "param_groups": [group],
        }
    return content


def _write_run(loaded: Loaded, target: pathlib.Path, config: Config | None) -> str:
    """Writes a run to be continued; returns a line on it."""
    if config is None:
        raise EcaJaxError("--to orbax: --config FILE has to say what run it is (data, batch size, schedule)")
    found = loaded.model.architecture
    if loaded.origin != NATIVE and found.output_stride == 32:  # a state dict does not say it: the configuration does
        found = dataclasses.replace(found, output_stride=config.model.output_stride)
    if found != (expected := architecture(config.model, found.num_classes)):
        raise EcaJaxError(f"--config: its model is {expected}, the weights are of {found}")
    source = open_source(config.data.name, config.data.train_split, config.data.data_dir, config.data.keys)
    if len(source.class_names) != found.num_classes:
        raise EcaJaxError(
            f"the weights have {found.num_classes} classes, data set {source.name!r} {len(source.class_names)}: "
            "--skip the head and give --num-classes"
        )
    config = dataclasses.replace(config, workdir=str(target))
    epoch = loaded.epoch or 0
    if not 0 <= epoch <= config.epochs:
        raise EcaJaxError(f"the weights are of epoch {epoch}, --config says epochs={config.epochs}: give a longer run")
    step = min(
        epoch * len(source) // config.batch_size,
        total_steps(config.epochs, len(source), config.batch_size),
    )
    momentum = loaded.momentum if config.optim.name == "sgd" else None
    path = write_run(loaded.model, momentum, config, step=step, description=describe_run(config, source))
    about = describe(loaded.origin, loaded.model.architecture)
    with_momentum = "with" if momentum is not None else "without"
    return f"{about} -> orbax, {target} (step {step}, {with_momentum} momentum: {path})"
