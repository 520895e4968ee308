"""`eca-jax convert`: one file or run into another."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from eca_jax.config import Config
from eca_jax.convert.files import (
    ENDINGS,
    SAFETENSORS,
    check_new_directory,
    write_directory,
    write_safetensors,
    write_torch,
)
from eca_jax.convert.pretrained import Loaded, describe, load, own_metadata
from eca_jax.convert.state_dict import NATIVE, momentum_to_state_dict, parameter_order, to_state_dict
from eca_jax.convert.tables import TABLES
from eca_jax.convert.timm_directory import shortcomings, to_directory
from eca_jax.data.preprocess import EVALUATION, PreprocessConfig, words
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import architecture
from eca_jax.optim import peak_rate, total_steps
from eca_jax.runs.run import describe_run, write_run

TARGETS = (*TABLES, "safetensors", "orbax")


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str | None = None,
    *,
    config: Config | None = None,
    num_classes: int | None = None,
    skip: Sequence[str] = (),
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
    """
    target = pathlib.Path(target)
    suffix = target.suffix
    if to is None:
        to = "safetensors" if suffix in SAFETENSORS else "orbax" if not suffix else None
    if to not in TARGETS:
        said = f"{target} does not say whose names it is to have" if to is None else f"unknown {to!r}"
        raise EcaJaxError(f"--to: {said}; expected one of {', '.join(TARGETS)}")
    if config is not None and to != "orbax":
        raise EcaJaxError(f"--config: is of the run that --to orbax writes, and {target} is to be none; leave it out")
    if to == "safetensors" and suffix not in SAFETENSORS:
        raise EcaJaxError(f"--to safetensors: expected a file that ends in .safetensors, got {target}")
    directory = to == "timm" and suffix not in ENDINGS
    if directory:
        check_new_directory(target)
    elif to in TABLES and suffix not in ENDINGS:
        raise EcaJaxError(f"--to {to}: expected a file that ends in {', '.join(ENDINGS)}, got {target}")
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise EcaJaxError(f"{target} is what is to be converted; give another name")
    loaded = load(source, num_classes=num_classes, skip=skip)
    if to == "orbax":
        extra = _write_run(loaded, target, config)
    elif to == "safetensors":
        own = own_metadata(loaded.model, loaded.class_names, loaded.task)
        write_safetensors(target, to_state_dict(loaded.model, NATIVE), own)
        extra = ""
    elif directory:
        extra = _write_timm_directory(loaded, target)
    else:
        extra = _write_state_dict(loaded, target, to)
    if skip:
        extra += f"; {', '.join(skip)} of it starts anew, untrained"
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
    if config is None:
        raise EcaJaxError("--to orbax: --config FILE has to say what run it is (data, batch size, schedule)")
    found = loaded.model.architecture
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
    return f" (step {step}, {'with' if momentum is not None else 'without'} momentum: {path})"
