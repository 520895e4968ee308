"""ECA-ResNet-50 on this CPU beside PyTorch: inference and training, the same cores, in turn.

    python -m benchmarks.vs_pytorch [--rounds 3] [--cases inference-1 inference-32 training-8 ...]

Prints the tables of docs/results.md: time of eca_jax over that of PyTorch's best mode (eager, channels last,
torch.compile; the model is torchvision's ResNet-50 with timm's ECA module), and the most memory that each process held.
A training step is forward, cross entropy, backward and SGD with momentum and weight decay, with batch norm in training
mode; ours is that of `eca_jax.training`, which also normalises the uint8 images and checks that the step is finite.
PyTorch gets them as the floats that its loaders hand out. Needs the `torch` extra; torch.compile needs a C++ compiler.

Every contestant is a process of its own and computes only when it is its turn. Compiling is not measured, but is most
of the ten minutes that this takes on 2 quiet cores: `--modes eager "channels last"` leaves torch.compile out.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.side_by_side import Measurements, best, interleave, machine, markdown, ratio, seconds, spread

OURS = "eca_jax"
TORCH = ("eager", "channels last", "compile")
CASES = ("inference-1", "inference-8", "training-8", "training-32")
"""Task and batch size; any other can be asked for."""
TASKS = ("inference", "training")
SIZE = 224
KERNEL_SIZES = {256: 3, 512: 5, 1024: 5, 2048: 7}
"""Of ECA, by the channels of the block: the authors' released eca_resnet50."""
TURN_SECONDS = 1.0
"""A contestant's turn is as many whole steps as take about so long, at least one."""

Step = Callable[[], object]
"""One batch; returns when it is done."""


def eca_jax_step(task: str, batch: int, name: str = "eca_resnet50", attention: str | None = None) -> Step:
    """Ours, on the default CPU device, in float32; `attention` is a kind, where the name does not say it."""
    import jax
    import numpy as np
    from flax import nnx

    from benchmarks.programs import training_step
    from eca_jax import create_model
    from eca_jax.compiler_options import compiler_options
    from eca_jax.config import Config, ModelConfig
    from eca_jax.nn.attention import AttentionConfig

    if task == "inference":
        rng = np.random.default_rng(0)
        model = create_model(name, attention=AttentionConfig(attention), rngs=nnx.Rngs(0))
        model.eval()
        images = jax.numpy.asarray(rng.standard_normal((batch, SIZE, SIZE, 3), np.float32))
        graph, state = nnx.split(model)
        logits = jax.jit(lambda state, images: nnx.merge(graph, state)(images), compiler_options=compiler_options())
        return lambda: logits(state, images).block_until_ready()

    model = ModelConfig(name=name, attention=AttentionConfig(attention))
    return training_step(Config(batch_size=batch, model=model), num_classes=1000)


def pytorch_step(mode: str, task: str, batch: int) -> Step:
    """PyTorch's, with as many threads as there are cores."""
    import torch
    from timm.layers.eca import EcaModule
    from torchvision.models import resnet

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = resnet.resnet50()
    blocks = [module for module in model.modules() if isinstance(module, resnet.Bottleneck)]
    for block in blocks:
        kernel_size = KERNEL_SIZES[block.conv3.out_channels]
        block.bn3 = torch.nn.Sequential(block.bn3, EcaModule(kernel_size=kernel_size))  # pyright: ignore
    images = torch.randn(batch, 3, SIZE, SIZE)
    labels = torch.randint(0, 1000, (batch,))
    if mode != "eager":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if task == "inference":
        model.eval()
    forward = torch.compile(model) if mode == "compile" else model
    if task == "inference":

        def infer() -> None:
            with torch.inference_mode():
                forward(images)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return step


def contestant(name: str, case: str) -> None:
    """The process of one contestant: compiles, then answers every line of its input with one of JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed is not an answer
    task, batch = case.split("-")
    step = eca_jax_step(task, int(batch)) if name == OURS else pytorch_step(name, task, int(batch))
    for _ in range(2):  # compiles; PyTorch once more for gradients in another layout
        step()
    steps = max(1, round(TURN_SECONDS / seconds(step)))
    print("ready", file=answers)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        turn = {
            "milliseconds": (time.perf_counter() - start) / steps * 1e3,
            "cpu": (time.process_time() - cpu) / steps * 1e3,
            "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # kilobytes on Linux
        }
        print(json.dumps(turn), file=answers)


class Process:
    """A contestant, started."""

    def __init__(self, name: str, case: str):
        command = [sys.executable, "-m", "benchmarks.vs_pytorch", "--contestant", name, case]
        # Stdin and stdout are lines of the protocol; errors are shown as they come.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turns: list[dict[str, float]] = []
        self.answer()

    def answer(self) -> str:
        """Waits for a line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args}: ended without an answer")
        return line

    def turn(self) -> float:
        """Milliseconds a step."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        self.turns.append(json.loads(self.answer()))
        return self.turns[-1]["milliseconds"]

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(case: str, names: list[str], rounds: int) -> tuple[list[str], list[list[str]]]:
    """One case -> its row of ratios, and a row for every contestant."""
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name in names:  # one after the other: compiling needs all cores
            processes[name] = Process(name, case)
            stack.callback(processes[name].close)
        times: Measurements = interleave({name: process.turn for name, process in processes.items()}, rounds)
    cpu: Measurements = {name: [turn["cpu"] for turn in process.turns] for name, process in processes.items()}
    memory = {name: process.turns[-1]["gib"] for name, process in processes.items()}
    fastest = best(times, [name for name in names if name != OURS])
    ratios = [
        case,
        fastest,
        spread(ratio(times, OURS, fastest)),
        f"{statistics.median(ratio(cpu, OURS, fastest)):.3g}",
        f"{memory[OURS] / memory[fastest]:.3g}",
    ]
    rows = [[case, name, spread(times[name]), f"{memory[name]:.2f}"] for name in names]
    return ratios, rows


def case(text: str) -> str:
    """The case that an argument names."""
    task, _, batch = text.partition("-")
    if task not in TASKS or not batch.isdecimal() or not int(batch):
        raise argparse.ArgumentTypeError(f"expected {' or '.join(TASKS)}, a dash and a batch size, got {text!r}")
    return text


def main() -> None:
    """Measures, then prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", type=case, metavar="TASK-BATCH", default=CASES)
    parser.add_argument("--modes", nargs="+", choices=TORCH, default=TORCH, help="of PyTorch")
    parser.add_argument("--contestant", nargs=2, metavar=("NAME", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        return contestant(*args.contestant)
    names = [OURS, *args.modes]
    if "compile" in names and not (shutil.which("g++") or shutil.which("clang++")):
        print("torch.compile is left out: no g++ or clang++ here", file=sys.stderr)
        names.remove("compile")
    summary, details = [], []
    for name in args.cases:
        ratios, rows = measure(name, names, args.rounds)
        print(" | ".join(ratios), flush=True, file=sys.stderr)
        summary.append(ratios)
        details += rows
    print(f"\n{machine('jax', 'torch')}, eca_resnet50, float32, {args.rounds} rounds in turn\n")
    print(
        markdown(
            ["case", "PyTorch's best", "time, ours / it", "CPU time, ours / it", "peak memory, ours / it"], summary
        )
    )
    print("\n" + markdown(["case", "contestant", "milliseconds a step", "peak memory, GiB"], details))


if __name__ == "__main__":
    main()
