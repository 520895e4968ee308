"""What ECA-Net's tables print, row by row, and our network of each row.

Sources: Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", CVPR 2020 (arXiv
1910.03151), tables 2 and 3; the conference's poster, figures/poster.jpg in github.com/BangguWu/ECANet; and that
repository's README, for the names of the released weights.
"""

import dataclasses
import functools

from eca_jax.nn.attention import AttentionConfig


@dataclasses.dataclass(frozen=True)
class Unit:
    """What a printed number is a multiple of."""

    name: str
    size: int


MEBI, GIBI = Unit("2^20", 2**20), Unit("2^30", 2**30)
MEGA, GIGA = Unit("10^6", 10**6), Unit("10^9", 10**9)


@dataclasses.dataclass(frozen=True)
class Row:
    """A network with its numbers as printed, in the digits of the paper; "-" where nothing is printed."""

    method: str
    backbone: str
    attention: AttentionConfig | None
    """Ours of this row, on the backbone; None where this package has no such module."""
    parameters: str
    flops: str
    top1: str
    """Per cent, on ImageNet's validation images, one crop of 224 pixels. `top5` too."""
    top5: str
    training_fps: str = "-"
    """Images a second on the authors' machine, as `inference_fps`."""
    inference_fps: str = "-"
    weights: str | None = None
    """The file that the authors released."""
    parameters_unit: Unit = MEBI
    flops_unit: Unit = GIBI
    difference: str = ""
    """Why what is printed is not what we compute, or is not the same everywhere."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """A row of the ablation on ResNet-50, table 2."""

    method: str
    attention: AttentionConfig
    formula: str
    """Of the gates of one module; s are the C channels' averages."""
    parameters: str
    """Of one module, as printed."""
    top1: str
    top5: str
    difference: str = ""


NONE, SE, ECA = AttentionConfig("none"), AttentionConfig("se"), AttentionConfig("eca")
COPIED = "copied from its paper, in 10^6 and 10^9"
UNBIASED = "parameters: without biases in its MLP; {} with them, as in its authors' code"
copied = functools.partial(Row, parameters_unit=MEGA, flops_unit=GIGA, difference=f"{COPIED}; no module here")
"""A row of Table 3 that is quoted in the units of its own paper."""

TABLE_2 = (
    Gate("vanilla", NONE, "1", "0", "75.20", "92.25", "top-5: Table 3 prints 92.52"),
    Gate("SE", SE, "sigmoid(W2 relu(W1 s)), r = 16", "2 C^2 / r", "76.71", "93.38"),
    Gate("SE-Var1", AttentionConfig("se_var1"), "sigmoid(s)", "0", "76.00", "92.90"),
    Gate("SE-Var2", AttentionConfig("se_var2"), "sigmoid(w s), w diagonal", "C", "77.07", "93.31"),
    Gate("SE-Var3", AttentionConfig("se_var3"), "sigmoid(W s)", "C^2", "77.42", "93.64"),
    Gate("SE-GC1", AttentionConfig("se_gc1"), "sigmoid(W s), 16 groups", "C^2 / 16", "76.95", "93.47"),
    Gate("SE-GC2", AttentionConfig("se_gc2"), "sigmoid(W s), C/16 groups", "16 C", "76.98", "93.31"),
    Gate("SE-GC3", AttentionConfig("se_gc3"), "sigmoid(W s), C/8 groups", "8 C", "76.96", "93.38"),
    Gate(
        "ECA-NS",
        AttentionConfig("eca_ns", kernel_sizes=3),
        "sigmoid(k neighbours, weights of each channel)",
        "k C",
        "77.35",
        "93.61",
        "k is not printed: 3, as in the row below",
    ),
    Gate(
        "ECA",
        AttentionConfig("eca", kernel_sizes=3),
        "sigmoid(k neighbours, shared weights), k = 3",
        "k = 3",
        "77.43",
        "93.65",
    ),
)
"""Channel attention on ResNet-50, ImageNet."""

R50, R101, R152 = "resnet50", "resnet101", "resnet152"
TABLE_3 = (
    Row("ResNet", R50, NONE, "24.37", "3.86", "75.20", "92.52", "1024", "1855"),
    Row("SENet", R50, SE, "26.77", "3.87", "76.71", "93.38", "759", "1620"),
    Row(
        *("CBAM", R50, AttentionConfig("cbam", bias=False), "26.77", "3.87", "77.34", "93.69", "472", "1213"),
        difference=UNBIASED.format("26.79"),
    ),
    copied("A2-Nets", R50, None, "33.00", "6.50", "77.00", "93.50"),
    copied(
        *("GCNet", R50, AttentionConfig("gc", stages=(1, 2, 3)), "28.08", "3.87", "77.70", "93.66"),
        difference=f"{COPIED}; in the last three stages, as its authors' networks",
    ),
    copied("GSoP-Net1", R50, None, "28.05", "6.18", "77.68", "93.98", "596", "1383"),
    copied("AA-Net", R50, None, "25.80", "4.15", "77.70", "93.80"),
    Row(
        *("ECA-Net", R50, ECA, "24.37", "3.86", "77.48", "93.68", "785", "1805"),
        weights="eca_resnet50_k3557.pth.tar",
    ),
    Row("ResNet", R101, NONE, "42.49", "7.34", "76.83", "93.48", "386", "1174"),
    Row("SENet", R101, SE, "47.01", "7.35", "77.62", "93.93", "367", "1044"),
    Row(
        *("CBAM", R101, AttentionConfig("cbam", bias=False), "47.01", "7.35", "78.49", "94.31", "270", "635"),
        difference=UNBIASED.format("47.04"),
    ),
    copied("AA-Net", R101, None, "45.40", "8.05", "78.70", "94.40"),
    Row(
        *("ECA-Net", R101, ECA, "42.49", "7.35", "78.65", "94.34", "380", "1089"),
        weights="eca_resnet101_k3357.pth.tar",
        difference="FLOPs: where 7.34 is printed, it is a misprint; the README and the poster have 7.35",
    ),
    Row("ResNet", R152, NONE, "57.40", "10.82", "77.58", "93.66", "281", "815"),
    Row("SENet", R152, SE, "63.68", "10.85", "78.43", "94.27", "268", "761"),
    Row(
        *("ECA-Net", R152, ECA, "57.40", "10.83", "78.92", "94.55", "279", "785"),
        weights="eca_resnet152_k3357.pth.tar",
        difference="parameters: the README's 57.41 is a misprint",
    ),
    Row("MobileNetV2", "mobilenet_v2", NONE, "3.34", "319.4", "71.64", "90.20", "711", "2086", flops_unit=MEBI),
    Row(
        *("SENet", "mobilenet_v2", SE, "3.40", "320.1", "72.42", "90.67", "671", "2000"),
        flops_unit=MEBI,
        difference="FLOPs: 320.01 by the rule that meets every other row; 320.07 if its last average were a module",
    ),
    Row(
        *("ECA-Net", "mobilenet_v2", ECA, "3.34", "319.9", "72.56", "90.81", "676", "2010"),
        weights="eca_mobilenetv2_k13.pth.tar",
        flops_unit=MEBI,
    ),
)
"""Networks on ImageNet."""

POSTER = (
    Row("ResNet", "resnet18", NONE, "11.148", "1.699", "70.40", "89.45"),
    Row("SENet", "resnet18", SE, "11.231", "1.700", "70.59", "89.78"),
    Row(
        *("ECA-Net", "resnet18", ECA, "11.148", "1.700", "70.78", "89.92"),
        weights="eca_resnet18_k3577.pth.tar",
        difference="top-1 and top-5: the README has 70.92 and 89.93",
    ),
    Row("ResNet", "resnet34", NONE, "20.788", "3.427", "73.31", "91.40"),
    Row("SENet", "resnet34", SE, "20.938", "3.428", "73.87", "91.65"),
    Row(
        *("CBAM", "resnet34", AttentionConfig("cbam"), "20.943", "-", "74.01", "91.76"),
        difference="parameters: with the biases of its MLP, which Table 3 leaves out",
    ),
    Row(
        *("ECA-Net", "resnet34", ECA, "20.788", "3.428", "74.21", "91.83"),
        weights="eca_resnet34_k3357.pth.tar",
    ),
)
"""The smaller ResNets on ImageNet, of the poster alone."""
