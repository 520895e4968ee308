"""How a held-out score depends on ECA's kernel size (the experiment of the paper's Figure 4), on any data set.

Every kernel size is trained with several seeds, each a run in a directory of its own. A run that was interrupted is
continued, and one that is complete is not trained again, so the whole experiment is continued by repeating it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.stats

from eca_jax.analysis.table import Table
from eca_jax.config import Config
from eca_jax.errors import EcaJaxError
from eca_jax.models.registry import model_row, resolve_attention
from eca_jax.nn.attention import AttentionConfig, KernelSizes
from eca_jax.runs.directory import choose_step, open_run
from eca_jax.training.loop import Result, train

SIZES: tuple[KernelSizes, ...] = (1, 3, 5, 7, 9, "adaptive", "released")
"""What is trained unless something else is asked for."""
CONFIDENCE = 0.95
"""Of the interval for the mean over the seeds."""


def parse_size(text: str) -> KernelSizes:
    """'3' -> 3, '3,5,5,7' (one size for each stage) -> (3, 5, 5, 7), 'adaptive' -> 'adaptive'.

    What is no such thing stays text, and is refused as an unknown policy by the attention's options.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        return text
    sizes = tuple(int(part) for part in parts)
    return sizes[0] if len(sizes) == 1 else sizes


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of the experiment."""

    label: str
    """The kernel size: '3', '3,5,5,7' or 'adaptive'; of a reference, its kind of attention: 'se'."""
    reference: bool
    """Whether it is another attention, for comparison."""
    seed: int
    config: Config

    def describe(self) -> str:
        """'kernel size 3, seed 0'."""
        return f"{'attention' if self.reference else 'kernel size'} {self.label}, seed {self.seed}"


def plan(
    config: Config, sizes: Sequence[KernelSizes], references: Sequence[str], seeds: int, root: str | pathlib.Path
) -> list[Trial]:
    """The runs of the experiment, in the order in which they are trained: all of the first seed first.

    Args:
      config: of every run, but for the kernel size, the seed and the directory. Its attention has to have the option
        `kernel_sizes`; its seed is the first one.
      sizes: as `AttentionConfig("eca", kernel_sizes=...)` takes them.
      references: kinds of attention ('none', 'se'), with their default options, on the same backbone.
      seeds: how many.
      root: the directory of the run directories, root/LABEL/seed-N.

    Raises:
      EcaJaxError: the attention of the configuration has no kernel sizes, or a size or a kind cannot be.
    """
    attention, backbone = resolve_attention(config.model.name, config.model.attention), model_row(config.model.name)[0]
    if "kernel_sizes" not in attention.given:
        raise EcaJaxError(
            f"model: the attention {attention.kind!r} of {config.model.name} has no kernel sizes; expected a model "
            f"such as eca_{backbone}"
        )
    models = {
        _label(size): dataclasses.replace(config.model, attention=attention.refined(AttentionConfig(kernel_sizes=size)))
        for size in sizes
    }
    for kind in references:
        models[kind] = dataclasses.replace(config.model, name=backbone, attention=AttentionConfig(kind))
    return [
        Trial(
            label,
            label in references,
            seed,
            dataclasses.replace(
                config, model=model, seed=seed, workdir=str(pathlib.Path(root) / label / f"seed-{seed}")
            ),
        )
        for seed in range(config.seed, config.seed + seeds)
        for label, model in models.items()
    ]


def _label(size: KernelSizes) -> str:
    return ",".join(map(str, size)) if isinstance(size, tuple) else str(size)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A run that is complete."""

    trial: Trial
    last: float
    """The held-out score after the last step."""
    best: float
    """The held-out score of the run's best checkpoint."""


def run_trials(trials: Sequence[Trial], say: Callable[[str], object] = print) -> Iterator[Scored | Result]:
    """Trains what is not trained yet; gives the scores of each run, or how it was stopped by a signal, and ends."""
    for number, trial in enumerate(trials, 1):
        say(f"run {number} of {len(trials)}: {trial.describe()}")
        result = train(trial.config)
        if not result.finished or result.evaluation is None:
            yield result
            return
        yield Scored(trial, result.evaluation[trial.config.task.best], _best(trial.config))


def _best(config: Config) -> float:
    """The score of the best checkpoint of a complete run; that of its last step may be it."""
    with open_run(config.workdir) as checkpoints:
        evaluation = checkpoints.evaluation(choose_step(checkpoints, "best"))
    assert evaluation is not None  # by which it is the best
    return evaluation[config.task.best]


@dataclasses.dataclass(frozen=True)
class Point:
    """The scores of one kernel size, or of a reference, over the seeds."""

    label: str
    reference: bool
    values: tuple[float, ...]
    """A score for each seed."""
    mean: float
    low: float
    high: float
    """The ends of the interval for the mean, Student's t for n - 1 degrees of freedom; NaN of a single seed."""


def summarise(scored: Sequence[Scored], which: str) -> list[Point]:
    """The points of the figure, in the order of the runs; `which` is 'last' or 'best'."""
    labels = dict.fromkeys((one.trial.label, one.trial.reference) for one in scored)
    return [
        to_point(label, reference, [getattr(one, which) for one in scored if one.trial.label == label])
        for label, reference in labels
    ]


def to_point(label: str, reference: bool, values: Sequence[float]) -> Point:
    """The point of these scores, one for each seed."""
    mean, half = mean_and_half(values)
    return Point(label, reference, tuple(values), mean, mean - half, mean + half)


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its interval: Student's t for n - 1 degrees of freedom; NaN of a single value."""
    n = len(values)
    if n == 1:
        return float(values[0]), float("nan")
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values)), float(half)


def to_rows(scored: Sequence[Scored]) -> list[dict[str, object]]:
    """A row of a table for each run."""
    return [
        {
            "kernel_size": "" if one.trial.reference else one.trial.label,
            "attention": resolve_attention(one.trial.config.model.name, one.trial.config.model.attention).kind,
            "seed": one.trial.seed,
            "last": one.last,
            "best": one.best,
            "run": one.trial.config.workdir,
        }
        for one in scored
    ]


def to_table(points: Sequence[Point], measure: str, scale: float) -> Table:
    """The points for people; `measure` and `scale` are what the scores are, and the factor to that unit."""
    rows = []
    for p in points:
        mean, low, high = (f"{scale * value:.2f}" for value in (p.mean, p.low, p.high))
        interval = f"{low} to {high}" if len(p.values) > 1 else "-"
        rows.append((f"(attention {p.label})" if p.reference else p.label, mean, interval, str(len(p.values))))
    return Table(
        f"{measure}, mean over the seeds",
        ("kernel size", "mean", f"{CONFIDENCE:.0%} interval of the mean", "seeds"),
        tuple(rows),
    )
