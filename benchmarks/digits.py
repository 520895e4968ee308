"""Held-out errors on the digits: plain, SE and ECA with the same recipe, several seeds of each, in turn.

    python benchmarks/digits.py [--seeds 3]

Prints the table of docs/results.md. A run takes well under a minute on 2 cores.
"""

import argparse
import dataclasses
import math
import tempfile

import jax
from flax import nnx

from eca_jax import create_model
from eca_jax.config import load_config
from eca_jax.training import train

MODELS = ("resnet18", "se_resnet18", "eca_resnet18")


def parameters(name: str, width_multiplier: float) -> int:
    """Trainable parameters, from shapes."""
    model = nnx.eval_shape(
        lambda: create_model(name, num_classes=10, rngs=nnx.Rngs(0), small_stem=True, width_multiplier=width_multiplier)
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def main() -> None:
    """Trains, then prints one row a model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    base = load_config("configs/digits.py")
    errors: dict[str, list[int]] = {name: [] for name in MODELS}
    with tempfile.TemporaryDirectory() as directory:
        for seed in seeds:
            for name in MODELS:
                config = dataclasses.replace(
                    base,
                    model=dataclasses.replace(base.model, name=name),
                    seed=seed,
                    eval_every_epochs=base.epochs,
                    workdir=f"{directory}/{name}-{seed}",
                )
                metrics = train(config).evaluation
                assert metrics is not None
                errors[name].append(round((1 - metrics["top1"]) * metrics["count"]))

    print(f"\njax {jax.__version__}, {jax.devices()[0].device_kind}, seeds {list(seeds)}, {base.epochs} epochs\n")
    print("| model | parameters | held-out errors of 360, a seed each | mean top-1 |")
    print("|---|---|---|---|")
    for name in MODELS:
        mean = 1 - sum(errors[name]) / len(errors[name]) / 360
        count = parameters(name, base.model.width_multiplier)
        print(f"| {name} (width x{base.model.width_multiplier}) | {count:,} | {errors[name]} | {mean:.2%} |")


if __name__ == "__main__":
    main()
