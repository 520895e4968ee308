"""Detectors by name: `mask_rcnn_eca_resnet50_fpn` is Mask R-CNN on a pyramid of the classifier `eca_resnet50`."""

import dataclasses
import fnmatch
import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.errors import EcaJaxError, expect_one_of, nearest
from eca_jax.models.base import Backbone
from eca_jax.models.detection.conventions import CONVENTIONS
from eca_jax.models.detection.detectors import Detector, DetectorArchitecture, FasterRCNN, MaskRCNN, RetinaNet
from eca_jax.models.registry import BACKBONES, PAPER, PREFIXES, as_attention, model_row, resolve_attention
from eca_jax.models.settings import checked, checked_dtype
from eca_jax.nn.attention import AttentionConfig
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.layers import BiasedConv
from eca_jax.nn.norm import FixedBatchNorm

KINDS: dict[str, type[FasterRCNN] | type[RetinaNet]] = {
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "retinanet": RetinaNet,
}
DETECTORS: dict[str, tuple[str, str]] = {
    f"{kind}_{prefix}{name}_fpn": (kind, prefix + name) for kind in KINDS for prefix in PREFIXES for name in PAPER
}
"""Name -> (kind of detector, classifier)."""


def list_detectors(pattern: str = "*") -> list[str]:
    """The names that `create_detector` knows, filtered by a shell pattern: `list_detectors("*_eca_resnet50_fpn")`."""
    return sorted(fnmatch.filter(DETECTORS, pattern))


def create_detector(
    name: str,
    *,
    rngs: nnx.Rngs,
    num_classes: int | None = None,
    attention: AttentionConfig | str = AttentionConfig(),
    convention: str = "torchvision",
    width_multiplier: float = 1.0,
    norm_epsilon: float = 1e-5,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Detector:
    """A detector with fresh weights, which maps normalised images (b, h, w, 3) to `Detections`.

    Args:
      name: one of `list_detectors()`: 'faster_rcnn_eca_resnet50_fpn'.
      rngs: for the initialisation, e.g. `nnx.Rngs(0)`.
      num_classes: of Faster and Mask R-CNN with the background, which is the first; None is what the convention has for
        COCO, 91 or 81, and in RetinaNet 91 or 80.
      attention: as in `create_model`.
      convention: 'torchvision' or 'mmdet1' (the authors').
      width_multiplier: scales the number of channels of the backbone.
      norm_epsilon: what its batch norms add to the variance. Their statistics never change.
      dtype: of the computation; boxes and scores are float32 or wider.
      param_dtype: of parameters and statistics.

    Raises:
      EcaJaxError: for an unknown name (the nearest are named), or an argument that cannot be.
    """
    if name not in DETECTORS:
        raise EcaJaxError(f"unknown detector {name!r}.{nearest(name, DETECTORS)}")
    if not isinstance(rngs, nnx.Rngs):
        raise EcaJaxError(f"rngs: expected flax.nnx.Rngs, got {rngs!r}: give nnx.Rngs(0)")
    expect_one_of("convention", convention, tuple(CONVENTIONS))
    rules, (kind, classifier) = CONVENTIONS[convention], DETECTORS[name]
    if num_classes is None:
        num_classes = rules.classes_of_cells if kind == "retinanet" else rules.classes
    said = checked({"num_classes": num_classes, "width_multiplier": width_multiplier})
    bricks = Bricks(
        resolve_attention(classifier, as_attention(attention)),
        rngs,
        dtype=checked_dtype("dtype", dtype),
        param_dtype=checked_dtype("param_dtype", param_dtype),
        normalisation=FixedBatchNorm,
        norm_epsilon=norm_epsilon,
    )
    body = headless(classifier, bricks, said["width_multiplier"])
    model = KINDS[kind](body, said["num_classes"], rules, dataclasses.replace(bricks, convolution=BiasedConv))
    model.architecture = DetectorArchitecture(
        name, said["num_classes"], bricks.attention, convention, said["width_multiplier"], norm_epsilon
    )
    return model


def headless(classifier: str, bricks: Bricks, width_multiplier: float) -> Backbone:
    """The network of that name without what its features do not need."""
    backbone, _ = model_row(classifier)
    factory = functools.partial(BACKBONES[backbone], small_stem=False, dropout=None, drop_path=0.0)
    body = factory(bricks, num_classes=1, width_multiplier=width_multiplier)
    for layer in body.head_layers:
        delattr(body, layer)
    return body
