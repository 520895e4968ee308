"""Faster R-CNN, Mask R-CNN and RetinaNet on any backbone.

Papers: Ren et al. 2015 (arXiv 1506.01497), He et al. 2017 (1703.06870), Lin et al. 2017 (1612.03144 and 1708.02002).
Attribute names are torchvision's (models/detection). There and in MMDetection, padding changes what is found in an
image; here it does not: `eca_jax/nn/valid.py` says how.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.data.detection import MULTIPLE, DetectionPreprocess, rounded_up
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone, expect_images
from eca_jax.models.detection.anchors import of_cells, of_proposals
from eca_jax.models.detection.conventions import DetectorConvention
from eca_jax.models.detection.detections import Detections
from eca_jax.models.detection.fpn import Convolved, Pooled, Pyramid
from eca_jax.models.detection.retinanet_head import RetinaNetHead
from eca_jax.models.detection.roi_heads import RoIHeads
from eca_jax.models.detection.rpn import RPN
from eca_jax.nn.attention import AttentionConfig
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.valid import Valid


@dataclasses.dataclass(frozen=True)
class DetectorArchitecture:
    """What `create_detector` made a network from, as far as it decides names, shapes and what is computed."""

    name: str
    num_classes: int = 91
    attention: AttentionConfig = AttentionConfig()
    """With its kind, whatever the name says."""
    convention: str = "torchvision"
    """Whose rules it follows: one of `CONVENTIONS`."""
    width_multiplier: float = 1.0
    norm_epsilon: float = 1e-5
    """Of the backbone's batch norms; torchvision's published weights have 0."""


class Detector(nnx.Module):
    """Finds objects in normalised images (b, h, w, 3): see `__call__`."""

    backbone: Pyramid
    architecture: DetectorArchitecture
    preprocess: DetectionPreprocess = DetectionPreprocess()
    """How the images are to be made that the weights were trained for."""

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> Detections:
        """The detections of every image of a batch.

        Args:
          images: (b, h, w, 3), normalised, each at the top left of a batch whose sides are multiples of 32. What is
            beyond an image does not matter.
          sizes: (b, 2), whole numbers, height and width of each image; None says that all fill the batch. The network
            then computes no masks, and its attention may be any.

        Returns:
          For each image what it is found to contain, of fixed shapes, best first; see `Detections`. It does not depend
          on the other images, nor on how far the batch is padded.

        Raises:
          EcaJaxError: the images have another shape or type, or `sizes` does.
        """
        expect_images(images)
        b, height, width, _ = images.shape
        if height % MULTIPLE or width % MULTIPLE:
            raise EcaJaxError(
                f"detector: images of {height} x {width}; expected sides that are multiples of {MULTIPLE}: pad them "
                "with zeros at the bottom and on the right, and give their own sizes as `sizes`"
            )
        padded = (height, width)
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.asarray(padded), (b, 2))
            return self.detect(self.backbone(images), sizes, Valid(sizes, padded))
        if sizes.shape != (b, 2) or not jnp.issubdtype(sizes.dtype, jnp.integer):
            raise EcaJaxError(
                f"detector: expected sizes of whole numbers, ({b}, 2): height and width of every image, got "
                f"{sizes.dtype} {sizes.shape}"
            )
        valid = Valid(rounded_up(sizes), padded)
        images = Valid(sizes, padded).mask(images)
        return self.detect(self.backbone(images, valid), sizes, valid)

    def detect(self, levels: list[jax.Array], sizes: jax.Array, valid: Valid) -> Detections:
        """The levels of the pyramid, (b, h, w, 256) each -> what is found in images of these sizes (b, 2)."""
        raise NotImplementedError


def stages_of(body: Backbone, strides: tuple[int, ...]) -> list[str]:
    """The last stage of each stride; of a ResNet with 4, 8, 16 and 32: layer1 to layer4.

    Raises:
      EcaJaxError: the backbone has no stage of one of these strides.
    """
    last = {info.stride: info.name for info in body.feature_info}
    if missing := [stride for stride in strides if stride not in last]:
        raise EcaJaxError(
            f"detector: a pyramid needs stages of the strides {strides}; {type(body).__name__} has none of {missing}"
        )
    return [last[stride] for stride in strides]


class FasterRCNN(Detector):
    """Maps normalised images (b, h, w, 3) to `Detections`, 100 for each at most.

    Proposals come from five levels, P2 to P6; each is given a class and a better box.
    """

    masks = False

    def __init__(self, body: Backbone, num_classes: int, convention: DetectorConvention, bricks: Bricks):
        """`num_classes`: with the background, which is the first."""
        self.backbone = Pyramid(body, stages_of(body, (4, 8, 16, 32)), Pooled(), bricks)
        self.rpn = RPN(convention, of_proposals(convention.boxes), bricks)
        self.roi_heads = RoIHeads(num_classes, convention, bricks, masks=self.masks)

    def detect(self, levels: list[jax.Array], sizes: jax.Array, valid: Valid) -> Detections:
        proposals, there = self.rpn(levels, sizes, valid)
        return self.roi_heads(levels, proposals, there, sizes, valid)


class MaskRCNN(FasterRCNN):
    """Faster R-CNN whose `Detections` also have masks (b, 100, 28, 28): which pixels of a box belong to the object."""

    masks = True


class RetinaNet(Detector):
    """Maps normalised images (b, h, w, 3) to `Detections`, 300 for each at most (MMDetection: 100), in one step.

    Every anchor of the levels P3 to P7 has a box, and a score for each class.
    """

    def __init__(self, body: Backbone, num_classes: int, convention: DetectorConvention, bricks: Bricks):
        stages = stages_of(body, (8, 16, 32))
        channels = {info.name: info.channels for info in body.feature_info}
        extra = Convolved(
            channels[stages[-1]],
            bricks,
            from_stage=convention.extra_from_stage,
            rectified=convention.extra_rectified,
        )
        self.backbone = Pyramid(body, stages, extra, bricks)
        anchors = of_cells(convention.boxes, whole=convention.whole_sizes)
        self.head = RetinaNetHead(num_classes, convention, anchors, bricks)

    def detect(self, levels: list[jax.Array], sizes: jax.Array, valid: Valid) -> Detections:
        return self.head(levels, sizes, valid)
