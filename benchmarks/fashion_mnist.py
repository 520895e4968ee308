"""A small ECA-ResNet-18 on Fashion-MNIST: eca_jax beside a PyTorch loop, the same files, several seeds each in turn.

    apt install dataset-fashion-mnist && pip install -e '.[torch]'
    python benchmarks/fashion_mnist.py [--seeds 3] [--epochs 5] [--every 1]

Prints the tables of docs/results.md. Every run is a process of its own: `train.py` with configs/fashion_mnist.py, or
fashion_mnist_torch.py. A run that is done is a line of OUT/results.jsonl; the same command goes on after the last one.
"""

import argparse
import dataclasses
import gzip
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
FILES = {"train": "train", "test": "t10k"}
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """What two runs must have in common to stand in one table."""

    epochs: int
    every: int
    """Every so many-th training image is used."""


def read_idx(path: pathlib.Path) -> np.ndarray:
    """A gzipped IDX file of bytes: 0 0 8 RANK, RANK big-endian sizes, the values; uint8."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes: it begins with {data[:4].hex(' ')}")
    sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def write_images(data: pathlib.Path, folder: pathlib.Path, every: int) -> None:
    """FOLDER/{train,test}/CLASS/NNNNN.png, once: every `every`-th training image, and all test images."""
    if folder.is_dir():
        return
    print(f"writing {folder}", flush=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split, file in FILES.items():
        images, labels = (read_idx(data / f"{file}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        for name in CLASSES:
            (unfinished / split / name).mkdir(parents=True)
        for i in range(0, len(images), every if split == "train" else 1):
            Image.fromarray(images[i]).save(unfinished / split / CLASSES[labels[i]] / f"{i:05}.png")
    unfinished.rename(folder)


def run_eca_jax(
    settings: Settings, seed: int, images: pathlib.Path, workdir: pathlib.Path, args: argparse.Namespace
) -> dict:
    """`train.py`; what it wrote into metrics.jsonl."""
    epoch = sum(1 for _ in (images / "train").glob("*/*")) // BATCH  # steps
    options = {
        "data.name": f"folder:{images}",
        "data.num-threads": args.workers,
        "epochs": settings.epochs,
        "seed": seed,
        "log-every": epoch,
        "eval-every-epochs": settings.epochs,
        "checkpoint.every-epochs": settings.epochs,
        "workdir": workdir,
    }
    command = [sys.executable, "train.py", "--config", "configs/fashion_mnist.py"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True, cwd=ROOT)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train" and row["step"] % epoch == 0]
    last = next(row for row in reversed(rows) if row["kind"] == "eval")
    return {
        "steps": last["step"],
        "top1": last["top1"],
        "loss": last["loss"],
        "train_losses": losses[: settings.epochs],
    }


def run_pytorch(
    settings: Settings, seed: int, images: pathlib.Path, workdir: pathlib.Path, args: argparse.Namespace
) -> dict:
    """fashion_mnist_torch.py; what it wrote."""
    workdir.mkdir(parents=True)
    options = {"images": images, "epochs": settings.epochs, "seed": seed, "workers": args.workers}
    options |= {"threads": args.threads, "out": workdir / "result.json"}
    command = [sys.executable, "benchmarks/fashion_mnist_torch.py"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((workdir / "result.json").read_text())


RUNNERS = {"eca_jax": run_eca_jax, "PyTorch": run_pytorch}


def run_all(settings: Settings, images: pathlib.Path, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Every framework's results by seed; those in results.jsonl are not computed again."""
    path = args.out / "results.jsonl"
    done = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        done[row["framework"], row["seed"], Settings(**row["settings"])] = row
    for seed in range(args.seeds):
        for framework, run in RUNNERS.items():
            if (framework, seed, settings) in done:
                continue
            workdir = args.out / f"{framework}-{seed}"
            shutil.rmtree(workdir, ignore_errors=True)  # of a run that was interrupted: its time would be wrong
            print(f"\n{framework}, seed {seed}", flush=True)
            start = time.monotonic()
            result = run(settings, seed, images, workdir, args)
            row = {"framework": framework, "seed": seed, "settings": dataclasses.asdict(settings), **result}
            row["seconds"] = round(time.monotonic() - start, 1)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done[framework, seed, settings] = row
    return {framework: [done[framework, seed, settings] for seed in range(args.seeds)] for framework in RUNNERS}


def machine() -> str:
    """The processor's name where Linux tells it, else its architecture; and the number of cores."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return f"{os.cpu_count()} cores of {found.group(1) if found else platform.machine()}"


def print_tables(results: dict[str, list[dict]], settings: Settings, count: int) -> None:
    """Versions, the two tables, and whether the means agree."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch", "torchvision")
    )
    print(f"\n`python {shlex.join(sys.argv)}`\n{versions}, Python {platform.python_version()}, {machine()}")
    print(f"{settings.epochs} epochs of {count:,} images\n")
    print("| eca_resnet18, width x0.25 | steps | held-out top-1, a seed each | mean | spread | loss | seconds each |")
    print("|---|---|---|---|---|---|---|")
    means, spreads = [], []
    for framework, rows in results.items():
        top1 = [100 * row["top1"] for row in rows]
        means.append(statistics.mean(top1))
        spreads.append(max(top1) - min(top1))
        print(
            f"| {framework} | {rows[0]['steps']} | {', '.join(f'{x:.2f}' for x in top1)} | {means[-1]:.2f} "
            f"| {spreads[-1]:.2f} | {statistics.mean(row['loss'] for row in rows):.4f} "
            f"| {', '.join(str(round(row['seconds'])) for row in rows)} |"
        )
    gap = abs(means[0] - means[1])
    within = "within" if gap <= max(spreads) else "MORE than"
    print(f"\nThe means differ by {gap:.2f} points, {within} the spread of {len(results['PyTorch'])} seeds ", end="")
    print(f"({' and '.join(f'{x:.2f}' for x in spreads)}).\n")

    print(f"| mean training loss in epoch | {' | '.join(str(e + 1) for e in range(settings.epochs))} |")
    print("|---" * (settings.epochs + 1) + "|")
    for framework, rows in results.items():
        curve = [statistics.mean(losses) for losses in zip(*(row["train_losses"] for row in rows), strict=True)]
        print(f"| {framework} | {' | '.join(f'{loss:.3f}' for loss in curve)} |")


def main() -> None:
    """Writes the images, runs what is not done, prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=DEBIAN, help="directory of the four .gz files")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/fashion_mnist", help="images, runs, results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="use every so many-th training image")
    parser.add_argument("--workers", type=int, default=2, help="threads (eca_jax) or processes (PyTorch) that load")
    parser.add_argument("--threads", type=int, default=1, help="threads in which PyTorch computes; JAX takes all cores")
    args = parser.parse_args()
    args.out = args.out.resolve()
    if not (args.data / "train-images-idx3-ubyte.gz").is_file():
        parser.error(
            f"--data: {args.data} has no train-images-idx3-ubyte.gz; install Debian's package dataset-fashion-mnist "
            f"(apt install dataset-fashion-mnist puts it into {DEBIAN}) or name the directory with --data"
        )
    settings = Settings(args.epochs, args.every)
    images = args.out / ("images" if args.every == 1 else f"images_{args.every}")
    args.out.mkdir(parents=True, exist_ok=True)
    write_images(args.data, images, args.every)
    results = run_all(settings, images, args)
    print_tables(results, settings, sum(1 for _ in (images / "train").glob("*/*")))


if __name__ == "__main__":
    main()
