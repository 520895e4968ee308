"""Names, parameter counts, shapes and initialisation of the backbones; their numbers are checked in tests/parity."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eca_jax
from eca_jax.errors import EcaJaxError
from eca_jax.nn import AttentionConfig
from tests.tiny import brought_from_outside, register


def abstract(name, **options):
    return nnx.eval_shape(lambda: eca_jax.create_model(name, rngs=nnx.Rngs(0), **options))


def count(name, **options) -> int:
    """Trainable parameters, from shapes alone."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(abstract(name, **options), nnx.Param)))


# The paper's Tables 2 and 3 in whole numbers: plain, and what ECA adds by kernel policy.
PLAIN = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
}
ADDED = {
    "resnet18": {"released": 44, "adaptive": 36, (3, 5, 5, 5): 36, 3: 24},
    "resnet34": {"released": 72, "adaptive": 74, (3, 5, 5, 5): 74, 3: 48},
    "resnet50": {"released": 80, "adaptive": 86, (3, 5, 5, 5): 74, 3: 48},
    "resnet101": {"released": 157, "adaptive": 171, (3, 5, 5, 5): 159, 3: 99},
    "resnet152": {"released": 234, "adaptive": 256, (3, 5, 5, 5): 244, 3: 150},
    "mobilenet_v2": {"released": 31, "adaptive": 59, 3: 51},
}


DEEPEST = pytest.param("resnet152", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*(name for name in PLAIN if name != "resnet152"), DEEPEST])
def test_parameter_counts_are_the_paper_s(name):
    assert count(name) == PLAIN[name]
    for policy, added in ADDED[name].items():
        attention = AttentionConfig(kernel_sizes=policy)
        assert count(f"eca_{name}", attention=attention) - PLAIN[name] == added, policy


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Table 3 prints 2^20 units: 28,071,976 = 26.77M; the poster 11.231M and 20.938M for ResNet-18 and 34.
    [("se_resnet50", 28_071_976), ("se_mobilenet_v2", 3_561_800)],
)
def test_se_counts_are_the_paper_s(name, parameters):
    assert count(name) == parameters


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("se_resnet18", 11.231),
        ("se_resnet34", 20.938),
        ("se_resnet50", 26.77),
        ("se_resnet101", 47.01),
        ("se_resnet152", 63.68),
    ],
)
def test_se_counts_round_to_the_printed_ones(name, printed):
    digits = len(str(printed).split(".")[1])
    assert round(count(name) / 2**20, digits) == printed


def test_eca_ns_count_is_the_paper_s():
    attention = AttentionConfig(kind="eca_ns", kernel_sizes=3)
    assert count("resnet50", attention=attention) - PLAIN["resnet50"] == 45_312


def test_list_models():
    names = eca_jax.list_models()
    assert eca_jax.list_models("eca_*") == [f"eca_{name}" for name in sorted(PLAIN)]
    assert {"resnet50", "se_resnet50", "mobilenet_v2", "seresnet50", "resnet26t", "resnet50d"} < set(names)
    assert eca_jax.list_models("ecaresnet*") == [
        f"ecaresnet{name}" for name in ("101d", "200d", "269d", "26t", "50d", "50t", "light")
    ]


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(EcaJaxError, match=r"unknown model 'eca_resnet5'. Did you mean eca_resnet50"):
        eca_jax.create_model("eca_resnet5", rngs=nnx.Rngs(0))


def test_a_name_does_not_lie_about_its_attention():
    with pytest.raises(EcaJaxError, match=r"has the attention 'eca', but attention.kind is 'se'"):
        eca_jax.create_model("eca_resnet18", rngs=nnx.Rngs(0), attention=AttentionConfig(kind="se"))


@pytest.mark.parametrize("small_stem", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_features_have_the_shapes_that_feature_info_says(name, small_stem):
    model = abstract(name, small_stem=small_stem, num_classes=7)
    size = 64
    outputs, logits = nnx.eval_shape(
        lambda m, x: (m.features(x), m.eval() or m(x)), model, jnp.zeros((2, size, size, 3))
    )
    assert list(outputs) == [info.name for info in model.feature_info]
    for info in model.feature_info:
        side = size // info.stride
        assert outputs[info.name].shape == (2, side, side, info.channels)
    assert model.feature_info[-1].stride == (8 if small_stem else 32)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "output_stride", "strides"),
    [
        ("resnet18", 16, (4, 8, 16, 16)),
        ("ecaresnet26t", 8, (4, 8, 8, 8)),
        ("mobilenet_v2", 16, (2, 4, 8, 16, 16, 16, 16)),
    ],
)
def test_output_stride_keeps_the_weights_and_enlarges_the_last_stages(name, output_stride, strides):
    model, plain = abstract(name, output_stride=output_stride), abstract(name)
    assert nnx.state(model) == nnx.state(plain)
    outputs = nnx.eval_shape(lambda m, x: m.features(x), model, jnp.zeros((1, 64, 64, 3)))
    assert tuple(info.stride for info in model.feature_info) == strides
    assert [outputs[info.name].shape[1] for info in model.feature_info] == [64 // stride for stride in strides]
    assert [info.channels for info in model.feature_info] == [info.channels for info in plain.feature_info]
    assert model.architecture.output_stride == output_stride


@pytest.mark.parametrize(
    ("name", "small_stem"),
    [("resnet18", False), ("resnet18", True), ("ecaresnet26t", False), ("mobilenet_v2", False)],
)
def test_networks_for_other_channels_differ_in_the_first_convolution_alone(name, small_stem):
    options = {"small_stem": small_stem, "width_multiplier": 0.125}
    model, plain = (abstract(name, in_channels=n, **options) for n in (5, 3))
    changed = [
        (ours.shape, usual.shape)
        for ours, usual in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, plain)), strict=True)
        if ours.shape != usual.shape
    ]
    ((ours, usual),) = changed
    assert (ours[2], usual[2]) == (5, 3)
    assert model.architecture.in_channels == 5
    assert nnx.eval_shape(lambda m: m.eval() or m(jnp.zeros((2, 32, 32, 5))), model).shape == (2, 1000)


@pytest.mark.parametrize("name", ["eca_resnet18", "mobilenet_v2"])
def test_logits_are_the_classifier_of_what_pre_logits_gives(name):
    model = abstract(name, num_classes=5, width_multiplier=0.125)
    model.eval()
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[0] in ("last", "classifier", "fc"):  # all that the heads have
            variable.set_value(jnp.asarray(rng.uniform(0.5, 1.0, variable.shape), jnp.float32))
    info = model.feature_info[-1]
    x = rng.normal(size=(2, 3, 3, info.channels)).astype(np.float32)
    pooled = np.asarray(model.head(jnp.asarray(x), pre_logits=True))
    last = getattr(model, model.classifier_name)
    np.testing.assert_allclose(
        model.head(jnp.asarray(x)),
        pooled @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...]),
        rtol=1e-5,
        atol=1e-5,
    )
    if name == "eca_resnet18":
        np.testing.assert_allclose(pooled, x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert pooled.shape == (2, last.in_features)


@pytest.mark.parametrize("name", ["eca_resnet18", "mobilenet_v2"])
def test_reset_classifier_makes_the_last_layer_anew_and_nothing_else(name):
    model = abstract(name, num_classes=5, width_multiplier=0.125)
    before, architecture = dict(nnx.to_flat_state(nnx.state(model))), model.architecture
    width = getattr(model, model.classifier_name).in_features
    model.reset_classifier(400, rngs=nnx.Rngs(0))
    after = dict(nnx.to_flat_state(nnx.state(model)))
    last = {(model.classifier_name, key) for key in ("kernel", "bias")}
    assert set(before) == set(after)
    assert {path for path in after if after[path] is not before[path]} == last
    assert model.architecture == dataclasses.replace(architecture, num_classes=400)
    weights = np.asarray(getattr(model, model.classifier_name).kernel[...])
    assert weights.shape == (width, 400)
    expected = 0.01 if name == "mobilenet_v2" else width**-0.5 / math.sqrt(3)
    np.testing.assert_allclose(weights.std(), expected, rtol=0.05)
    with pytest.raises(EcaJaxError, match=r"^num_classes: expected a positive number, got 0: .* pre_logits=True"):
        model.reset_classifier(0, rngs=nnx.Rngs(0))


def test_a_backbone_of_a_plugin_may_be_without_the_newer_arguments():
    with brought_from_outside():
        register()
        for argument, value in (("in_channels", 1), ("output_stride", 16)):
            with pytest.raises(EcaJaxError, match=f"^{argument}: the backbone 'tiny' has no such argument; expected"):
                abstract("tiny", **{argument: value})
        model = abstract("tiny", in_channels=3, output_stride=32, num_classes=4)
        model.reset_classifier(6, rngs=nnx.Rngs(0))
        assert nnx.eval_shape(lambda m: m(jnp.zeros((1, 8, 8, 3))), model).shape == (1, 6)
        del model.fc
        with pytest.raises(EcaJaxError, match=r"^reset_classifier: the backbone Tiny has no dense layer 'fc'; .*"):
            model.reset_classifier(5, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["eca_resnet18", "se_mobilenet_v2"])
def test_width_multiplier_scales_the_channels(name):
    full, half = abstract(name), abstract(name, width_multiplier=0.5)
    assert [info.channels // 2 for info in full.feature_info] == [info.channels for info in half.feature_info]


SMALL = {"num_classes": 5, "small_stem": True, "width_multiplier": 0.125}


def test_bfloat16_computes_narrow_and_answers_wide():
    model = abstract("eca_resnet18", dtype=jnp.bfloat16, **SMALL)
    x = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model)))
    graphdef, state = nnx.split(model)
    features = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).features(x), state, x)
    logits = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    assert all(feature.dtype == jnp.bfloat16 for feature in features.values())
    assert logits.dtype == jnp.float32


def test_train_and_eval_switch_batch_statistics_and_dropout():
    with brought_from_outside():
        register()
        model = nnx.jit(lambda: eca_jax.create_model("eca_resnet10", rngs=nnx.Rngs(0), dropout=0.5, **SMALL))()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    call = nnx.jit(lambda model, x, seed: model(x, rngs=nnx.Rngs(jax.random.key(seed))))
    before = np.asarray(model.bn1.mean[...])
    a, b = call(model, x, 1), call(model, x, 2)
    assert not np.allclose(a, b)
    assert not np.array_equal(before, model.bn1.mean[...])
    model.eval()
    before = np.asarray(model.bn1.mean[...])
    np.testing.assert_array_equal(call(model, x, 1), call(model, x, 2))
    np.testing.assert_array_equal(before, model.bn1.mean[...])


def initial(name, pick, **options):
    """What `pick` takes of a model with weights; nothing else is computed."""
    return jax.jit(lambda: pick(eca_jax.create_model(name, rngs=nnx.Rngs(0), **options)))()


def test_initialisation_of_resnet_is_the_authors():
    """Convolutions normal with std sqrt(2 / (k k c_out)), norm weights 1 (the last ones too), linear uniform."""

    def pick(model):
        convs = (model.conv1, model.layer2[0].conv2, model.layer4[2].conv3)
        return [conv.kernel[...] for conv in convs], model.layer1[0].bn3.scale[...], model.fc.kernel[...]

    kernels, scale, weights = initial("eca_resnet50", pick, num_classes=100)
    for kernel, k, c_out in zip(kernels, (7, 3, 1), (64, 128, 2048), strict=True):
        np.testing.assert_allclose(np.asarray(kernel).std(), math.sqrt(2 / (k * k * c_out)), rtol=0.05)
    assert np.all(np.asarray(scale) == 1)
    weights = np.asarray(weights)
    assert np.abs(weights).max() <= 2048**-0.5
    np.testing.assert_allclose(weights.std(), 2048**-0.5 / math.sqrt(3), rtol=0.05)


def test_initialisation_of_mobilenet_is_the_authors():
    """Depthwise convolutions count the whole kernel's outputs, as PyTorch's fan_out does; linear normal 0.01."""

    def pick(model):
        return model.blocks[14].depthwise.conv.kernel[...], model.classifier.kernel[...]

    depthwise, weights = initial("eca_mobilenet_v2", pick)
    np.testing.assert_allclose(np.asarray(depthwise).std(), math.sqrt(2 / (9 * 960)), rtol=0.05)
    np.testing.assert_allclose(np.asarray(weights).std(), 0.01, rtol=0.05)
    assert abstract("eca_mobilenet_v2").dropout.rate == 0.25


def test_released_kernel_sizes_of_mobilenet_follow_the_width():
    model = abstract("eca_mobilenet_v2")
    sizes = [(block.bn.scale.shape[0], block.attn.kernel.shape[0]) for block in model.blocks]
    assert len(sizes) == 17
    assert all(k == (1 if channels < 96 else 3) for channels, k in sizes)


@pytest.mark.parametrize("name", ["eca_resnet18", "mobilenet_v2"])
def test_stochastic_depth_grows_linearly_and_leaves_whole_branches_out(name):
    model = abstract(name, num_classes=10, width_multiplier=0.125, drop_path=0.25)
    rates = [module.drop_path.rate for _, module in nnx.iter_modules(model) if hasattr(module, "drop_path")]
    np.testing.assert_allclose(rates, np.arange(len(rates)) * 0.25 / (len(rates) - 1), atol=1e-12)
    last = next(module for _, module in nnx.iter_modules(model) if getattr(module, "rate", None) == 0.25)
    x = np.asarray(last(jnp.ones((4000, 2, 2, 3)), rngs=nnx.Rngs(dropout=0)))
    assert (x == x[:, :1, :1, :1]).all()
    np.testing.assert_allclose(np.unique(x), [0, 4 / 3], rtol=1e-6)
    assert (x[:, 0, 0, 0] == 0).mean() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)
    last.eval()
    np.testing.assert_array_equal(last(jnp.ones((5, 2, 2, 3))), 1)


ONE = (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), r"got the shape \(2, 3, 8, 8\): channels come last, x.transpose"),
        (np.zeros((8, 8, 3), np.float32), r"got the shape \(8, 8, 3\): one image needs a batch axis too, x\[None\]"),
        (
            np.zeros((2, 8, 8, 1), np.float32),
            r"got the shape \(2, 8, 8, 1\): a grey image is three equal channels, x.repeat\(3, axis=3\)",
        ),
        (np.zeros((2, 8, 8, 4), np.float32), r"got the shape \(2, 8, 8, 4\): images are RGB"),
        (np.zeros(ONE, np.uint8), r"got uint8: normalise them, \(x / 255 - mean\) / std"),
        (np.zeros(ONE, np.int64), "got int64: normalise them"),
        ([[0.0]], "got list: make it an array"),
    ],
)
@pytest.mark.parametrize("name", ["eca_resnet18", "mobilenet_v2"])
def test_what_is_no_batch_of_normalised_images_is_refused(name, x, message):
    """Under jit too, where only shapes and types are known."""
    model = abstract(name, width_multiplier=0.125)
    graphdef, state = nnx.split(model)
    for call in (lambda model: model(x), lambda model: model.features(x)):
        with pytest.raises(EcaJaxError, match=f"^model: expected normalised images .b, h, w, 3., floats, {message}"):
            jax.eval_shape(lambda state, call=call: call(nnx.merge(graphdef, state)), state)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 8, 8, 3), np.float32, r"got the shape \(2, 8, 8, 3\): this network was made with in_channels=1"),
        ((2, 1, 8, 8), np.float32, r"got the shape \(2, 1, 8, 8\): channels come last, x.transpose"),
        ((8, 8, 1), np.float32, r"got the shape \(8, 8, 1\): one image needs a batch axis too, x\[None\]"),
        ((2, 8, 8, 1), np.uint8, r"got uint8: normalise them, .* with a mean and std of your own for the 1 channels"),
    ],
)
@pytest.mark.parametrize("name", ["eca_resnet18", "mobilenet_v2"])
def test_images_of_other_channels_are_refused_with_the_number_of_the_network(name, shape, dtype, message):
    model = abstract(name, width_multiplier=0.125, in_channels=1)
    for call in (model, model.features):
        with pytest.raises(EcaJaxError, match=f"^model: expected normalised images .b, h, w, 1., floats, {message}"):
            call(np.zeros(shape, dtype))


def test_arguments_of_another_type_are_answered_in_one_line():
    with pytest.raises(EcaJaxError, match=r"rngs: expected flax.nnx.Rngs, got 0: give nnx.Rngs\(0\)"):
        eca_jax.create_model("eca_resnet18", rngs=0)
    with pytest.raises(EcaJaxError, match=r"attention: expected an AttentionConfig or a kind .*, got 3"):
        eca_jax.create_model("resnet18", rngs=nnx.Rngs(0), attention=3)
    with pytest.raises(EcaJaxError, match=r"weights: expected a file, .*, got None"):
        eca_jax.load_pretrained(None)


SHARE = "0 <= {0} < 1, got {1}"


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("dtype", jnp.int32, "one of float32, bfloat16, float64, float16, got 'int32'"),
        ("dtype", bool, "one of .*, got 'bool'"),
        ("dtype", "complex64", "one of .*, got 'complex64'"),
        ("dtype", "garbage", "one of .*, got 'garbage'"),
        ("dtype", None, "one of .*, got None"),
        ("param_dtype", jnp.int32, "one of .*, got 'int32'"),
        ("dropout", 1, SHARE),
        ("dropout", -0.1, SHARE),
        ("dropout", math.nan, SHARE),
        ("dropout", "0.1", "a number or None, got '0.1'"),
        ("drop_path", 9, SHARE),
        ("drop_path", math.nan, SHARE),
        ("drop_path", None, "a number, got None"),
        ("batch_norm_momentum", 0, "0 < batch_norm_momentum <= 1, got 0"),
        ("batch_norm_momentum", 2, "0 < batch_norm_momentum <= 1, got 2"),
        ("batch_norm_momentum", math.nan, "0 < batch_norm_momentum <= 1, got nan"),
        ("num_classes", "10", "a whole number, got '10'"),
        ("num_classes", 10.5, "a whole number, got 10.5"),
        ("num_classes", 0, "a positive number, got 0"),
        ("width_multiplier", "0.5", "a number, got '0.5'"),
        ("width_multiplier", None, "a number, got None"),
        ("batch_norm_group", 2.5, "a whole number or None, got 2.5"),
        ("batch_norm_group", "4", "a whole number or None, got '4'"),
        ("batch_norm_group", 0, "a positive number, got 0"),
        ("small_stem", "false", "True or False, got 'false'"),
        ("in_channels", 0, "a positive number, got 0"),
        ("in_channels", "1", "a whole number, got '1'"),
        ("output_stride", 4, "one of 8, 16, 32, got 4"),
        ("output_stride", 64, "one of 8, 16, 32, got 64"),
        ("output_stride", "16", "a whole number, got '16'"),
        ("rematerialise", 1, "True or False, got 1"),
        ("name", None, "text, got None"),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(argument, value, expected):
    with pytest.raises(EcaJaxError, match=f"^{argument}: expected {expected.format(argument, value)}"):
        eca_jax.create_model(**{"name": "resnet18", "rngs": nnx.Rngs(0), argument: value})


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_small_stem_has_no_output_stride_to_choose(name):
    with pytest.raises(EcaJaxError, match=r"^output_stride: expected 32, .* with small_stem, got 16: such a network"):
        eca_jax.create_model(name, rngs=nnx.Rngs(0), small_stem=True, output_stride=16)


@jax.enable_x64(False)
def test_float64_is_not_silently_float32():
    for argument in ("dtype", "param_dtype"):
        with pytest.raises(EcaJaxError, match=f"^{argument}: float64 needs .* JAX_ENABLE_X64=1"):
            eca_jax.create_model("resnet18", rngs=nnx.Rngs(0), **{argument: "float64"})


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("mobilenet_v2", 1280)])
def test_a_classifier_that_fits_no_memory_is_refused(name, channels):
    with pytest.raises(
        EcaJaxError, match=f"^num_classes: too large, a classifier from {channels} channels to 1000000000 "
    ):
        abstract(name, num_classes=10**9)


def test_a_string_is_the_kind_of_an_attention():
    assert abstract("resnet18", attention="se").architecture == abstract("se_resnet18").architecture.__class__(
        "resnet18", 1000, abstract("se_resnet18").architecture.attention
    )
    with pytest.raises(EcaJaxError, match=r"unknown attention 'ecaa'. Did you mean eca"):
        abstract("resnet18", attention="ecaa")


@pytest.mark.parametrize(("name", "option"), [("eca_resnet18", "drop_path"), ("eca_mobilenet_v2", "dropout")])
def test_randomness_without_random_numbers_is_answered_in_one_line(name, option):
    model = abstract(name, width_multiplier=0.125, **{option: 0.2})
    with pytest.raises(EcaJaxError, match=r"stochastic depth of 0.\d+ needs random .* rngs=nnx.Rngs\(dropout=0"):
        nnx.eval_shape(lambda model: model(jnp.zeros(ONE)), model)
    model.eval()
    assert nnx.eval_shape(lambda model: model(jnp.zeros(ONE)), model).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "train"), [("eca_resnet18", True), pytest.param("se_mobilenet_v2", False, marks=pytest.mark.slow)]
)
def test_tabulate_works_and_models_after_it(name, train):
    options = {"num_classes": 5, "width_multiplier": 0.125, "dropout": 0.0}
    model = nnx.jit(lambda: eca_jax.create_model(name, rngs=nnx.Rngs(0), **options))()
    (model.train if train else model.eval)()
    x = jnp.zeros((2, 32, 32, 3))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    table = nnx.tabulate(model, x, console_kwargs={"force_terminal": False, "width": 200})
    assert f"{total:,}" in table
    again = abstract(name, width_multiplier=0.125, dropout=0.0)
    assert nnx.eval_shape(lambda model: model(x), again).shape == (2, 1000)
    assert nnx.eval_shape(lambda model: model(x), model).shape == (2, 5)
