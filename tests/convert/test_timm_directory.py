"""How images are made goes with the weights: timm's directory out and in again. (timm itself: tests/parity.)"""

import dataclasses
import json

import jax.numpy as jnp
import pytest
from flax import nnx
from huggingface_hub import ModelCard

from eca_jax import cli, create_model, load_pretrained
from eca_jax.config import Config, DataConfig, ModelConfig
from eca_jax.convert.convert import convert
from eca_jax.convert.files import write_safetensors
from eca_jax.convert.pretrained import describe, load, own_metadata
from eca_jax.convert.state_dict import NATIVE, to_state_dict
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.sources import open_source
from eca_jax.tasks import Classification, MultiLabel
from eca_jax.training.evaluate import evaluate_run, evaluate_weights
from tests.damage import disk_with, refusal

PREPROCESS = PreprocessConfig(
    image_size=16, eval_resize=21, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.3, 0.4, 0.5), augment="none"
)
CONFIG = Config(
    model=ModelConfig(name="resnet18", small_stem=True, width_multiplier=0.0625),
    data=DataConfig(name="digits", eval_split="test[:64]", num_threads=1),
    task=Classification(PREPROCESS),
    batch_size=64,
    epochs=1,
)
NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Our own file of a narrow ResNet-18 with fresh weights."""
    model = create_model("resnet18", num_classes=10, small_stem=True, width_multiplier=0.0625, rngs=nnx.Rngs(0))
    model.preprocess = PREPROCESS
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model, NAMES, CONFIG.task))
    return path


@pytest.fixture
def directory(file, tmp_path):
    convert(file, tmp_path / "timm", "timm")
    return tmp_path / "timm"


def test_the_crop_share_says_the_size_before_the_crop_exactly():
    """timm's own arithmetic: floor(size / crop_pct)."""
    for size in (1, 7, 32, 65, 160, 224, 299):
        for resize in range(size, 3 * size):
            config = PreprocessConfig(image_size=size, eval_resize=resize)
            assert PreprocessConfig.from_crop_share(size, json.loads(json.dumps(config.crop_share))) == config
            assert config.crop_share == pytest.approx(size / resize, rel=1e-15)


@pytest.mark.system
def test_a_run_scores_the_same_after_to_timm(file, tmp_path):
    run = tmp_path / "run"
    convert(file, run, "orbax", config=CONFIG)
    line = convert(run, tmp_path / "timm", "timm")
    assert "timm (README.md, config.json, model.safetensors); but timm's create_model does not build it (small_" in line
    _, _, scores = evaluate_run(str(run))
    again, found = evaluate_weights(str(tmp_path / "timm"), "digits", split="test[:64]")
    assert again.preprocess == dataclasses.replace(PREPROCESS, augment="random_resized_crop")
    assert found == pytest.approx(scores, rel=1e-6)


def test_all_of_it_is_read_again(directory):
    loaded = load(directory)
    assert (loaded.class_names, loaded.assumed) == (NAMES, False)
    assert loaded.model.preprocess == dataclasses.replace(PREPROCESS, augment="random_resized_crop")
    card = ModelCard.load(directory / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert "of which the middle\n  16 x 16" in card.text


def test_channels_and_the_output_stride_are_read_again(tmp_path):
    """timm's arguments of them are in config.json; of the channels, timm's mean and std say nothing."""
    settings = {"in_channels": 1, "output_stride": 8, "width_multiplier": 0.0625}
    model = nnx.eval_shape(lambda: create_model("resnet18", num_classes=10, rngs=nnx.Rngs(0), **settings))
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        variable.set_value(jnp.ones(variable.shape))
    model.preprocess = PREPROCESS
    own, directory = tmp_path / "own.safetensors", tmp_path / "timm"
    write_safetensors(own, to_state_dict(model, NATIVE), own_metadata(model))
    line = convert(own, directory, "timm")
    assert "resnet18 of eca_jax: attention none, 10 classes, width_multiplier 0.0625, in_channels 1, output_s" in line
    assert line.endswith("; but its mean and std are those of RGB, not of the 1 channels")
    config = json.loads((directory / "config.json").read_text())
    assert config["model_args"] == {"output_stride": 8}
    assert config["pretrained_cfg"]["input_size"] == [1, 16, 16]
    back = load_pretrained(directory)
    assert back.architecture == model.architecture == load_pretrained(own).architecture
    usual = PreprocessConfig()
    assert (back.preprocess.mean, back.preprocess.std) == (usual.mean, usual.std)


def test_what_a_file_does_not_hold_is_said_with_the_options_that_give_it(file, tmp_path, capsys):
    line = convert(file, tmp_path / "m.safetensors", "timm")
    _, options = line.split("(a directory for DST has it in timm's config.json, or evaluate and predict with ")
    command = ["evaluate", "--weights", str(tmp_path / "m.safetensors"), "--data", "digits", "--split", "test[:64]"]
    assert cli.main([*command, *options.removesuffix(")").split()]) == 0
    printed = capsys.readouterr()
    said = PREPROCESS.describe_evaluation()
    assert printed.err == f"preprocess: {said} (ImageNet's usual where nothing else is given: the weights do not say)\n"
    assert printed.out.startswith(f"{tmp_path / 'm.safetensors'}, data 'digits', split 'test[:64]', {said}: top-1 ")
    assert "preprocess" not in convert(file, tmp_path / "own.safetensors")


def test_another_task_and_other_training_images_are_said(file, tmp_path):
    model = load(file).model
    model.preprocess = dataclasses.replace(PREPROCESS, train_image_size=12)
    path = tmp_path / "multi.safetensors"
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model, NAMES, MultiLabel(model.preprocess)))
    line = convert(path, tmp_path / "timm", "timm")
    assert "; but it does not say that the task was 'multi_label': what is read from it classifies" in line
    assert "; but it does not say that training saw images of 12 pixels" in line
    foreign = tmp_path / "foreign.pth.safetensors"
    write_safetensors(foreign, to_state_dict(model, "torchvision"))
    line = convert(foreign, tmp_path / "assumed", "timm")
    assert line.endswith(f"; assumed, as the weights do not say it: {PreprocessConfig().describe_evaluation()}")


def test_evaluate_and_predict_say_how_images_are_made_and_take_another_way(directory, tmp_path, capsys):
    image = tmp_path / "digit.png"
    image.write_bytes(open_source("digits", "test")[0][0])
    weights = ["--weights", str(directory)]
    assert cli.main(["predict", *weights, str(image)]) == 0
    as_it_is = capsys.readouterr()
    mean = "mean 0.5 0.4 0.3, std 0.3 0.4 0.5"
    assert as_it_is.err == f"preprocess: image_size 16, eval_resize 21, interpolation bicubic, {mean}\n"
    assert cli.main(["predict", *weights, "--preprocess.image-size", "32", str(image)]) == 0
    larger = capsys.readouterr()
    assert larger.err == f"preprocess: image_size 32, eval_resize 42, interpolation bicubic, {mean}\n"
    assert larger.out != as_it_is.out
    options = ["--preprocess.eval-resize", "16", "--preprocess.interpolation", "bilinear", "--preprocess.mean", *"123"]
    assert cli.main(["evaluate", *weights, *options, "--data", "digits", "--split", "test[:9]"]) == 0
    other = capsys.readouterr()
    assert "image_size 16, eval_resize 16, interpolation bilinear, mean 1.0 2.0 3.0, std 0.3 0.4 0.5" in other.err
    assert "split 'test[:9]', eval_resize 16, interpolation bilinear, mean 1.0 2.0 3.0: top-1" in other.out
    assert cli.main(["predict", *weights, "--preprocess.interpolation", "cubic", str(image)]) == 2
    assert "unknown 'cubic'; expected one of bilinear, bicubic" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize(("option", "value"), [("--run", "runs/a"), ("--checkpoint", "best")])
def test_a_run_and_weights_are_not_taken_together(command, option, value, directory, capsys):
    more = ["a.png"] if command == "predict" else ["--data", "digits"]
    assert cli.main([command, option, value, "--weights", str(directory), *more]) == 2
    assert capsys.readouterr().err == (
        f"error: --weights {directory} and {option} {value}: expected one of the two, leave one out\n"
    )


def test_a_place_where_something_is_already_is_refused(file, directory, tmp_path):
    message = refusal(convert, "nowhere.pth", directory, "timm")
    assert message == f"{directory} is not empty; expected the name of a new directory"
    assert "own.safetensors.d is a file" in refusal(convert, file, _touched(tmp_path / "own.safetensors.d"), "timm")
    assert f"there is no directory {tmp_path / 'no'} to make" in refusal(convert, file, tmp_path / "no" / "m", "timm")
    before = set(tmp_path.iterdir())
    with disk_with(1000):
        message = refusal(convert, file, tmp_path / "full", "timm")
    assert message == f"cannot write {tmp_path / 'full'}: File too large; nothing was written"
    assert set(tmp_path.iterdir()) == before


def _touched(path):
    path.touch()
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"pretrained_cfg": ' + '{"a": ' * 100_000, "RecursionError"),
        ("\xff", "does not say as timm does how images are made: UnicodeDecodeError"),
        ({"label_names": ["a"]}, "config.json: 1 class names, the weights have 10 classes"),
        ({"label_names": [1] * 10}, "Expected `str`, got `int`"),
        ({"input_size": [3, 60000, 60000]}, "image_size 60000 and eval_resize 78750; expected at most 8192 pixels"),
        ({"input_size": [3, *[float("inf")] * 2]}, "as timm does how images are made: OverflowError"),
        ({"input_size": [3, 16.5, 16.5]}, "preprocess.image_size: expected a whole number, got 16.5"),
        ({"interpolation": "lanczos"}, "unknown 'lanczos'"),
        ({"input_size": [3, 16, 32]}, "input_size [3, 16, 32]; expected [CHANNELS, SIZE, SIZE]"),
        ({"input_size": [1, 16, 16]}, "in_channels 1, but the weights beside it are of 3"),
        ({"num_classes": 7}, "num_classes 7, but the weights beside it are of 10"),
        ({"architecture": "vit_base"}, "architecture 'vit_base', but the weights beside it are of 'resnet18'"),
        ({"architecture": 5}, "architecture: Expected `str | null`, got `int`"),
    ],
    ids=[
        "nested",
        "bytes",
        "labels",
        "no names",
        "image size",
        "infinite",
        "half a pixel",
        "interpolation",
        "not square",
        "grey",
        "classes",
        "another model",
        "no model",
    ],
)
def test_a_config_that_cannot_be_is_one_line(directory, content, message):
    path = directory / "config.json"
    if isinstance(content, dict):
        values = json.loads(path.read_text())
        values["pretrained_cfg"] |= content
        values |= {key: value for key, value in content.items() if key in values or key == "label_names"}
        content = json.dumps(values)
    path.write_bytes(content.encode("latin-1"))
    said = refusal(load_pretrained, directory)
    assert said.startswith(str(path))
    assert message in said


def test_a_config_that_is_no_file_is_not_passed_over(directory):
    path = directory / "config.json"
    path.unlink()
    path.mkdir()
    assert refusal(load_pretrained, directory) == f"{path} is no file; expected timm's, which says how images are made"


def test_labels_with_gaps_are_no_names(directory):
    path = directory / "config.json"
    values = json.loads(path.read_text())
    for names, expected in (
        ({"1": "b", "0": "a"} | {str(i): str(i) for i in range(2, 10)}, "ab23456789"),
        ({"3": "x"}, None),
    ):
        path.write_text(json.dumps(values | {"label_names": names}))
        assert load(directory).class_names == (None if expected is None else tuple(expected))


def test_a_weight_file_for_images_of_60000_pixels_is_refused(file, tmp_path):
    model = load(file).model
    model.preprocess = PreprocessConfig(image_size=60_000, eval_resize=60_000)
    path = tmp_path / "forged.safetensors"
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model))
    assert "image_size 60000 and eval_resize 60000; expected at most 8192 pixels" in refusal(load_pretrained, path)


@pytest.mark.parametrize(("name", "sizes"), [("ecaresnet26t", "adaptive"), ("eca_resnet18", "released")])
def test_the_kernel_sizes_of_timm_s_networks_are_called_the_formula_s(name, sizes):
    """Their 'released' sizes are not the authors'."""
    model = nnx.eval_shape(lambda: create_model(name, width_multiplier=0.125, rngs=nnx.Rngs(0)))
    assert describe("timm", model.architecture).startswith(f"{name} of timm: attention eca, kernel sizes {sizes}, ")
