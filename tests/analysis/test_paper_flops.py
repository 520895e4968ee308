"""The integers are of an independent count by the rules of the two releases of thop; the digits are printed ones."""

import pytest

from eca_jax.analysis import complexity, paper_flops
from eca_jax.analysis.complexity import abstract_model
from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import AttentionConfig

GI, MI = 2**30, 2**20
TABLE_3 = {
    "resnet50": (GI, "3.86", "24.37"),
    "se_resnet50": (GI, "3.87", "26.77"),
    "eca_resnet50": (GI, "3.86", "24.37"),
    "resnet101": (GI, "7.34", "42.49"),
    "se_resnet101": (GI, "7.35", "47.01"),
    "eca_resnet101": (GI, "7.35", "42.49"),
    "resnet152": (GI, "10.82", "57.40"),
    "se_resnet152": (GI, "10.85", "63.68"),
    "eca_resnet152": (GI, "10.83", "57.40"),
    "mobilenet_v2": (MI, "319.4", "3.34"),
    "se_mobilenet_v2": (MI, "320.0", "3.40"),  # printed is 320.1
    "eca_mobilenet_v2": (MI, "319.9", "3.34"),
}
POSTER = {
    "resnet18": ("1.699", "11.148"),
    "se_resnet18": ("1.700", "11.231"),
    "eca_resnet18": ("1.700", "11.148"),
    "resnet34": ("3.427", "20.788"),
    "se_resnet34": ("3.428", "20.938"),
    "eca_resnet34": ("3.428", "20.788"),
}
QUICK = ("se_mobilenet_v2", "resnet34")


def quick_or_slow(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick_or_slow(TABLE_3))
def test_table_3(name):
    unit, flops, parameters = TABLE_3[name]
    found = complexity(name)
    decimals = len(flops.partition(".")[2])
    assert f"{paper_flops(found) / unit:.{decimals}f}" == flops
    assert f"{found.parameters / MI:.2f}" == parameters


@pytest.mark.parametrize("name", quick_or_slow(POSTER))
def test_poster(name):
    flops, parameters = POSTER[name]
    found = complexity(name)
    assert f"{paper_flops(found, 'poster') / GI:.3f}" == flops
    assert f"{found.parameters / MI:.3f}" == parameters


@pytest.mark.parametrize(
    ("name", "count"), [("resnet50", 4_142_111_768), ("se_resnet50", 4_152_661_016), ("eca_resnet50", 4_147_732_504)]
)
def test_resnet50_to_the_last_digit(name, count):
    assert paper_flops(complexity(name)) == count


def test_what_the_rules_do_not_say():
    found = complexity("resnet18", 32)
    with pytest.raises(EcaJaxError, match=r"^paper_flops: expected one of 'table 3', 'poster', got 'table 2'"):
        paper_flops(found, "table 2")
    for model, message in (
        (abstract_model("resnet18", attention="eca_ns"), r"and this one has AttentionConfig\('eca_ns'"),
        (abstract_model("resnet18", attention=AttentionConfig("eca", circular=True)), "and this one has .*circular"),
        ("ecaresnet26t", "on resnet18, .* and this is ecaresnet26t"),
    ):
        with pytest.raises(EcaJaxError, match=f"^paper_flops: the paper's rules are known for plain, .*{message}"):
            paper_flops(complexity(model, 32))
