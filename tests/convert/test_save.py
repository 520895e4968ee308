"""`eca_jax.save`: what `eca-jax convert` writes, of a model in memory. (timm takes it: tests/parity/test_save.py.)"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import eca_jax
from eca_jax.convert.convert import convert
from eca_jax.convert.leaves import leaves
from eca_jax.convert.pretrained import load
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.sharding import make_mesh
from eca_jax.tasks import Classification, MultiLabel
from tests.convert.test_convert import equal, randomised
from tests.damage import disk_with, refusal
from tests.tiny import brought_from_outside, register

NAMES = tuple("abcdefg")
PREPROCESS = PreprocessConfig(image_size=24, eval_resize=29, interpolation="bicubic", mean=(0.5, 0.4, 0.3))


def test_a_model_of_an_own_loop_has_the_same_logits_when_it_is_loaded(tmp_path, rng):
    with brought_from_outside():
        register()
        model = eca_jax.create_model("eca_tiny", num_classes=7, rngs=nnx.Rngs(0))
        model.preprocess = PREPROCESS
        optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
        images, labels = rng.normal(size=(8, 24, 24, 3)).astype(np.float32), jnp.arange(8) % 7

        @nnx.jit
        def step(model, optimizer):
            def loss(model):
                return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

            optimizer.update(model, nnx.grad(loss)(model))

        for _ in range(2):
            step(model, optimizer)
        line = eca_jax.save(model, tmp_path / "own.safetensors", class_names=NAMES, task=MultiLabel(threshold=0.25))
        about = "eca_tiny of eca_jax: attention eca, kernel sizes released, 7 classes"
        assert line == f"{about} -> safetensors, {tmp_path}/own.safetensors"
        assert not model.bn1.use_running_average, "in training mode, as before"
        loaded = load(tmp_path / "own.safetensors")
        assert (loaded.class_names, loaded.task.threshold, loaded.model.preprocess) == (NAMES, 0.25, PREPROCESS)
        model.eval()
        logits = nnx.jit(lambda model: model(images))
        np.testing.assert_array_equal(logits(loaded.model), logits(model))


@pytest.mark.parametrize(
    ("name", "to", "target"),
    [
        ("eca_resnet18", None, "{}.safetensors"),
        ("eca_resnet18", "ecanet", "{}.pth.tar"),
        ("resnet18", "torchvision", "{}.pth"),
        ("resnet18", "timm", "{}.safetensors"),
        ("resnet18", "timm", "{}"),
    ],
)
def test_the_files_are_those_of_convert(name, to, target, tmp_path):
    if ".pth" in target:
        pytest.importorskip("torch")
    model, source = randomised(name), tmp_path / "source.safetensors"
    model.preprocess = PREPROCESS
    eca_jax.save(model, source, class_names=NAMES)
    saved, converted = (tmp_path / target.format(which) for which in ("saved", "converted"))
    eca_jax.save(model, saved, to, NAMES)
    convert(source, converted, to)
    assert equal(eca_jax.load_pretrained(saved), model)
    assert len(files(saved)) == (3 if target == "{}" else 1)
    assert files(saved) == files(converted)


def header_first(data: bytes) -> tuple:
    """safetensors writes the two texts of our metadata in any order: (the header as a dict, the tensors)."""
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:size]), data[size:]


def files(path):
    found = path.iterdir() if path.is_dir() else [path]
    read = {file.name.replace("converted", "saved"): file.read_bytes() for file in found}
    return {name: header_first(data) if name.endswith(".safetensors") else data for name, data in read.items()}


def test_arrays_on_several_devices_and_of_bfloat16(tmp_path):
    path = tmp_path / "m.safetensors"
    with brought_from_outside():
        register()
        model = eca_jax.create_model("eca_tiny", num_classes=8, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
        before = {leaf.path: np.asarray(leaf.variable[...]) for leaf in leaves(model)}
        halves = NamedSharding(make_mesh(jax.devices()[:2]), PartitionSpec("data"))
        model.fc.kernel[...] = jax.device_put(model.fc.kernel[...], halves)
        eca_jax.save(model, path)
        same, wider = (eca_jax.load_pretrained(path, param_dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert [shard.data.shape for shard in model.fc.kernel[...].addressable_shards] == [(32, 8), (32, 8)]
    for leaf, again in zip(leaves(same), leaves(wider), strict=True):
        assert leaf.variable.dtype == before[leaf.path].dtype
        np.testing.assert_array_equal(leaf.variable[...], before[leaf.path])
        np.testing.assert_array_equal(again.variable[...], before[leaf.path].astype(np.float32))
    assert same.fc.kernel.dtype == jnp.bfloat16


def test_what_a_file_does_not_keep_is_said(tmp_path):
    pytest.importorskip("torch")
    model = randomised("resnet18")
    model.preprocess = PREPROCESS
    line = eca_jax.save(model, tmp_path / "m.pth", "torchvision", NAMES)
    assert "; not in the file: how its images are made (evaluate and predict with --preprocess.image-size 24 " in line
    assert line.endswith("; not in the file: the class names")
    assert "; but timm's create_model does not build it (width_multiplier 0.125)" in eca_jax.save(
        model, tmp_path / "timm", "timm", NAMES, Classification()
    )


def test_what_cannot_be_saved_is_refused_and_what_is_there_stays(tmp_path):
    model, path = randomised("resnet18"), tmp_path / "m.safetensors"
    eca_jax.save(model, path)
    before = path.read_bytes()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    forms = "expected one of ecanet, torchvision, timm, safetensors"
    for arguments, message in (
        ((tmp_path / "m.pth",), f"to: {tmp_path}/m.pth does not say whose names it is to have; {forms}"),
        ((tmp_path / "run",), f"to: {tmp_path}/run does not say whose names it is to have; {forms}"),
        ((tmp_path / "run", "orbax"), f"to: unknown 'orbax'; {forms}"),
        (
            (tmp_path / "m.pth", "safetensors"),
            f"to safetensors: expected a file that ends in .safetensors, got {tmp_path}/m.pth",
        ),
        ((tmp_path / "full", "timm"), f"{tmp_path}/full is not empty; expected the name of a new directory"),
        ((tmp_path / "no" / "m.safetensors",), f"there is no directory {tmp_path}/no to write m.safetensors into"),
        ((path, None, "abcdefg"), "class_names: expected the names of the classes in their order, got 'abcdefg'"),
        ((path, None, range(7)), "class_names: expected the names of the classes in their order, got range(0, 7)"),
        ((path, None, ("a", "b")), "class_names: expected 7, one for each logit, got 2"),
        (
            (path, None, None, "multi_label"),
            "task: expected one such as eca_jax.tasks.Classification(), got 'multi_label'",
        ),
    ):
        assert refusal(eca_jax.save, model, *arguments) == message
    with disk_with(free=1000):
        assert "File too large; what was there before is as it was" in refusal(eca_jax.save, model, path)
    assert refusal(eca_jax.save, nnx.Linear(2, 2, rngs=nnx.Rngs(0)), path) == (
        "model: expected one of eca_jax.create_model, got Linear"
    )
    model.fc = nnx.Linear(64, 3, rngs=nnx.Rngs(0))
    assert "('resnet18', 7 classes), such as fc.kernel: expected (64, 7), got (64, 3); make" in refusal(
        eca_jax.save, model, path
    )
    assert path.read_bytes() == before
