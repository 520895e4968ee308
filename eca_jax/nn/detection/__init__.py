"""Detection in pure functions of one image: boxes, anchors, matching, sampling, losses, suppression, RoIAlign, masks.

A box is (..., 4): x1, y1, x2, y2 in pixels; sizes are (height, width). Everything is float32 or wider and of fixed
shapes: a boolean array `valid` says which entries count. Callers map over the images of a batch with `jax.vmap`.
torchvision and MMDetection 1.x understand a box in two ways, which a `Convention` has as data.
"""

from eca_jax.nn.detection.anchors import (
    anchor_strides as anchor_strides,
    cell_anchors as cell_anchors,
    cells as cells,
    grid_anchors as grid_anchors,
    inside as inside,
)
from eca_jax.nn.detection.boxes import (
    MMDET1 as MMDET1,
    TORCHVISION as TORCHVISION,
    Convention as Convention,
    area as area,
    clip as clip,
    decode as decode,
    encode as encode,
    iou as iou,
    sides as sides,
    sides_at_least as sides_at_least,
)
from eca_jax.nn.detection.losses import (
    binary_cross_entropy as binary_cross_entropy,
    cross_entropy as cross_entropy,
    l1 as l1,
    sigmoid_focal as sigmoid_focal,
    smooth_l1 as smooth_l1,
)
from eca_jax.nn.detection.masks import Patch as Patch, mask_targets as mask_targets, paste as paste, patches as patches
from eca_jax.nn.detection.matching import (
    BELOW as BELOW,
    BETWEEN as BETWEEN,
    labels_of as labels_of,
    match_mmdet1 as match_mmdet1,
    match_torchvision as match_torchvision,
)
from eca_jax.nn.detection.nms import nms as nms, nms_of_sorted as nms_of_sorted, select as select
from eca_jax.nn.detection.roi_align import pyramid_level as pyramid_level, roi_align as roi_align
from eca_jax.nn.detection.sampling import sample as sample
