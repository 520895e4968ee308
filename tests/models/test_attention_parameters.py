"""How many parameters every attention adds, in whole numbers as its paper or its official code counts them.

A kind without a row fails. One attention is made of every distinct slot, of shapes alone.
"""

import functools
import math
from collections import Counter

import jax
import pytest
from flax import nnx

import eca_jax
from eca_jax.nn.attention import ATTENTIONS, AttentionConfig, Identity, Slot, build_attention

RESNET50 = {
    "none": 0,
    "eca": 80,
    "eca_ns": 86_272,
    "se": 2_514_944,
    "ese": 20_134_656,
    "se_var1": 0,
    "se_var2": 15_104,
    "se_var3": 20_119_552,
    "se_gc1": 1_257_472,
    "se_gc2": 241_664,
    "se_gc3": 120_832,
    "cbam": 2_532_592,
    "srm": 60_416,
    "triplet": 4_800,
    "mca": 278,
    "simam": 0,
    "fca": 2_514_944,
    "gc": 2_548_000,
    "ge_minus": 0,
    "ge": 5_549_568,
    "ge_plus": 8_080_560,
    "sa": 708,
    "coordinate": 1_917_832,
    "ela": 135_936,
    "ema": 198_368,
}
"""Kind -> what its default adds to ResNet-50 with 224 pixels."""

OTHERS = [
    ("resnet50", "eca", {"kernel_sizes": 3}, 48),
    ("resnet50", "eca", {"kernel_sizes": "adaptive"}, 86),
    ("resnet50", "eca", {"kernel_sizes": "adaptive", "circular": True}, 86),
    ("resnet50", "eca_ns", {"kernel_sizes": 3}, 45_312),
    ("resnet50", "se", {"bias": True}, 2_530_992),
    ("resnet50", "se", {"bias": True, "divisor": 8}, 2_530_992),
    ("resnet50", "cbam", {"bias": False}, 2_516_544),
    ("resnet50", "gc", {"stages": (1, 2, 3)}, 2_521_741),
    ("resnet50", "coordinate", {"reduction": 24, "rounded": True, "bias": False}, 2_526_432),
    ("mobilenet_v2", "eca", {}, 31),
    ("mobilenet_v2", "se", {}, 56_928),
    ("mobilenet_v2", "se_var2", {}, 1_504),
    ("mobilenet_v2", "se_var3", {}, 227_712),
    ("mobilenet_v2", "srm", {}, 6_016),
    ("mobilenet_v2", "mca", {}, 251),
    ("mobilenet_v2", "triplet", {}, 5_100),
    ("mobilenet_v2", "simam", {}, 0),
    ("resnet18", "eca", {}, 44),
    ("resnet34", "eca", {}, 72),
    ("resnet101", "eca", {}, 157),
    ("resnet152", "eca", {}, 234),
    ("resnet18", "se", {}, 87_040),
    ("resnet34", "se", {}, 157_184),
    ("resnet101", "se", {}, 4_743_168),
    ("resnet152", "se", {}, 6_578_176),
    ("resnet34", "cbam", {}, 162_796),
    ("resnet101", "cbam", {"bias": False}, 4_746_468),
    ("resnet101", "sa", {}, 1_524),
]
"""(backbone, kind, options, what they add): other settings, and the other networks of the paper's tables."""


@functools.cache
def slots(backbone: str) -> list[tuple[Slot, int]]:
    """The slots of a backbone that differ, and how many there are of each."""
    found = []

    def build(config, slot, rngs):
        found.append(slot)
        return Identity()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eca_jax.nn.bricks.build_attention", build)
        nnx.eval_shape(lambda: eca_jax.create_model(backbone, rngs=nnx.Rngs(0)))
    of = {(slot.channels, slot.place, slot.reduction): slot for slot in found}
    times = Counter((slot.channels, slot.place, slot.reduction) for slot in found)
    return [(of[key], times[key]) for key in of]


def added(backbone: str, kind: str, **options) -> int:
    config = AttentionConfig(kind, **options)

    def count(slot: Slot) -> int:
        module = nnx.eval_shape(lambda: build_attention(config, slot, nnx.Rngs(0)))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))

    return sum(times * count(slot) for slot, times in slots(backbone))


def test_every_attention_has_a_row():
    assert sorted(RESNET50) == sorted(ATTENTIONS)


@pytest.mark.parametrize("kind", RESNET50)
def test_parameters_added_to_resnet50(kind):
    assert added("resnet50", kind) == RESNET50[kind]


@pytest.mark.parametrize(("backbone", "kind", "options", "number"), OTHERS)
def test_parameters_added(backbone, kind, options, number):
    assert added(backbone, kind, **options) == number


def test_slots_are_those_of_the_network():
    """What is counted here is what the whole network has."""
    attention = AttentionConfig("eca", kernel_sizes=(3, 5, 7, 9))

    def parameters(**given):
        model = nnx.eval_shape(lambda: eca_jax.create_model("resnet18", rngs=nnx.Rngs(0), **given))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    assert parameters(attention=attention) - parameters() == added("resnet18", "eca", kernel_sizes=(3, 5, 7, 9)) == 48
