"""Which model a PyTorch state dict is of, from its names and shapes alone."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from eca_jax.errors import EcaJaxError
from eca_jax.models import resnet
from eca_jax.models.base import Architecture
from eca_jax.models.mobilenetv2 import STAGES, released_kernel_size
from eca_jax.models.registry import MODELS
from eca_jax.models.resnet import VARIANTS, BasicBlock, Bottleneck, Variant
from eca_jax.nn.attention import AttentionConfig, KernelSizes, adaptive_kernel_size
from eca_jax.nn.attention.se import hidden_width

Shapes = Mapping[str, tuple[int, ...]]
Slots = Sequence[Shapes]
"""The arrays of the attention in the first block of every stage."""
SE_DIVISOR = 8
"""timm rounds the hidden channels of SE, c / 16, to a multiple of it."""


def infer(shapes: Shapes) -> tuple[str, Architecture]:
    """Names and shapes -> (source, architecture). The full check is the conversion's: this looks at a few names.

    Raises:
      EcaJaxError: the names are of no model that this package knows, or a shape contradicts them.
    """
    try:
        if "layer1.0.conv1.weight" in shapes:
            return _resnet(shapes)
        if "features.0.0.weight" in shapes or "conv_stem.weight" in shapes:
            return _mobilenet(shapes)
    except EcaJaxError:
        raise
    except (LookupError, ZeroDivisionError, ValueError) as error:
        raise EcaJaxError(
            f"the state dict begins like a model of this package, but {error} is missing or has another shape"
        ) from error
    some = ", ".join(sorted(shapes)[:3]) or "nothing"
    raise EcaJaxError(
        f"no ResNet or MobileNetV2 of the authors, torchvision or timm has the names of this state dict ({some}, ...)"
    )


def _resnet(shapes: Shapes) -> tuple[str, Architecture]:
    block = Bottleneck if "layer1.0.conv3.weight" in shapes else BasicBlock
    depths = tuple(_depth(shapes, stage) for stage in resnet.STAGES)
    width = shapes["layer1.0.conv1.weight"][0] / 64
    average = len(shapes["layer2.0.downsample.1.weight"]) == 4
    deep = (shapes["conv1.0.weight"][0], shapes["conv1.3.weight"][0]) if "conv1.0.weight" in shapes else None
    small_stem = deep is None and shapes["conv1.weight"][2] == 3

    def fits(variant: Variant) -> bool:
        stem = tuple(int(w * width) for w in variant.stem) if variant.stem else None
        shape = (variant.block, variant.depths, variant.average_shortcut)
        return shape == (block, depths, average) and (small_stem or stem == deep)

    backbone = next((name for name, variant in VARIANTS.items() if fits(variant)), None)
    if backbone is None:
        raise EcaJaxError(
            f"no known ResNet has {block.__name__}s with the depths {depths}, "
            f"{'averaged' if average else 'strided'} shortcuts and the stem {deep or '7x7'}"
        )
    channels = [int(planes * width) * block.expansion for planes in (64, 128, 256, 512)]
    source, attention = "timm" if deep or average else "torchvision", AttentionConfig("none")
    for name, place in (("ecanet", "eca"), ("timm", "se")):
        slots = [_below(shapes, f"{stage}.0.{place}.") for stage in resnet.STAGES]
        if "conv.weight" in slots[0]:
            sizes = tuple(_kernel_size(shapes, rf"{stage}\.\d+\.{place}\.conv\.weight") for stage in resnet.STAGES)
            shared = slots[0]["conv.weight"][0] == 1
            policy = _policy(sizes, VARIANTS[backbone].released, channels)
            source, attention = name, AttentionConfig("eca" if shared else "eca_ns", kernel_sizes=policy)
        elif seen := next((seen for sign, seen in OF_TIMM.items() if sign in slots[0]), None):
            source, attention = "timm", seen(slots)
    return source, Architecture(
        _name(backbone, attention),
        shapes["fc.weight"][0],
        attention,
        small_stem,
        width,
        in_channels=shapes["conv1.0.weight" if deep else "conv1.weight"][1],
    )


def _below(shapes: Shapes, prefix: str) -> Shapes:
    """What is below a layer, by the rest of its name."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _se(slots: Slots) -> AttentionConfig:
    """The reduction is that of the last stage; where it is not that of all, the hidden widths are rounded."""
    widths = [slot["fc1.weight"][:2] for slot in slots]
    reduction = widths[-1][1] // widths[-1][0]
    exact = all(hidden == hidden_width(channels, reduction) for hidden, channels in widths)
    return AttentionConfig(
        "se",
        bias="fc1.bias" in slots[0],
        reduction=None if reduction == 16 else reduction,
        divisor=None if exact else SE_DIVISOR,
    )


def _cbam(slots: Slots) -> AttentionConfig:
    hidden, channels = slots[-1]["channel.fc1.weight"][:2]
    return AttentionConfig(
        "cbam",
        reduction=channels // hidden,
        bias="channel.fc1.bias" in slots[0],
        order="mean_max",
        kernel_size=slots[0]["spatial.conv.conv.weight"][2],
    )


def _gc(slots: Slots) -> AttentionConfig:
    hidden, channels = slots[-1]["mlp_add.fc1.weight"][:2]
    return AttentionConfig("gc", reduction=channels // hidden, epsilon=1e-6)


OF_TIMM: dict[str, Callable[[Slots], AttentionConfig]] = {
    "fc1.weight": _se,
    "fc.weight": lambda slots: AttentionConfig("ese"),
    "channel.fc1.weight": _cbam,
    "mlp_add.fc1.weight": _gc,
    "conv_h.weight": lambda slots: AttentionConfig(
        "coordinate", reduction=24, rounded=True, bias="conv_h.bias" in slots[0]
    ),
}
"""An array that timm's attention of a kind has and no other -> our attention, from the shapes in every stage."""


def _mobilenet(shapes: Shapes) -> tuple[str, Architecture]:
    source, stem, head = (
        ("timm", "conv_stem.weight", "classifier.weight")
        if "conv_stem.weight" in shapes
        else ("torchvision", "features.0.0.weight", "classifier.1.weight")
    )
    (c_out, in_channels), num_classes = shapes[stem][:2], shapes[head][0]
    width = c_out / 32
    plain = Architecture(
        "mobilenet_v2", num_classes, AttentionConfig("none"), width_multiplier=width, in_channels=in_channels
    )
    if "features.1.conv.3.conv.weight" not in shapes:
        return source, plain
    channels = [int(stage.channels * width) for stage in STAGES]
    sizes, start = [], 1
    for stage in STAGES:
        blocks = "|".join(str(i) for i in range(start, start + stage.depth))
        sizes.append(_kernel_size(shapes, rf"features\.({blocks})\.conv\.[34]\.conv\.weight"))
        start += stage.depth
    shared = shapes["features.1.conv.3.conv.weight"][0] == 1
    policy = _policy(tuple(sizes), tuple(released_kernel_size(c) for c in channels), channels)
    attention = AttentionConfig("eca" if shared else "eca_ns", kernel_sizes=policy)
    return "ecanet", dataclasses.replace(plain, name=_name("mobilenet_v2", attention), attention=attention)


def _depth(shapes: Shapes, stage: str) -> int:
    return 1 + max((int(m[1]) for name in shapes if (m := re.match(rf"{stage}\.(\d+)\.", name))), default=-1)


def _kernel_size(shapes: Shapes, pattern: str) -> int:
    """The one size that all blocks of a stage have."""
    sizes = sorted({shape[2] for name, shape in shapes.items() if re.fullmatch(pattern, name)})
    if len(sizes) != 1:
        raise EcaJaxError(f"expected one kernel size in all blocks of a stage, {pattern} has {sizes or 'none'}")
    return sizes[0]


def _policy(sizes: tuple[int, ...], released: tuple[int, ...], channels: list[int]) -> KernelSizes:
    """The name of these sizes, or the sizes themselves."""
    if sizes == tuple(released):
        return "released"
    return "adaptive" if sizes == tuple(adaptive_kernel_size(c) for c in channels) else sizes


def _name(backbone: str, attention: AttentionConfig) -> str:
    """The model that has this attention by its name, or the plain backbone."""
    for name, (its_backbone, its) in MODELS.items():
        if its_backbone == backbone and (its.kind, _has_biases(its)) == (attention.kind, _has_biases(attention)):
            return name
    return backbone


def _has_biases(attention: AttentionConfig) -> bool:
    return getattr(attention.options, "bias", False)
