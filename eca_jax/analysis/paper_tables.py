"""ECA-Net's tables with what this package computes beside what is printed.

Nothing is run for them: networks are made of shapes alone.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from eca_jax.analysis.complexity import abstract_model, complexity
from eca_jax.analysis.paper import POSTER, TABLE_2, TABLE_3, Row, Unit
from eca_jax.analysis.paper_flops import paper_flops, undefined
from eca_jax.analysis.table import EMPTY, Table
from eca_jax.data.preprocess import words
from eca_jax.nn.attention import AttentionConfig

CONFIGURED = {"none": "", "se": "se_", "eca": "eca_"}
"""Attentions that have configurations of their own -> how the names of those begin."""
NOT_RUN = "This project has had no ImageNet: the commands would evaluate the authors' weights or train the row."
NOT_ONE_RECIPE = (
    "Accuracies are as published: the authors trained the ECA rows, the others are quoted from other papers and had "
    f"other recipes. {NOT_RUN}"
)
COUNTED = (
    "FLOPs are what the authors' counter, thop of {when}, made of their PyTorch models at 224 pixels: multiply-adds, "
    "some values of norms{relu} and averages. The rule is known for plain, SE and ECA networks, so other attentions "
    "have no computed FLOPs; `eca-jax table complexity` counts all of them by today's rule."
)
TABLE_3_NOTES = (
    COUNTED.format(when="July 2019", relu=", ReLU"),
    "A2-Nets, GCNet, GSoP-Net1 and AA-Net are copied from their papers, which count in 10^6 and 10^9 by rules of their "
    "own: no command can meet their FLOPs. A2-Nets, GSoP-Net1 and AA-Net are no attention at the end of a branch.",
    "The abstract's 4.7e-4 GFLOPs of the modules of ECA-Net50 meet no rule that we tried: their convolutions are "
    "86,272 multiply-adds (8.0e-5 x 2^30), with the averages as above 5,620,736 (5.2e-3 x 2^30).",
    "Images/s are as printed, of the authors' machine.",
    NOT_ONE_RECIPE,
)
POSTER_NOTES = (COUNTED.format(when="August to December 2019", relu=""), NOT_ONE_RECIPE)
REMARKS, COMMANDS = ("remark",), ("command",)
"""Columns that LaTeX has as notes below the table, and those that it leaves out."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What we compute of a network; None where the paper's rule, or this package, does not define it."""

    parameters: int | None = None
    flops: int | None = None


def table_2() -> Table:
    """The ablation of channel attention on ResNet-50, with the parameters that its modules add together."""
    plain = parameters("resnet50", AttentionConfig("none"))
    rows = [
        (
            gate.method,
            gate.formula,
            gate.parameters,
            f"{parameters('resnet50', gate.attention) - plain:,}",
            gate.top1,
            gate.top5,
            gate.difference,
            train_command("resnet50", gate.attention),
        )
        for gate in TABLE_2
    ]
    header = ("method", "gates", "weights of a module, printed", "weights of all modules, computed")
    return Table(
        "ECA-Net, Table 2: channel attention in ResNet-50, ImageNet",
        (*header, "top-1 (%)", "top-5 (%)", "remark", "command"),
        tuple(rows),
        (
            "s are the averages of the C channels. ResNet-50 has 16 modules: 3 with C = 256, 4 with 512, 6 with 1024, "
            "3 with 2048.",
            "Accuracies are as published: those of vanilla and SE are quoted from SENet's paper and had another recipe "
            f"than the authors' own rows. {NOT_RUN}",
        ),
        remarks=REMARKS,
        not_in_latex=COMMANDS,
    )


def table_3() -> Table:
    """ResNet-50, 101 and 152 and MobileNetV2 with the attentions that the paper compares."""
    return networks("ECA-Net, Table 3: networks on ImageNet", TABLE_3, "table 3", TABLE_3_NOTES)


def poster() -> Table:
    """ResNet-18 and 34, which only the poster has."""
    return networks("ECA-Net, poster: smaller networks on ImageNet", POSTER, "poster", POSTER_NOTES)


TABLES: dict[str, Callable[[], Table]] = {"2": table_2, "3": table_3, "poster": poster}
"""The paper's tables, by their names in `eca-jax table`."""


def networks(title: str, rows: Sequence[Row], rule: str, notes: tuple[str, ...]) -> Table:
    """Networks as printed and as computed; a column of which no row has anything is left out.

    Args:
      rule: by which the rows' FLOPs were counted, as `paper_flops` takes it.
    """
    counted = [(row, cost(row, rule)) for row in rows]
    cells = [[column(*it) for column in COLUMNS.values()] for it in counted]
    kept = [i for i in range(len(COLUMNS)) if any(row[i] not in EMPTY for row in cells)]
    header = tuple(COLUMNS)
    return Table(
        title,
        tuple(header[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in cells),
        notes,
        remarks=REMARKS,
        not_in_latex=COMMANDS,
    )


def cost(row: Row, rule: str) -> Cost:
    """What we compute of the network of a row."""
    if row.attention is None:
        return Cost()
    counted = complexity(abstract_model(row.backbone, attention=row.attention))
    return Cost(counted.parameters, None if undefined(counted.architecture) else paper_flops(counted, rule))


def computed(value: int | None, unit: Unit, printed: str) -> str:
    """A value in the unit and with as many digits as what is printed."""
    return "-" if value is None else f"{value / unit.size:.{len(printed.partition('.')[2])}f}"


COLUMNS: dict[str, Callable[[Row, Cost], str]] = {
    "method": lambda row, cost: row.method,
    "backbone": lambda row, cost: row.backbone,
    "units of parameters, FLOPs": lambda row, cost: f"{row.parameters_unit.name}, {row.flops_unit.name}",
    "parameters, printed": lambda row, cost: row.parameters,
    "parameters, computed": lambda row, cost: computed(cost.parameters, row.parameters_unit, row.parameters),
    "FLOPs, printed": lambda row, cost: row.flops,
    "FLOPs, computed": lambda row, cost: computed(cost.flops, row.flops_unit, row.flops),
    "training images/s": lambda row, cost: row.training_fps,
    "inference images/s": lambda row, cost: row.inference_fps,
    "top-1 (%)": lambda row, cost: row.top1,
    "top-5 (%)": lambda row, cost: row.top5,
    "remark": lambda row, cost: row.difference,
    "command": lambda row, cost: command(row),
}
"""Of a table of networks: what a cell says of a row."""


def command(row: Row) -> str:
    """What evaluates the authors' weights of a row here, or else trains it."""
    if row.attention is None:
        return "-"
    if row.weights is None:
        return train_command(row.backbone, row.attention)
    name = CONFIGURED[row.attention.kind or "none"] + row.backbone
    return f"`eca-jax evaluate --weights {row.weights} --model {name} --data imagenet2012`"


def train_command(backbone: str, attention: AttentionConfig) -> str:
    """What trains an attention on a backbone with the authors' recipe, in a directory of its own."""
    kind = attention.kind or "none"
    options = [word for name, value in attention.given.items() for word in _option(name, value)]
    if kind not in CONFIGURED:
        options = ["--model.attention.kind", kind, *options]
    workdir = ["--workdir", f"runs/table_{kind}_{backbone}"] if options else []
    return f"`{' '.join(['eca-jax train --config', CONFIGURED.get(kind, '') + backbone, *options, *workdir])}`"


def _option(name: str, value: object) -> list[str]:
    """As `eca-jax train` takes it: ['--model.attention.kernel-sizes', '3']."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--model.attention.{'' if value else 'no-'}{name}"]
    return [f"--model.attention.{name}", *words(value)]


def parameters(backbone: str, attention: AttentionConfig) -> int:
    """How many a network of 1000 classes has, from their shapes."""
    network = abstract_model(backbone, attention=attention)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
