"""Made the files beside it, with the code of version 0.1.0: `PYTHONPATH=CHECKOUT python make.py`, in the checkout.

run.tar.gz           a run that was stopped after step 6 of 10, which has the checkpoints 5 (evaluated) and 6
weights.safetensors  `eca-jax convert` of it
metrics.jsonl        what the same code wrote when the run went on to its end
ended.safetensors    and the weights that it had then
expected.json        the command line, the logits of the weights for the first three test images, and what decides how
                     numbers are rounded: the version of JAX and the processor
"""

import json  # noqa: I001 - two of the modules below are no longer there
import os
import pathlib
import shutil
import signal
import sys
import tarfile
import tempfile

import jax
import numpy as np
from eca_jax import cli
from eca_jax.convert.pretrained import load_pretrained
from eca_jax.data.preprocess import eval_image
from eca_jax.data.sources import open_source
from eca_jax.training import sharding
from eca_jax.training.step import normalise
from eca_jax.training.writers import Writer

HERE = pathlib.Path(__file__).parent
ARGS = "--model.width-multiplier 0.03125 --model.attention.kernel-sizes 3 --batch-size 64 --epochs 2 --log-every 4"
ARGS += " --data.train-split train[:320] --data.eval-split test[:100] --optim.warmup-epochs 1 --checkpoint.keep 1"
ARGS += " --optim.label-smoothing 0.1 --mix.mixup-alpha 0.2"
STOPPED = 6


def rounding() -> list[str]:
    """Where this is the same, results are to the bit."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    processors = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return [jax.__version__, *processors]


def main() -> None:
    advance, calls = Writer.advance, []

    def stopping(self) -> None:
        calls.append(1)
        if len(calls) == STOPPED:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self)

    sharding.initialize_cluster = lambda config: None  # JAX starts once
    Writer.advance = stopping
    with tempfile.TemporaryDirectory() as directory:
        run = pathlib.Path(directory) / "run"
        train = ["--workdir", str(run), *ARGS.split()]
        assert cli.train_main(train) == 128 + signal.SIGTERM
        with tarfile.open(HERE / "run.tar.gz", "w:gz") as tar:
            tar.add(run, "run", filter=lambda info: None if info.name in ("run/tensorboard", "run/.lock") else info)
        weights = HERE / "weights.safetensors"
        assert cli.main(["convert", str(run), str(weights)]) == 0
        assert cli.train_main(train) == 0
        assert cli.main(["convert", str(run), str(HERE / "ended.safetensors")]) == 0
        shutil.copy(run / "metrics.jsonl", HERE)
    model = load_pretrained(weights)
    images = np.stack([eval_image(data, model.preprocess) for data, _ in open_source("digits", "test[:3]")])
    logits = np.asarray(model(normalise(images, model.preprocess))).tolist()
    expected = {"rounding": rounding(), "args": ARGS.split(), "logits": logits}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
