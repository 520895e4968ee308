"""A trained model as one file that runs without eca_jax: StableHLO for JAX, ONNX for other runtimes.

Both files hold the network in evaluation mode with its weights, and map `images`, float32 (b, image_size, image_size,
3), to `logits`, (b, num_classes), for any batch size b. The images are RGB, scaled from bytes to 0..1, then normalised
as in training: minus the `mean`, divided by the `std` of the run's `eca_jax.data.preprocess.PreprocessConfig`. Of a
network for other than three channels the images have those, normalised as it was trained. A file gets its name only
after what was written has been read back and has given the logits of the model.
"""

import contextlib
import hashlib
import json
import operator
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jax.extend import core

from eca_jax.convert.files import write
from eca_jax.errors import EcaJaxError, nearest
from eca_jax.memory import expect_room, host_room
from eca_jax.models.base import Backbone
from eca_jax.version import __version__

ABOUT = b"eca_jax"
"""The last bytes of a StableHLO file; before them JSON and its length in bytes (8, big-endian)."""
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
CHECKED_BATCHES = (1, 3)
"""Batch sizes that a file is checked with: the one that broadcasts by mistake, and another."""

# The largest difference that rounding explains, as a share of the largest logit. In float32 (2^-24) the sum of a 3x3
# convolution over 512 channels rounds like sqrt(4608) = 68 roundings and 150 layers add like sqrt(150) = 12: 5e-5.
# Where products are rounded to bfloat16 (2^-9; TPUs and GPUs do that, or TF32, to float32 by default), sums still are
# float32: each layer rounds a few times, sqrt(3 * 150) = 21 in all: 4e-2. What is wrongly exported is off by 1.
FLOAT32_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 8e-2

Logits = Callable[[Any], Any]


def export_stablehlo(
    model: Backbone,
    path: str | os.PathLike[str],
    *,
    image_size: int,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes the model as serialised StableHLO, which JAX runs without this package.

    Later versions of JAX read it for at least half a year, as JAX promises of its exports:

        exported = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
        logits = exported.call(images)  # float32 (b, image_size, image_size, 3) -> (b, num_classes)

    Args:
      model: in training or evaluation mode; it stays as it is.
      path: of the new file; an old one is replaced.
      image_size: side of the images in pixels.
      platforms: where the file is to run: 'cpu', 'cuda', 'rocm', 'tpu'. One of them must be here, for the check.
      about: what the file says of itself (`eca_jax.convert.pretrained.own_metadata`), as JSON behind the program, where
        JAX does not look; `read_about` finds it.

    Raises:
      EcaJaxError: for a path, size or platform that cannot be, images that do not fit into memory, or when the file
        does not give the model's logits.
    """
    _check_image_size(model, image_size)
    device = _check_platforms(platforms)
    logits = _logits_function(model)
    with jax.default_device(device):
        images = _images(model, image_size)
        program = export.export(jax.jit(logits), platforms=tuple(platforms))(images).serialize()
        text = json.dumps(dict(about or {})).encode()
        data = bytearray(program) + text + len(text).to_bytes(8) + ABOUT
        restored = export.deserialize(data)
        narrow = "f16[" in str(jax.make_jaxpr(logits)(images))  # types are printed as bf16[b,8,8,64]
        tolerance = BFLOAT16_TOLERANCE if narrow or device.platform != "cpu" else FLOAT32_TOLERANCE
        _compare(restored.call, logits, images, tolerance)
    write(path, data)


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a StableHLO file of `export_stablehlo` says of itself: format, architecture, class names, preprocessing.

    Raises:
      EcaJaxError: it is no such file.
    """
    data = pathlib.Path(path).read_bytes()
    end = len(data) - len(ABOUT) - 8
    try:
        if not data.endswith(ABOUT):
            raise ValueError("it does not end as such files do")
        return json.loads(data[end - int.from_bytes(data[end : end + 8]) : end])
    except ValueError as error:
        raise EcaJaxError(f"{path} is no StableHLO file of eca_jax: {error}") from error


def export_onnx(
    model: Backbone, path: str | os.PathLike[str], *, image_size: int, about: Mapping[str, Any] | None = None
) -> None:
    """Writes the model as ONNX (opset 17): input `images`, output `logits`, first dimension `b`.

    Inside, activations are (b, c, h, w), as ONNX's convolutions want them.

    Args:
      model: in training or evaluation mode; it stays as it is. It computes in float32.
      path: of the new file; an old one is replaced.
      image_size: side of the images in pixels.
      about: what the file says of itself (`eca_jax.convert.pretrained.own_metadata`), as JSON in its
        `metadata_props`, a property for each key; those of the normalisation, `mean` and `std`, by themselves too.

    Raises:
      EcaJaxError: for a path or size that cannot be, images that do not fit into memory, a model that does not compute
        in float32, missing packages, or when ONNX Runtime does not find the model's logits.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise EcaJaxError(f"export to ONNX needs {error.name}: pip install 'eca-jax[onnx]'") from None

    _check_image_size(model, image_size)
    logits, images, rgb = _logits_function(model), _images(model, image_size), model.in_channels == 3
    graph = onnx_graph(jax.make_jaxpr(logits)(images), "eca_jax")
    pixels = "RGB, scaled to 0..1, minus the mean and divided by the standard deviation of the training run"
    proto = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,  # the one that came with opset 17: older runtimes refuse newer ones
        producer_name="eca_jax",
        producer_version=__version__,
        doc_string=(
            f"images: float32 (b, {image_size}, {image_size}, {model.in_channels}), "
            f"{pixels if rgb else 'normalised as in training'}. logits: float32 (b, classes)."
        ),
    )
    normalisation = {"mean": model.preprocess.mean, "std": model.preprocess.std} if rgb else {}
    said = {**(about or {}), **normalisation}
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in said.items()})
    data = proto.SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with jax.default_matmul_precision("highest"):  # accelerators round float32 products by default
        _compare(lambda x: session.run(["logits"], {"images": x})[0], logits, images, FLOAT32_TOLERANCE)
    write(path, data)


def _check_image_size(model: Backbone, image_size: int) -> None:
    least = model.feature_info[-1].stride
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < least:
        raise EcaJaxError(
            f"image_size: expected a whole number of at least {least} pixels, which this network shrinks to one, "
            f"got {image_size!r}; give the size that it was trained with"
        )
    what = f"checking the file on {max(CHECKED_BATCHES)} images of {image_size} x {image_size} pixels"
    expect_room(what, least_bytes(model, image_size), host_room(), ["a smaller --image-size"], at_least=True)


def least_bytes(model: Backbone, image_size: int) -> int:
    """What the check of a file takes at least: its images in float32, and the largest stage, perhaps in bfloat16."""
    stages = [feature.channels * (image_size // feature.stride) ** 2 for feature in model.feature_info]
    return max(CHECKED_BATCHES) * (4 * model.in_channels * image_size**2 + 2 * max(stages))


def _check_platforms(platforms: Sequence[str]) -> Any:
    """The device that checks the file: the CPU where it may, because it does not round products."""
    for platform in platforms:
        if platform not in PLATFORMS:
            raise EcaJaxError(f"platforms: unknown platform {platform!r}.{nearest(platform, PLATFORMS)}")
    for platform in sorted(platforms, key=PLATFORMS.index):
        with contextlib.suppress(RuntimeError):  # JAX's answer for a platform that is not here
            return jax.local_devices(backend=platform)[0]
    raise EcaJaxError(
        f"platforms: none of {list(platforms)} is here to check the file on; add {jax.default_backend()!r}"
    )


def _logits_function(model: Backbone) -> Logits:
    """images -> logits of a copy in evaluation mode, its weights on the host: no device or mesh is written down.

    The weights enter the program once each, and what is computed of them is a part of it. A NumPy array that a network
    indexes would be cut at once, and the part, which may be all of it, be a second constant.
    """
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, jax.device_get(state))
    copy.eval()
    graphdef, state = nnx.split(copy)

    def logits(images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, jax.tree.map(jnp.asarray, state))(images)

    return logits


def _images(model: Backbone, image_size: int) -> jax.ShapeDtypeStruct:
    (b,) = export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((b, image_size, image_size, model.in_channels), jnp.float32)


def _compare(exported: Logits, model: Logits, of: jax.ShapeDtypeStruct, tolerance: float) -> None:
    """Raises unless both give the same logits for random images, in batches of every checked size."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((max(CHECKED_BATCHES), *of.shape[1:]), np.float32)
    logits = np.asarray(jax.jit(model)(images), np.float64)  # compiled once: an image's logits depend on no other
    for size in CHECKED_BATCHES:
        got, want = np.asarray(exported(images[:size]), np.float64), logits[:size]
        if got.shape != want.shape:
            raise EcaJaxError(f"export: expected logits {want.shape}, the file gives {got.shape}; nothing was written")
        error, scale = np.abs(got - want).max(), np.abs(want).max()
        if not error <= tolerance * scale:  # also when a logit is not finite
            raise EcaJaxError(
                f"export: for {size} random images the file's logits differ from the model's by {error:.3g}; expected "
                f"at most {tolerance:g} of the largest logit, {scale:.3g}; nothing was written. Are the weights finite?"
            )


# From a jaxpr to ONNX. A value is a NumPy array where no input reaches it (weights, and all that follows from them
# alone, is computed here), else the name of a tensor. Every tensor of four dimensions is (b, c, h, w) in ONNX and
# (b, h, w, c) in the jaxpr, so that the graph transposes once, its input, and not around every convolution.

Value = np.ndarray | str
NCHW = (0, 3, 1, 2)  # axis i in ONNX is axis NCHW[i] in the jaxpr
Axes = Sequence[int]
CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
"""Operations that stand for a jaxpr, and the parameter that has it."""
ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "logistic": "Sigmoid",
    "exp": "Exp",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "neg": "Neg",
    "gt": "Greater",
    "lt": "Less",
    "stop_gradient": "Identity",
}


def onnx_graph(jaxpr: core.ClosedJaxpr, name: str):
    """The `onnx.GraphProto` of a function with one input, `images` (b, h, w, c), and one output, `logits`.

    Args:
      jaxpr: of float32 alone, with the operations that the package's networks have in evaluation mode; b is symbolic.
      name: of the graph.

    Raises:
      EcaJaxError: names an operation, or a use of one, that has no translation here, or a dtype other than float32.
    """
    from onnx import TensorProto, helper

    builder = _Builder()
    x = builder.node("Transpose", "images", perm=NCHW)
    (y,) = builder.run(jaxpr.jaxpr, jaxpr.consts, [x])
    builder.nodes.append(helper.make_node("Identity", [builder.tensor(y)], ["logits"]))
    nodes, names = _needed(builder.nodes, "logits")
    (images,), (logits,) = jaxpr.in_avals, jaxpr.out_avals
    return helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", *images.shape[1:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", *logits.shape[1:]])],
        initializer=[array for array in builder.initializers.values() if array.name in names],
    )


def _needed(nodes: Sequence[Any], output: str) -> tuple[list[Any], set[str]]:
    """The nodes that an output depends on, in their order, and the names of all values that they take."""
    names, kept = {output}, []
    for node in reversed(nodes):
        if names & set(node.output):
            kept.append(node)
            names |= set(node.input)
    return kept[::-1], names


class _Builder:
    """Nodes and initialisers of a graph, and methods that add to them.

    `op_NAME` translates the operation NAME; None says that this use of it has no translation.
    """

    def __init__(self):
        self.nodes: list[Any] = []
        self.initializers: dict[tuple, Any] = {}
        """By what is in them: equal arrays are one."""
        self.products: dict[str, tuple[str, np.ndarray]] = {}
        """What `product` has made: tensor -> its factors."""

    def node(self, op: str, *inputs: Value, **attributes) -> str:
        """Adds a node and names its output."""
        from onnx import helper

        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.tensor(v) for v in inputs], [name], name, **attributes))
        return name

    def tensor(self, value: Value) -> str:
        """The name of a value; an array becomes an initialiser as it is."""
        from onnx import numpy_helper

        if isinstance(value, str):
            return value
        key = _content(value)
        if key not in self.initializers:
            name = f"constant_{len(self.initializers)}"
            self.initializers[key] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return self.initializers[key].name

    def product(self, x: str, weights: np.ndarray) -> str:
        """x @ weights, (b, c_in) by (c_in, c), where weights that a 1x1 convolution has too are its own."""
        kernel = weights.T[:, :, None, None]
        if _content(kernel) in self.initializers:
            name = self.node("Gemm", x, self.node("Squeeze", kernel, np.array([2, 3])), transB=1)
        else:
            name = self.node("MatMul", x, weights)
        self.products[name] = (x, weights)
        return name

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
        """Adds the operations of a jaxpr; returns its results."""
        values: dict[Any, Value] = {
            **dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True)),
            **dict(zip(jaxpr.invars, args, strict=True)),
        }

        def read(atom: Any) -> Value:
            dtype = atom.aval.dtype
            return np.asarray(atom.val, dtype) if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            name = eqn.primitive.name
            if name in CALLS:
                inner = eqn.params[CALLS[name]]
                outputs = self.run(inner.jaxpr, inner.consts, inputs)
            elif name == "platform_index":  # the last is what is computed on a platform without a form of its own
                outputs = [np.asarray(len(eqn.params["platforms"]) - 1)]
            elif name == "cond" and isinstance(inputs[0], np.ndarray):
                branch = eqn.params["branches"][inputs[0].item()]
                outputs = self.run(branch.jaxpr, branch.consts, inputs[1:])
            elif name == "broadcast_in_dim" and isinstance(inputs[0], np.ndarray):
                shape = [size if isinstance(size, int) else 1 for size in eqn.params["shape"]]  # b: it is broadcast
                axes = eqn.params["broadcast_dimensions"]
                outputs = [np.asarray(jax.lax.broadcast_in_dim(inputs[0], shape, axes))]
            elif not any(isinstance(value, str) for value in inputs):
                results = eqn.primitive.bind(*inputs, **eqn.params)
                outputs = [np.asarray(y) for y in (results if eqn.primitive.multiple_results else [results])]
            else:
                outputs = self.operation(eqn, inputs)
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def operation(self, eqn: core.JaxprEqn, inputs: list[Value]) -> Sequence[str]:
        """Adds one operation on at least one tensor; returns its results."""
        name = eqn.primitive.name
        atoms: list[Any] = [*eqn.invars, *eqn.outvars]
        for atom in atoms:
            if jnp.issubdtype(atom.aval.dtype, jnp.floating) and atom.aval.dtype != jnp.float32:
                raise EcaJaxError(
                    f"export to ONNX: the model computes in {atom.aval.dtype}, expected float32: create it with "
                    "dtype=float32 and give it the same weights"
                )
        if name in ELEMENTWISE:
            return [self.elementwise(name, inputs)]
        method = getattr(self, f"op_{name}", None)
        result = method(eqn, *inputs) if method else None
        if result is None:
            raise EcaJaxError(
                f"export to ONNX: this use of the operation {name!r} has no translation: {eqn}; "
                "add it to eca_jax/export.py, or use export_stablehlo"
            )
        return [result] if isinstance(result, str) else result

    def elementwise(self, name: str, inputs: list[Value]) -> str:
        arrays = [_placed(v) for v in inputs]
        if name == "max" and isinstance(arrays[1], np.ndarray) and not arrays[1].any():
            return self.node("Relu", arrays[0])
        if name == "mul" and isinstance(arrays[0], str) and arrays[0] in self.products:
            x, weights = self.products[arrays[0]]
            if isinstance(arrays[1], np.ndarray) and arrays[1].shape == (1, weights.shape[1]):
                return self.product(x, weights * arrays[1])  # as batch norm's scale goes into a convolution's kernel
        if name == "sub" and isinstance(arrays[1], np.ndarray):  # runtimes fuse a convolution with Add, not with Sub
            return self.node("Add", arrays[0], -arrays[1])
        return self.node(ELEMENTWISE[name], *arrays)

    def op_conv_general_dilated(self, eqn: core.JaxprEqn, x: Value, kernel: Value) -> str | None:
        p = eqn.params
        numbers = p["dimension_numbers"]
        nhwc = numbers.lhs_spec == numbers.out_spec == NCHW and numbers.rhs_spec == (3, 2, 0, 1)
        if not nhwc or isinstance(kernel, str) or p["batch_group_count"] != 1 or set(p["lhs_dilation"]) != {1}:
            return None
        return self.node(
            "Conv",
            x,
            kernel.transpose(3, 2, 0, 1),
            strides=p["window_strides"],
            dilations=p["rhs_dilation"],
            group=p["feature_group_count"],
            pads=_begins_and_ends(p["padding"]),
        )

    def op_reduce_window_max(self, eqn: core.JaxprEqn, x: Value) -> str | None:
        attributes = self.window(eqn)
        return None if attributes is None else self.node("MaxPool", x, **attributes)

    def op_reduce_window_sum(self, eqn: core.JaxprEqn, x: Value) -> str | None:
        """The average, of zeros where the window is over the border, times the window's size."""
        attributes = self.window(eqn)
        if attributes is None:
            return None
        size = np.asarray(np.prod(attributes["kernel_shape"]), np.float32)
        return self.node("Mul", self.node("AveragePool", x, count_include_pad=1, **attributes), size)

    def window(self, eqn: core.JaxprEqn) -> dict[str, Any] | None:
        """Attributes of a pooling over height and width."""
        p = eqn.params
        window, strides, padding = (
            [p[key][i] for i in NCHW] for key in ("window_dimensions", "window_strides", "padding")
        )
        dilated = {*p["base_dilation"], *p["window_dilation"]} != {1}
        if dilated or [*window[:2], *strides[:2], *padding[:2]] != [1, 1, 1, 1, (0, 0), (0, 0)]:
            return None
        return {"kernel_shape": window[2:], "strides": strides[2:], "pads": _begins_and_ends(padding[2:])}

    def op_dot_general(self, eqn: core.JaxprEqn, x: Value, y: Value) -> str:
        (contracted, batch) = eqn.params["dimension_numbers"]
        n, m = (len(atom.aval.shape) for atom in eqn.invars)  # pyright: ignore[reportAttributeAccessIssue]
        last_by_first = [[*axes] for axes in (*contracted, *batch)] == [[n - 1], [0], [], []]
        if last_by_first and n == m == 2 and isinstance(x, str) and isinstance(y, np.ndarray):
            return self.product(x, y)
        if last_by_first and n in (2, 3) and m == 2:
            return self.node("MatMul", x, y)
        left, right = list(range(n)), list(range(n, n + m))  # a number for each axis: those that go together are one
        for here, there in zip((*contracted[0], *batch[0]), (*contracted[1], *batch[1]), strict=True):
            right[there] = left[here]
        used = {*contracted[0], *batch[0]}
        free = [a for i, a in enumerate(left) if i not in used] + [a for a in right if a >= n]
        result = [*(left[i] for i in batch[0]), *free]
        terms = [
            "".join(chr(ord("a") + axes[i]) for i in (_order(len(axes)) if isinstance(v, str) else range(len(axes))))
            for axes, v in ((left, x), (right, y), (result, ""))
        ]
        return self.node("Einsum", x, y, equation=f"{terms[0]},{terms[1]}->{terms[2]}")

    def moved(self, x: str, have: Axes, want: Axes) -> str:
        """x, whose axes are `have`, with its axes in the order `want`."""
        return x if [*have] == [*want] else self.node("Transpose", x, perm=[[*have].index(axis) for axis in want])

    def op_reduce_sum(self, eqn: core.JaxprEqn, x: str) -> str:
        axes, order = eqn.params["axes"], _order(len(_shape(eqn)))
        y = self.node("ReduceSum", x, np.array([order.index(axis) for axis in axes]), keepdims=0)
        return self.without(y, order, axes)

    def op_reduce_max(self, eqn: core.JaxprEqn, x: str) -> str:
        axes, order = eqn.params["axes"], _order(len(_shape(eqn)))
        return self.without(self.node("ReduceMax", x, axes=[order.index(i) for i in axes], keepdims=0), order, axes)

    def op_squeeze(self, eqn: core.JaxprEqn, x: str) -> str:
        return self.squeezed(x, _order(len(_shape(eqn))), eqn.params["dimensions"])

    def squeezed(self, x: str, order: Axes, axes: Axes) -> str:
        """x, whose axes are in `order`, without some that have the size 1."""
        return self.without(self.node("Squeeze", x, np.array([order.index(i) for i in axes])), order, axes)

    def without(self, x: str, order: Axes, axes: Axes) -> str:
        """x, from whose axes in `order` some have gone, in the order of what is left."""
        left = [axis for axis in range(len(order)) if axis not in axes]
        return self.moved(x, [axis for axis in order if axis not in axes], [left[i] for i in _order(len(left))])

    def op_broadcast_in_dim(self, eqn: core.JaxprEqn, x: str, *_: Value) -> str:
        old, new, axes = _shape(eqn), eqn.params["shape"], [*eqn.params["broadcast_dimensions"]]
        order = _order(len(new))
        x = self.moved(x, [axes[i] for i in _order(len(old))], [axis for axis in order if axis in axes])
        if added := [i for i, axis in enumerate(order) if axis not in axes]:
            x = self.node("Unsqueeze", x, np.array(added))
        sizes = [new[axis] if isinstance(new[axis], int) else 1 for axis in order]  # 1 leaves b as it is
        before = [old[axes.index(axis)] if axis in axes else 1 for axis in order]
        grows = any(isinstance(a, int) and a != b for a, b in zip(before, sizes, strict=True))
        return self.node("Expand", x, np.array(sizes)) if grows else x

    def op_reshape(self, eqn: core.JaxprEqn, x: str) -> str | None:
        old, new = _shape(eqn), eqn.params["new_sizes"]
        sizes = [size if isinstance(size, int) else -1 for size in new]
        if sizes.count(-1) > 1 or eqn.params["dimensions"] is not None:
            return None
        x = self.moved(x, _order(len(old)), range(len(old)))
        return self.moved(self.node("Reshape", x, np.array(sizes)), range(len(new)), _order(len(new)))

    def op_transpose(self, eqn: core.JaxprEqn, x: str) -> str:
        permutation = eqn.params["permutation"]
        order = _order(len(permutation))
        return self.moved(x, order, [permutation[i] for i in order])

    def op_pad(self, eqn: core.JaxprEqn, x: Value, fill: Value) -> str | None:
        config = [tuple(map(operator.index, axis)) for axis in eqn.params["padding_config"]]
        if any(interior or min(low, high) < 0 for low, high, interior in config):
            return None
        return self.node("Pad", x, np.array(_begins_and_ends([config[i][:2] for i in _order(len(config))])), fill)

    def op_slice(self, eqn: core.JaxprEqn, x: str) -> str:
        p, shape = eqn.params, _shape(eqn)
        for axis, (start, stop) in enumerate(zip(p["start_indices"], p["limit_indices"], strict=True)):
            step = p["strides"][axis] if p["strides"] else 1
            if (start, stop, step) != (0, shape[axis], 1):
                x = self.part(x, len(shape), axis, start, stop, step)
        return x

    def op_split(self, eqn: core.JaxprEqn, x: str) -> list[str]:
        sizes, axis = eqn.params["sizes"], eqn.params["axis"]
        ends = np.cumsum(sizes).tolist()
        return [self.part(x, len(_shape(eqn)), axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def part(self, x: Value, ndim: int, axis: int, start: int, stop: int, step: int = 1) -> str:
        """x[start:stop:step] along one axis of the jaxpr."""
        return self.node("Slice", x, *(np.array([i]) for i in (start, stop, _order(ndim).index(axis), step)))

    def op_gather(self, eqn: core.JaxprEqn, x: str, start: Value) -> str | None:
        """x[:, start : start + n], x[:, start, other_start] or x[:, indices], with all of the axes without a start.

        The first two are slices, if the batch size is not symbolic.
        """
        n, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], _shape(eqn)
        order, axes, gone = _order(len(shape)), n.start_index_map, n.collapsed_slice_dims
        others = [i for i in range(len(shape)) if i not in axes]
        if n.operand_batching_dims or isinstance(start, str) or any(sizes[i] != shape[i] for i in others):
            return None
        if start.shape == (len(axes),) and n.offset_dims == tuple(range(len(shape) - len(gone))):
            for axis, first in zip(axes, start.tolist(), strict=True):
                x = self.part(x, len(shape), axis, first, first + sizes[axis])
            return self.squeezed(x, order, gone) if gone else x
        if start.ndim == 2 and start.shape[1] == 1 and n.offset_dims == tuple(others) and gone == axes:
            return self.node("Gather", x, start[:, 0].astype(np.int64), axis=order.index(axes[0]))
        return None

    def op_concatenate(self, eqn: core.JaxprEqn, *inputs: Value) -> str | None:
        shapes = [atom.aval.shape for atom in eqn.invars]  # pyright: ignore[reportAttributeAccessIssue]
        if any(isinstance(v, np.ndarray) and v.shape != shape for v, shape in zip(inputs, shapes, strict=True)):
            return None  # 1 in place of b
        axis = _order(len(_shape(eqn))).index(eqn.params["dimension"])
        return self.node("Concat", *map(_placed, inputs), axis=axis)

    def op_stack(self, eqn: core.JaxprEqn, *inputs: Value) -> str:
        n, axis = len(_shape(eqn)), eqn.params["axis"]
        order, have = _order(n + 1), [i + (i >= axis) for i in _order(n)]
        where, shape = order.index(axis), next(self.node("Shape", x) for x in inputs if isinstance(x, str))

        def part(x: Value) -> str:
            x = x if isinstance(x, str) else self.node("Expand", _placed(x), shape)  # it may have 1 in place of b
            return self.node("Unsqueeze", self.moved(x, have, [i for i in order if i != axis]), np.array([where]))

        return self.node("Concat", *map(part, inputs), axis=where)

    def op_square(self, eqn: core.JaxprEqn, x: str) -> str:
        return self.node("Mul", x, x)

    def op_rsqrt(self, eqn: core.JaxprEqn, x: str) -> str:
        return self.node("Reciprocal", self.node("Sqrt", x))

    def op_select_n(self, eqn: core.JaxprEqn, which: Value, *cases: Value) -> str | None:
        return self.node("Where", *map(_placed, (which, cases[1], cases[0]))) if len(cases) == 2 else None


def _order(ndim: int) -> tuple[int, ...]:
    """Axis i in ONNX is this axis in the jaxpr."""
    return NCHW if ndim == 4 else tuple(range(ndim))


def _placed(value: Value) -> Value:
    """An array with its axes in ONNX's order; a tensor has them so."""
    return value.transpose(_order(value.ndim)) if isinstance(value, np.ndarray) else value


def _shape(eqn: core.JaxprEqn) -> tuple[Any, ...]:
    """Of the first operand, in the jaxpr."""
    aval: Any = eqn.invars[0].aval
    return aval.shape


def _content(value: np.ndarray) -> tuple:
    """Equal for arrays of the same type, shape and bits."""
    return value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest()


def _begins_and_ends(padding: Sequence[Sequence[int]]) -> list[int]:
    """((low, high), ...) -> lows, then highs: ONNX's order."""
    return [low for low, _ in padding] + [high for _, high in padding]
