"""The tables say what `complexity` counts, in the units that they name."""

import json

import pytest
from flax import nnx

import eca_jax
from eca_jax import cli
from eca_jax.analysis import complexity
from eca_jax.analysis.complexity_table import complexity_table, layer_table, networks
from eca_jax.errors import EcaJaxError
from tests.analysis.test_complexity import Shared


def test_a_line_for_each_network():
    (plain, eca) = complexity_table(["resnet18", "eca_resnet18"]).rows
    # torchvision's count of parameters; multiply-adds are half of what torch's FlopCounterMode says
    assert plain == ("resnet18", "11,689,512", "1,814,073,344", "2,484,712", "11.15", "1.701 Gi", "1.699 Gi")
    assert eca[0] == "eca_resnet18"
    assert eca[4:] == ("11.15", "1.701 Gi", "1.700 Gi")


def test_networks_that_the_paper_does_not_have(small_backbones):
    network = Shared(nnx.Rngs(0))
    table = complexity_table([*networks(["tiny"], ["none", "eca_ns"]), network], (8, 6))
    assert [row[0] for row in table.rows] == ["tiny", "tiny + eca_ns", "network"]
    assert {row[5:] for row in table.rows} == {("-", "-")}
    assert table.title == "Cost of networks on one image of 8 x 6 pixels"
    assert [note.partition(",")[0] for note in table.notes[-2:]] == [
        "No FLOPs: the paper's rules are known for plain",
        "No FLOPs: the paper's rules are known for plain",
    ]
    assert table.notes[-2].endswith("and this is tiny.")
    assert table.notes[-1].endswith("of create_model, and this one was made otherwise.")


def test_a_line_for_each_layer(small_backbones):
    table = layer_table("eca_tiny", 8)
    assert table.header == ("layer", "kind", "output", "parameters", "multiply-adds", "activations")
    assert table.rows[:3] == (
        ("conv1", "Conv", "8 x 8 x 16", "432", "27,648", "1,024"),
        ("bn1", "BatchNorm", "8 x 8 x 16", "32", "0", "0"),
        ("attn", "ECA", "8 x 8 x 16", "3", "48", "16"),
    )
    assert table.rows[-2][:3] == ("fc", "Linear", "1000")
    counted = complexity("eca_tiny", 8)
    assert table.rows[-1] == (
        *("all", "", ""),
        f"{counted.parameters:,}",
        f"{counted.multiply_adds:,}",
        f"{counted.activations:,}",
    )


def test_of_files(small_backbones, tmp_path):
    model = eca_jax.create_model("eca_tiny", num_classes=5, rngs=nnx.Rngs(0))
    path = str(tmp_path / "weights.safetensors")
    eca_jax.save(model, path)
    assert complexity(networks([path])[0], 8) == complexity(model, 8)
    with pytest.raises(EcaJaxError, match=r"^--attention: .*weights.safetensors is a file that says itself which"):
        networks([path], ["se"])


def test_the_command(small_backbones, capsys):
    assert cli.main(["table", "complexity", "tiny", "eca_tiny", "--image-size", "8", "--format", "json"]) == 0
    plain, eca = json.loads(capsys.readouterr().out)["rows"]
    assert (eca["model"], eca["parameters"] - plain["parameters"]) == ("eca_tiny", 3)
    assert eca["multiply-adds"] - plain["multiply-adds"] == 3 * 16
    assert cli.main(["table", "complexity", "tiny", "--attention", "se", "--image-size", "8", "--by-layer"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny + se on one image of 8 x 8 pixels\n\n| layer    | kind      |")
    assert max(len(line) for line in printed.splitlines() if line.startswith("|")) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("complexity tiny eca_tiny --by-layer", "--by-layer: expected one MODEL and at most one KIND, got 2 networks"),
        ("complexity tiny --image-size 0", "expected 1 or more, got '0'"),
        ("complexity eca_tiny --attention se", "give the kind to the plain backbone instead"),
        ("3 tiny", "tiny: goes with `table complexity`; table 3 has the networks of the paper"),
        ("poster --by-layer", "--by-layer: goes with `table complexity`"),
    ],
)
def test_what_the_command_refuses(small_backbones, capsys, words, message):
    assert cli.main(["table", *words.split()]) == 2
    assert message in capsys.readouterr().err
