"""A training run in both frameworks: the same weights, batches, rate and momentum give the same steps.

float64, so that what differs is roundings of 1e-16 that training amplifies, and not arithmetic. The table in
docs/porting.md is this run's: `python -m tests.parity.test_trajectory`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import datasets

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

from eca_jax.config import Config, ModelConfig, OptimConfig  # noqa: E402
from eca_jax.convert.state_dict import (  # noqa: E402
    from_state_dict,
    momentum_from_state_dict,
    momentum_to_state_dict,
    to_state_dict,
)
from eca_jax.optim import learning_rate, make_optimizer  # noqa: E402
from eca_jax.runs.state import Network, TrainState, split  # noqa: E402
from eca_jax.tasks.base import zero_sums  # noqa: E402
from eca_jax.training.step import make_train_step  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity

STEPS, HALF, BATCH, DIVISOR = 50, 25, 16, 4
OPTIM = OptimConfig(lr=0.05, momentum=0.9, weight_decay=1e-4, drop_epochs=(1,))


class Snapshot(NamedTuple):
    """Where a run is, by PyTorch's names and in its layouts."""

    tensors: dict[str, np.ndarray]
    momentum: dict[str, np.ndarray] | None


class Run(NamedTuple):
    losses: list[float]
    snapshots: dict[int, Snapshot]
    """Steps done -> where it was."""


def batches() -> list[dict[str, np.ndarray]]:
    """scikit-learn's digits, 8x8 drawn as 32x32."""
    digits = datasets.load_digits()
    images = np.kron(digits.images[: STEPS * BATCH], np.ones((1, 4, 4)))[..., None].repeat(3, -1) * 15
    labels = digits.target[: STEPS * BATCH]
    rows = np.arange(STEPS * BATCH).reshape(STEPS, BATCH)
    mask = np.ones(BATCH, np.float32)
    return [{"image": images[row].astype(np.uint8), "label": labels[row], "mask": mask} for row in rows]


def start() -> Snapshot:
    theirs = authors.eca_resnet("resnet18", num_classes=10, divisor=DIVISOR)
    return Snapshot(authors.arrays(authors.randomise(theirs).double()), None)


def run_pytorch(begin: Snapshot, first: int = 0) -> Run:
    model = authors.eca_resnet("resnet18", num_classes=10, divisor=DIVISOR).double().train()
    model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in begin.tensors.items()}, strict=True)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=OPTIM.lr, momentum=OPTIM.momentum, weight_decay=OPTIM.weight_decay
    )
    named = dict(model.named_parameters())
    if begin.momentum is not None:
        for name, value in begin.momentum.items():
            optimizer.state[named[name]]["momentum_buffer"] = torch.from_numpy(value.copy())
    preprocess, losses, snapshots = Config().task.preprocess, [], {}
    for step, batch in list(enumerate(batches()))[first:]:
        optimizer.param_groups[0]["lr"] = OPTIM.lr if step < HALF else OPTIM.lr / 10
        images = (batch["image"] / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
        loss = torch.nn.functional.cross_entropy(model(authors.to_torch(images)), torch.from_numpy(batch["label"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step + 1 in (HALF, STEPS):
            momentum = {
                name: optimizer.state[parameter]["momentum_buffer"].numpy().copy() for name, parameter in named.items()
            }
            snapshots[step + 1] = Snapshot(authors.arrays(model), momentum)
    return Run(losses, snapshots)


@functools.cache
def our_step() -> tuple[nnx.GraphDef, Any, Any]:
    """The network in training mode, the optimiser, and the step that `train.py` runs, which compiles once."""
    config = Config(model=ModelConfig(name="eca_resnet18", width_multiplier=1 / DIVISOR, dtype="float64"), optim=OPTIM)
    model = from_state_dict(start().tensors, **authors.FLOAT64)
    graphdef_eval = nnx.graphdef(model)
    model.train()
    graphdef = split(model)[0]
    rate = learning_rate(OPTIM, num_examples=HALF * BATCH, batch_size=BATCH, total_steps=STEPS)
    optimizer = make_optimizer(OPTIM, rate)
    return graphdef, optimizer, jax.jit(make_train_step(config, Network(graphdef, graphdef_eval), optimizer))


def run_jax(begin: Snapshot, first: int = 0) -> Run:
    graphdef, optimizer, train_step = our_step()
    model = from_state_dict(begin.tensors, **authors.FLOAT64)
    _, params, batch_stats = split(model)
    decay, trace, schedule = optimizer.init(params)
    if begin.momentum is not None:
        trace = trace._replace(trace=momentum_from_state_dict(model, begin.momentum, "ecanet"))
    schedule = schedule._replace(count=jnp.int32(first))
    state = TrainState(
        step=jnp.int32(first),
        params=params,
        batch_stats=batch_stats,
        opt_state=(decay, trace, schedule),
        sums=zero_sums(Config().task.sums),
        skipped=jnp.int32(0),
        last_skipped=jnp.int32(-1),
    )
    losses, snapshots = [], {}
    for step, batch in list(enumerate(batches()))[first:]:
        state, loss = train_step(state, jax.tree.map(jnp.asarray, batch))
        losses.append(float(loss))
        if step + 1 in (HALF, STEPS):
            tensors = to_state_dict(nnx.merge(graphdef, state.params, state.batch_stats), "ecanet")
            momentum = momentum_to_state_dict(model, state.opt_state[1].trace, "ecanet")
            snapshots[step + 1] = Snapshot(tensors, momentum)
    return Run(losses, snapshots)


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    """PyTorch's and ours."""
    torch.set_num_threads(1)  # see test_models.py
    with jax.enable_x64(True):
        return run_pytorch(start()), run_jax(start())


def differences(actual: Snapshot, expected: Snapshot) -> dict[str, float]:
    """What is compared -> its greatest error over all arrays, each relative to its scale."""

    def pick(snapshot: Snapshot, part: str) -> dict[str, np.ndarray]:
        return {
            key: value
            for key, value in snapshot.tensors.items()
            if (key.rsplit(".", 1)[1] if "running" in key else "parameters") == part
            and not key.endswith("num_batches_tracked")
        }

    parts = ("parameters", "running_mean", "running_var")
    result = {part: authors.worst(pick(actual, part), pick(expected, part))[0] for part in parts}
    return result | {"momentum": authors.worst(actual.momentum, expected.momentum)[0]}


def table(theirs: Run, ours: Run) -> str:
    """Markdown, for docs/porting.md."""
    lines = ["| step | rate | loss, PyTorch | loss, JAX | difference |", "|---|---|---|---|---|"]
    for step in sorted({0, *range(4, STEPS, 5)}):
        rate, a, b = OPTIM.lr if step < HALF else OPTIM.lr / 10, theirs.losses[step], ours.losses[step]
        lines.append(f"| {step + 1} | {rate:g} | {a:.12f} | {b:.12f} | {abs(a - b):.0e} |")
    greatest = max(abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True))
    lines += [
        "",
        f"Greatest difference of any step's loss: {greatest:.1e}. Relative to each array's greatest value:",
        "",
    ]
    lines += ["| after | parameters | running means | running variances | momentum |", "|---|---|---|---|---|"]
    for step in (HALF, STEPS):
        errors = differences(ours.snapshots[step], theirs.snapshots[step]).values()
        lines.append(f"| {step} steps | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
    return "\n".join(lines)


def test_fifty_steps_are_the_same(runs):
    """Losses, parameters, running means, unbiased running variances and momentum, to 1e-6.

    Roundings are a million times smaller, and a biased variance or a drop of the rate one step late far greater.
    """
    theirs, ours = runs
    print(table(theirs, ours))
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-6)
    for step in (HALF, STEPS):
        for part, error in differences(ours.snapshots[step], theirs.snapshots[step]).items():
            assert error < 1e-6, (step, part)
    assert theirs.losses[-1] < theirs.losses[0] / 2  # it has learned: the steps were not too small to matter


@pytest.mark.parametrize("to", ["jax", "pytorch"])
def test_the_other_framework_finishes_the_run(runs, to):
    """Weights and momentum change hands after 25 steps; without the momentum the end is another."""
    theirs, ours = runs
    begin, finish = (theirs, run_jax) if to == "jax" else (ours, run_pytorch)
    with jax.enable_x64(True):
        run = finish(begin.snapshots[HALF], HALF)
        end = run.snapshots[STEPS]
        np.testing.assert_allclose(run.losses, theirs.losses[HALF:], rtol=1e-6)
        for whole in (theirs, ours):
            for part, error in differences(end, whole.snapshots[STEPS]).items():
                print(f"{part}: {error:.1e}")
                assert error < 1e-6, part
        forgetful = finish(begin.snapshots[HALF]._replace(momentum=None), HALF)
        assert differences(forgetful.snapshots[STEPS], end)["parameters"] > 1e-3


if __name__ == "__main__":
    with jax.enable_x64(True):
        print(table(run_pytorch(start()), run_jax(start())))
