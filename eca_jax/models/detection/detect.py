"""`detect`: pictures of any size in, objects in their pixels out."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from eca_jax.data.detection import bucket_of, detector_image, to_batch
from eca_jax.errors import EcaJaxError, expect_share
from eca_jax.models.detection.detections import Detections
from eca_jax.models.detection.detectors import Detector
from eca_jax.models.preprocess import Picture, of_picture


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is found in one picture, the most certain first."""

    boxes: np.ndarray
    """(n, 4), x1, y1, x2, y2 in pixels of the picture."""
    scores: np.ndarray
    """(n,), from 0 to 1."""
    labels: np.ndarray
    """(n,), places in the list of classes."""
    masks: np.ndarray | None = None
    """(n, 28, 28), of Mask R-CNN: probabilities of the object's pixels in its box."""


def detect(
    model: Detector, images: Picture | Sequence[Picture], *, threshold: float = 0.0, batch_size: int = 1
) -> list[Objects]:
    """What a detector finds in pictures of any size, in pixels of each.

    Pictures are resized as the detector's weights were trained (`model.preprocess`), and padded to one of a few sizes,
    its buckets, for each of which the network is compiled once. The result does not depend on the bucket.

    Args:
      model: of `create_detector`, in evaluation mode.
      images: a picture or a list of them, each in one of the forms that `eca_jax.preprocess` takes.
      threshold: objects with a lower score are left out.
      batch_size: pictures of the same bucket that are computed together.

    Returns:
      The objects of every picture, in their order: boxes (n, 4), scores (n,), labels (n,), perhaps masks (n, 28, 28).

    Raises:
      EcaJaxError: there is no such file or it is no image, or an argument has a value that cannot be.
    """
    if not isinstance(model, Detector):
        raise EcaJaxError(f"model: expected one of create_detector, got {type(model).__name__}")
    expect_share("threshold", threshold)
    pictures = list(images) if isinstance(images, list | tuple) else [images]
    pixels = [of_picture(picture, np.asarray) for picture in pictures]
    state = nnx.split(model)
    found: dict[int, Objects] = {}
    for bucket, places in _by_bucket(model, pixels, batch_size):
        arrays = [detector_image(pixels[i], model.preprocess) for i in places]
        rows = arrays + [np.zeros((1, 1, 3), np.float32)] * (batch_size - len(arrays))
        batch = jax.device_get(_compiled(*state, *to_batch(rows, bucket)))
        for row, i in enumerate(places):
            one = jax.tree.map(lambda array, row=row: array[row], batch)
            found[i] = _in_picture(one, arrays[row].shape[:2], pixels[i].shape[:2], threshold)
    return [found[i] for i in range(len(pictures))]


@functools.partial(jax.jit, static_argnums=0)
def _compiled(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array, sizes: jax.Array) -> Detections:
    return nnx.merge(graphdef, state)(images, sizes)


def _by_bucket(
    model: Detector, pixels: Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Buckets, and the places of at most `batch_size` pictures that go into them together."""
    config = model.preprocess
    members: dict[tuple[int, int], list[int]] = {}
    for i, picture in enumerate(pixels):
        members.setdefault(bucket_of(config.resized(*picture.shape[:2]), config.buckets()), []).append(i)
    for bucket, places in members.items():
        for start in range(0, len(places), batch_size):
            yield bucket, places[start : start + batch_size]


def _in_picture(found: Detections, size: tuple[int, ...], picture: tuple[int, ...], threshold: float) -> Objects:
    """The detections of one image of a size, in pixels of the picture that was resized to it."""
    good = found.valid & (found.scores >= threshold)
    scale = np.asarray([picture[1] / size[1], picture[0] / size[0]] * 2, np.float32)
    masks = None if found.masks is None else np.asarray(found.masks)[good]
    boxes, scores, labels = (np.asarray(array)[good] for array in (found.boxes, found.scores, found.labels))
    return Objects(boxes * scale, scores, labels, masks)
