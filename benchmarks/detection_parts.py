"""The parts of detection beside torchvision's, in turn on the same cores: suppression, RoIAlign, pasting.

    python -m benchmarks.detection_parts [--rounds 15] [--parts nms roi_align paste]

The sizes are those of an image of 800 x 1344: 4,819 proposals on five levels; 1,000 boxes of 90 classes, whose scores
are a softmax; 1,000 boxes of 7 x 7 bins from four levels of 256 channels, the gradient of 512; 100 masks of 28 x 28.
Boxes lie in heaps, as proposals do round objects. Both sides begin with the same arrays in memory; our functions are
compiled before. The figures are CPU seconds of the process, which other load on the machine hardly changes; `--wall`
takes wall-clock seconds. Prints a table; 2 minutes on 2 quiet cores.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch
import torchvision
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops.poolers import MultiScaleRoIAlign

from benchmarks.side_by_side import interleave, machine, markdown, ratio, spread
from eca_jax.nn.detection import TORCHVISION, nms, paste, roi_align, select

SIZE = (800, 1344)
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
CHANNELS = 256
Pair = tuple[str, Callable[[], object], Callable[[], object]]
"""What is done, by us and by torchvision."""


def heaps(rng: np.random.Generator, n: int, objects: int = 40) -> np.ndarray:
    """(n, 4) float32 inside the image: each near one of the objects, of sides from 20 to 400 pixels."""
    centres, sides = rng.uniform(0, 1, (objects, 2)) * SIZE[::-1], np.exp(rng.uniform(3, 6, (objects, 2)))
    of = rng.integers(0, objects, n)
    centre = centres[of] + 0.15 * rng.normal(size=(n, 2)) * sides[of]
    half = sides[of] * np.exp(0.2 * rng.normal(size=(n, 2))) / 2
    return np.clip(np.concatenate([centre - half, centre + half], 1), 0, SIZE[::-1] * 2).astype(np.float32)


def suppression(rng: np.random.Generator) -> Iterator[Pair]:
    """Proposals level by level, and the detections of all classes."""
    levels = np.repeat(np.arange(5), [1000, 1000, 1000, 1000, 819])
    boxes = np.concatenate([heaps(rng, 1000) for _ in range(5)])
    scores, valid = rng.normal(size=5000).astype(np.float32), np.arange(5000) < len(levels)
    each = jax.jit(jax.vmap(lambda b, s, v: nms(b, s, 0.7, TORCHVISION, valid=v)))
    ours = [jax.numpy.asarray(np.stack(np.split(x, 5))) for x in (boxes, scores, valid)]
    theirs = [torch.from_numpy(x[: len(levels)].copy()) for x in (boxes, scores, levels)]
    yield (
        "NMS of 4,819 proposals of 5 levels",
        lambda: jax.block_until_ready(each(*ours)),
        lambda: torchvision.ops.batched_nms(*theirs, iou_threshold=0.7),
    )

    boxes = np.stack([heaps(rng, 1000) for _ in range(90)], axis=1)
    scores = np.asarray(jax.nn.softmax(3 * rng.normal(size=(1000, 91)).astype(np.float32)))[:, 1:].copy()
    best = jax.jit(lambda b, s: select(b, s, 0.5, 100, TORCHVISION, valid=s > 0.05))
    arrays, tensors = [jax.numpy.asarray(x) for x in (boxes, scores)], [torch.from_numpy(x) for x in (boxes, scores)]

    def of_torchvision() -> torch.Tensor:
        rows, labels = torch.where(tensors[1] > 0.05)
        return torchvision.ops.batched_nms(tensors[0][rows, labels], tensors[1][rows, labels], labels, 0.5)[:100]

    yield "the best 100 of 1,000 boxes of 90 classes", lambda: jax.block_until_ready(best(*arrays)), of_torchvision


def regions(rng: np.random.Generator) -> Iterator[Pair]:
    """Forward for inference, forward and backward for training."""
    maps = [rng.normal(size=(round(SIZE[0] * s), round(SIZE[1] * s), CHANNELS)).astype(np.float32) for s in SCALES]
    pyramid = [jax.numpy.asarray(level) for level in maps]
    tensors = {str(i): torch.from_numpy(x.transpose(2, 0, 1)[None].copy()) for i, x in enumerate(maps)}
    pool = MultiScaleRoIAlign(list(tensors), 7, 2)
    pooled = jax.jit(lambda p, b: roi_align(p, b, 7, SCALES, TORCHVISION))
    gradient = jax.jit(lambda p, b, d: jax.vjp(lambda p: roi_align(p, b, 7, SCALES, TORCHVISION), p)[1](d))
    boxes = heaps(rng, 1000)
    some, down = boxes[:512], rng.normal(size=(512, 7, 7, CHANNELS)).astype(np.float32)

    def of_torchvision(boxes: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return pool(tensors, [boxes], [SIZE])

    def gradient_of_torchvision(boxes: torch.Tensor, down: torch.Tensor) -> None:
        leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
        pool(leaves, [boxes], [SIZE]).backward(down)

    arguments = jax.numpy.asarray(boxes)
    yield (
        "RoIAlign, 1,000 boxes",
        lambda: jax.block_until_ready(pooled(pyramid, arguments)),
        functools.partial(of_torchvision, torch.from_numpy(boxes)),
    )
    arrays = jax.numpy.asarray(some), jax.numpy.asarray(down)
    yield (
        "RoIAlign with its gradient, 512 boxes",
        lambda: jax.block_until_ready((pooled(pyramid, arrays[0]), gradient(pyramid, *arrays))),
        functools.partial(
            gradient_of_torchvision, torch.from_numpy(some), torch.from_numpy(down.transpose(0, 3, 1, 2).copy())
        ),
    )


def pasting(rng: np.random.Generator) -> Iterator[Pair]:
    """Into the image that the network had, and into one of COCO's size."""
    masks = rng.random((100, 28, 28)).astype(np.float32)
    for size in (SIZE, (480, 640)):
        boxes = heaps(rng, 100) * np.float32(size[0] / SIZE[0])
        boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, size[1])
        tensors = torch.from_numpy(masks[:, None]), torch.from_numpy(boxes)
        yield (
            f"100 masks into {size[0]} x {size[1]}",
            functools.partial(paste, masks, boxes, size),
            functools.partial(paste_masks_in_image, *tensors, size),
        )


PARTS = {"nms": suppression, "roi_align": regions, "paste": pasting}


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """Of one call, by this clock."""
    start = clock()
    function()
    return clock() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--wall", action="store_true", help="wall-clock seconds, on a quiet machine")
    args = parser.parse_args()
    clock = time.perf_counter if args.wall else time.process_time
    rows = []
    for part in args.parts:
        for name, ours, theirs in PARTS[part](np.random.default_rng(0)):
            ours()
            theirs()
            cases = {
                "ours": functools.partial(seconds, ours, clock),
                "theirs": functools.partial(seconds, theirs, clock),
            }
            measured = interleave(cases, args.rounds)
            in_ms = [spread([1e3 * t for t in measured[case]]) for case in cases]
            rows.append([name, *in_ms, spread(ratio(measured, "ours", "theirs"))])
    print(machine("jax", "torch", "torchvision"))
    unit = "ms" if args.wall else "CPU ms"
    print(markdown(["part", f"eca_jax, {unit}", f"torchvision, {unit}", "ratio"], rows))


if __name__ == "__main__":
    main()
