"""What channel attention costs: in training and inference; time on this CPU, bytes on TPU and GPU.

    python -m benchmarks.attention_cost [--backbones resnet50 ...] [--targets v5e-1 h100x1] [--rounds 7]
    python -m benchmarks.attention_cost --attentions all --targets v5e-1 --rounds 0 --rows bytes.jsonl

Times are of this machine, taken in turn. Bytes come from the compilers for chips that need not be here (the extras
`tpu` and `cuda13`; `--targets` alone leaves them out): bfloat16, 128 images a chip, batch norm over 64. "moved" is what
the compiled program reads from HBM and writes to it, "accessed" is XLA:TPU's own count, which takes what it keeps in
VMEM for traffic too. Prints the tables of docs/results.md. A training step of ResNet-50 takes XLA:TPU some 5 minutes.

`--attentions` are kinds of `eca_jax.nn.attention.ATTENTIONS` and those that are a backbone's variant (gct, ba, emca).
With `--rows FILE` the row of each program is kept there, and a program that has one is not compiled again: a run that
was stopped goes on.
"""

import argparse
import itertools
import json
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.programs import lower_training_step
from benchmarks.side_by_side import interleave, machine, markdown, ratio, seconds, spread
from benchmarks.vs_pytorch import eca_jax_step
from eca_jax import create_model
from eca_jax.config import Config, ModelConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.models import list_models
from eca_jax.nn.attention import ATTENTIONS
from eca_jax.precompile.hlo import bytes_moved
from eca_jax.precompile.targets import parse_target, topology_devices
from eca_jax.sharding import make_mesh
from eca_jax.tasks import Classification

ALL = (*ATTENTIONS, "gct", "ba", "emca")
TASKS = ("inference", "training")
CHIP_BATCH, CPU_BATCH, SIZE = 128, 8, 224


def network(backbone: str, attention: str) -> dict[str, Any]:
    """The arguments by which `create_model` and `ModelConfig` make a backbone with an attention."""
    variant = f"{attention}_{backbone}"
    return {"name": variant} if variant in list_models() else {"name": backbone, "attention": attention}


def inference(dtype: str, **network: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """A model in evaluation mode, as shapes."""
    model = nnx.eval_shape(lambda: create_model(rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype), **network))
    model.eval()
    return nnx.split(model)


def lower(task: str, device: Any, **network: Any) -> jax.stages.Lowered:
    """The program of one chip."""
    if task == "training":
        model = ModelConfig(dtype="bfloat16", batch_norm_group=64, **network)
        config = Config(batch_size=CHIP_BATCH, model=model, task=Classification(PreprocessConfig(image_size=SIZE)))
        return lower_training_step(config, 1000, device)
    graphdef, state = inference("bfloat16", **network)
    place = jax.sharding.NamedSharding(make_mesh([device]), jax.sharding.PartitionSpec())
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state)
    images = jax.ShapeDtypeStruct((CHIP_BATCH, SIZE, SIZE, 3), jnp.bfloat16, sharding=place)
    return jax.jit(lambda state, images: nnx.merge(graphdef, state)(images)).lower(state, images)


def bytes_of(task: str, target: str, backbone: str, attention: str) -> dict[str, float]:
    """What one program moves, and, of XLA:TPU, what it accesses."""
    (device, *_) = topology_devices(parse_target(target))
    compiled = lower(task, device, **network(backbone, attention)).compile()
    analysis = compiled.cost_analysis()
    moved = {"moved": float(bytes_moved(compiled.as_text() or ""))}
    return moved | ({"accessed": analysis["bytes accessed"]} if analysis else {})


def measured(rows: pathlib.Path | None, *program: str) -> dict[str, float]:
    """`bytes_of` the program, kept in the file `rows` of JSON lines, and taken from it where it is there."""
    if rows is not None and rows.exists():
        for *its, figures in map(json.loads, rows.read_text().splitlines()):
            if its == list(program):
                return figures
    figures = bytes_of(*program)
    if rows is not None:
        with rows.open("a") as file:
            file.write(json.dumps([*program, figures]) + "\n")
    return figures


def bytes_table(
    targets: list[str], backbones: list[str], tasks: list[str], attentions: list[str], rows: pathlib.Path | None
) -> Iterator[list[str]]:
    """A row for every program; the ratios are to the first attention."""
    for target, backbone, task in itertools.product(targets, backbones, tasks):
        plain: dict[str, float] = {}
        for attention in attentions:
            figures = measured(rows, task, target, backbone, attention)
            plain = plain or figures
            cells = [f"{figures[k] / 1e9:.3f} GB, x{figures[k] / plain[k]:.3f}" for k in figures]
            row = [target, task, backbone, attention, *cells, *["-"] * (2 - len(cells))]
            print("|", " | ".join(row), "|", flush=True)
            yield row


def time_table(backbones: list[str], tasks: list[str], attentions: list[str], rounds: int) -> Iterator[list[str]]:
    """A row for every program."""
    for backbone in backbones:
        for task in tasks:
            steps = {name: eca_jax_step(task, CPU_BATCH, **network(backbone, name)) for name in attentions}
            for step in steps.values():
                step()  # compiles
            times = interleave({name: lambda step=step: seconds(step) for name, step in steps.items()}, rounds)
            for name, values in times.items():
                milliseconds = f"{statistics.median(values) * 1e3:.0f} ms"
                yield [task, backbone, name, milliseconds, spread(ratio(times, name, attentions[0]), ".3f")]


def main() -> None:
    """Measures, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["resnet50"], help="resnet18, resnet50, mobilenet_v2, …")
    about = f"the first is what the others are compared with; all: {' '.join(ALL)}"
    parser.add_argument("--attentions", nargs="+", default=["none", "se", "eca"], choices=(*ALL, "all"), help=about)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--targets", nargs="*", default=["v5e-1", "h100x1"])
    parser.add_argument("--rounds", type=int, default=7, help="of times on the CPU; 0 leaves them out")
    parser.add_argument("--rows", type=pathlib.Path, metavar="FILE", help="keeps what is compiled, and goes on from it")
    args = parser.parse_args()
    attentions = list(ALL) if "all" in args.attentions else args.attentions
    print(machine("jax", "jaxlib", "flax"))
    if args.rounds:
        compared = f"ratio to {attentions[0]}: median (least to most)"
        head = ["", "backbone", "attention", f"{CPU_BATCH} images, float32", compared]
        print(markdown(head, time_table(args.backbones, args.tasks, attentions, args.rounds)), flush=True)
    rows = list(bytes_table(args.targets, args.backbones, args.tasks, attentions, args.rows))
    if rows:
        print(markdown(["target", "", "backbone", "attention", "moved", "accessed"], rows))


if __name__ == "__main__":
    main()
