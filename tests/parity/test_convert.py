"""A run goes to PyTorch as the authors' kind of checkpoint, is loaded there, comes back, and goes on as before."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from eca_jax.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig  # noqa: E402
from eca_jax.convert.convert import convert  # noqa: E402
from eca_jax.convert.files import read_weights  # noqa: E402
from eca_jax.data.preprocess import PreprocessConfig  # noqa: E402
from eca_jax.runs.run import read_run  # noqa: E402
from eca_jax.tasks import Classification  # noqa: E402
from eca_jax.training import train  # noqa: E402

pytestmark = pytest.mark.parity


def arrays(run: str) -> list[np.ndarray]:
    found = read_run(run)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((jax.tree.leaves(found.model), found.momentum))]


def test_a_run_goes_there_and_back_and_on(tmp_path, data_dir):
    config = Config(
        model=ModelConfig(name="eca_resnet18", small_stem=True, width_multiplier=0.125),
        data=DataConfig(name="digits", train_split="train[:128]", eval_split="test[:64]", num_threads=1),
        task=Classification(PreprocessConfig(image_size=8, eval_resize=8, augment="none", flip=False)),
        optim=OptimConfig(lr=0.05, schedule="constant"),
        checkpoint=CheckpointConfig(every_epochs=3),
        batch_size=64,
        epochs=3,
        workdir=str(tmp_path / "run"),
    )
    train(config)
    file = tmp_path / "checkpoint.pth.tar"
    assert ", with momentum; not in the file: how its images are made (" in convert(config.workdir, file, "ecanet")

    content = torch.load(file, weights_only=True)
    assert (content["arch"], content["epoch"]) == ("eca_resnet18", 3)
    names = [name for name in content["state_dict"] if "running" not in name and "num_batches" not in name]
    parameters = [torch.nn.Parameter(torch.zeros_like(content["state_dict"][name])) for name in names]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    optimizer.load_state_dict(content["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in parameters)

    # As DataParallel saves it, and by PyTorch's own hand.
    content["state_dict"] = {f"module.{name}": value for name, value in content["state_dict"].items()}
    content["optimizer"] = optimizer.state_dict()
    torch.save(content, file)
    assert len(read_weights(file).momentum) == len(names)
    back = dataclasses.replace(config, workdir=str(tmp_path / "back"))
    assert "step 6, with momentum" in convert(file, back.workdir, "orbax", config=config)
    for ours, returned in zip(arrays(config.workdir), arrays(back.workdir), strict=True):
        np.testing.assert_array_equal(ours, returned)

    for run in (config, back):
        train(dataclasses.replace(run, epochs=5))
    for ours, returned in zip(arrays(config.workdir), arrays(back.workdir), strict=True):
        np.testing.assert_array_equal(ours, returned)
