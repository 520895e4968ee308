"""What attention costs on this GPU, and PyTorch beside it: training steps and inference, measured in turn.

    python -m benchmarks.gpu [--seconds 420] [--backbones resnet50 resnet18 mobilenet_v2] [--modes eager compile]

bfloat16, 128 images of 224 pixels. Prints the tables of docs/results.md, each when it is there; what fails or finds
no time left is named on a line. Ours is the training step of `eca_jax.training`, with batch norm over 64, which also
normalises the uint8 images and checks that the step is finite. PyTorch's is torchvision's network with timm's ECA:
autocast, channels last, floats for images, batch norm over the whole batch, fused SGD with the same momentum and decay.
It needs the `torch` extra, torch.compile a C++ compiler too.

"moved" is what the compiled program reads from the GPU's memory and writes to it if nothing stays in a cache, as in
benchmarks/attention_cost.py. The peak memory is the compiler's plan for ours, what the allocator saw for PyTorch.

Every contestant is a process of its own, takes no more of the GPU's memory than it uses, and computes only when it is
its turn: as many steps as take about a second, with the device waited for only at the end. Runs on a CPU too, for a
try: `--size 32 --batch 4 --turn 0.1`.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.side_by_side import Measurements, interleave, machine, markdown, ratio, spread

OURS = "eca_jax"
ATTENTIONS = ("", "se_", "eca_")
"""Prefixes of the models' names."""
MODES = ("eager", "compile")
TASKS = ("training", "inference")
NUM_CLASSES = 1000
GROUP = 64
"""Examples that share batch statistics in ours."""
COMPILE_LIMIT = 240.0
"""Seconds after which a contestant that has not compiled is left out."""
HEAD = ["", "ms a step: median (least to most)", "images/s", "ratio to none", "ours with ECA / it"]
HEAD += ["moved", "achieved", "peak memory", "compiled in"]

Run = Callable[[int], None]
"""So many steps; returns when they are done."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A program that is measured."""

    framework: str
    """'eca_jax', or a mode of PyTorch."""
    attention: str
    backbone: str
    task: str
    batch: int
    size: int

    @property
    def model(self) -> str:
        """As `eca_jax.create_model` names it."""
        return self.attention + self.backbone

    @property
    def ours(self) -> bool:
        return self.framework == OURS

    @property
    def name(self) -> str:
        return f"{'' if self.ours else 'PyTorch, '}{self.framework}, {self.model}"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a contestant once it has compiled; bytes."""

    compile_seconds: float
    memory: int | None = None
    moved: int | None = None


def eca_jax_program(it: Contestant) -> tuple[Run, Facts]:
    """Ours, compiled ahead of time for the first device as training does."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from eca_jax import create_model
    from eca_jax.compiler_options import compiler_options
    from eca_jax.config import Config, ModelConfig
    from eca_jax.precompile.hlo import bytes_moved
    from eca_jax.sharding import make_mesh
    from eca_jax.training.program import InFlight, build_program

    device = jax.devices()[0]
    rng = np.random.default_rng(0)
    shape = (it.batch, it.size, it.size, 3)
    training = it.task == "training"
    if training:
        network = ModelConfig(name=it.model, dtype="bfloat16", batch_norm_group=math.gcd(it.batch, GROUP))
        config = Config(batch_size=it.batch, model=network)
        program = build_program(config, make_mesh([device]), num_examples=1_281_167, num_classes=NUM_CLASSES)
        images = {
            "image": rng.integers(0, 256, shape, np.uint8),
            "label": rng.integers(0, NUM_CLASSES, it.batch, np.int32),
            "mask": np.ones(it.batch, np.float32),
        }
        function, state, images = program.train_step, program.init(), jax.device_put(images, program.batch_sharding)
    else:
        model = create_model(it.model, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
        model.eval()
        graph, state = nnx.split(model)
        images = jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16)
        options = compiler_options(device.platform)
        function = jax.jit(lambda state, images: nnx.merge(graph, state)(images), compiler_options=options)

    start = time.perf_counter()
    step = function.lower(state, images).compile()
    compile_seconds = time.perf_counter() - start
    plan: Any = step.memory_analysis()
    memory = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    memory += plan.temp_size_in_bytes + plan.generated_code_size_in_bytes

    def run(steps: int) -> None:
        nonlocal state
        in_flight, result = InFlight(), None
        for _ in range(steps):
            if training:
                state, result = step(state, images)
            else:
                result = step(state, images)
            in_flight.add(result)
        jax.block_until_ready(result)

    return run, Facts(compile_seconds, memory, bytes_moved(step.as_text() or ""))


def pytorch_network(backbone: str) -> Any:
    """torchvision's, with timm's ECA module behind the last batch norm of every block."""
    import torch
    import torchvision
    from timm.layers.eca import EcaModule
    from torchvision.models import mobilenetv2, resnet

    model = getattr(torchvision.models, backbone)()
    for block in list(model.modules()):
        if isinstance(block, resnet.Bottleneck):
            block.bn3 = torch.nn.Sequential(block.bn3, EcaModule(block.bn3.num_features))  # pyright: ignore
        elif isinstance(block, resnet.BasicBlock):
            block.bn2 = torch.nn.Sequential(block.bn2, EcaModule(block.bn2.num_features))  # pyright: ignore
        elif isinstance(block, mobilenetv2.InvertedResidual):
            block.conv.append(EcaModule(block.out_channels))
    return model


def pytorch_program(it: Contestant) -> tuple[Run, Facts]:
    """PyTorch's, on the GPU if there is one."""
    import torch

    on_gpu = torch.cuda.is_available()
    kind = "cuda" if on_gpu else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model = pytorch_network(it.backbone).to(kind, memory_format=torch.channels_last)
    images = torch.randn(it.batch, 3, it.size, it.size, device=kind).to(memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (it.batch,), device=kind)
    model.train(it.task == "training")
    forward = torch.compile(model) if it.framework == "compile" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16):
            forward(images)

    def run(steps: int) -> None:
        for _ in range(steps):
            train() if it.task == "training" else infer()
        if on_gpu:
            torch.cuda.synchronize()

    start = time.perf_counter()
    run(3)  # compiles; once more for gradients in another layout
    compile_seconds = time.perf_counter() - start
    if not on_gpu:
        return run, Facts(compile_seconds)
    torch.cuda.reset_peak_memory_stats()
    run(2)
    return run, Facts(compile_seconds, torch.cuda.max_memory_allocated())


def timed(run: Run, steps: int) -> float:
    """Milliseconds a step."""
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps * 1e3


def serve(it: Contestant, turn_seconds: float, connection: Connection) -> None:
    """A contestant's process: compiles and sends its facts, then answers each message with milliseconds a step."""
    run, facts = eca_jax_program(it) if it.ours else pytorch_program(it)
    run(3)
    steps = max(1, round(turn_seconds * 1e3 / timed(run, 5)))
    connection.send(facts)
    while True:
        connection.recv()
        connection.send(timed(run, steps))


@contextlib.contextmanager
def started(it: Contestant, turn_seconds: float, limit: float) -> Iterator[tuple[Facts, Callable[[], float]]]:
    """A contestant, compiled in a process of its own: its facts, and its turn, which returns milliseconds a step.

    Raises:
      OSError, EOFError: it failed, and has said why, or has not compiled after so many seconds.
    """
    spawn = multiprocessing.get_context("spawn")
    connection, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(it, turn_seconds, theirs))
    process.start()
    theirs.close()

    def turn() -> float:
        connection.send("go")
        return connection.recv()

    try:
        if not connection.poll(limit):
            raise TimeoutError(f"has not compiled in {limit:.0f} s")
        yield connection.recv(), turn
    finally:
        process.kill()
        process.join()


def measure(contestants: Sequence[Contestant], turn_seconds: float, rounds: int, deadline: float) -> Iterator[str]:
    """A line for every contestant that is left out, then the table."""
    facts: dict[Contestant, Facts] = {}
    turns: dict[str, Callable[[], float]] = {}
    with contextlib.ExitStack() as stack:
        for it in contestants:  # one after the other: compiling needs all cores
            limit = min(COMPILE_LIMIT, deadline - time.monotonic())
            try:
                if limit <= 0:
                    raise TimeoutError("no time left")
                facts[it], turns[it.name] = stack.enter_context(started(it, turn_seconds, limit))
            except (OSError, EOFError) as error:
                yield f"left out: {it.name}: {error}"
            else:
                print(f"ready: {it.name}, {facts[it]}", file=sys.stderr, flush=True)
        times = interleave(turns, rounds)
    if facts:
        yield f"\n{markdown(HEAD, rows(facts, times))}\n"


def rows(facts: dict[Contestant, Facts], times: Measurements) -> Iterator[list[str]]:
    """A row of the table for every contestant."""
    ours = [it for it in facts if it.ours]
    plain = next((it.name for it in ours if not it.attention), None)
    eca = next((it.name for it in ours if it.attention == "eca_"), None)
    for it, fact in facts.items():
        step = statistics.median(times[it.name]) / 1e3
        yield [
            it.name,
            spread(times[it.name]),
            f"{it.batch / step:.0f}",
            spread(ratio(times, it.name, plain), ".3f") if it.ours and plain else "-",
            spread(ratio(times, eca, it.name), ".3f") if not it.ours and eca else "-",
            f"{fact.moved / 1e9:.2f} GB" if fact.moved else "-",
            f"{fact.moved / step / 1e9:.0f} GB/s" if fact.moved else "-",
            f"{fact.memory / 2**30:.2f} GiB" if fact.memory else "-",
            f"{fact.compile_seconds:.0f} s",
        ]


def main() -> None:
    """Measures, and prints each table as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200, help="then the tables that are left are skipped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=1.0, help="seconds of a contestant's turn")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "resnet18", "mobilenet_v2"])
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES, help="of PyTorch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    args = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    installed = [package for package in ("torch", "torchvision", "timm") if importlib.util.find_spec(package)]
    print(machine("jax", "jaxlib", "flax", *installed), f"{args.rounds} rounds in turn", sep=", ", flush=True)
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], check=False)
    deadline = time.monotonic() + args.seconds
    programs = [(OURS, attention) for attention in ATTENTIONS] + [(mode, "eca_") for mode in args.modes]
    for backbone, task in itertools.product(args.backbones, TASKS):
        print(f"\n{task}, {backbone}, {args.batch} images of {args.size} pixels, bfloat16", flush=True)
        contestants = [Contestant(*program, backbone, task, args.batch, args.size) for program in programs]
        for text in measure(contestants, args.turn, args.rounds, deadline):
            print(text, flush=True)


if __name__ == "__main__":
    main()
