"""What detectors of torchvision and of MMDetection 1.x do differently, as data."""

import dataclasses

from eca_jax.nn.detection import MMDET1, TORCHVISION, Convention


@dataclasses.dataclass(frozen=True)
class DetectorConvention:
    """Everything about a detector that depends on the library whose weights it has."""

    boxes: Convention
    """What the numbers of a box mean, where anchors are, and where RoIAlign samples."""
    whole_sizes: bool
    """Whether the sizes of RetinaNet's anchors are whole numbers."""
    classes: int
    """Of COCO; the first is the background, which no box is given to."""
    classes_of_cells: int
    """Of COCO in RetinaNet, which has a sigmoid for each class."""
    smallest_proposal: float
    """Proposals with a side below this many pixels are dropped."""
    smallest_detection: float
    """Detections, likewise."""
    extra_from_stage: bool
    """Whether RetinaNet's P6 is computed from the backbone's last stage, instead of from P5."""
    extra_rectified: bool
    """Whether a ReLU stands between P6 and the convolution that makes P7 of it."""
    detections_of_cells: int
    """The most that RetinaNet returns for an image."""


CONVENTIONS = {
    "torchvision": DetectorConvention(
        boxes=TORCHVISION,
        whole_sizes=True,
        classes=91,
        classes_of_cells=91,
        smallest_proposal=1e-3,
        smallest_detection=1e-2,
        extra_from_stage=False,
        extra_rectified=True,
        detections_of_cells=300,
    ),
    "mmdet1": DetectorConvention(
        boxes=MMDET1,
        whole_sizes=False,
        classes=81,
        classes_of_cells=80,
        smallest_proposal=0.0,
        smallest_detection=0.0,
        extra_from_stage=True,
        extra_rectified=False,
        detections_of_cells=100,
    ),
}
