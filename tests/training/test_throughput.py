"""`eca-jax benchmark input`: what is counted, and the arithmetic of what it says."""

import re

import pytest

from eca_jax import cli
from eca_jax.config import Config, DataConfig
from eca_jax.precompile import precompile
from eca_jax.precompile.precompile import Memory, Report, Step
from eca_jax.training import throughput
from eca_jax.training.throughput import Throughput, measure_throughput

SEEN = Throughput(images=6000, seconds=4.0, cpu_seconds=8.0, cores=2)
COMMAND = ["benchmark", "input", "--seconds", "1", "--data.num-threads", "2"]


def test_what_it_says():
    assert SEEN.describe() == ("input: 1,500 images/s on 2 cores; 1.33 ms of CPU an image, so 750 images/s a core")
    assert SEEN.describe_need("v5e-8", 8, 12_000) == (
        "v5e-8: the step takes at most 12,000 images/s, 1,500 a chip (its roofline), "
        "for which the input needs 2.0 such cores a chip, 16 in all"
    )


def test_every_image_that_is_counted_was_loaded(monkeypatch):
    """And none twice: the steps are those of a run. The first turn is not counted."""
    steps, batches = [], throughput.train_batches

    def recording(*args, **options):
        steps.extend(options["steps"])
        return batches(*args, **options)

    monkeypatch.setattr(throughput, "train_batches", recording)
    seen = measure_throughput(Config(data=DataConfig(name="digits", num_threads=2), batch_size=16), seconds=0)
    assert steps == [0, 1, 2, 3]
    assert seen.images == 2 * 16
    assert seen.seconds > 0
    assert seen.cpu_seconds > 0


def test_the_command(capsys):
    assert cli.main(COMMAND) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"input: [\d,]+ images/s on \d+ cores; \d+\.\d\d ms of CPU an image, so [\d,]+ images/s a core\n", out
    )


def test_the_command_with_a_target(capsys, monkeypatch):
    """The step's images/s are the roofline's of the compiled step; its compilation is tests/precompile's matter."""

    def compiled(config, target, *, num_classes, num_examples, started):
        started()
        assert (num_classes, num_examples) == (10, 1437)
        memory_seconds = 0.5
        step = Step(Memory(0, 0, 0, 0, 0), 0.0, memory_seconds * target.chip.hbm_bandwidth, (), 1.0)
        return Report(target, config, num_classes, 0, 0, step)

    monkeypatch.setattr(precompile, "precompile", compiled)
    assert cli.main([*COMMAND, "--target", "v5e-4", "--batch-size", "512"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("v5e-4: the step takes at most 1,024 images/s, 256 a chip (its roofline), for which the")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--data.name", "imagenet2012", "--data.data-dir", "{tmp}"],
            "data set 'imagenet2012' is not prepared in {tmp}",
        ),
        (["--target", "v5e-9"], "--target: there is no v5e-9"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(args, message, tmp_path, capsys):
    assert cli.main([*COMMAND, *(arg.format(tmp=tmp_path) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(tmp=tmp_path)}")
    assert error.count("\n") == 1
