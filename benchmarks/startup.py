"""How long it takes to start: imports, --help, the step of each depth with and without its compiled program at hand.

    python -m benchmarks.startup [--rounds 2]

Every figure is of a process of its own. Prints the tables of docs/results.md.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.side_by_side import Measurements, interleave, machine, markdown, ratio, seconds, spread

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = {
    "import jax": ["-c", "import jax"],
    "import flax.nnx": ["-c", "from flax import nnx"],
    "import eca_jax": ["-c", "import eca_jax"],
    "train.py --help": ["train.py", "--help"],
}
MODELS = [f"eca_resnet{depth}" for depth in (18, 34, 50, 101, 152)]
IMAGE_SIZE, BATCH_SIZE = 64, 8
PARTS = ("traced", "compiled", "taken from the cache")


def run(*args: str, **env: str) -> str:
    """What `python *args` prints."""
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=os.environ | env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def prepare_step(name: str) -> None:
    """Prints, as JSON, the seconds in which the training step of a model is traced and lowered, and then compiled."""
    from eca_jax.config import load_config
    from eca_jax.sharding import make_mesh, sharded
    from eca_jax.training.program import build_program

    config = load_config(f"configs/{name}.py")
    small = dataclasses.replace(
        config.task.preprocess, image_size=IMAGE_SIZE, train_image_size=None, eval_resize=IMAGE_SIZE
    )
    model = dataclasses.replace(config.model, batch_norm_group=None)
    config = dataclasses.replace(
        config, model=model, task=dataclasses.replace(config.task, preprocess=small), batch_size=BATCH_SIZE
    )
    start = time.perf_counter()
    program = build_program(config, make_mesh(), num_examples=1_281_167, num_classes=1000)
    batch = sharded(config.task.abstract_batch(BATCH_SIZE, 1000), program.batch_sharding)
    lowered = program.train_step.lower(program.abstract_state, batch)
    traced = time.perf_counter()
    lowered.compile()
    print(json.dumps([traced - start, time.perf_counter() - traced]))


def steps(models: list[str], rounds: int) -> Measurements:
    """'MODEL PART' -> seconds: a round compiles each model into a cache of its own, and takes it from there again."""
    measured: Measurements = {f"{name} {part}": [] for name in models for part in PARTS}
    for _ in range(rounds):
        for name in models:
            script = f"from benchmarks.startup import prepare_step; prepare_step({name!r})"
            with tempfile.TemporaryDirectory() as cache:
                traced, compiled = json.loads(run("-c", script, JAX_COMPILATION_CACHE_DIR=cache))
                _, again = json.loads(run("-c", script, JAX_COMPILATION_CACHE_DIR=cache))
            for part, value in zip(PARTS, (traced, compiled, again), strict=True):
                measured[f"{name} {part}"].append(value)
    return measured


def digits(rounds: int) -> Measurements:
    """Seconds of an epoch on the digits: the first start on a machine, and the next."""
    measured: Measurements = {"first start": [], "second start": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as home:
            for start in measured:
                command = ("train.py", "--epochs", "1", "--optim.warmup-epochs", "0", "--workdir", f"{home}/{start}")
                env = {"JAX_COMPILATION_CACHE_DIR": f"{home}/cache"}
                measured[start].append(seconds(functools.partial(run, *command, **env)))
    return measured


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args()
    print(
        machine("jax", "flax"), f"{options.rounds} rounds", sep=", ", end=". Seconds: median (lowest to highest).\n\n"
    )

    cases = {name: functools.partial(seconds, functools.partial(run, *args)) for name, args in COMMANDS.items()}
    imports = interleave(cases, 5 * options.rounds)
    print(markdown(("process", "s"), [(name, spread(values)) for name, values in imports.items()]), end="\n\n")

    epoch = digits(options.rounds)
    rows = [(name, spread(values)) for name, values in epoch.items()]
    rows.append(("second / first", spread(ratio(epoch, "second start", "first start"))))
    print(markdown(("`train.py --epochs 1 --optim.warmup-epochs 0` on the digits", "s"), rows), end="\n\n")

    measured = steps(options.models, options.rounds)
    rows = [(name, *(spread(measured[f"{name} {part}"]) for part in PARTS)) for name in options.models]
    if {"eca_resnet50", "eca_resnet152"} <= {*options.models}:
        quotients = [ratio(measured, f"eca_resnet152 {part}", f"eca_resnet50 {part}") for part in PARTS]
        rows.append(("eca_resnet152 / eca_resnet50", *map(spread, quotients)))
    print(markdown((f"training step, {BATCH_SIZE} images of {IMAGE_SIZE} pixels", *PARTS), rows))


if __name__ == "__main__":
    main()
