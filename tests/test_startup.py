"""What is started often starts light. Which modules are loaded says it on every machine, seconds do not."""

import pytest

from tests.commands import run

# What training, data, checkpoints and conversions need, and what other frameworks drag in.
HEAVY = {"grain", "huggingface_hub", "onnx", "orbax", "scipy", "sklearn", "tensorboardX", "tensorflow", "torch"}
HEAVY |= {"eca_jax.training.loop", "matplotlib", "onnxruntime", "tensorflow_datasets"}


@pytest.mark.parametrize(
    "start",
    [
        "import eca_jax",
        "import eca_jax.cli; eca_jax.cli.train_main(['--help'])",
        "import eca_jax.cli; eca_jax.cli.main(['evaluate', '--help'])",
    ],
)
def test_nothing_heavy_is_loaded(start):
    script = f"import atexit, sys; atexit.register(lambda: print('loaded', {HEAVY} & sys.modules.keys())); {start}"
    done = run("-c", script)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "loaded set()"


def test_training_leaves_pytorch_alone(tmp_path):
    (tmp_path / "torch.py").write_text("print('half a gigabyte')")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import eca_jax.training.loop; print('then'); import torch"
    )
    done = run("-c", script)
    assert done.stdout.splitlines() == ["then", "half a gigabyte"]
