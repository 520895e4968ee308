"""What `eca-jax precompile` says: arithmetic and errors by hand, and real compilers on small models where they are."""

import dataclasses
import importlib.util
import json

import jax
import pytest
from flax import nnx

import eca_jax
from eca_jax import cli
from eca_jax.config import DataConfig, OptimConfig, load_config
from eca_jax.data.sources import declared_size
from eca_jax.errors import EcaJaxError
from eca_jax.precompile import targets
from eca_jax.precompile.hlo import Collective
from eca_jax.precompile.precompile import (
    Memory,
    Report,
    Step,
    batch_unit,
    out_of_memory,
    precompile,
    smaller_batch,
)
from eca_jax.precompile.report import to_dict, to_table
from eca_jax.precompile.targets import CHIPS, GIB, Target, parse_target
from tests.commands import run

CONFIG = "configs/eca_resnet50.py"
NARROW = ["--model.name", "eca_resnet18", "--model.width-multiplier", "0.125", "--preprocess.image-size", "32"]
DATA = {"num_classes": 10, "num_examples": 1000}
SCALARS = 16
"""More than the step reduces for its log: loss, top-1, top-5, count."""

needs_tpu = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: the `tpu` extra"),
]
needs_cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the `cuda13` extra"),
]
each_target = pytest.mark.parametrize(
    "target", [pytest.param("v5e-8", marks=needs_tpu), pytest.param("h100x8", marks=needs_cuda)]
)


def report(target: str, *args: str) -> dict:
    """What the command prints as JSON for the narrow model."""
    script = "import sys; from eca_jax.cli import main; sys.exit(main())"
    command = ["precompile", "--config", CONFIG, "--target", target, "--json", "--num-classes", "10"]
    done = run("-c", script, *command, *NARROW, "--batch-size", "128", *args)
    assert done.returncode == 0
    return json.loads(done.stdout)


def narrow_sizes() -> tuple[int, int, int]:
    """Of the narrow model: parameters, running statistics, norm layers."""
    model = nnx.eval_shape(
        lambda: eca_jax.create_model("eca_resnet18", num_classes=10, width_multiplier=0.125, rngs=nnx.Rngs(0))
    )
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(state)) for state in (params, stats)]
    return sizes[0], sizes[1], len(jax.tree.leaves(stats)) // 2


@each_target
def test_statistics_within_a_device_leave_only_the_gradients_to_reduce(target):
    """Each element that is reduced is a parameter's gradient, a running statistic, or one of a few scalars."""
    found = report(target, "--model.batch-norm-group", "16")
    params, stats, norms = narrow_sizes()
    assert found["parameters"] == params
    assert {c["kind"] for c in found["collectives"]} == {"all-reduce"}
    assert params + stats <= sum(c["elements"] for c in found["collectives"]) <= params + stats + SCALARS
    assert all(c["times"] == 1 for c in found["collectives"])
    assert len(found["collectives"]) <= 4 < norms  # combined
    memory = found["memory"]
    assert memory["aliased"] >= found["state_bytes"] * 0.99  # the state is updated in place
    assert memory["arguments"] >= found["state_bytes"] + 128 // 8 * (32 * 32 * 3 + 4 + 4)
    assert 0 < memory["peak"] < CHIPS["v5e"].hbm
    # Forward 2 FLOP a multiplication, backward twice that (less, of the first layer): 3 forwards of torchvision's
    # ResNet-18, 1.814 GFLOP multiplications at 224 px, whose convolutions shrink by 8 * 8 in channels, 7 * 7 in pixels.
    forward = 2 * 1.814e9 / 64 / 49 * (128 // 8)
    assert 2 * forward < found["flops"] < 12 * forward


@each_target
def test_statistics_of_the_global_batch_cost_collectives_in_every_norm_layer(target):
    found = report(target, "--model.batch-norm-group", "None")
    params, stats, norms = narrow_sizes()
    # Not more numbers: a norm's sums are its running statistics, forward, and its parameters' gradients, backward.
    # But every layer has to wait for its own.
    assert len(found["collectives"]) > norms
    assert params + stats < sum(c["elements"] for c in found["collectives"]) < params + 2 * stats + SCALARS


@pytest.mark.cuda
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the `cuda13` extra")
def test_what_does_not_fit_is_refused_with_a_batch_that_does():
    config = load_config(CONFIG)
    model = dataclasses.replace(config.model, name="eca_resnet18", width_multiplier=0.125, batch_norm_group=8)
    preprocess = dataclasses.replace(config.task.preprocess, image_size=32)
    config = dataclasses.replace(
        config, model=model, task=dataclasses.replace(config.task, preprocess=preprocess), batch_size=4096
    )

    little = dataclasses.replace(CHIPS["h100"], hbm=16 * 2**20)
    with pytest.raises(EcaJaxError, match=r"does not fit h100: a chip needs .* GiB and has 0\.01 GiB .*\d+ fits") as e:
        precompile(config, Target(little, 8), **DATA)
    assert "\n" not in str(e.value)
    proposed = int(str(e.value).split("--batch-size ")[1].split()[0])
    assert 0 < proposed < config.batch_size
    assert proposed % 64 == 0
    uneven = dataclasses.replace(config, batch_size=proposed + 4, model=dataclasses.replace(model, batch_norm_group=4))
    with pytest.raises(
        EcaJaxError, match=f"batch_size {proposed + 4} is not a multiple of the 8 devices: use {proposed}"
    ):
        precompile(uneven, Target(little, 8), **DATA)


@pytest.mark.parametrize(
    ("text", "topology", "says"),
    [
        ("v5e-8", "v5e:2x4", "v5litepod-8"),
        ("v5e-256", "v5e:16x16", "v5litepod-256"),
        ("v6e-16", "v6e:4x4", "v6e-16"),
        ("v4-8", "v4:2x2x2", "v4-16"),  # the name of Google's counts cores, we count chips
        ("v5p-4096", "v5p:16x16x16", "v5p-8192"),
        ("h100x8", "1x1x8", "1 host"),
        ("h100x2", "1x1x2", "1 host"),
        ("h100x16", "2x1x8", "2 hosts"),
        ("a100x8", "1x1x8", "NVIDIA A100-SXM4-80GB"),
    ],
)
def test_targets(text, topology, says):
    target = parse_target(text)
    assert target.name == text
    assert target.topology == topology
    assert says in target.describe()
    if not target.chip.gpu:
        sides = [int(side) for side in topology.split(":")[1].split("x")]
        assert target.chips == sides[0] * sides[1] * (sides[2] if len(sides) == 3 else 1)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("v5-8", "unknown target 'v5-8'. Did you mean v5"),
        ("v5ex8", "unknown target 'v5ex8'. Did you mean v5e-8"),
        ("h100-8", "unknown target 'h100-8'. Did you mean h100x8"),
        ("tpu", "Chips: v4, v5e, v5p, v6e, a100, h100, h200"),
        ("v5e-12", "there is no v5e-12: slices of v5e have 1, 4, 8, 16, 32, 64, 128, 256 chips"),
        ("v5e-08", "unknown target 'v5e-08'"),
        ("h100x12", "h100x12: expected 1 to 8 GPUs, or whole hosts of 8"),
        ("h100x0", "h100x0: expected 1 to 8 GPUs"),
    ],
)
def test_a_target_that_does_not_exist_is_answered_in_one_line(target, message, capsys):
    assert cli.main(["precompile", "--config", CONFIG, "--target", target]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("target", "extra"), [("v5e-8", "tpu"), ("h100x8", "cuda13")])
def test_a_missing_compiler_names_the_extra(target, extra, monkeypatch, capsys):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    command = ["precompile", "--config", CONFIG, "--target", target, "--num-classes", "10"]
    assert cli.main(command) == 2
    assert f"pip install 'eca-jax[{extra}]'" in capsys.readouterr().err


def test_other_commands_still_refuse_what_they_do_not_know(capsys):
    assert cli.main(["evaluate", "--model.dtype", "bfloat16"]) == 2
    assert "unknown option --model.dtype. Did you mean --model?" in capsys.readouterr().err


def test_the_size_of_a_data_set_is_known_before_it_is_here(tmp_path):
    imagenet = DataConfig(name="imagenet2012", data_dir=str(tmp_path))
    assert declared_size(imagenet) == (1000, 1281167)
    assert declared_size(imagenet, 7, 100) == (7, 100)
    assert declared_size(DataConfig(name="cifar10", data_dir=str(tmp_path)))[0] == 10
    assert declared_size(DataConfig(name="digits", train_split="train[:100]")) == (10, 100)
    assert declared_size(DataConfig(name="folder:/nowhere"), 5, 50) == (5, 50)
    with pytest.raises(EcaJaxError, match="/nowhere is not a directory"):
        declared_size(DataConfig(name="folder:/nowhere"), 5)
    with pytest.raises(EcaJaxError, match="'celeb_a' does not say how many classes it has: give --num-classes"):
        declared_size(DataConfig(name="celeb_a", data_dir=str(tmp_path)))


def made_up(target: str, batch_size: int, **step) -> Report:
    memory = Memory(arguments=10, outputs=8, aliased=7, temporaries=5, program=1)
    collectives = (
        Collective("all-reduce", "f32", 3, 250_000_000, 10**9, 1),
        Collective("all-gather", "f32", 1, 1, 4, 1),
    )
    values = {
        "memory": memory,
        "flops": 197e12,
        "bytes_moved": 819e9,
        "collectives": collectives,
        "compile_seconds": 2.0,
    }
    config = dataclasses.replace(load_config(CONFIG), batch_size=batch_size)
    return Report(parse_target(target), config, 1000, 12, 48, Step(**(values | step)))


def test_the_roofline_is_the_slower_of_arithmetic_and_memory():
    even = made_up("v5e-8", 1024)
    assert (even.compute_seconds, even.memory_seconds, even.roofline_seconds) == (1, 1, 1)
    assert made_up("v5e-8", 1024, flops=394e12).roofline_seconds == 2
    assert made_up("v5e-8", 1024, bytes_moved=3 * 819e9).roofline_seconds == 3
    assert to_dict(made_up("v5e-8", 1024, flops=394e12))["bound"] == "arithmetic"
    assert to_dict(made_up("v5e-8", 1024, bytes_moved=2 * 819e9))["images_per_second"] == 512


def test_an_all_reduce_is_timed_as_a_ring_over_the_narrowest_links():
    assert made_up("v5e-8", 1024).all_reduce_seconds == pytest.approx(2 * 7 / 8 / 200)
    assert made_up("h100x8", 1024).all_reduce_seconds == pytest.approx(2 * 7 / 8 / 450)
    assert made_up("h100x16", 1024).all_reduce_seconds == pytest.approx(2 * 15 / 16 / 50)


def test_the_peak_counts_donated_memory_once_and_the_table_shows_it():
    values = to_dict(made_up("h100x8", 1024))
    assert values["memory"]["peak"] == 10 + 8 - 7 + 5 + 1
    json.dumps(values)
    table = to_table(values)
    assert "batch 1024 = 128 a chip" in table
    assert "| all-reduce | f32" in table
    assert "JAX takes 75%" in table
    assert "1,000,000,000" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("| a")}) == 2  # two tables, even rows


def test_a_smaller_batch_is_found_on_the_line_from_the_state_to_what_was_needed():
    # 1000 examples need 110, of which the state is 10: 0.1 each. Of 60 there are 0.95 * 60 - 10 = 47 for examples.
    assert smaller_batch(1000, needed=110, available=60, fixed=10, unit=1) == 470
    assert smaller_batch(1000, needed=110, available=60, fixed=10, unit=64) == 448
    assert smaller_batch(1000, needed=110, available=60, fixed=60, unit=1) == 0
    assert smaller_batch(64, needed=110, available=109, fixed=10, unit=64) == 0
    assert smaller_batch(1000, needed=61, available=1000, fixed=10, unit=1) == 999  # always less, so a search ends


def test_a_smaller_batch_keeps_statistics_groups_inside_a_chip():
    def unit(batch_size, group, chips=8):
        config = load_config(CONFIG)
        model = dataclasses.replace(config.model, batch_norm_group=group)
        return batch_unit(dataclasses.replace(config, batch_size=batch_size, model=model), chips)

    assert unit(1024, 64) == 512
    assert unit(256, 64) == 64  # 32 a chip: groups lie over two chips as it is
    assert unit(1024, None) == 8
    assert unit(96, 12) == 96
    accumulating = dataclasses.replace(load_config(CONFIG), batch_size=1024, optim=OptimConfig(accumulate=16))
    assert batch_unit(accumulating, 8) == 1024


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.50G of "
        "15.75G hbm. Exceeded hbm capacity by 5.75G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (21.50G) exceeds "
        "available HBM (15.75G).",
    ],
)
def test_the_compiler_s_word_on_memory_is_read(message):
    failure = out_of_memory(message)
    assert failure is not None
    assert (failure.needed, failure.available) == (21.5 * GIB, 15.75 * GIB)


def test_another_failure_is_not_taken_for_a_lack_of_memory():
    assert out_of_memory("INTERNAL: something else") is None
    assert out_of_memory("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 9.0M of 8.0M vmem.") is None
