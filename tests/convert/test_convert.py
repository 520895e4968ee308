"""Own weights out and in again, and what a conversion refuses; PyTorch's side is tested in tests/parity."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eca_jax
from eca_jax import cli
from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.convert.convert import _write_run, convert
from eca_jax.convert.files import write_safetensors
from eca_jax.convert.leaves import leaves
from eca_jax.convert.pretrained import Loaded, load, own_metadata
from eca_jax.convert.state_dict import NATIVE, from_state_dict, to_state_dict
from eca_jax.data.imagenet import class_names, readable
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import architecture, build_model
from eca_jax.nn import AttentionConfig
from eca_jax.runs.directory import open_run
from eca_jax.runs.state import plan_state
from eca_jax.sharding import make_mesh
from tests.damage import refusal
from tests.tiny import brought_from_outside, register

CIRCULAR = AttentionConfig(circular=True)


def randomised(name: str, **options):
    """A narrow model whose weights and running statistics are all random."""
    options |= {"num_classes": 7, "width_multiplier": 0.125}
    model = nnx.eval_shape(lambda: eca_jax.create_model(name, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(0)
    for leaf in leaves(model):
        leaf.variable.set_value(jnp.asarray(rng.uniform(0.1, 1, leaf.variable.shape), jnp.float32))
    model.eval()
    return model


def equal(a, b) -> bool:
    a, b = (jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat))) for model in (a, b))
    return len(a) == len(b) and all(map(np.array_equal, a, b))


@pytest.mark.parametrize(
    ("name", "options", "source"),
    [
        ("eca_resnet18", {"small_stem": True}, "ecanet"),
        ("eca_resnet50", {"attention": AttentionConfig(kernel_sizes="adaptive")}, "ecanet"),
        ("eca_resnet50", {"attention": AttentionConfig(kernel_sizes="adaptive")}, "timm"),
        ("eca_resnet34", {"attention": AttentionConfig(kernel_sizes=(9, 1, 3, 5))}, "ecanet"),
        ("resnet18", {"attention": AttentionConfig("eca_ns", kernel_sizes=(5, 5, 5, 5))}, "ecanet"),
        ("eca_mobilenet_v2", {}, "ecanet"),
        ("mobilenet_v2", {}, "timm"),
        ("resnet34", {}, "torchvision"),
        ("ecaresnetlight", {}, "timm"),
        ("seresnet50t", {}, "timm"),
    ],
)
def test_names_and_shapes_say_what_a_state_dict_is(name, options, source):
    model = randomised(name, **options)
    again = from_state_dict(to_state_dict(model, source))
    assert again.architecture == model.architecture
    assert equal(again, model)


def test_own_safetensors_keep_everything(tmp_path):
    model = randomised("se_mobilenet_v2", small_stem=True)
    model.preprocess = PreprocessConfig(image_size=32, eval_resize=36, interpolation="bicubic", mean=(0.5, 0.4, 0.3))
    write_safetensors(tmp_path / "m.safetensors", to_state_dict(model, NATIVE), own_metadata(model))
    again = eca_jax.load_pretrained(tmp_path / "m.safetensors")
    assert equal(again, model)
    assert (again.architecture, again.preprocess) == (model.architecture, model.preprocess)


def test_another_head_is_asked_for_by_name(tmp_path):
    path = tmp_path / "m.safetensors"
    model = randomised("eca_resnet18")
    write_safetensors(path, to_state_dict(model, "ecanet"))
    with pytest.raises(EcaJaxError, match=r"have 7 classes, the model asked for 3: skip=\('fc\.\*',\)"):
        eca_jax.create_model("eca_resnet18", num_classes=3, rngs=nnx.Rngs(0), pretrained=path)
    tuned = eca_jax.create_model("eca_resnet18", num_classes=3, rngs=nnx.Rngs(1), pretrained=path, skip=("fc.*",))
    assert tuned.fc.kernel.shape == (64, 3)
    assert not tuned.bn1.use_running_average
    np.testing.assert_array_equal(tuned.layer4[1].conv2.kernel, model.layer4[1].conv2.kernel)
    with pytest.raises(EcaJaxError, match="the weights are of 'eca_resnet18', the model asked for is 'resnet50'"):
        eca_jax.create_model("resnet50", rngs=nnx.Rngs(0), pretrained=path)


def test_what_the_weights_decide_is_not_asked_for_otherwise(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, to_state_dict(randomised("eca_resnet18"), "ecanet"))
    for argument, value, reason in (
        (
            "attention",
            "se",
            "the weights are of AttentionConfig.'eca', .*; expected the same, got AttentionConfig.'se'",
        ),
        (
            "attention",
            CIRCULAR,
            ".*circular=False.*, got .*circular=True",
        ),
        ("attention", 3, "expected an AttentionConfig or a kind"),
        ("width_multiplier", 0.5, "the weights have 0.125; expected the same, got 0.5"),
        ("small_stem", True, "the weights have False; expected the same, got True"),
        ("small_stem", "false", "expected True or False, got 'false'"),
        ("num_classes", "7", "expected a whole number, got '7'"),
        ("drop_path", 9, "expected 0 <= drop_path < 1, got 9"),
    ):
        with pytest.raises(EcaJaxError, match=f"^{argument}: {reason}"):
            eca_jax.load_pretrained(path, **{argument: value})
    agreeing = {"attention": "eca", "width_multiplier": 0.125, "small_stem": False}
    assert eca_jax.load_pretrained(path, name="resnet18", **agreeing).architecture.attention.kind == "eca"
    with pytest.raises(EcaJaxError, match=r"are of 'eca_resnet18', .* is 'resnet18', which is without the attention"):
        eca_jax.load_pretrained(path, name="resnet18")
    with pytest.raises(EcaJaxError, match=r"^width_multiplier: the weights have 0.125; expected the same, got 1.0"):
        eca_jax.create_model("eca_resnet18", rngs=nnx.Rngs(0), pretrained=path, width_multiplier=1.0)
    with pytest.raises(EcaJaxError, match=r"^skip: \('fc.\*',\) is of pretrained weights"):
        eca_jax.create_model("eca_resnet18", rngs=nnx.Rngs(0), skip=("fc.*",))


def test_a_file_is_used_with_other_channels_and_another_output_stride(tmp_path):
    """The file keeps both; either may be said anew. (timm's arithmetic of the stem: tests/parity/test_models.py.)"""
    path, again = tmp_path / "m.safetensors", tmp_path / "again.safetensors"
    model = randomised("eca_resnet18", output_stride=16)
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model))
    grey = eca_jax.create_model("eca_resnet18", rngs=nnx.Rngs(0), pretrained=path, in_channels=1)
    assert grey.architecture == dataclasses.replace(model.architecture, in_channels=1)
    kernel = np.asarray(model.conv1.kernel[...])
    np.testing.assert_array_equal(grey.conv1.kernel[...], kernel.sum(2, keepdims=True))
    np.testing.assert_array_equal(grey.layer4[1].conv2.kernel[...], model.layer4[1].conv2.kernel[...])

    write_safetensors(again, to_state_dict(grey, NATIVE), own_metadata(grey))
    assert eca_jax.load_pretrained(again).architecture == grey.architecture
    assert eca_jax.load_pretrained(again, output_stride=8).feature_info[-1].stride == 8
    four = eca_jax.load_pretrained(path, in_channels=4, output_stride=32)
    np.testing.assert_array_equal(four.conv1.kernel[...], kernel[:, :, [0, 1, 2, 0]] * np.float32(3 / 4))
    fresh = eca_jax.load_pretrained(path, in_channels=4, skip=("conv1.kernel",), rngs=nnx.Rngs(1))
    assert not np.array_equal(fresh.conv1.kernel[...], four.conv1.kernel[...])
    with pytest.raises(EcaJaxError, match=r"^in_channels: expected a positive number, got 0"):
        eca_jax.load_pretrained(path, in_channels=0)
    with pytest.raises(EcaJaxError, match=r"^output_stride: expected one of 8, 16, 32, got 5"):
        eca_jax.load_pretrained(path, output_stride=5)


def test_a_state_dict_says_what_it_does_not_hold(tmp_path):
    own = tmp_path / "own.safetensors"
    model = randomised("resnet50", output_stride=16)
    write_safetensors(own, to_state_dict(model, NATIVE), own_metadata(model))
    line = convert(own, tmp_path / "theirs.safetensors", "torchvision")
    assert line.endswith("theirs.safetensors; not in the file: output_stride 16")
    assert eca_jax.load_pretrained(tmp_path / "theirs.safetensors").architecture.output_stride == 32


@pytest.mark.parametrize(
    ("name", "options", "source", "reason"),
    [
        ("eca_resnet18", {}, "torchvision", "the attention 'eca'"),
        (
            "eca_resnet50",
            {},
            "timm",
            "the attention 'eca' and kernel_sizes released .train with --model.attention.kernel-sizes adapt",
        ),
        (
            "eca_resnet18",
            {"attention": AttentionConfig(circular=True)},
            "ecanet",
            "the attention 'eca' and circular True",
        ),
        ("se_resnet50", {}, "timm", "the attention 'se' and bias False"),
        ("se_resnet50", {}, "ecanet", "the attention 'se'"),
        ("ecaresnet50d", {}, "ecanet", "the stem and shortcuts of 'ecaresnet50d'"),
        ("mobilenet_v2", {"small_stem": True}, "torchvision", "such a MobileNetV2"),
        ("se_mobilenet_v2", {"attention": AttentionConfig(bias=True)}, "timm", "such a MobileNetV2"),
        ("resnet18", {"output_stride": 16}, "torchvision", "the output_stride 16 in 'resnet18'"),
        ("mobilenet_v2", {"output_stride": 8}, "torchvision", "the output_stride 8 in 'mobilenet_v2'"),
        ("eca_resnet50", {"output_stride": 16}, "ecanet", "the output_stride 16 in 'eca_resnet50'"),
    ],
)
def test_what_a_source_would_compute_differently_is_refused(name, options, source, reason):
    model = nnx.eval_shape(lambda: eca_jax.create_model(name, rngs=nnx.Rngs(0), **options))
    with pytest.raises(EcaJaxError, match=f"{source} has no model with {reason}"):
        to_state_dict(model, source)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir, small_backbones):
    from eca_jax.training import train
    from tests.training.test_loop import CONFIG

    # A ResNet, whose momentum and stem convert, of a block a stage.
    model = dataclasses.replace(CONFIG.model, name="eca_resnet10")
    config = dataclasses.replace(CONFIG, model=model, workdir=str(tmp_path_factory.mktemp("run") / "run"))
    train(config)
    return config


def test_a_run_is_loaded_converted_exported_and_used(run, tmp_path, capsys):
    from eca_jax.training import load_run

    model, _, _ = load_run(run.workdir)
    file = tmp_path / "m.safetensors"
    line = convert(run.workdir, file)
    assert line.startswith("eca_resnet10 of eca_jax: attention eca, kernel sizes released, 10 classes, small_stem True")
    for loaded in (eca_jax.load_pretrained(run.workdir), eca_jax.load_pretrained(file)):
        assert equal(loaded, model)
        assert loaded.preprocess == run.task.preprocess

    from eca_jax.data.sources import open_source

    data, _ = open_source("digits", "test")[0]
    (tmp_path / "digit.png").write_bytes(data)
    outputs = []
    for where in (["--run", run.workdir], ["--weights", str(file), "--model", "eca_resnet10"]):
        assert cli.main(["predict", *where, str(tmp_path / "digit.png")]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert cli.main(["predict", "--model", "eca_resnet10", str(tmp_path / "digit.png")]) == 2
    assert "goes with --weights" in capsys.readouterr().err
    assert cli.main(["export", str(file), str(tmp_path / "m.stablehlo"), "--platforms", "cpu"]) == 0
    assert (tmp_path / "m.stablehlo").stat().st_size > 10_000
    assert cli.main(["export", str(file), str(tmp_path / "m.tflite")]) == 2
    assert "ends in .stablehlo or .onnx" in capsys.readouterr().err


def test_the_checkpoint_of_a_run_is_chosen(run, tmp_path, capsys):
    from eca_jax.training import load_run

    file = tmp_path / "best.safetensors"
    assert cli.main(["convert", run.workdir, str(file), "--checkpoint", "best"]) == 0
    assert equal(eca_jax.load_pretrained(file), load_run(run.workdir, "best")[0])
    for command in (["convert", run.workdir, str(file)], ["export", run.workdir, str(tmp_path / "m.onnx")]):
        assert cli.main([*command, "--checkpoint", "12345"]) == 2
        assert "12345" in capsys.readouterr().err
    assert cli.main(["export", str(file), str(tmp_path / "m.onnx"), "--checkpoint", "best"]) == 2
    assert f"--checkpoint: best is one of a run's, and {file} is a weight file" in capsys.readouterr().err


@pytest.mark.system
def test_a_run_of_weights_from_elsewhere(run, tmp_path, capsys):
    from eca_jax.training import train

    file = tmp_path / "m.safetensors"
    convert(run.workdir, file, "safetensors")
    with pytest.raises(EcaJaxError, match="--config FILE has to say"):
        convert(file, tmp_path / "new", "orbax")
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, name="resnet18"))
    with pytest.raises(EcaJaxError, match=r"--config: its model is .*'resnet18'"):
        convert(file, tmp_path / "new", "orbax", config=other)
    assert not (tmp_path / "new").exists()
    assert "step 0, without momentum" in convert(file, tmp_path / "new", "orbax", config=run)
    result = train(dataclasses.replace(run, workdir=str(tmp_path / "new")))
    assert result.new_steps == 15
    assert f"continuing {tmp_path}/new at step 0 of 15" in capsys.readouterr().out, "with those weights, not fresh ones"
    with pytest.raises(EcaJaxError, match="is not empty; expected a new directory"):
        convert(file, tmp_path / "new", "orbax", config=run)


def test_a_target_that_does_not_fit_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(EcaJaxError, match="--to: unknown 'tensorflow'; expected one of ecanet, "):
        convert("nowhere.pth", tmp_path / "m", "tensorflow")
    with pytest.raises(EcaJaxError, match=r"m\.pth does not say whose names it is to have; expected one of"):
        convert("nowhere.pth", tmp_path / "m.pth")
    with pytest.raises(EcaJaxError, match=r"expected a file that ends in \.safetensors, got "):
        convert("nowhere.pth", tmp_path / "m.pth", "safetensors")
    with pytest.raises(EcaJaxError, match=r"--to torchvision: expected a file that ends in "):
        convert("nowhere.pth", tmp_path / "m.onnx", "torchvision")


def test_a_conversion_says_what_is_untrained_and_does_not_replace_its_source(tmp_path):
    file, link = tmp_path / "own.safetensors", tmp_path / "link.safetensors"
    with brought_from_outside():
        register()
        model = eca_jax.create_model("tiny", num_classes=10, rngs=nnx.Rngs(0))
        write_safetensors(file, to_state_dict(model, NATIVE), own_metadata(model))
        line = convert(file, tmp_path / "other.safetensors", num_classes=3, skip=("fc.*",))
    assert line.endswith("other.safetensors; fc.* of it starts anew, untrained")
    link.symlink_to(file)
    for target in (file, link):
        assert refusal(convert, file, target) == f"{target} is what is to be converted; give another name"


@pytest.mark.parametrize("epoch", [-1, 4, 10**30])
def test_a_run_that_would_be_shorter_than_what_its_weights_had_is_refused(tmp_path, data_dir, epoch):
    config = Config(
        model=ModelConfig("resnet18", small_stem=True, width_multiplier=0.0625),
        data=DataConfig(name="digits"),
        epochs=3,
    )
    model = build_model(config.model, 10, nnx.Rngs(0))
    message = refusal(_write_run, Loaded(model, NATIVE, epoch=epoch), tmp_path / "run", config)
    assert message == f"the weights are of epoch {epoch}, --config says epochs=3: give a longer run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_averages_start_anew_in_a_run_of_weights_from_elsewhere(tmp_path, data_dir, name):
    """The schedule goes on at the run's step; averages of no gradient are not corrected as those of many."""
    with brought_from_outside():
        register()
        config = Config(
            model=ModelConfig("tiny"),
            data=DataConfig(name="digits", train_split="train[:640]"),
            optim=OptimConfig(name),
            batch_size=64,
            epochs=3,
        )
        model = build_model(config.model, 10, nnx.Rngs(0))
        said = _write_run(Loaded(model, NATIVE, epoch=2), tmp_path / "run", config)
        assert " (step 20, without momentum: " in said
        plan = plan_state(config, make_mesh(jax.devices()[:1]), num_examples=640, num_classes=10)
        with open_run(tmp_path / "run") as checkpoints:
            state = checkpoints.read_state(20, plan.abstract_state)
        assert load(tmp_path / "run").momentum is None
    counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
    assert {path[-1].tuple_name: int(count) for path, count in counts} == {
        "ScaleByAdamState": 0,
        "ScaleByScheduleState": 20,
    }


def test_the_output_stride_of_a_run_is_the_configuration_s_where_the_weights_do_not_say_it(tmp_path, data_dir):
    config = Config(
        model=ModelConfig("resnet18", output_stride=16, width_multiplier=0.0625),
        data=DataConfig(name="digits"),
        epochs=3,
    )
    wide = dataclasses.replace(config.model, output_stride=32)
    ours, plain = (nnx.eval_shape(lambda m=m: build_model(m, 10, nnx.Rngs(0))) for m in (config.model, wide))
    assert ours.architecture == architecture(config.model, 10)
    assert ours.feature_info[-1].stride == 16
    accepted = "the weights are of epoch 4, --config says epochs=3: give a longer run"
    for model, origin in ((ours, NATIVE), (plain, "timm"), (ours, "timm")):
        assert refusal(_write_run, Loaded(model, origin, epoch=4), tmp_path / "run", config) == accepted
    assert refusal(_write_run, Loaded(plain, NATIVE), tmp_path / "run", config).startswith("--config: its model is ")


def test_the_state_of_the_training_is_loaded_too(run):
    loaded = load(run.workdir)
    assert loaded.epoch == 3
    momentum = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(loaded.momentum)])
    assert np.abs(momentum).max() > 0
    assert load(run.workdir, in_channels=1).momentum is None  # that of the stem is of three channels


def test_names_of_imagenet():
    names = class_names(1000)
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert readable("n02099601") == "golden retriever"
    assert class_names(3) == ("0", "1", "2")


def test_metadata_is_json_that_a_person_can_read():
    metadata = own_metadata(nnx.eval_shape(lambda: eca_jax.create_model("eca_resnet18", rngs=nnx.Rngs(0))))
    assert json.loads(json.dumps(metadata))["architecture"]["attention"]["kind"] == "eca"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 99, "of format 99, this version of eca_jax reads up to 1: upgrade"),
        ("format", "1", "Expected `int`, got `str`"),
        ("class_names", ["a", "b"], "2 class names, the weights have 10 classes"),
        ("class_names", 3, "Expected `array | null`, got `int`"),
        ("task", "classification", "Expected `object`, got `str`"),
        ("task", {"name": "nothing"}, "unknown task 'nothing'"),
    ],
)
def test_what_a_weight_file_says_of_itself_is_checked(tmp_path, key, value, message):
    model = eca_jax.create_model("eca_resnet18", num_classes=10, width_multiplier=0.0625, rngs=nnx.Rngs(0))
    path = tmp_path / "model.safetensors"
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model) | {key: value})
    assert message in refusal(eca_jax.load_pretrained, path)
