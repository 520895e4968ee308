"""The configuration of a run: frozen dataclasses that refuse what cannot work when they are made."""

import dataclasses
import difflib
import pathlib
import runpy

import msgspec

from eca_jax.data.config import DataConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError, expect_positive
from eca_jax.models.config import ModelConfig
from eca_jax.optim import OptimConfig
from eca_jax.sharding import ClusterConfig
from eca_jax.tasks.mix import MixConfig


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved, and how much of it is kept. Of the steps that are saved and evaluated, the best held-out
    top-1 is always kept."""

    every_epochs: int = 1
    """The last step is always saved."""
    every_steps: int | None = None
    """Also every so many steps."""
    keep: int = 2
    """The newest so many."""

    def __post_init__(self):
        expect_positive("checkpoint.every_epochs", self.every_epochs)
        expect_positive("checkpoint.keep", self.keep)
        if self.every_steps is not None:
            expect_positive("checkpoint.every_steps", self.every_steps)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    mix: MixConfig = MixConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    sharding_rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    """(regular expression on a parameter's path, mesh axis of each of its dimensions); the first match counts, and what
    matches none is replicated. E.g. (("fc/kernel", (None, "data")),)."""
    batch_size: int = 256
    """Global: over all devices and processes."""
    epochs: int = 100
    seed: int = 0
    """Of the weights, the order of the examples, their augmentation and dropout."""
    log_every: int = 50
    """Steps between two rows of metrics.jsonl."""
    eval_every_epochs: int = 1
    """The last step is always evaluated."""
    workdir: str = "runs/eca_resnet50"
    """Checkpoints, metrics.jsonl, config.json and TensorBoard files of the run."""

    def __post_init__(self):
        for name in ("batch_size", "epochs", "log_every", "eval_every_epochs"):
            expect_positive(name, getattr(self, name))
        if not 0 <= self.seed < 2**32:
            raise EcaJaxError(f"seed: expected 0 to 2**32 - 1, got {self.seed}")
        group = self.model.batch_norm_group
        if group is not None and self.batch_size % group:
            raise EcaJaxError(
                f"batch_size {self.batch_size} is not a multiple of model.batch_norm_group {group}: "
                f"use {max(self.batch_size // group, 1) * group}"
            )
        if self.batch_size % (unit := (group or 1) * self.optim.accumulate):
            raise EcaJaxError(
                f"batch_size {self.batch_size} cannot be cut into optim.accumulate {self.optim.accumulate} parts of "
                f"whole statistics groups: use {max(self.batch_size // unit, 1) * unit}"
            )
        if (self.mix.mixup_alpha or self.mix.cutmix_alpha) and self.batch_size % (2 * self.optim.accumulate):
            raise EcaJaxError(
                f"batch_size {self.batch_size}: Mixup and CutMix need pairs, so an even number in each of "
                f"{self.optim.accumulate} parts"
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
"""What a continued run may set anew: nothing of it touches what a step computes (`epochs` moves the end, and `max_bad`
decides whether a step with a bad record is done at all; what takes the record's place does not depend on it)."""


def to_dict(config: Config) -> dict:
    """Plain dicts, lists and numbers, for JSON."""
    return msgspec.to_builtins(config)


def from_dict(values: dict) -> Config:
    """The inverse of `to_dict`.

    Raises:
      EcaJaxError: names the field that has the wrong type, or that this version does not know.
    """
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise EcaJaxError(f"config: {error}") from error
    unknown = sorted(set(flatten(values)) - set(flatten(to_dict(config))))
    if unknown:
        raise EcaJaxError(f"config: unknown fields {', '.join(unknown)}: written by another version of eca_jax?")
    return config


def differences(old: Config, new: Config) -> list[str]:
    """'optim.lr: 0.1 -> 0.4' for every field that differs and that a continued run may not change."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
        and not any(key == field or key.startswith(field + ".") for field in MAY_CHANGE)
    ]


def flatten(values: dict, prefix: str = "") -> dict[str, object]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def load_config(path: str) -> Config:
    """The `config` that a Python file defines. The file is run: only load your own."""
    file = pathlib.Path(path)
    if not file.is_file():
        others = [str(other) for other in sorted((file if file.is_dir() else file.parent).glob("*.py"))]
        near = difflib.get_close_matches(path, others, n=3) or others
        raise EcaJaxError(f"--config: there is no file {path}; there are: {', '.join(near) or 'none'}")
    try:
        config = runpy.run_path(str(file)).get("config")
    except EcaJaxError:
        raise
    except Exception as error:  # it is the user's program: anything can go wrong in it
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise EcaJaxError(f"--config: {path}{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise EcaJaxError(f"--config: {path} must define `config = Config(...)`, got {type(config).__name__}")
    return from_dict(to_dict(config))  # checks the types
