"""torchvision's detectors with random weights, scaled so that many detections survive, and ours with the same."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torchvision.models import detection as tv
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from eca_jax.convert.leaves import Leaf, leaves
from eca_jax.convert.state_dict import ShapesOnly
from eca_jax.convert.tables import TABLES, rename
from eca_jax.models.detection import Detector, create_detector

CLASSES = {"faster_rcnn": tv.FasterRCNN, "mask_rcnn": tv.MaskRCNN, "retinanet": tv.RetinaNet}


def reference(kind: str, backbone: str = "resnet18", **options: Any) -> Any:
    """A detector of torchvision, in evaluation mode, of which every array is random.

    The last layers are scaled by what they make of a random image, so that scores spread.
    """
    pyramid = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)} if kind == "retinanet" else {}
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5, **pyramid
    )
    model = CLASSES[kind](body, 91, **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norms: Any = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for name, norm in norms:
            last = name.endswith("bn3" if backbone == "resnet50" else "bn2")  # of a branch
            norm.weight.uniform_(*((0.15, 0.3) if last else (0.5, 1)), generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(1, 2, generator=generator)
        images = torch.rand(1, 3, 128, 192, generator=generator)
        levels = model.backbone(images)
        finest = next(iter(levels.values())).std()
        for block in model.backbone.fpn.layer_blocks:
            block[0].weight.div_(finest)
            block[0].bias.normal_(0, 0.1, generator=generator)
        levels = model.backbone(images)
        (_spread_cells if kind == "retinanet" else _spread_proposals)(model, levels, images, generator)
    return model


def _spread(layer, x: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Scales a layer's weights so that its outputs for x deviate by `std` from their means."""
    layer.bias.normal_(0, 0.1, generator=generator)
    y = layer(x)
    layer.weight.mul_(std / (y - y.mean(0, keepdim=True)).std())


def _spread_cells(model, levels, images, generator) -> None:
    for head, last, std in (
        (model.head.classification_head, "cls_logits", 1.5),
        (model.head.regression_head, "bbox_reg", 0.3),
    ):
        x = next(iter(levels.values()))
        for conv in head.conv:
            conv[0].weight.normal_(0, 0.03, generator=generator)
            conv[0].bias.normal_(0, 0.1, generator=generator)
            x = conv(x)
        layer = getattr(head, last)
        layer.bias.fill_(0)
        layer.weight.normal_(0, 0.03, generator=generator)
        layer.weight.mul_(std / layer(x).std())
        layer.bias.fill_(-5) if last == "cls_logits" else layer.bias.normal_(0, 0.1, generator=generator)


def _spread_proposals(model, levels, images, generator) -> None:
    head, roi_heads = model.rpn.head, model.roi_heads
    head.conv[0][0].weight.normal_(0, 0.03, generator=generator)
    x = head.conv(next(iter(levels.values())))
    for layer, std in ((head.cls_logits, 2.0), (head.bbox_pred, 0.3)):
        layer.weight.normal_(0, 0.03, generator=generator)
        layer.weight.mul_(std / layer(x).std())
        layer.bias.normal_(0, 0.1, generator=generator)
    corner = torch.rand(200, 2, generator=generator) * 80
    boxes = [torch.cat([corner, corner + 10 + 80 * torch.rand(200, 2, generator=generator)], 1)]
    size = [tuple(images.shape[-2:])]
    for layer in (roi_heads.box_head.fc6, roi_heads.box_head.fc7):
        layer.bias.normal_(0, 0.1, generator=generator)
    x = roi_heads.box_head(roi_heads.box_roi_pool(levels, boxes, size))
    for layer in (roi_heads.box_predictor.cls_score, roi_heads.box_predictor.bbox_pred):
        _spread(layer, x, 2.0, generator)
    if model.roi_heads.has_mask():
        for layer in roi_heads.mask_head:
            layer[0].bias.normal_(0, 0.1, generator=generator)
        x = roi_heads.mask_head(roi_heads.mask_roi_pool(levels, boxes, size))
        predictor = roi_heads.mask_predictor
        _spread(predictor.mask_fcn_logits, torch.relu(predictor.conv5_mask(x)), 3.0, generator)


def counterparts(model: Detector) -> dict[str, Leaf]:
    """torchvision's names of our arrays."""
    rows = TABLES["torchvision"][type(model)]
    return {f"{rename(leaf.module, rows)}.{leaf.torch_name}": leaf for leaf in leaves(model)}  # pyright: ignore[reportArgumentType]


def same_weights(name: str, original: torch.nn.Module, **options) -> Detector:
    """Ours, in evaluation mode, with every array of the original and no other."""
    model = nnx.eval_shape(lambda: create_detector(name, rngs=ShapesOnly(), **options))
    given = {key: value.numpy() for key, value in original.state_dict().items() if "num_batches" not in key}
    wanted = counterparts(model)
    assert set(wanted) == set(given)
    for key, leaf in wanted.items():
        assert leaf.layout is not None
        value = leaf.layout.from_torch(given[key])
        assert value.shape == leaf.variable.shape, key
        assert np.array_equal(leaf.layout.to_torch(value), given[key]), key
        leaf.variable.set_value(jnp.asarray(value, leaf.variable.dtype))
    model.eval()
    return model


def picture(height: int, width: int) -> torch.Tensor:
    """Waves and noise, (3, h, w) from 0 to 1."""
    rng = np.random.default_rng(height * 10_000 + width)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (7 + 3 * c)) + np.cos(y / (5 + 4 * c)) for c in range(3)])
    return torch.tensor((0.5 + 0.2 * waves + 0.15 * rng.standard_normal(waves.shape)).clip(0, 1), dtype=torch.float32)
