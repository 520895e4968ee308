"""The configuration of a run: frozen dataclasses that refuse values that cannot work."""

import dataclasses
import difflib
import os
import pathlib
from typing import Annotated, Any, NotRequired, TypedDict

import tyro

from eca_jax.data.config import DataConfig
from eca_jax.data.records import SOURCES
from eca_jax.errors import EcaJaxError, expect_positive
from eca_jax.models.config import ModelConfig
from eca_jax.models.registry import MODELS, attention_from_old, resolve_attention
from eca_jax.nn.attention import ATTENTIONS
from eca_jax.optim import OptimConfig
from eca_jax.plain import TypedFields, from_plain, to_plain
from eca_jax.plugins import FAULTS, describe_fault, run_file, with_missing_plugins
from eca_jax.sharding import ClusterConfig
from eca_jax.tasks import TASKS, Classification, Task
from eca_jax.tasks.registry import task_from_dict


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(TypedFields, at="checkpoint"):
    """When checkpoints are saved, and how many are kept. Of those that have an evaluation, the one with the best
    held-out score (for classification: top-1) is always kept."""

    every_epochs: int = 1
    """The last step is always saved."""
    every_steps: int | None = None
    """Also every so many steps."""
    keep: int = 2
    """So many of the newest are kept."""

    def __post_init__(self):
        expect_positive("checkpoint.every_epochs", self.every_epochs)
        expect_positive("checkpoint.keep", self.keep)
        if self.every_steps is not None:
            expect_positive("checkpoint.every_steps", self.every_steps)


COMMAND_OPTIONS = ("config", "plugin", "profile", "version", "help")
"""Options of train.py that are not fields of the configuration."""


@dataclasses.dataclass(frozen=True)
class Config(TypedFields):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: Annotated[Task, tyro.conf.arg(name="")] = Classification()
    """What the network is trained to do. On the command line, its fields have no prefix: --preprocess.pad 2."""
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    sharding_rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    """(regular expression on a parameter's path, mesh axis of each of its dimensions); the first match counts. Arrays
    without a match are replicated. E.g. (("fc/kernel", (None, "data")),)."""
    batch_size: int = 256
    """The global batch, over all devices and processes."""
    epochs: int = 100
    seed: int = 0
    """Determines the initial weights, the order of the examples, their augmentation and dropout."""
    log_every: int = 50
    """Steps between two rows of metrics.jsonl."""
    eval_every_epochs: int = 1
    """The last step is always evaluated."""
    workdir: str = "runs/eca_resnet50"
    """The directory of the run: checkpoints, metrics.jsonl, config.json, TensorBoard files. A ~ at the start is the
    home directory, even if the shell does not expand it (--workdir=~/run)."""

    def __post_init__(self):
        object.__setattr__(self, "workdir", os.path.expanduser(self.workdir))
        if type(self.task) is not TASKS.get(self.task.name):
            raise EcaJaxError(
                f"task: {type(self.task).__name__} is not registered as {self.task.name!r}: say so where it is "
                f"defined, TASKS.register({self.task.name!r}, {type(self.task).__name__})"
            )
        taken = {field.name for field in dataclasses.fields(self.task)} & {*vars(self), *COMMAND_OPTIONS}
        if taken:
            raise EcaJaxError(
                f"task: {type(self.task).__name__} has fields that the command line could not tell from others beside "
                f"which they stand: {', '.join(sorted(taken))}; give them other names"
            )
        for name in ("batch_size", "epochs", "log_every", "eval_every_epochs"):
            expect_positive(name, getattr(self, name))
        if not 0 <= self.seed < 2**32:
            raise EcaJaxError(f"seed: expected 0 to 2**32 - 1, got {self.seed}")
        group = self.model.batch_norm_group
        if group is not None and self.batch_size % group:
            raise EcaJaxError(
                f"batch_size {self.batch_size} is not a multiple of model.batch_norm_group {group}: "
                f"use {max(self.batch_size // group, 1) * group}, or another --model.batch-norm-group (None: the whole "
                "batch)"
            )
        if self.batch_size % (unit := (group or 1) * self.optim.accumulate):
            raise EcaJaxError(
                f"batch_size {self.batch_size} cannot be cut into optim.accumulate {self.optim.accumulate} parts of "
                f"whole statistics groups: use {max(self.batch_size // unit, 1) * unit}"
            )
        together = self.task.examples_together
        if self.batch_size % (together * self.optim.accumulate):
            raise EcaJaxError(
                f"batch_size {self.batch_size}: the task takes {together} examples together (Mixup and CutMix: pairs), "
                f"so a multiple of {together} in each of {self.optim.accumulate} parts"
            )
        if self.data.repeats > self.batch_size:
            raise EcaJaxError(
                f"data.repeats: expected at most the batch_size {self.batch_size}, got {self.data.repeats}"
            )


MAY_CHANGE = (
    "epochs",
    "log_every",
    "eval_every_epochs",
    "workdir",
    "checkpoint",
    "cluster",
    "sharding_rules",
    "model.rematerialise",
    "data.data_dir",
    "data.num_threads",
    "data.max_bad",
    "optim.max_skipped",
)
"""The fields that may differ when a run is continued, because they do not change what a step computes. (`epochs` only
moves the end. `max_bad` only decides whether a step with a bad record is done; which record replaces the bad one does
not depend on it.)"""


def to_dict(config: Config) -> dict:
    """Plain dicts, lists and numbers, for JSON, with the task's name and the plugins that the configuration needs."""
    values = to_plain(config) | {"task": config.task.to_dict()}
    return values | ({"plugins": needed} if (needed := plugins_of(config)) else {})


def plugins_of(config: Config) -> list[str]:
    """The plugins that have to be imported before the names in this configuration are known (`eca_jax.plugins`)."""
    attention = resolve_attention(config.model.name, config.model.attention).kind or "none"
    found = (
        TASKS.plugin(config.task.name),
        MODELS.plugin(config.model.name),
        ATTENTIONS.plugin(attention),
        SOURCES.plugin(config.data.name.partition(":")[0]),
    )
    return sorted({plugin for plugin in found if plugin is not None})


class _Named(TypedDict):
    name: str


class _NamedModel(_Named):
    attention: NotRequired[dict[str, Any]]


class _Outline(TypedDict):
    """The parts that every version wrote, and that are read before the other fields."""

    model: _NamedModel
    data: _Named
    optim: dict[str, Any]
    task: NotRequired[_Named]
    plugins: NotRequired[list[str]]


def from_dict(values: dict) -> Config:
    """The inverse of `to_dict`; also reads what earlier versions wrote.

    Raises:
      EcaJaxError: a field has the wrong type or is unknown, or a plugin is needed; the message says which.
    """
    from_plain(values, _Outline, "config")
    values = dict(values)
    plugins = values.pop("plugins", [])
    values = from_old(values)
    try:
        task = task_from_dict(values.pop("task"))
        config = dataclasses.replace(from_plain(values, Config, "config"), task=task)
    except EcaJaxError as error:
        raise with_missing_plugins(error, plugins) from error
    unknown = sorted(set(flatten(values)) - set(flatten(to_dict(config))))
    if unknown:
        raise EcaJaxError(f"config: unknown fields {', '.join(unknown)}: written by another version of eca_jax?")
    return config


def from_old(values: dict) -> dict:
    """Converts what version 0.1.0 wrote, before there were tasks, to today's form; newer values are unchanged."""
    if "task" in values:
        return values
    values = dict(values)
    task = {"name": Classification.name, **{key: values.pop(key) for key in ("preprocess", "mix") if key in values}}
    optim, model = dict(values.get("optim", {})), dict(values.get("model", {}))
    task |= {new: optim.pop(old) for old, new in MOVED_TO_TASK.items() if old in optim}
    if "attention" in model:
        kind = model["attention"].get("kind") or (model.get("name") in MODELS and MODELS[model["name"]][1].kind)
        model["attention"] = attention_from_old(model["attention"], kind or None)
    moved = {"optim": optim, "model": model}
    return values | {key: value for key, value in moved.items() if key in values} | {"task": task}


MOVED_TO_TASK = {"loss": "loss_function", "label_smoothing": "label_smoothing", "target_threshold": "target_threshold"}
"""Fields of `optim` in version 0.1.0 -> today's fields of the classification task."""


def differences(old: Config, new: Config) -> list[str]:
    """'optim.lr: 0.1 -> 0.4' for every field that differs and that a continued run may not change."""
    before, after = (flatten(as_computed(config)) for config in (old, new))
    return [
        f"{key.removeprefix('task.')}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
        and not any(key == field or key.startswith(field + ".") for field in MAY_CHANGE)
    ]


def as_computed(config: Config) -> dict:
    """The configuration as a dict with every option of the attention, and without the plugins, which may have moved."""
    attention = resolve_attention(config.model.name, config.model.attention)
    values = to_dict(dataclasses.replace(config, model=dataclasses.replace(config.model, attention=attention)))
    return {key: value for key, value in values.items() if key != "plugins"}


def flatten(values: dict, prefix: str = "") -> dict[str, object]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def packaged_configs() -> dict[str, pathlib.Path]:
    """The configurations that come with the package, by name: {'digits': .../configs/digits.py, ...}.

    An installed package contains them; in a checkout they are in `configs/`, beside the package.
    """
    package = pathlib.Path(__file__).parent
    inside, beside = package / "configs", package.parent / "configs"
    return {file.stem: file for file in sorted((inside if inside.is_dir() else beside).glob("*.py"))}


def find_config(name: str) -> pathlib.Path:
    """The file of a configuration: one of the package's by its name ('digits'), or any file by its path ('my/run.py').

    Raises:
      EcaJaxError: there is none; the message gives the most similar paths or names.
    """
    own, file = packaged_configs(), pathlib.Path(name)
    if name in own:
        return own[name]
    if not file.is_file():
        what = "file" if file.suffix or len(file.parts) > 1 or file.is_dir() else "configuration"
        others = [str(other) for other in sorted((file if file.is_dir() else file.parent).glob("*.py"))]
        near = difflib.get_close_matches(name, others, n=3) or difflib.get_close_matches(file.stem, own, n=3)
        others = others if what == "file" else []  # a bare name is meant for one of the package's own
        raise EcaJaxError(f"--config: there is no {what} {name}; there are: {', '.join(near or others or own)}")
    if file.suffix != ".py":
        raise EcaJaxError(f"--config: {name}: expected a Python file (.py) that defines `config = Config(...)`")
    return file


def load_config(path: str) -> Config:
    """The `config` that a Python file defines, with `path` as in `find_config`. The file is run: only load your own.

    Example:
      >>> from eca_jax.config import load_config
      >>> config = load_config("digits")
      >>> config.model.name, config.epochs, config.workdir
      ('eca_resnet18', 30, 'runs/digits')
    """
    file = find_config(path)
    try:
        config = vars(run_file(file)).get("config")
    except EcaJaxError:
        raise
    except FAULTS as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        moved = any(f"'{name}'" in str(error) for name in ("preprocess", "mix", *MOVED_TO_TASK))
        hint = "; since version 0.2 that is a field of the task: Config(task=Classification(...))" if moved else ""
        raise EcaJaxError(f"--config: {path}{where}: {describe_fault(error)}{hint}") from error
    if not isinstance(config, Config):
        raise EcaJaxError(f"--config: {path} must define `config = Config(...)`, got {type(config).__name__}")
    return config
