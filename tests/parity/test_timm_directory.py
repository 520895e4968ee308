"""A directory of `--to timm` is what timm's own `create_model` and `resolve_data_config` take."""

import io

import numpy as np
import pytest
from flax import nnx
from PIL import Image

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from eca_jax import create_model, load_pretrained  # noqa: E402
from eca_jax.convert.convert import convert  # noqa: E402
from eca_jax.convert.files import write_safetensors  # noqa: E402
from eca_jax.convert.pretrained import own_metadata  # noqa: E402
from eca_jax.convert.state_dict import NATIVE, from_state_dict, to_state_dict  # noqa: E402
from eca_jax.data.preprocess import PreprocessConfig, eval_image, normalise  # noqa: E402
from eca_jax.nn import AttentionConfig  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity
PREPROCESS = PreprocessConfig(
    image_size=64, eval_resize=77, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.3, 0.4, 0.5)
)
ADAPTIVE = AttentionConfig(kernel_sizes="adaptive")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("eca_resnet18", {"attention": ADAPTIVE}),  # timm's resnet18 with an argument
        ("resnet50d", {"attention": AttentionConfig("eca")}),
        ("ecaresnet26t", {}),
        ("seresnet50t", {}),
        ("se_resnet50", {"attention": AttentionConfig(bias=True)}),
        ("mobilenet_v2", {}),
    ],
)
def test_timm_makes_the_same_of_the_same_image_file(name, options, tmp_path, rng):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=7, rngs=nnx.Rngs(0), **options))
    their_name, arguments = timm_arguments(name)
    reference = timm.create_model(their_name, num_classes=7, **arguments)
    model = from_state_dict(
        authors.arrays(authors.randomise(reference)), source="timm", architecture=model.architecture
    )
    model.preprocess = PREPROCESS
    own, directory = tmp_path / "own.safetensors", tmp_path / "directory"
    write_safetensors(own, to_state_dict(model, NATIVE), own_metadata(model, tuple("abcdefg")))
    assert "; " not in convert(own, directory, "timm"), "nothing is missing in it"

    theirs = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    assert theirs.pretrained_cfg["label_names"] == list("abcdefg")
    config = timm.data.resolve_data_config(model=theirs)
    assert config | {"crop_pct": None} == {
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.4, 0.5],
        "crop_pct": None,
        "crop_mode": "center",
    }
    image, file = Image.fromarray(rng.integers(0, 256, (90, 110, 3), np.uint8)), io.BytesIO()
    image.save(file, "png")
    with torch.no_grad():
        want = theirs(timm.data.create_transform(**config)(image)[None]).numpy()
    ours = load_pretrained(directory)
    pixels = eval_image(file.getvalue(), ours.preprocess)
    got = np.asarray(nnx.jit(lambda m, x: m(normalise(x, ours.preprocess)))(ours, pixels[None]))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def timm_arguments(name: str) -> tuple[str, dict]:
    """How a person asks timm for the same network."""
    eca, se = {"block_args": {"attn_layer": "eca"}}, {"block_args": {"attn_layer": "se"}}
    asked = {"eca_resnet18": ("resnet18", eca), "resnet50d": ("resnet50d", eca), "se_resnet50": ("resnet50", se)}
    return {**asked, "mobilenet_v2": ("mobilenetv2_100", {})}.get(name, (name, {}))


@pytest.mark.parametrize("name", ["ecaresnet26t", "mobilenet_v2"])
def test_timm_builds_other_channels_and_output_strides(name, tmp_path):
    settings = {"num_classes": 7, "in_channels": 2, "output_stride": 16}
    model = nnx.jit(lambda: create_model(name, rngs=nnx.Rngs(0), **settings))()
    own, directory = tmp_path / "own.safetensors", tmp_path / "directory"
    write_safetensors(own, to_state_dict(model, NATIVE), own_metadata(model))
    convert(own, directory, "timm")
    theirs = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    features = theirs.forward_features(torch.zeros(1, 2, 64, 64))
    assert features.shape[2:] == (4, 4)
    tensors = to_state_dict(model, "timm")
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), tensors[key])
    assert load_pretrained(directory).architecture == model.architecture


def test_what_timm_does_not_build_is_said_and_is_an_error_there(tmp_path):
    model = create_model("resnet18", num_classes=7, small_stem=True, rngs=nnx.Rngs(0))
    own, directory = tmp_path / "own.safetensors", tmp_path / "directory"
    write_safetensors(own, to_state_dict(model, NATIVE), own_metadata(model))
    assert "; but timm's create_model does not build it (small_stem), " in convert(own, directory, "timm")
    with pytest.raises(RuntimeError, match="size mismatch for conv1"):
        timm.create_model(f"local-dir:{directory}", pretrained=True)
    assert load_pretrained(directory).architecture == model.architecture
