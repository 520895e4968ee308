"""The training step: the same on any number of devices, compiled once, in place, and right about loss and scores."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.loader import eval_batches, train_batches
from eca_jax.data.preprocess import PreprocessConfig, normalise
from eca_jax.data.sources import open_source
from eca_jax.sharding import make_mesh
from eca_jax.tasks import Classification
from eca_jax.tasks.classification import score
from eca_jax.tasks.mix import MixConfig, mix
from eca_jax.training.program import Program, build_program
from tests.tiny import brought_from_outside, register

with brought_from_outside():
    register()
    MODEL = ModelConfig(name="eca_resnet10", small_stem=True, width_multiplier=0.125)
CONFIG = Config(
    model=MODEL,
    data=DataConfig(name="digits", train_split="train[:200]", eval_split="test[:50]", num_threads=1),
    task=Classification(
        PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False), label_smoothing=0.1
    ),
    optim=OptimConfig(lr=0.1, weight_decay=5e-4, schedule="cosine"),
    batch_size=32,
    epochs=2,
    log_every=4,
)


# The step is the same for every ResNet, and this one compiles in half the time of the shallowest of the paper.
pytestmark = pytest.mark.usefixtures("small_backbones")


@functools.cache
def program(config: Config, devices: int) -> Program:
    return build_program(config, make_mesh(jax.devices()[:devices]), num_examples=200, num_classes=10)


def batches(config: Config, prog: Program, steps: range):
    return train_batches(
        open_source("digits", config.data.train_split),
        config.task,
        seed=config.seed,
        batch_size=config.batch_size,
        steps=steps,
        sharding=prog.batch_sharding,
        num_threads=1,
    )


def with_model(**fields) -> Config:
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **fields))


def step_in_float64(config: Config, seed: int = 0):
    """The state before and after one step on one device, on the host."""
    with jax.enable_x64(True):
        model = dataclasses.replace(config.model, dtype="float64")
        config = dataclasses.replace(config, model=model, seed=seed)
        prog = program(config, 1)
        before = prog.init()
        start = jax.device_get(before)
        after, _ = prog.train_step(before, next(batches(config, prog, range(1))))
        return start, jax.device_get(after)


def assert_close(a, b, atol: float = 1e-10) -> None:
    def close(path, a, b):
        scale = max(np.abs(a).max(), 1e-3)
        np.testing.assert_allclose(a / scale, b / scale, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, a, b)


def with_optim(base: Config, **fields) -> Config:
    return dataclasses.replace(base, optim=dataclasses.replace(base.optim, **fields))


@pytest.mark.parametrize(
    ("model", "others"),
    [
        pytest.param({"batch_norm_group": 4}, {}, marks=pytest.mark.slow),  # a group inside a device
        pytest.param({"batch_norm_group": 8}, {}, marks=pytest.mark.slow),  # a group over two devices
        ({"batch_norm_group": None, "name": "se_resnet10", "dropout": 0.5}, {}),  # the whole batch
        pytest.param(
            {"batch_norm_group": 2, "drop_path": 0.5},
            {
                "optim": OptimConfig("lamb", lr=0.005, ema_decay=0.9, accumulate=2, clip_norm=1.0, decay_vectors=False),
                "task": dataclasses.replace(
                    CONFIG.task,
                    preprocess=dataclasses.replace(CONFIG.task.preprocess, random_erasing=0.5),
                    mix=MixConfig(0.2, 1.0),
                    label_smoothing=0.0,
                ),
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["group of 4", "group of 8", "global, dropout", "recipe"],
)
def test_one_step_on_8_devices_is_the_step_on_1(model, others):
    """In float64: what is left are sums in another order, some 1e-16 of each value, grown by the depth."""
    with jax.enable_x64(True):
        config = dataclasses.replace(with_model(dtype="float64", **model), **others)
        states, losses = [], []
        for devices in (1, 8):
            prog = program(config, devices)
            state, loss = prog.train_step(prog.init(), next(batches(config, prog, range(1))))
            assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == devices
            states.append(jax.device_get(state))
            losses.append(float(loss))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        assert_close(states[0], states[1])


def test_the_initial_state_does_not_depend_on_the_devices():
    one, eight = (jax.device_get(program(CONFIG, devices).init()) for devices in (1, 8))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_parameters_are_sharded_where_a_rule_says_so():
    config = dataclasses.replace(CONFIG, sharding_rules=(("fc/kernel", ("data", None)),))
    sharded, plain = program(config, 8), program(CONFIG, 8)
    state = sharded.init()
    assert state.params["fc"]["kernel"].sharding.shard_shape((64, 10)) == (8, 10)
    assert state.params["conv1"]["kernel"].sharding.is_fully_replicated
    momentum = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (64, 10)]
    assert [leaf.sharding.shard_shape((64, 10)) for leaf in momentum] == [(8, 10)]
    a, _ = sharded.train_step(state, next(batches(config, sharded, range(1))))
    b, _ = plain.train_step(plain.init(), next(batches(CONFIG, plain, range(1))))
    np.testing.assert_allclose(a.params["fc"]["kernel"], b.params["fc"]["kernel"], rtol=1e-4, atol=1e-5)


def test_the_step_compiles_once_and_reuses_its_memory():
    prog = program(CONFIG, 8)
    state = prog.init()
    for batch in batches(CONFIG, prog, range(6)):
        old = jax.tree.leaves(state)
        state, _ = prog.train_step(state, batch)
        assert all(leaf.is_deleted() for leaf in old)
    assert prog.train_step._cache_size() == 1
    sums = prog.zero_sums()
    for batch in eval_batches(
        open_source("digits", "test[:70]"),
        CONFIG.task,
        batch_size=32,
        sharding=prog.batch_sharding,
        num_threads=1,
    ):
        sums, _ = prog.eval_step(state.params, state.batch_stats, batch, sums)
    assert len(prog.eval_step.programs) == 1


@pytest.mark.slow
def test_the_loss_falls():
    task = dataclasses.replace(CONFIG.task, label_smoothing=0.0)
    config = dataclasses.replace(CONFIG, task=task, optim=OptimConfig(lr=0.05, schedule="constant"))
    prog = program(config, 1)
    state, losses = prog.init(), []
    for batch in batches(config, prog, range(60)):
        state, loss = prog.train_step(state, batch)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_sums_of_the_log_restart_after_each_row():
    prog = program(CONFIG, 1)
    state, losses = prog.init(), []
    for step, batch in enumerate(batches(CONFIG, prog, range(10)), start=1):
        state, loss = prog.train_step(state, batch)
        losses.append(float(loss) * CONFIG.batch_size)
        since = (step - 1) // CONFIG.log_every * CONFIG.log_every
        assert float(state.sums["count"]) == (step - since) * CONFIG.batch_size
        np.testing.assert_allclose(float(state.sums["loss"]), sum(losses[since:]), rtol=1e-5)


def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted():
    """With images of 1e38, whose squares are infinite, as the third batch."""
    prog = program(CONFIG, 1)
    state = prog.init()
    for step, batch in enumerate(batches(CONFIG, prog, range(5)), start=1):
        before = jax.device_get((state.params, state.batch_stats, state.opt_state, state.sums))
        bad = step == 3
        if bad:
            batch["image"] = jnp.full(batch["image"].shape, 1e38, jnp.float32)
        state, loss = prog.train_step(state, batch)
        after = jax.device_get((state.params, state.batch_stats, state.opt_state, state.sums))
        assert np.isfinite(loss) != bad
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
        same = jax.tree.map(np.array_equal, before, after)
        assert all(jax.tree.leaves(same)) == bad
        assert (int(state.skipped), int(state.last_skipped)) == ((1, 3) if step >= 3 else (0, -1))


def test_scores_are_what_numpy_says(rng):
    logits = rng.normal(size=(50, 10)).astype(np.float32)
    label = rng.integers(10, size=50).astype(np.int32)
    mask = (rng.random(50) < 0.8).astype(np.float32)
    losses = rng.random(50).astype(np.float32)
    order = np.argsort(-logits, axis=1)
    top1 = sum(mask[i] * (order[i, 0] == label[i]) for i in range(50))
    top5 = sum(mask[i] * (label[i] in order[i, :5]) for i in range(50))
    sums = score(jnp.asarray(logits), {"label": jnp.asarray(label), "mask": jnp.asarray(mask)}, jnp.asarray(losses))
    assert float(sums["top1"]) == top1
    assert float(sums["top5"]) == top5
    assert float(sums["count"]) == mask.sum()
    np.testing.assert_allclose(float(sums["loss"]), (mask * losses).sum(), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_equal_or_nan_logits_never_score(value):
    batch = {"label": jnp.zeros(4, jnp.int32), "mask": jnp.ones(4)}
    sums = score(jnp.full((4, 10), value), batch, jnp.zeros(4))
    assert float(sums["top1"]) == 0
    assert float(sums["top5"]) == 0


def test_label_smoothing_is_in_the_training_loss():
    """The smoothed cross entropy by hand from the logits of the same forward pass."""
    prog = program(CONFIG, 1)
    state = prog.init()
    batch = next(batches(CONFIG, prog, range(1)))

    @jax.jit
    def forward(params, batch_stats, image):
        return nnx.merge(prog.network.train, params, batch_stats)(normalise(image, CONFIG.task.preprocess))

    logits = forward(state.params, state.batch_stats, batch["image"])
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.full((32, 10), 0.1 / 10) + 0.9 * np.eye(10)[np.asarray(batch["label"])]
    _, loss = prog.train_step(state, batch)
    np.testing.assert_allclose(float(loss), -(targets * log_p).sum(1).mean(), rtol=1e-5)


def test_parts_of_a_batch_make_the_step_of_the_whole():
    """Gradients, running statistics and sums, where a statistics group lies inside a part."""
    config = with_model(batch_norm_group=4)
    _, whole = step_in_float64(config)
    _, parts = step_in_float64(with_optim(config, accumulate=4))
    assert_close(whole, parts)


@pytest.mark.slow
def test_what_is_computed_again_is_the_same():
    config = with_model(batch_norm_group=4, drop_path=0.5)
    _, kept = step_in_float64(config)
    _, again = step_in_float64(dataclasses.replace(config, model=dataclasses.replace(config.model, rematerialise=True)))
    assert_close(kept, again)


def test_the_average_follows_the_weights():
    """Its decay is that of the step while the run is young, (1 + 0) / (10 + 0), and starts from the fresh weights."""
    config = with_model(batch_norm_group=4)
    before, after = step_in_float64(with_optim(config, ema_decay=0.9))
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, before.evaluated, (after.params, after.batch_stats))
    assert_close(after.average, expected, atol=1e-6)  # the decay is float32
    assert after.evaluated is after.average
    _, plain = step_in_float64(config)
    assert_close((after.params, after.opt_state), (plain.params, plain.opt_state))
    assert plain.average is None


def test_frozen_layers_stay_as_they_are_with_their_statistics():
    scales = (("layer1.*", 0.0), ("conv1.*", 0.0), ("bn1.*", 0.0))
    before, after = step_in_float64(with_optim(CONFIG, lr_scales=scales))
    for part in ("params", "batch_stats"):
        old, new = (jax.tree_util.tree_leaves_with_path(getattr(state, part)) for state in (before, after))
        for (path, a), (_, b) in zip(old, new, strict=True):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            assert np.array_equal(a, b) == name.startswith(("layer1.", "conv1.", "bn1.")), name


def test_recipes_losses_and_mixing_reach_the_step():
    """The loss of the step is that of a forward pass by hand on the images that `mix` makes with the step's key."""
    task = Classification(CONFIG.task.preprocess, MixConfig(0.2, 1.0), loss_function="sigmoid")
    config = dataclasses.replace(CONFIG, task=task)
    prog = program(config, 1)
    state, batch = prog.init(), next(batches(config, prog, range(1)))

    @jax.jit
    def forward(params, batch_stats, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        image, targets = mix(
            normalise(batch["image"], task.preprocess),
            jax.nn.one_hot(batch["label"], 10),
            jax.random.split(key)[1],
            task.mix,
        )
        return nnx.merge(prog.network.train, params, batch_stats)(image), targets

    logits, targets = (np.asarray(x, np.float64) for x in forward(state.params, state.batch_stats, batch))
    assert ((targets > 0) & (targets < 1)).sum() > 0
    _, loss = prog.train_step(state, batch)
    p = 1 / (1 + np.exp(-logits))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
