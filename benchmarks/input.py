"""Training images a second a core: this loader beside tf.data and torchvision, on the same JPEG files and cores.

    python -m benchmarks.input [--rounds 7] [--tf-python PATH]

All contestants cut 8% to 100% of an image (RandomResizedCrop), resize to 224 pixels, mirror half, and hand over batches
of 128 in uint8. Each is a process of its own that stands still while the others are measured, reads the files from the
same folders, and uses as many threads or workers as there are cores (`taskset -c 0` makes it one). tf.data decodes only
the crop (`decode_and_crop_jpeg`); its resize is not antialiased unless it is told, and then costs more than the rest.
torchvision has Pillow images, as ImageFolder gives them, or its own JPEG decoder (`decode_jpeg`, v2 transforms), which
antialias.

The files are pieces of scikit-learn's two photographs at quality 95, in sizes whose mean is ImageNet's (about 470 x 400
pixels, a few large ones). The figure is images by CPU seconds of the process and its workers, which other load on the
machine hardly changes. Prints the table of docs/results.md; 2 minutes on 2 quiet cores. `--tf-python` is an interpreter
that has TensorFlow, where this one has not.
"""

import argparse
import functools
import importlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.side_by_side import interleave, machine, markdown, ratio, spread

BATCH = 128
SIZE = 224
QUALITY = 95
AHEAD, MEASURED = 6, 8
"""Batches of a round: what was loaded ahead while the others had their turn is taken first, and not timed."""
SIZES = {
    (500, 375): 16,
    (375, 500): 6,
    (500, 333): 7,
    (333, 500): 4,
    (320, 240): 3,
    (200, 200): 2,
    (640, 480): 1,
    (1600, 1200): 1,
}
"""(width, height) -> of 40 files."""
NAMES = 64
"""Of each file (hard links): an epoch as long as a real data set's."""
CORES = len(os.sched_getaffinity(0))


def write_photographs(folder: pathlib.Path, copies: int = 16) -> None:
    """Class folders of `copies` times 40 files, no two the same. Larger than the photographs, they are enlarged."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    scenes = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    sizes = [size for size, n in SIZES.items() for _ in range(n * copies)]
    for i, (width, height) in enumerate(sizes):
        scene = scenes[i % 2] if width >= height else scenes[i % 2].transpose(Image.Transpose.ROTATE_90)
        scale = max(width / scene.width, height / scene.height, 1)
        scene = scene.resize((round(scene.width * scale), round(scene.height * scale)), Image.Resampling.LANCZOS)
        left, top = int(rng.integers(scene.width - width + 1)), int(rng.integers(scene.height - height + 1))
        path = folder / f"class{i % 4}" / f"{i:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        piece = scene.crop((left, top, left + width, top + height))
        piece.save(path, quality=QUALITY, subsampling="4:2:0")
        for name in range(1, NAMES):
            path.with_stem(f"{i:04}_{name}").hardlink_to(path)


def eca_jax(folder: str) -> Iterator:
    """The loader of `train.py`."""
    import jax

    from eca_jax.data.loader import train_batches
    from eca_jax.data.preprocess import PreprocessConfig
    from eca_jax.data.sources import open_source
    from eca_jax.sharding import batch_sharding, make_mesh
    from eca_jax.tasks import Classification

    batches = train_batches(
        open_source(f"folder:{folder}", "train"),
        Classification(PreprocessConfig(image_size=SIZE)),
        seed=0,
        batch_size=BATCH,
        steps=range(10**6),
        sharding=batch_sharding(make_mesh(jax.devices()[:1]), BATCH),
        num_threads=CORES,
    )
    return (jax.block_until_ready(batch) for batch in batches)


def tf_data(folder: str, antialias: bool) -> Iterator:
    """Fused decoding and cropping, in the way of the TPU reference models."""
    import tensorflow as tf

    def load(path, label):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            min_object_covered=0,
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.decode_and_crop_jpeg(data, tf.concat([begin[:2], size[:2]], 0), channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (SIZE, SIZE), antialias=antialias))
        return tf.cast(tf.round(image), tf.uint8), label

    files = sorted(pathlib.Path(folder).rglob("*.jpg"))
    labels = [int(path.parent.name.removeprefix("class")) for path in files]
    examples = tf.data.Dataset.from_tensor_slices((list(map(str, files)), labels)).shuffle(len(files)).repeat()
    batches = examples.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.threading.private_threadpool_size = CORES
    return iter(batches.with_options(options))


def torchvision(folder: str, pillow: bool) -> Iterator:
    """ImageFolder and DataLoader workers."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    last = [v2.PILToTensor()] if pillow else []
    chain = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), *last])
    read = default_loader if pillow else lambda path: decode_jpeg(read_file(path))
    batches = torch.utils.data.DataLoader(
        ImageFolder(folder, chain, loader=read),
        BATCH,
        shuffle=True,
        num_workers=CORES,
        persistent_workers=True,  # or their time would be lost when they end
    )
    return itertools.chain.from_iterable(itertools.repeat(batches))


CASES: dict[str, tuple[Callable[[str], Iterator], tuple[str, ...]]] = {
    "eca_jax": (eca_jax, ("jax", "grain", "simplejpeg", "cykooz-resizer")),
    "tf.data": (functools.partial(tf_data, antialias=False), ("tensorflow",)),
    "tf.data, antialiased": (functools.partial(tf_data, antialias=True), ("tensorflow",)),
    "torchvision": (functools.partial(torchvision, pillow=True), ("torch", "torchvision", "pillow")),
    "torchvision, decode_jpeg": (functools.partial(torchvision, pillow=False), ("torch", "torchvision")),
}
"""Name -> (batches of a folder, packages to name)."""


def cpu_seconds() -> float:
    """User and system time of this process and of its children that live."""
    ticks = 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if os.getpid() in (pid, int(rest[1])):
            ticks += int(rest[11]) + int(rest[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(name: str, folder: str) -> None:
    """Says what it is; then, for every line on stdin, the images by CPU second and by second of a round, as JSON."""
    out, sys.stdout = sys.stdout, sys.stderr
    batches, packages = CASES[name][0](folder), CASES[name][1]
    for _ in range(AHEAD):
        next(batches)
    cpu = cpu_seconds()
    print(
        json.dumps([f"{package} {importlib.metadata.version(package)}" for package in packages]), file=out, flush=True
    )
    for _ in sys.stdin:
        for _ in range(AHEAD):
            next(batches)
        wall = time.perf_counter()
        for _ in range(MEASURED):
            next(batches)
        per_second = BATCH * MEASURED / (time.perf_counter() - wall)
        # Since the end of the last round, when as little was loaded ahead as now: so nothing that was done in between,
        # while others had their turn, is left out.
        cpu, before = cpu_seconds(), cpu
        print(json.dumps((BATCH * (AHEAD + MEASURED) / (cpu - before), per_second)), file=out, flush=True)


class Contestant:
    """A process that measures itself when it is asked."""

    def __init__(self, python: str, name: str, folder: str):
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.input", "--serve", name, "--folder", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.versions: list[str] = self._read()
        self.walls: list[float] = []

    def _read(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a contestant ended; see above. Without TensorFlow in this interpreter: --tf-python PATH")
        return json.loads(line)

    def round(self) -> float:
        """Images a CPU second."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        per_core, wall = self._read()
        self.walls.append(wall)
        return per_core

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Starts the contestants, lets them run in turn, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tf-python", default=sys.executable)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(pathlib.Path(folder))
        sizes = [path.stat().st_size for path in pathlib.Path(folder).rglob("????.jpg")]
        contestants = {}
        try:
            for name in CASES:
                python = args.tf_python if name.startswith("tf") else sys.executable
                contestants[name] = Contestant(python, name, folder)
            measured = interleave({name: c.round for name, c in contestants.items()}, args.rounds)
        finally:
            for contestant in contestants.values():
                contestant.close()
    versions = sorted({version for contestant in contestants.values() for version in contestant.versions})
    print(
        f"{machine()}, {', '.join(versions)}; {len(sizes)} files of {statistics.mean(sizes) / 1e3:.0f} kB on average\n"
    )
    rows = [
        (
            name,
            spread(figures, ".0f"),
            f"{1e3 / statistics.median(figures):.2f}",
            spread(contestants[name].walls, ".0f"),
            "" if name == "eca_jax" else spread(ratio(measured, "eca_jax", name), ".2f"),
        )
        for name, figures in measured.items()
    ]
    head = ("", "images/s a core", "CPU ms an image", f"images/s, {CORES} cores", "eca_jax / it")
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
