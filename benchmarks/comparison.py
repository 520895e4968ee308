"""Channel attentions under one recipe, with seeds: held-out scores with intervals, and what each attention costs.

    apt install dataset-fashion-mnist
    pip install -e '.[plots,tpu]'
    python -m benchmarks.comparison run [digits fashion_mnist kernel_sizes] [--seeds 10] [--hours 8]
    python -m benchmarks.comparison cost
    python -m benchmarks.comparison show
    python -m benchmarks.comparison again fashion_mnist none 0

`run` trains what has no row yet in comparison.jsonl, one seed of all after the other, and says after each run how long
the rest will take. It can be stopped at any moment, also killed: the same command goes on, in the middle of a run from
its last checkpoint. `cost` measures steps and bytes, on a machine that does nothing else. `show` prints the tables of
docs/results.md and draws its pictures. `again` trains one row anew and compares scores and weights to the bit.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from benchmarks.fashion_mnist import DEBIAN, write_images
from benchmarks.programs import lower_training_step, training_step
from benchmarks.side_by_side import interleave, machine, ratio, seconds, spread
from eca_jax.analysis import complexity
from eca_jax.analysis.kernel_sizes import SIZES, Point, mean_and_half, to_point
from eca_jax.analysis.table import Table
from eca_jax.compilation_cache import keep_compiled_programs
from eca_jax.config import CheckpointConfig, Config, ModelConfig, load_config
from eca_jax.errors import EcaJaxError
from eca_jax.models.ba_resnet import with_bridges
from eca_jax.models.config import build_model
from eca_jax.models.registry import MODELS, register_backbone, resolve_attention
from eca_jax.models.resnet import VARIANTS, BasicBlock, ResNet, Variant
from eca_jax.nn.attention import ATTENTIONS, AttentionConfig, Place, Slot, build_attention
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.pool import max_pool
from eca_jax.nn.valid import Valid, masked
from eca_jax.plain import to_plain
from eca_jax.precompile.hlo import bytes_moved
from eca_jax.precompile.targets import parse_target, topology_devices
from eca_jax.training import load_run, train

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent / "runs/comparison"
ROWS, COSTS = HERE / "comparison.jsonl", HERE / "comparison_costs.jsonl"
WIDTH = 0.5
"""Of the network on Fashion-MNIST: 32, 64, 128 and 256 channels, on which no two of its attentions are the same."""
EXPERIMENTS = ("digits", "fashion_mnist", "kernel_sizes")


class Shallow(ResNet):
    """A ResNet of one block a stage, with a max pool after the small stem: 28 pixels become 14, 7, 4 and 2."""

    def __init__(self, variant: Variant, bricks: Bricks, **options: Any):
        super().__init__(variant, bricks, **options)
        self.feature_info = tuple(dataclasses.replace(one, stride=2 * one.stride) for one in self.feature_info)

    def _stem(self, x: jax.Array, valid: Valid | None = None) -> jax.Array:
        return max_pool(masked(super()._stem(x, valid), valid), training=not self.bn1.use_running_average)


ONE_BLOCK = Variant(BasicBlock, (1, 1, 1, 1), released=VARIANTS["resnet18"].released)


def register() -> None:
    """Adds `shallow` and `ba_shallow` to the models."""
    for name, variant in {"shallow": ONE_BLOCK, "ba_shallow": with_bridges(ONE_BLOCK)}.items():
        if name not in MODELS:
            register_backbone(name, functools.partial(Shallow, variant))


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of a table: a network, and how its images are made where that is not as in the other rows."""

    label: str
    model: ModelConfig
    image_size: int | None = None
    reference: str = "none"
    """The label of the case that it is compared with, seed by seed."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The cases of one table, and their recipe."""

    config: Config
    cases: tuple[Case, ...]
    seeds: int

    def __getitem__(self, label: str) -> Case:
        """The case that is called so."""
        for case in self.cases:
            if case.label == label:
                return case
        raise EcaJaxError(f"case {label!r}: expected one of {', '.join(case.label for case in self.cases)}")


DIGITS_NOT_ALLOWED = {"fca": "its frequencies need maps of 7 pixels, and the stages have 8, 4, 2 and 1"}
DIGITS_OPTIONS = {
    "gc": {"reduction": 8},  # else one hidden channel, whose layer norm is constant
    "ge": {"sides": (8, 4, 2, 1)},
    "ge_plus": {"sides": (8, 4, 2, 1)},
    "sa": {"groups": 8},
    "ema": {"factor": 8},
}
"""What an attention needs on 16 to 128 channels and maps of 8 to 1 pixels."""
TWO_PIXELS = ("srm", "mca", "simam")
"""They need a deviation over the pixels: the digits are enlarged to 16 pixels, so that the last map has 2 x 2."""


def digits() -> Experiment:
    """Every attention that the digits allow, and those that are networks of their own."""
    config, cases = load_config("digits"), []
    plain = dataclasses.replace(config.model, name="resnet18")
    for kind in ATTENTIONS:
        if kind not in DIGITS_NOT_ALLOWED:
            network = dataclasses.replace(plain, attention=AttentionConfig(kind, **DIGITS_OPTIONS.get(kind, {})))
            enlarged = {"image_size": 16, "reference": "none, 16 pixels"} if kind in TWO_PIXELS else {}
            cases.append(Case(kind, network, **enlarged))
    cases.append(Case("none, 16 pixels", plain, image_size=16, reference="none, 16 pixels"))
    cases += [Case(kind, dataclasses.replace(plain, name=f"{kind}_resnet18")) for kind in ("gct", "ba", "emca")]
    return Experiment(config, tuple(cases), seeds=10)


FASHION_MNIST = {
    "none": AttentionConfig("none"),
    "se": AttentionConfig("se"),
    "eca": AttentionConfig("eca"),
    "eca_ns": AttentionConfig("eca_ns"),
    "se_var2": AttentionConfig("se_var2"),
    "cbam": AttentionConfig("cbam"),
    "gc, reduction 8": AttentionConfig("gc", reduction=8),  # at 16 the first stage has two, which its norm makes +-1
    "sa, 16 groups": AttentionConfig("sa", groups=16),  # the 64 of the paper need 128 channels
}


def fashion_mnist() -> dict[str, Experiment]:
    """The attentions of the table, and the kernel sizes of ECA, on one network."""
    register()
    config = load_config("fashion_mnist")
    plain = dataclasses.replace(config.model, name="shallow", width_multiplier=WIDTH)
    config = dataclasses.replace(config, model=plain)
    none, *others = (Case(label, dataclasses.replace(plain, attention=a)) for label, a in FASHION_MNIST.items())
    ba = Case("ba", dataclasses.replace(plain, name="ba_shallow"))
    sizes = [
        Case(str(size), dataclasses.replace(plain, attention=AttentionConfig("eca", kernel_sizes=size)))
        for size in SIZES
    ]
    return {
        "fashion_mnist": Experiment(config, (none, *others, ba), seeds=5),
        "kernel_sizes": Experiment(config, (none, *(case for case in others if case.label == "se"), *sizes), seeds=3),
    }


def experiments() -> dict[str, Experiment]:
    """What is compared, by name."""
    return {"digits": digits(), **fashion_mnist()}


def run_of(experiment: Experiment, case: Case, seed: int) -> Config:
    """The configuration of one row, but for its directory."""
    task = experiment.config.task
    if case.image_size is not None:
        enlarged = dataclasses.replace(task.preprocess, image_size=case.image_size, eval_resize=case.image_size)
        task = dataclasses.replace(task, preprocess=enlarged)
    epochs = experiment.config.epochs
    attention = resolve_attention(case.model.name, case.model.attention)  # all options, so that equal runs are the same
    return dataclasses.replace(
        experiment.config,
        model=dataclasses.replace(case.model, attention=attention),
        task=task,
        seed=seed,
        eval_every_epochs=epochs,
        checkpoint=CheckpointConfig(every_epochs=-(-epochs // 3), keep=1),
        log_every=100,
    )


def recipe(config: Config) -> str:
    """What tells two runs apart: a digest of all that changes the result."""
    values = to_plain(dataclasses.replace(config, workdir="", log_every=1)) | {"data": config.data.name.split("/")[-1]}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def digest(run: pathlib.Path) -> str:
    """Of the last weights and statistics of a run."""
    model, _, _ = load_run(run)
    total = hashlib.sha256()
    for path, leaf in sorted(nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))):
        total.update(".".join(map(str, path)).encode() + np.asarray(leaf[...]).tobytes())
    return total.hexdigest()[:16]


def train_row(name: str, case: Case, config: Config, workdir: pathlib.Path) -> dict:
    """Trains one row to its end; what is kept of it.

    Raises:
      SystemExit: a signal stopped the training; its state is saved.
    """
    start = time.monotonic()
    result = train(dataclasses.replace(config, workdir=str(workdir)))
    if result.signal is not None or result.evaluation is None:
        raise SystemExit(128 + (result.signal or 0))
    whole = result.new_steps == result.total_steps
    return {
        "experiment": name,
        "case": case.label,
        "seed": config.seed,
        "recipe": recipe(config),
        "top1": result.evaluation["top1"],
        "loss": result.evaluation["loss"],
        "seconds": round(time.monotonic() - start, 1) if whole else None,  # of a run that was continued: not known
        "weights": digest(workdir),
        "jax": jax.__version__,
    }


def read_lines(path: pathlib.Path) -> list[dict]:
    """The rows of a file. A last line that was cut off when the process was killed is no row, and is taken away."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines := lines[:-1]))
    return [json.loads(line) for line in lines]


def read_rows(path: pathlib.Path) -> dict[str, dict]:
    """Recipe -> row."""
    return {row["recipe"]: row for row in read_lines(path)}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A row of a table, and the run that it needs."""

    name: str
    case: Case
    config: Config

    @property
    def recipe(self) -> str:
        return recipe(self.config)


def plan(names: Sequence[str], seeds: int) -> list[Wanted]:
    """The rows of the first seeds of these experiments, one seed after the other. Two tables may share a row."""
    table = experiments()
    rows = [
        Wanted(name, case, run_of(table[name], case, seed))
        for seed in range(seeds)
        for name in names
        if seed < table[name].seeds
        for case in table[name].cases
    ]
    found: dict[str, Wanted] = {}
    for row in rows:
        found.setdefault(row.recipe, row)
    return list(found.values())


def hours_left(left: Sequence[Wanted], rows: dict[str, dict]) -> float:
    """By the times of the same case, else of the same experiment, else of all; NaN where none is known."""
    known: dict[tuple[str, str], list[float]] = {}
    for row in rows.values():
        if row["seconds"] is not None:
            for case in (row["case"], ""):
                known.setdefault((row["experiment"], case), []).append(row["seconds"])
    every = [seconds for times in known.values() for seconds in times]
    times = [known.get((row.name, row.case.label)) or known.get((row.name, "")) or every or [np.nan] for row in left]
    return sum(statistics.median(those) for those in times) / 3600


def run(args: argparse.Namespace) -> None:
    """Trains what is not trained yet."""
    if set(args.experiments) != {"digits"}:
        prepare_fashion_mnist()
    end = time.monotonic() + 3600 * args.hours
    rows, wanted = read_rows(args.rows), plan(args.experiments, args.seeds)
    left = [row for row in wanted if row.recipe not in rows]
    print(f"{len(wanted) - len(left)} of {len(wanted)} runs are done", flush=True)
    while left and time.monotonic() < end:
        one, *left = left
        workdir = args.out / one.name / one.case.label.replace(", ", "-").replace(" ", "_") / f"seed-{one.config.seed}"
        with contextlib.redirect_stdout(sys.stderr):
            row = train_row(one.name, one.case, one.config, workdir)
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows[row["recipe"]] = row
        shutil.rmtree(workdir)
        took = f"{row['seconds']:.0f} s" if row["seconds"] is not None else "continued"
        print(f"{one.name}, {one.case.label}, seed {row['seed']}: {row['top1']:.2%} ({took}); ", end="")
        print(f"{len(left)} runs are left, about {hours_left(left, rows):.1f} hours", flush=True)


def prepare_fashion_mnist() -> None:
    """Writes the images that configs/fashion_mnist.py reads, once.

    Raises:
      EcaJaxError: Debian's files are not there.
    """
    folder = pathlib.Path(load_config("fashion_mnist").data.name.removeprefix("folder:"))
    if not folder.is_dir() and not DEBIAN.is_dir():
        raise EcaJaxError(f"{DEBIAN} is not there: apt install dataset-fashion-mnist")
    write_images(DEBIAN, folder, every=1)


def again(args: argparse.Namespace) -> None:
    """Trains one row anew, and compares."""
    experiment = experiments()[args.experiment]
    case = experiment[args.case]
    config = run_of(experiment, case, args.seed)
    before = read_rows(args.rows).get(recipe(config))
    if before is None:
        raise EcaJaxError(f"{args.experiment}, {case.label}, seed {args.seed}: there is no row of it; `run` makes it")
    workdir = args.out / "again"
    shutil.rmtree(workdir, ignore_errors=True)
    after = train_row(args.experiment, case, config, workdir)
    for key in ("top1", "loss", "weights"):
        print(f"{key}: {before[key]} before, {after[key]} now")
    if any(before[key] != after[key] for key in ("top1", "loss", "weights")):
        raise SystemExit("NOT the same")
    print("the same to the bit")


TARGET = "v5e-1"
INSIDE_SCALES = {"gct": 1.0, "ba": 0.5, "emca": 1.5}
"""Before the first step, of attentions that have no module of their own: docs/attention.md."""


def bytes_of(config: Config) -> int:
    """What the training step moves from and to the memory of a TPU, by XLA:TPU (the extra `tpu`)."""
    (device, *_) = topology_devices(parse_target(TARGET))
    return bytes_moved(lower_training_step(config, 10, device).compile().as_text() or "")


def initial_scale(case: Case) -> float:
    """By which an attention multiplies its branch before the first step: of the root mean square of normal noise."""
    if case.model.name.startswith(tuple(INSIDE_SCALES)):
        return INSIDE_SCALES[case.model.name.split("_")[0]]
    config = resolve_attention(case.model.name, case.model.attention)
    attention = build_attention(config, Slot(64, Place(stages=4, side=8)), nnx.Rngs(0))
    attention.eval()
    x = jax.random.normal(jax.random.key(0), (32, 8, 8, 64))
    return float(np.sqrt((attention(x) ** 2).mean() / (x**2).mean()))


def cost(args: argparse.Namespace) -> None:
    """Measures what every case of an experiment costs, and keeps it."""
    table = experiments()
    for name in args.experiments:
        configs = {case.label: run_of(table[name], case, 0) for case in table[name].cases}
        steps = {label: training_step(config, 10) for label, config in configs.items()}
        for step in steps.values():
            step()
        times = interleave({label: lambda step=step: seconds(step) for label, step in steps.items()}, args.rounds)
        rows = [
            {
                "experiment": name,
                "case": case.label,
                "milliseconds": round(1e3 * statistics.median(times[case.label]), 2),
                "ratio": spread(ratio(times, case.label, case.reference), ".2f"),
                "bytes": bytes_of(configs[case.label]),
                "machine": machine("jax", "jaxlib", "flax"),
            }
            for case in table[name].cases
        ]
        kept = [row for row in read_lines(args.costs) if row["experiment"] != name]
        args.costs.write_text("".join(json.dumps(row) + "\n" for row in (*kept, *rows)))


def with_half(mean: str, half: float) -> str:
    """'92.61 ± 0.20'; of one value, which has no interval, the mean alone."""
    return mean if np.isnan(half) else f"{mean} ± {half:.2f}"


def to_table(name: str, experiment: Experiment, rows: dict[str, dict], costs: dict[str, dict]) -> Table:
    """What is known of an experiment: a line for each case, those without a run left out."""
    scores = scores_of(experiment, rows)
    size = experiment.config.task.preprocess.image_size
    lines = []
    for case in experiment.cases:
        if not (own := scores[case.label]):
            continue
        mean, half = mean_and_half(list(own.values()))
        network = nnx.eval_shape(lambda case=case: build_model(case.model, 10, nnx.Rngs(0)))
        counts = complexity(network, case.image_size or size)
        cost = costs.get(case.label)
        lines.append(
            (
                case.label,
                str(len(own)),
                with_half(f"{mean:.2f}", half),
                paired(own, scores[case.reference]) if case.label != case.reference else "-",
                f"{counts.parameters:,}",
                f"{counts.multiply_adds / 1e6:.2f} M",
                f"{initial_scale(case):.2f}",
                cost["ratio"] if cost else "-",
                f"{cost['bytes'] / costs[case.reference]['bytes']:.3f}" if cost else "-",
            )
        )
    header = ("attention", "seeds", "top-1 (%)", "difference", "parameters", "multiply-adds", "initial scale")
    return Table(name, (*header, "step time, ratio", "bytes, ratio"), tuple(lines))


def scores_of(experiment: Experiment, rows: dict[str, dict]) -> dict[str, dict[int, float]]:
    """Label -> seed -> held-out top-1 in per cent, of the runs that are there."""
    found = {
        case.label: {seed: rows.get(recipe(run_of(experiment, case, seed))) for seed in range(experiment.seeds)}
        for case in experiment.cases
    }
    return {label: {seed: 100 * row["top1"] for seed, row in own.items() if row} for label, own in found.items()}


def differences(own: dict[int, float], reference: dict[int, float]) -> list[float]:
    """Of the seeds that both have."""
    return [own[seed] - reference[seed] for seed in own if seed in reference]


def paired(own: dict[int, float], reference: dict[int, float]) -> str:
    """The mean of the differences of the same seeds, and half of its interval."""
    mean, half = mean_and_half(differences(own, reference))
    return with_half(f"{mean:+.2f}", half)


def show(args: argparse.Namespace) -> None:
    """Prints the tables, and draws the pictures."""
    from eca_jax.plots import kernel_size_figure, to_bytes

    rows, table = read_rows(args.rows), experiments()
    costs = read_lines(args.costs)
    args.pictures.mkdir(exist_ok=True)
    for name in args.experiments:
        own = {row["case"]: row for row in costs if row["experiment"] == name}
        print(to_table(name, table[name], rows, own).to_markdown())
        if name == "kernel_sizes":
            figure = kernel_size_figure(points(table[name], rows), "top-1 (%)")
        else:
            figure = differences_figure(table[name], scores_of(table[name], rows))
        (args.pictures / f"comparison_{name}.svg").write_bytes(to_bytes(figure, "svg"))


def points(experiment: Experiment, rows: dict[str, dict]) -> list[Point]:
    """The points of `eca-jax figure kernel-size`."""
    found = []
    for label, own in scores_of(experiment, rows).items():
        values = tuple(own.values())
        if values:
            found.append(to_point(label, label in ("none", "se"), values))
    return found


def differences_figure(experiment: Experiment, scores: dict[str, dict[int, float]]) -> Figure:
    """Each attention's paired difference to its reference with its interval; small dots are single seeds."""
    from eca_jax.plots.style import COLORS, COLUMN, GREY, new_figure, styled

    cases = [case for case in experiment.cases if case.label != case.reference and scores[case.label]]
    with styled():
        figure = new_figure(COLUMN, 0.6 + 0.16 * len(cases))
        ax = figure.add_subplot()
        for y, case in enumerate(cases):
            values = differences(scores[case.label], scores[case.reference])
            mean, half = mean_and_half(values)
            ax.plot(values, [y + 0.25] * len(values), ".", color=GREY, ms=2)
            ax.errorbar(mean, y, xerr=half if np.isfinite(half) else None, fmt="o", color=COLORS[0])
        ax.axvline(0, color=GREY, lw=0.6)
        ax.set_yticks(range(len(cases)), [case.label for case in cases])
        ax.invert_yaxis()
        ax.set_xlabel("top-1, difference to no attention (points)")
    return figure


def main() -> None:
    """One of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (run, cost, show, again):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--out", type=pathlib.Path, default=OUT, help="of the runs, which are deleted when done")
        command.add_argument("--rows", type=pathlib.Path, default=ROWS)
        command.add_argument("--costs", type=pathlib.Path, default=COSTS)
        if function is again:
            command.add_argument("experiment", choices=EXPERIMENTS)
            command.add_argument("case")
            command.add_argument("seed", type=int)
        else:
            command.add_argument("experiments", nargs="*", default=EXPERIMENTS, metavar="|".join(EXPERIMENTS))
    commands.choices["run"].add_argument("--seeds", type=int, default=10, help="of each case, at most")
    commands.choices["run"].add_argument("--hours", type=float, default=float("inf"), help="begin no run after that")
    commands.choices["cost"].add_argument("--rounds", type=int, default=7)
    commands.choices["show"].add_argument("--pictures", type=pathlib.Path, default=HERE.parent / "docs/pictures")
    args = parser.parse_args()
    keep_compiled_programs()
    try:
        args.function(args)
    except EcaJaxError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
