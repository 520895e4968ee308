"""What each source calls our layers: rows of (regular expression on our path, replacement).

The first row that matches counts; if none matches, the path is the same in the source. Each table maps the layers of a
model one to one, so it is used in both directions.
"""

import re

from eca_jax.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from eca_jax.models.mobilenetv2 import STAGES, MobileNetV2
from eca_jax.models.resnet import ResNet

Renames = tuple[tuple[str, str], ...]


def _mobilenet() -> Renames:
    """torchvision's and the authors' `features.0` to `features.18`; the items of a block's `conv` are counted."""
    rows = [("stem.conv", "features.0.0"), ("stem.bn", "features.0.1")]
    for i in range(sum(stage.depth for stage in STAGES)):
        layers = [("depthwise.conv", "{}.0"), ("depthwise.bn", "{}.1"), ("project", "{}"), ("bn", "{}"), ("attn", "{}")]
        first = 0 if i == 0 else 1  # the first block has no expansion
        counts = (first, first, first + 1, first + 2, first + 3)
        if first:
            rows += [
                (f"blocks.{i}.expand.{layer}", f"features.{i + 1}.conv.0.{j}") for j, layer in enumerate(("conv", "bn"))
            ]
        rows += [
            (f"blocks.{i}.{layer}", f"features.{i + 1}.conv.{place.format(count)}")
            for (layer, place), count in zip(layers, counts, strict=True)
        ]
    rows += [("last.conv", "features.18.0"), ("last.bn", "features.18.1"), ("classifier", "classifier.1")]
    return tuple((f"^{re.escape(ours)}$", theirs) for ours, theirs in rows)


def _timm_mobilenet() -> Renames:
    """timm's mobilenetv2_100: blocks by stage; the first has no expansion."""
    rows = [("stem.conv", "conv_stem"), ("stem.bn", "bn1"), ("last.conv", "conv_head"), ("last.bn", "bn2")]
    names = {"expand.conv": "conv_pw", "expand.bn": "bn1", "depthwise.conv": "conv_dw", "depthwise.bn": "bn2"}
    names |= {"project": "conv_pwl", "bn": "bn3"}
    first = {"depthwise.conv": "conv_dw", "depthwise.bn": "bn1", "project": "conv_pw", "bn": "bn2"}
    i = 0
    for stage, row in enumerate(STAGES):
        for j in range(row.depth):
            rows += [(f"blocks.{i}.{k}", f"blocks.{stage}.{j}.{v}") for k, v in (names if i else first).items()]
            i += 1
    return tuple((f"^{re.escape(ours)}$", theirs) for ours, theirs in rows)


SEQUENTIAL = ((r"\.layers\.", "."),)
DETECTOR = (
    *SEQUENTIAL,
    (r"((inner|layer)_blocks|mask_head|(classification|regression)_head\.conv)\.(\d+)$", r"\1.\4.0"),
    (r"rpn\.head\.conv$", "rpn.head.conv.0.0"),
)
"""Of torchvision since 0.13. Its published files have the older names."""
TABLES: dict[str, dict[type, Renames]] = {
    "ecanet": {ResNet: (*SEQUENTIAL, (r"\.attn$", ".eca")), MobileNetV2: _mobilenet()},
    "torchvision": {
        ResNet: SEQUENTIAL,
        MobileNetV2: _mobilenet(),
        **dict.fromkeys((FasterRCNN, MaskRCNN, RetinaNet), DETECTOR),
    },
    "timm": {ResNet: (*SEQUENTIAL, (r"\.attn$", ".se")), MobileNetV2: _timm_mobilenet()},
}
"""Source -> family of models -> renames."""


def rename(path: str, rows: Renames) -> str:
    """Our path of a layer -> the source's."""
    for pattern, replacement in rows:
        if re.search(pattern, path):
            return re.sub(pattern, replacement, path)
    return path
