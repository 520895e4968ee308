"""What networks cost, as tables: a line for each network, or for each layer of one."""

import itertools
import os
from collections.abc import Sequence

from eca_jax.analysis.complexity import ACTIVATIONS, RULE, Complexity, abstract_model, complexity
from eca_jax.analysis.paper_flops import paper_flops, undefined
from eca_jax.analysis.table import Table
from eca_jax.convert.pretrained import load_pretrained
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.models.registry import model_row

DEFAULT = ("resnet50", "se_resnet50", "eca_resnet50")
COUNTS = ("parameters", "multiply-adds", "activations")
NOTES = (
    f"Parameters, multiply-adds and activations are whole numbers, for one image. {RULE} {ACTIVATIONS}",
    "The last columns have the units of ECA-Net's Table 3 and poster: Mi = 2^20, Gi = 2^30. FLOPs there are neither "
    "multiply-adds nor twice as many: they are by the rules of thop of July 2019 (Table 3) and of August to December "
    "2019 (poster), which counted values of norms, averages and, in Table 3, ReLU besides.",
)


def networks(models: Sequence[str], attentions: Sequence[str] = ()) -> list[Backbone]:
    """Every model with every attention, by names; without attentions, the models as they are.

    Args:
      models: names of `list_models()`; or, without attentions, weight files and the directories of runs, too.

    Raises:
      EcaJaxError: for a name or a file that is none of these; an attention of a file or of a network that has one.
    """
    if not attentions:
        return [load_pretrained(model) if os.path.exists(model) else abstract_model(model) for model in models]
    if files := [model for model in models if os.path.exists(model)]:
        raise EcaJaxError(f"--attention: {files[0]} is a file that says itself which attention it has; leave it out")
    return [abstract_model(model, attention=kind) for model, kind in itertools.product(models, attentions)]


def complexity_table(models: Sequence[Backbone | str], image_size: int | tuple[int, int] = 224) -> Table:
    """A line for each network: parameters, multiply-adds, activations, and the paper's columns where they are defined.

    Args:
      models, image_size: as in `complexity`.
    """
    counted = [complexity(model, image_size) for model in models]
    reasons = dict.fromkeys(reason for it in counted if (reason := undefined(it.architecture)))
    return Table(
        f"Cost of networks on one image of {_pixels(counted[0].image_size)} pixels" if counted else "Cost of networks",
        ("model", *COUNTS, "parameters (2^20)", "FLOPs, Table 3", "FLOPs, poster"),
        tuple(_line(it) for it in counted),
        (*NOTES, *(f"No FLOPs: {reason}." for reason in reasons)),
    )


def layer_table(model: Backbone | str, image_size: int | tuple[int, int] = 224) -> Table:
    """A line for each layer with parameters or work of its own, in the order of the calls; the last has the sums.

    Args:
      model, image_size: as in `complexity`.
    """
    counted = complexity(model, image_size)
    rows = [
        (
            layer.path,
            layer.kind,
            _pixels(layer.output) if layer.output else "-",
            *map(_count, (layer.parameters, layer.multiply_adds, layer.activations)),
        )
        for layer in counted.layers
    ]
    total = map(_count, (counted.parameters, counted.multiply_adds, counted.activations))
    return Table(
        f"{_name(counted)} on one image of {_pixels(counted.image_size)} pixels",
        ("layer", "kind", "output", *COUNTS),
        (*rows, ("all", "", "", *total)),
        ("Outputs are height x width x channels.", NOTES[0]),
    )


def _line(of: Complexity) -> tuple[str, ...]:
    flops = ("-", "-") if undefined(of.architecture) else [_binary(paper_flops(of, it)) for it in ("table 3", "poster")]
    counts = map(_count, (of.parameters, of.multiply_adds, of.activations))
    return (_name(of), *counts, f"{of.parameters / 2**20:.2f}", *flops)


def _name(of: Complexity) -> str:
    """'eca_resnet50', or 'resnet50 + gc' where the name does not say the attention."""
    if of.architecture is None:
        return "network"
    name, kind = of.architecture.name, of.architecture.attention.kind
    return name if model_row(name)[1].kind == kind else f"{name} + {kind}"


def _count(number: int) -> str:
    return f"{number:,}"


def _binary(number: int) -> str:
    """'3.863 Gi' of a ResNet, '319.9 Mi' of MobileNetV2: in the paper's units."""
    return f"{number / 2**30:.3f} Gi" if number >= 2**30 else f"{number / 2**20:.1f} Mi"


def _pixels(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
