"""Optimisers, schedules and losses against PyTorch's and timm's own, in float64."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eca_jax.data.preprocess import PreprocessConfig, normalise
from eca_jax.optim import OptimConfig, learning_rate, make_optimizer
from eca_jax.tasks import Classification
from eca_jax.tasks.mix import MixConfig, mix

torch = pytest.importorskip("torch")
timm_optim = pytest.importorskip("timm.optim")
timm_scheduler = pytest.importorskip("timm.scheduler")
timm_loss = pytest.importorskip("timm.loss")
timm_mixup = pytest.importorskip("timm.data.mixup")
pytestmark = pytest.mark.parity


def test_lamb_is_timm_s(rng):
    """Kernels are decayed and adapted, vectors neither; gradients are clipped to norm 1, timm's default."""
    shapes = {"kernel": (3, 3, 2, 4), "scale": (4,)}
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(20)]
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    groups = [{"params": [theirs["kernel"]], "weight_decay": 0.02}, {"params": [theirs["scale"]], "weight_decay": 0.0}]
    lamb = timm_optim.Lamb(groups, lr=5e-3)
    with jax.enable_x64(True):
        config = OptimConfig("lamb", weight_decay=0.02, decay_vectors=False, clip_norm=1.0)
        optimizer = make_optimizer(config, lambda step: 5e-3)
        state = optimizer.init(values)
        for gradient in gradients:
            for name, p in theirs.items():
                p.grad = torch.tensor(gradient[name])
            lamb.step()
            updates, state = optimizer.update(gradient, state, values)
            values = optax.apply_updates(values, updates)
            for name, p in theirs.items():
                np.testing.assert_allclose(values[name], p.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.95), "lr_scales": (("kernel", 0.5), ("*", 1.0))}])
def test_adamw_is_pytorch_s(rng, options):
    """30 steps of a cosine with a floor: each group has its rate, which scales its decay; vectors are not decayed.

    Gradients of very different sizes, so that the small ones feel epsilon."""
    shapes = {"kernel": (3, 3, 2, 4), "scale": (4,)}
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    factors = dict(options.get("lr_scales", ()))
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.05, "lr": 1e-2 * factors.get("kernel", 1.0)},
        {"params": [theirs["scale"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=options.get("betas", (0.9, 0.999)))
    share = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 30, eta_min=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: share.get_last_lr()[0])
    with jax.enable_x64(True):
        config = OptimConfig(
            "adamw", lr=1e-2, min_lr=1e-3, schedule="cosine", weight_decay=0.05, decay_vectors=False, **options
        )
        rate = learning_rate(config, num_examples=320, batch_size=32, total_steps=30)
        optimizer = make_optimizer(config, rate)
        state = optimizer.init(values)
        for _ in range(30):
            gradient = {name: rng.normal(size=shape) * 10 ** rng.uniform(-9, 0) for name, shape in shapes.items()}
            for name, p in theirs.items():
                p.grad = torch.tensor(gradient[name])
            adamw.step()
            share.optimizer.step()
            share.step()
            scheduler.step()
            updates, state = optimizer.update(gradient, state, values)
            values = optax.apply_updates(values, updates)
            for name, p in theirs.items():
                np.testing.assert_allclose(values[name], p.detach().numpy(), rtol=1e-10)


@pytest.mark.parametrize("warmup", [0, 5])
def test_the_cosine_s_floor_is_pytorch_s_and_timm_s(warmup):
    """PyTorch's eta_min and timm's lr_min; the warm-up, which grows from 0, is before the cosine in all three."""
    total, lr, floor = 40, 0.1, 0.02
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=floor)
    timm_s = timm_scheduler.CosineLRScheduler(
        torch.optim.SGD([torch.zeros(1)], lr=lr),
        t_initial=total - warmup,
        lr_min=floor,
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    config = OptimConfig(lr=lr, min_lr=floor, schedule="cosine", warmup_epochs=warmup)
    with jax.enable_x64(True):
        rate = learning_rate(config, num_examples=32, batch_size=32, total_steps=total)
        for step in range(warmup, total):
            timm_s.step_update(step)
            np.testing.assert_allclose(rate(step), cosine.get_last_lr()[0], rtol=1e-12)
            np.testing.assert_allclose(rate(step), timm_s.optimizer.param_groups[0]["lr"], rtol=1e-12)
            optimizer.step()
            cosine.step()


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_the_losses_are_timm_s(rng, threshold):
    """Of mixed and smoothed targets: the shares of timm's mixup_target, smoothed before they are mixed."""
    logits, labels, kept = rng.normal(size=(8, 10)), rng.integers(10, size=8), 0.7
    targets = timm_mixup.mixup_target(torch.tensor(labels), 10, lam=kept, smoothing=0.1).double()
    smoothed = optax.smooth_labels(np.eye(10)[labels], 0.1)
    ours = kept * smoothed + (1 - kept) * smoothed[::-1]
    np.testing.assert_allclose(ours, targets, rtol=1e-6)  # timm's are float32
    task = Classification(loss_function="sigmoid", target_threshold=threshold)
    with jax.enable_x64(True):
        found = task.losses(jnp.asarray(logits), jnp.asarray(targets.numpy())).mean()
        expected = timm_loss.BinaryCrossEntropy(target_threshold=threshold)(torch.tensor(logits), targets)
        np.testing.assert_allclose(found, expected.item(), rtol=1e-12)
        if threshold is None:
            soft = dataclasses.replace(task, loss_function="softmax")
            found = soft.losses(jnp.asarray(logits), jnp.asarray(targets.numpy())).mean()
            expected = timm_loss.SoftTargetCrossEntropy()(torch.tensor(logits), targets)
            np.testing.assert_allclose(found, expected.item(), rtol=1e-12)


class Linear:
    """(b, h, w, 3) -> the mean colour times a matrix."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.architecture = types.SimpleNamespace(num_classes=matrix.shape[1])

    def __call__(self, x, *, rngs=None):
        return x.mean((1, 2)) @ self.matrix


@pytest.mark.parametrize(
    ("mixed", "smoothing", "dtype", "rtol"),
    [
        (MixConfig(), 0.0, np.float64, 1e-12),
        (MixConfig(), 0.1, np.float64, 1e-12),
        (MixConfig(), 0.1, np.float32, 1e-5),
        (MixConfig(0.4, 1.0), 0.1, np.float64, 1e-12),
    ],
    ids=["labels", "smoothed labels", "float32", "mixed labels"],
)
def test_class_weights_are_pytorch_s(rng, mixed, smoothing, dtype, rtol):
    """Loss and gradient of CrossEntropyLoss(weight, label_smoothing), of labels and of soft targets."""
    preprocess = PreprocessConfig(image_size=6, eval_resize=6)
    weights = (1.0, 2.0, 0.5, 0.0, 30.0)
    task = Classification(preprocess, mix=mixed, label_smoothing=smoothing, class_weights=weights)
    matrix, label = rng.normal(size=(3, 5)).astype(dtype), rng.integers(5, size=16).astype(np.int32)
    image = rng.integers(256, size=(16, 6, 6, 3), dtype=np.uint8)
    criterion = torch.nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float64), label_smoothing=smoothing)
    key = jax.random.key(0)
    with jax.enable_x64(dtype == np.float64):
        batch = task.whole_batch({"image": jnp.asarray(image), "label": jnp.asarray(label), "mask": jnp.ones(16)})
        step = jax.value_and_grad(lambda m: task.loss(Linear(m), batch, key, dtype), has_aux=True)
        (loss, _), gradient = jax.jit(step)(jnp.asarray(matrix))
        one_hot = jnp.asarray(np.eye(5, dtype=dtype)[label])
        seen, targets = mix(normalise(batch["image"], preprocess, dtype), one_hot, jax.random.split(key)[1], mixed)
        colours = np.asarray(seen.mean((1, 2)), np.float64)
    theirs = torch.tensor(matrix, dtype=torch.float64, requires_grad=True)
    logits = torch.tensor(colours) @ theirs
    soft = mixed.mixup_alpha > 0
    expected = criterion(logits, torch.tensor(np.asarray(targets, np.float64)) if soft else torch.tensor(label).long())
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=rtol)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=rtol, atol=rtol)
