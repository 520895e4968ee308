"""The exported files, run by what a user has who does not have eca_jax: JAX alone, and ONNX Runtime."""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax import create_model
from eca_jax.errors import EcaJaxError
from eca_jax.export import export_onnx, export_stablehlo, onnx_graph
from eca_jax.models.base import Backbone
from eca_jax.nn import AttentionConfig
from eca_jax.nn.attention import ATTENTIONS
from tests.commands import environment
from tests.nn.attention.checks import randomise
from tests.nn.attention.test_every import OPTIONS as OPTIONS_OF_32_CHANNELS

export = importlib.import_module("eca_jax.export")
SIZE = 32
NARROW = {"width_multiplier": 0.125, "small_stem": True}
MODELS = {
    "eca": ("eca_resnet18", {"width_multiplier": 0.125}),  # the stem with the max pool
    "circular": ("eca_resnet18", {**NARROW, "attention": AttentionConfig(circular=True)}),
    "eca_ns": ("resnet18", {**NARROW, "attention": AttentionConfig("eca_ns")}),
    "se": ("se_resnet18", {**NARROW, "attention": AttentionConfig(bias=True)}),
    "plain bottleneck": ("resnet50", NARROW),
    "averaged shortcuts": ("ecaresnet26t", {"width_multiplier": 0.125}),
    "dilated": ("ecaresnet26t", {"width_multiplier": 0.125, "output_stride": 8}),
    "mobilenet": ("eca_mobilenet_v2", {"width_multiplier": 0.25, "small_stem": True}),
    "mobilenet se": ("se_mobilenet_v2", {"width_multiplier": 0.25}),
    "gct": ("gct_resnet18", NARROW),
    "ba": ("ba_resnet18", NARROW),
    "emca": ("emca_resnet18", NARROW),
}
# Both families, two attentions that pad and one that does not; in ONNX, which compiles nothing, all of the above.
STABLEHLO = ("eca", "circular", "se", "mobilenet")
# Rounding alone, as argued in eca_jax/export.py.
TOLERANCE = 1e-4


@functools.cache
def random_model(key: str, **kwargs) -> Backbone:
    """In training mode; nothing is as it is initialised.

    The variances are such that the images reach the logits, but roundings do not grow: with 0.05 to 0.3 MobileNetV2 in
    float32 is 2% away from itself in float64.
    """
    name, settings = MODELS[key]
    model = nnx.eval_shape(lambda: create_model(name, num_classes=10, rngs=nnx.Rngs(0), **settings, **kwargs))
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        shape, dtype = variable.shape, variable.dtype
        values = rng.normal(0.0, 0.1, shape)
        if path[-1] == "kernel" and len(shape) > 1:
            values = rng.normal(0.0, np.prod(shape[:-1]) ** -0.5, shape)
        elif path[-1] == "kernel":  # ECA's
            values = rng.normal(0.0, 1.0, shape)
        elif path[-1] == "scale":
            values = rng.uniform(0.5, 1.5, shape)
        elif path[-1] == "var":
            values = rng.uniform(0.2, 0.6, shape)
        variable.set_value(jnp.asarray(values, dtype))
    return model


@functools.cache
def images_and_logits(key: str) -> tuple[np.ndarray, np.ndarray]:
    """Five images and what the model itself makes of them."""
    images = np.random.default_rng(1).normal(size=(5, SIZE, SIZE, 3)).astype(np.float32)
    model = nnx.clone(random_model(key))
    model.eval()
    logits = np.asarray(nnx.jit(lambda m, x: m(x))(model, images))
    # Else a file that ignores its input would pass.
    assert logits.std(axis=0).max() > 0.02 * np.abs(logits).max()
    return images, logits


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


WITHOUT_ECA_JAX = """
import pathlib, sys
sys.modules["eca_jax"] = None
try:
    import eca_jax
except ImportError:
    pass
else:
    raise SystemExit("eca_jax can be imported")
import jax, numpy as np

for file in map(pathlib.Path, sys.argv[1:]):
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
    images = np.load(file.with_suffix(".images.npy"))
    np.save(file.with_suffix(".logits.npy"), exported.call(images))
"""


@pytest.fixture(scope="module")
def stablehlo_dir(tmp_path_factory) -> pathlib.Path:
    """Every model's file, and its logits as a process without eca_jax computes them."""
    directory = tmp_path_factory.mktemp("stablehlo")
    files = [directory / f"{key}.bin" for key in STABLEHLO]
    for key, file in zip(STABLEHLO, files, strict=True):
        export_stablehlo(random_model(key), file, image_size=SIZE)
        np.save(file.with_suffix(".images.npy"), images_and_logits(key)[0])
    command = [sys.executable, "-I", "-c", WITHOUT_ECA_JAX, *map(str, files)]
    subprocess.run(command, cwd=directory, env=environment(), check=True, timeout=600)
    return directory


@pytest.mark.system
@pytest.mark.parametrize("key", STABLEHLO)
def test_stablehlo_without_eca_jax(key: str, stablehlo_dir: pathlib.Path):
    assert_same(np.load(stablehlo_dir / f"{key}.logits.npy"), images_and_logits(key)[1])


def test_platforms_are_those_that_are_asked_for(tmp_path: pathlib.Path):
    export_stablehlo(random_model("eca_ns"), tmp_path / "m.bin", image_size=SIZE, platforms=["rocm", "cpu"])
    exported = jax.export.deserialize(bytearray((tmp_path / "m.bin").read_bytes()))
    assert exported.platforms == ("rocm", "cpu")
    assert str(exported.in_avals[0]) == f"float32[b,{SIZE},{SIZE},3]"


def test_bfloat16_stays_bfloat16_in_stablehlo(tmp_path: pathlib.Path):
    export_stablehlo(random_model("se", dtype=jnp.bfloat16), tmp_path / "m.bin", image_size=SIZE, platforms=["cpu"])
    exported = jax.export.deserialize(bytearray((tmp_path / "m.bin").read_bytes()))
    assert "xbf16>" in exported.mlir_module()
    assert exported.out_avals[0].dtype == np.float32


@pytest.mark.onnx
@pytest.mark.parametrize("key", MODELS)
def test_onnx_in_onnx_runtime(key: str, tmp_path: pathlib.Path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = random_model(key)
    export_onnx(model, tmp_path / "m.onnx", image_size=SIZE, about={"classes": "0 1 2"})

    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (x,), (y,) = session.get_inputs(), session.get_outputs()
    assert (x.name, x.shape, x.type) == ("images", ["b", SIZE, SIZE, 3], "tensor(float)")
    assert (y.name, y.shape, y.type) == ("logits", ["b", 10], "tensor(float)")
    about = {"classes": "0 1 2", "mean": list(model.preprocess.mean), "std": list(model.preprocess.std)}
    found = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(value) for name, value in found.items()} == about
    images, want = images_and_logits(key)
    for b in (1, 5):
        assert_same(session.run(["logits"], {"images": images[:b]})[0], want[:b])

    graph = onnx.load(tmp_path / "m.onnx").graph
    nodes = [node.op_type for node in graph.node]
    assert nodes.count("Transpose") == 1  # the input's alone
    assert sum(int(np.prod(array.dims)) for array in graph.initializer) < count(model), "each kernel is there once"


@pytest.mark.onnx
def test_onnx_of_a_network_for_two_channels(tmp_path: pathlib.Path):
    """The mean and std of RGB are not of its images, so the file does not have them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = random_model("eca_ns", in_channels=2)
    export_onnx(model, tmp_path / "m.onnx", image_size=SIZE)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["b", SIZE, SIZE, 2]
    assert session.get_modelmeta().custom_metadata_map == {}
    assert "(b, 32, 32, 2), normalised as in training." in session.get_modelmeta().description


def count(model: Backbone) -> int:
    """Parameters and running statistics. (In a file the statistics are in the kernels and one vector.)"""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat))))


def test_stablehlo_has_each_kernel_once():
    """The last 1x1 kernel of a bottleneck with ECA is used twice: on the pixels, and on their average."""
    model = random_model("averaged shortcuts")
    program = jax.export.export(jax.jit(export._logits_function(model)))(export._images(model, SIZE))
    assert len(program.serialize()) < 1.15 * 4 * count(model)


@pytest.mark.onnx
def test_onnx_wants_float32(tmp_path: pathlib.Path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(EcaJaxError, match="computes in bfloat16, expected float32"):
        export_onnx(random_model("se", dtype=jnp.bfloat16), tmp_path / "m.onnx", image_size=SIZE)
    assert not list(tmp_path.iterdir())


def some(*quick: str) -> list:
    """All attentions; those that are not quick are marked slow."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in ATTENTIONS]


def tiny_with(kind: str) -> Backbone:
    """A network of three convolutions with the attention, random weights and statistics, in evaluation mode."""
    attention = AttentionConfig(kind, **OPTIONS_OF_32_CHANNELS.get(kind, {}))
    model = nnx.eval_shape(
        lambda: create_model("tiny", num_classes=10, attention=attention, width_multiplier=2.0, rngs=nnx.Rngs(0))
    )
    randomise(model, np.random.default_rng(0))
    for layer in (module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.Linear | nnx.Conv)):
        layer.kernel.set_value(layer.kernel[...] / np.prod(layer.kernel.shape[:-1]) ** 0.5)
    model.eval()
    return model


def logits_of(model: Backbone) -> tuple[np.ndarray, np.ndarray]:
    """Three images of 8 x 8 pixels, and the model's logits, which depend on them."""
    images = np.random.default_rng(1).normal(np.array([-1, 0, 1])[:, None, None, None], size=(3, 8, 8, 3))
    images = images.astype(np.float32)
    logits = np.asarray(nnx.jit(lambda m, x: m(x))(model, images))
    assert logits.std(axis=0).max() > 1e-3 * np.abs(logits).max()  # a hundred times what is allowed
    return images, logits


@pytest.mark.onnx
@pytest.mark.usefixtures("small_backbones")
@pytest.mark.parametrize("kind", some("cbam", "sa", "ema"))
def test_every_attention_in_onnx_runtime(kind: str, tmp_path: pathlib.Path):
    """Within 1e-5 of the largest logit: four layers in float32."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny_with(kind)
    export_onnx(model, tmp_path / "m.onnx", image_size=8)
    images, want = logits_of(model)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for b in (1, 3):
        got = session.run(["logits"], {"images": images[:b]})[0]
        np.testing.assert_allclose(got, want[:b], rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.usefixtures("small_backbones")
@pytest.mark.parametrize("kind", some("se_gc1"))
def test_every_attention_in_stablehlo(kind: str, tmp_path: pathlib.Path):
    model = tiny_with(kind)
    export_stablehlo(model, tmp_path / "m.bin", image_size=8, platforms=["cpu"])
    images, want = logits_of(model)
    exported = jax.export.deserialize(bytearray((tmp_path / "m.bin").read_bytes()))
    for b in (1, 3):
        np.testing.assert_allclose(exported.call(images[:b]), want[:b], rtol=0, atol=1e-5 * np.abs(want).max())


WEIGHTS = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
OPERATIONS = {
    "reduce_sum, the last axis": lambda x: x.sum(3).sum(2),
    "reduce_sum, one pixel axis": lambda x: x.sum(2)[:, :, 0],
    "reduce_max": lambda x: x.max((1, 3)) + x.max(3).max(1),
    "exp, div": lambda x: jax.nn.softmax(x.reshape(x.shape[0], -1)),
    "sqrt, square, rsqrt": lambda x: jnp.sqrt(jnp.square(x[:, 1, 2])) + jax.lax.rsqrt(1 + jnp.square(x[:, 0, 0])),
    "tanh, neg": lambda x: jnp.tanh(-x[:, 0, 0]),
    "gt, lt, select_n": lambda x: jnp.where(x > 0, x, 0.5).sum((1, 2)) + jnp.where(x < 0.2, 1.0, x).sum((1, 2)),
    "reshape to and from four axes": lambda x: x.reshape(x.shape[0], 6, 2, 6)[:, :, 1].reshape(x.shape[0], 36),
    "reshape to five axes": lambda x: x.reshape(x.shape[0], 2, 2, 6, 3).sum((1, 3))[:, 0],
    "transpose of three axes": lambda x: x[:, 1].transpose(0, 2, 1).reshape(x.shape[0], -1),
    "transpose of four axes": lambda x: x.transpose(0, 2, 1, 3)[:, 1].reshape(x.shape[0], -1),
    "concatenate, four axes": lambda x: jnp.concatenate([x, 2 * x], 2).reshape(x.shape[0], -1),
    "concatenate, three axes": lambda x: jnp.concatenate([x[:, 0], x[:, 2]], 1).reshape(x.shape[0], -1),
    "stack": lambda x: jnp.stack([x[:, 0], x[:, 2], jnp.ones_like(x[:, 1])], 2).reshape(x.shape[0], -1),
    "split": lambda x: jnp.subtract(*jnp.split(x, 2, axis=2)).reshape(x.shape[0], -1),
    "slice with steps": lambda x: jax.lax.slice_in_dim(x[:, 0], 1, 6, 2, axis=1).reshape(x.shape[0], -1),
    "take": lambda x: jnp.take(x, np.array([3, 0, 0]), 1).reshape(x.shape[0], -1),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0))).reshape(x.shape[0], -1),
    "broadcast_in_dim": lambda x: jnp.repeat(x[:, :, :, :1], 2, 3).reshape(x.shape[0], -1),
    "dot_general of three axes": lambda x: (x[:, 0] @ WEIGHTS).reshape(x.shape[0], -1),
    "dot_general of four axes": lambda x: (x @ WEIGHTS).reshape(x.shape[0], -1),
    "dot_general of two tensors": lambda x: jnp.einsum("bhwc,bwc->bhc", x, jnp.tanh(x[:, 0])).sum(2),
    "dot_general in groups": lambda x: jnp.einsum("bgi,gio->bgo", x[:, 0], np.stack([WEIGHTS] * 6)).sum(2),
    "convolution by channel": lambda x: jax.lax.conv_general_dilated(
        x[:, :1],
        np.ones((1, 3, 1, 3), np.float32),
        (1, 1),
        "SAME",
        feature_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[:, 0, :, 1],
}


@pytest.mark.onnx
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_in_onnx_runtime(name: str):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    (b,) = jax.export.symbolic_shape("b")
    function, images = OPERATIONS[name], np.random.default_rng(3).normal(size=(3, 4, 6, 3)).astype(np.float32)
    graph = onnx_graph(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((b, 4, 6, 3), jnp.float32)), "tested")
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in (1, 3):
        want = np.asarray(jax.jit(function)(images[:size]))
        got = session.run(["logits"], {"images": images[:size]})[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.onnx
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jnp.sin, "sin"),
        (lambda x: jnp.cumsum(x, 1), "cumsum"),
        (lambda x: jnp.sort(x, 1), "sort"),
        (lambda x: x[:, ::2, ::-1], "rev"),
    ],
)
def test_onnx_refuses_what_it_cannot_translate(function, name: str):
    pytest.importorskip("onnx")
    (b,) = jax.export.symbolic_shape("b")
    jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((b, 4, 4, 3), jnp.float32))
    with pytest.raises(EcaJaxError, match="has no translation"):
        onnx_graph(jaxpr, "refused")


EXPORTS = [
    export_stablehlo,
    pytest.param(export_onnx, marks=pytest.mark.onnx),
]


@pytest.fixture(params=EXPORTS)
def write(request):
    if request.param is export_onnx:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    return functools.partial(request.param, image_size=SIZE)


def test_the_model_stays_as_it_is(write, tmp_path: pathlib.Path):
    model = random_model("circular")
    before = jax.tree.map(np.asarray, nnx.state(model))
    write(model, tmp_path / "m")
    assert not model.bn1.use_running_average
    assert not model.dropout.deterministic
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model)))
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_a_file_that_differs_is_not_written(write, tmp_path: pathlib.Path, monkeypatch):
    compare = export._compare
    monkeypatch.setattr(export, "_compare", lambda got, *rest: compare(lambda x: np.asarray(got(x)) * 1.001, *rest))
    (tmp_path / "m").write_text("the old one")
    with pytest.raises(EcaJaxError, match="differ from the model's by"):
        write(random_model("circular"), tmp_path / "m")
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_text() == "the old one"


def test_weights_that_are_not_finite(write, tmp_path: pathlib.Path):
    model = nnx.clone(random_model("circular"))
    model.fc.bias[...] = model.fc.bias[...].at[3].set(jnp.nan)
    with pytest.raises(EcaJaxError, match="Are the weights finite"):
        write(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(write, tmp_path: pathlib.Path, monkeypatch):
    model = random_model("circular")
    with pytest.raises(EcaJaxError, match=r"there is no directory .*missing to write m into"):
        write(model, tmp_path / "missing" / "m")
    with pytest.raises(EcaJaxError, match="is a directory; expected the name of a file"):
        write(model, tmp_path)
    with pytest.raises(EcaJaxError, match="File name too long"):
        write(model, tmp_path / ("m" * 300))

    def refuse(*_):  # permissions do not hold root back
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(EcaJaxError, match=r"cannot write .*m: Permission denied"):
        write(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, -32, 7, 32.0, True, None])
def test_an_image_size_that_cannot_be(write, size, tmp_path: pathlib.Path):
    with pytest.raises(EcaJaxError, match=f"image_size: expected .* at least 8 pixels.* got {size}"):
        write(random_model("circular"), tmp_path / "m", image_size=size)
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_fit_are_refused_before_anything_is_traced(write, tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setattr(jax, "make_jaxpr", lambda *_: pytest.fail("it is traced"))
    monkeypatch.setattr(jax.export, "export", lambda *_, **__: pytest.fail("it is traced"))
    with pytest.raises(EcaJaxError) as refused:
        write(random_model("circular"), tmp_path / "m", image_size=10_000_000)
    # 3 images of 3 channels in float32, and 8 channels of full resolution in bfloat16 at least: 5.2e15 bytes.
    line = "out of memory: checking the file on 3 images of 10000000 x 10000000 pixels needs at least 7,"
    assert str(refused.value).startswith(line)
    assert str(refused.value).endswith("What helps, in this order: (1) a smaller --image-size")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("platforms", "message"),
    [
        (["cpu", "gpu"], "unknown platform 'gpu'"),
        ("cpu", "unknown platform 'c'"),
        ([], r"none of \[\] is here"),
        (["rocm"], r"none of \['rocm'\] is here to check the file on; add"),
    ],
)
def test_platforms_that_cannot_be(platforms, message: str, tmp_path: pathlib.Path):
    with pytest.raises(EcaJaxError, match=message):
        export_stablehlo(random_model("circular"), tmp_path / "m", image_size=SIZE, platforms=platforms)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(package: str, tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EcaJaxError, match=r"pip install 'eca-jax\[onnx\]'"):
        export_onnx(random_model("circular"), tmp_path / "m", image_size=SIZE)
