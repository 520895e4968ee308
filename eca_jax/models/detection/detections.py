"""What a detector finds."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detections:
    """The objects found in every image of a batch, best first; of as many entries for each, whatever was found."""

    boxes: jax.Array
    """(b, n, 4), x1, y1, x2, y2 in pixels of the image that the network was given; float32 or wider."""
    scores: jax.Array
    """(b, n), from 0 to 1."""
    labels: jax.Array
    """(b, n), whole numbers: places in the list of classes."""
    valid: jax.Array
    """(b, n): whether an entry is a detection; those that are come first."""
    masks: jax.Array | None = None
    """(b, n, 28, 28), of Mask R-CNN: probabilities of the object's pixels in its box."""

    def replace(self, **changes) -> "Detections":
        """The same with some of the arrays replaced."""
        return dataclasses.replace(self, **changes)
