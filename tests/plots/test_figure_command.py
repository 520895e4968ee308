"""`eca-jax figure ...`: what is printed and written, and the errors that come before anything is computed."""

import csv
import json

import numpy as np
import pytest
from flax import nnx

pytest.importorskip("matplotlib", reason="needs matplotlib: the extra `plots`")

import eca_jax
from eca_jax import cli
from eca_jax.analysis import channel_gates
from eca_jax.analysis.images import common_blocks, evenly_spaced, numbers_of_classes, records_of_classes
from eca_jax.config import load_config
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from tests.commands import TINY

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, small_backbones):
    """A file of a small network for the digits whose gates are stuck in the first block."""
    model = eca_jax.create_model(
        "eca_resnet10", num_classes=10, small_stem=True, width_multiplier=0.125, rngs=nnx.Rngs(0)
    )
    model.preprocess = load_config("digits").task.preprocess
    kernel = model.layer1[0].attn.kernel
    kernel[...] = 0 * kernel[...]
    model.eval()
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    eca_jax.save(model, path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.system
def test_gates(weights, here, capsys):
    command = f"figure gates --weights {weights} --data digits --images 70"
    assert cli.main(command.split()) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Gates of {weights} on 70 images of 'digits', split 'test'\n")
    (line,) = (line for line in out.splitlines() if line.startswith("| layer1.0"))
    assert "| stuck at 0.5: halves every channel of every image " in line
    assert "At 0.5: within 0.02 of it; closed: below 0.05; open: above 0.95." in out
    assert out.endswith("wrote gates.png, gates.svg, gates.csv\n")
    assert err.startswith("preprocess: image_size 8")
    table = rows(here / "gates.csv")
    assert [row["block"] for row in table] == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert all((here / f"gates.{form}").stat().st_size > 5000 for form in ("png", "svg"))

    source, model = open_source("digits", "test"), eca_jax.load_pretrained(weights)
    images = eca_jax.preprocess([source[i * len(source) // 70][0] for i in range(70)], model)
    expected = np.asarray(channel_gates(model, images)["layer4.0"], np.float64)
    assert float(table[3]["over_images"]) == pytest.approx(np.sqrt(expected.var(0).mean()), rel=1e-3)
    assert float(table[3]["mean"]) == pytest.approx(expected.mean(), rel=1e-4)
    assert (table[3]["images"], table[3]["channels"]) == ("70", "64")


@pytest.mark.system
def test_channel_weights_of_two_networks(weights, here, capsys):
    other = here / "other.safetensors"
    other.write_bytes(weights.read_bytes())
    command = f"figure channel-weights --weights {weights} {other} --titles A B --data digits --classes 3 8 --images 4"
    assert cli.main([*command.split(), "--blocks", "layer1.0", "layer4.0", "--output", "w.svg"]) == 0
    out = capsys.readouterr().out
    assert out == (
        "means over images of 'digits', split 'test': 4 of 3, 4 of 8\n"  # the digits' classes are called by them
        "wrote w.svg, w.csv\n"
    )
    table = rows(here / "w.csv")
    assert len(table) == 2 * 2 * (8 + 64)
    assert {row["network"] for row in table} == {str(weights), str(other)}
    assert {row["mean_weight"] for row in table if row["block"] == "layer1.0"} == {"0.5"}

    source, model = open_source("digits", "test"), eca_jax.load_pretrained(weights)
    eights = [image for image, label in source if label == 8][:4]
    expected = np.mean(channel_gates(model, eca_jax.preprocess(eights, model))["layer4.0"], axis=0)
    found = [float(row["mean_weight"]) for row in table if (row["block"], row["class"]) == ("layer4.0", "8")]
    np.testing.assert_allclose(found[:64], expected, rtol=1e-4)


def test_a_plain_network_is_refused_by_name(here, capsys):
    model = eca_jax.create_model("resnet10", num_classes=10, small_stem=True, width_multiplier=0.125, rngs=nnx.Rngs(0))
    model.eval()
    eca_jax.save(model, "plain.safetensors")
    assert cli.main(["figure", "gates", "--weights", "plain.safetensors", "--data", "digits"]) == 2
    assert "error: model: resnet10 has the attention 'none', which computes no gate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "the following arguments are required: FIGURE (eca-jax figure --help lists what there is)"),
        ("gats", "argument FIGURE: invalid choice: 'gats' (choose from "),
        ("gates --runs x", "unknown option --runs. Did you mean --run?"),
        ("gates --output x.jpg", "--output x.jpg: expected a name that ends in .png, .svg, .pdf"),
        ("gates --output no/x.png", "there is no directory no to write x.png into"),
        ("gates --images 0", "argument --images: expected 1 or more, got '0'"),
        ("gates --run x/y", "there is no run directory x/y: give the --workdir of a training run"),
        ("channel-weights --classes 1 2 3 4 5 6 7 8 9", "--classes: expected at most 8, one for each colour, got 9"),
        ("channel-weights --run a b --titles A", "--titles: expected one for each of 2 networks, got 1"),
        ("channel-weights --run a a --titles A B", "--titles: expected one for each of 1 networks, got 2"),
        ("kernel-size --size 3", "unknown option --size. Did you mean --sizes"),
        ("kernel-size --sizes 4", "attention.kernel_sizes: expected an odd size of at least 1, got 4"),
        ("kernel-size --model.name se_resnet18", "model: the attention 'se' of se_resnet18 has no kernel sizes"),
    ],
)
def test_errors_in_one_line(here, capsys, args, message):
    assert cli.main(["figure", *args.split()]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1


def test_weights_say_no_data(weights, here, capsys):
    assert cli.main(["figure", "gates", "--weights", str(weights)]) == 2
    assert "is no run, which would have a data set: say which, such as --data" in capsys.readouterr().err


def evaluations(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["top1"] for row in rows if row["kind"] == "eval"]


KERNEL_SIZE = ["figure", "kernel-size", *TINY, "--seeds", "1", "--workdir", "k", "--output", "k.svg"]


def expect_nothing_is_trained(command, here, capsys):
    before = {path: path.stat().st_mtime_ns for path in here.glob("k/*/*/metrics.jsonl")}
    capsys.readouterr()
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "step " not in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    return out


@pytest.mark.system
def test_kernel_size(here, capsys):
    command = [*KERNEL_SIZE, "--sizes", "3", "--epochs", "1"]
    assert cli.main(command) == 0
    (score,) = evaluations(here / "k" / "3" / "seed-0")
    assert f"{100 * score:.2f}" in capsys.readouterr().out
    (row,) = rows(here / "k.csv")
    assert (row["kernel_size"], row["seed"], float(row["last"]), float(row["best"])) == ("3", "0", score, score)
    out = expect_nothing_is_trained(command, here, capsys)
    assert "run 1 of 1: kernel size 3, seed 0\n" in out
    assert out.endswith("wrote k.svg, k.csv\n")


@pytest.mark.slow
def test_kernel_size_goes_on_where_it_was(here, capsys):
    assert cli.main([*KERNEL_SIZE, "--sizes", "3", "--epochs", "1"]) == 0  # of what follows, one run, and half of that
    (first,) = evaluations(here / "k" / "3" / "seed-0")
    both = [*KERNEL_SIZE, "--sizes", "3", "adaptive", "--references", "none", "--epochs", "2"]
    assert cli.main(both) == 0
    scores = {label: evaluations(here / "k" / label / "seed-0") for label in ("3", "adaptive", "none")}
    assert scores["3"][0] == first
    assert [len(of) for of in scores.values()] == [2, 2, 2]
    table = rows(here / "k.csv")
    found = [(row["kernel_size"], row["attention"]) for row in table]
    assert found == [("3", "eca"), ("adaptive", "eca"), ("", "none")]
    for row in table:
        of = scores[row["kernel_size"] or row["attention"]]
        assert (float(row["last"]), float(row["best"])) == pytest.approx((of[-1], max(of)))
    assert "run 3 of 3: attention none, seed 0\n" in expect_nothing_is_trained(both, here, capsys)


def test_images_evenly_over_the_data():
    assert evenly_spaced(4, 10) == [0, 2, 5, 7]
    assert evenly_spaced(20, 3) == [0, 1, 2]


def test_classes_by_name_and_number():
    names = ("n01440764", "n01443537", "2", "cat")
    assert numbers_of_classes(["tench", "n01443537", "cat", "0", "2"], names) == [0, 1, 3, 0, 2]
    with pytest.raises(EcaJaxError, match=r"^--classes: there is no class 'cot'. Did you mean cat"):
        numbers_of_classes(["cot"], names)


def test_records_of_classes():
    source = open_source("digits", "test")
    labels = [label for _, label in source]
    records, found = records_of_classes(source, [7, 2], 5)
    assert records == [i for c in (7, 2) for i in [i for i, label in enumerate(labels) if label == c][:5]]
    assert list(found) == 5 * [7] + 5 * [2]


def test_blocks_that_networks_share():
    first, second = ["a", "b", "c", "d", "e", "f"], ["a", "b", "d", "e", "f", "g"]
    assert common_blocks([first, second], None, 3) == ["a", "d", "f"]
    assert common_blocks([first, second], ["f", "b"], 3) == ["f", "b"]
    with pytest.raises(EcaJaxError, match="--blocks: not every network has a block 'c'"):
        common_blocks([first, second], ["c"], 3)
    with pytest.raises(EcaJaxError, match="no block of the same name"):
        common_blocks([["a"], ["b"]], None, 3)
