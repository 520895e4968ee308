"""`eca_jax.preprocess`: what predict sees, in whatever form the image comes. (torchvision and timm: tests/parity.)"""

import io
import os

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import eca_jax
from eca_jax.data.preprocess import PreprocessConfig, eval_image
from tests.damage import refusal
from tests.tiny import brought_from_outside, register

CONFIG = PreprocessConfig(image_size=20, eval_resize=25, interpolation="bicubic", mean=(0.5, 0.4, 0.3))


@pytest.fixture(scope="module")
def model():
    with brought_from_outside():
        register()
        model = nnx.eval_shape(lambda: eca_jax.create_model("tiny", rngs=nnx.Rngs(0)))
    model.preprocess = CONFIG
    return model


@pytest.fixture
def image(rng):
    return Image.fromarray(rng.integers(0, 256, (41, 30, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def expected(data: bytes) -> np.ndarray:
    pixels = eval_image(data, CONFIG).astype(np.float32) / np.float32(255)
    return ((pixels - np.float32(CONFIG.mean)) / np.float32(CONFIG.std))[None]


def test_every_form_of_an_image_gives_the_pixels_that_predict_sees(model, image, tmp_path):
    data, path = png(image), tmp_path / "image.png"
    path.write_bytes(data)
    forms = [path, str(path), data, bytearray(data), memoryview(data), np.asarray(image), image, Image.open(path)]
    for form in forms:
        array = eca_jax.preprocess(form, model)
        assert (array.shape, array.dtype) == ((1, 20, 20, 3), np.float32)
        np.testing.assert_allclose(array, expected(data), rtol=0, atol=1e-6)  # a last bit or two
    batch = eca_jax.preprocess([*forms, Image.fromarray(np.zeros((7, 90, 3), np.uint8))], model)
    assert batch.shape == (9, 20, 20, 3)
    np.testing.assert_array_equal(batch[:1], eca_jax.preprocess(path, model))
    np.testing.assert_allclose(batch[-1, 0, 0], -np.float32(CONFIG.mean) / np.float32(CONFIG.std), rtol=1e-6)


def test_a_grey_array_is_the_grey_image(model, image):
    grey = np.asarray(image.convert("L"))
    for form in (grey, grey[..., None]):
        np.testing.assert_array_equal(eca_jax.preprocess(form, model), eca_jax.preprocess(image.convert("L"), model))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_an_image_of_pillow_is_treated_as_its_file_is(model, image, mode, tmp_path):
    path = tmp_path / f"image.{'tiff' if mode == 'CMYK' else 'png'}"
    image.convert(mode).save(path)
    np.testing.assert_array_equal(
        eca_jax.preprocess(image.convert(mode), model), eca_jax.preprocess(path.read_bytes(), model)
    )


def test_what_is_no_image_is_answered_in_a_line(model, image, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(png(image)[:1000])
    os.mkfifo(tmp_path / "pipe.jpg")
    grey = Image.fromarray(np.zeros((4, 4), np.uint16))
    array = np.zeros((4, 4, 3), np.uint8)
    arrays = "image: expected a uint8 array (h, w, 3), got "
    for form, message in (
        (tmp_path / "no.jpg", f"there is no file {tmp_path}/no.jpg"),
        (tmp_path, f"{tmp_path} is a directory; give an image file"),
        (tmp_path / "pipe.jpg", f"{tmp_path}/pipe.jpg is no regular file but a pipe, a socket or a device; give an"),
        (str(tmp_path / "text.jpg"), f"cannot read {tmp_path}/text.jpg as an image: no known image format"),
        (tmp_path / "cut.png", f"cannot read {tmp_path}/cut.png as an image: "),
        (b"nothing", "image: cannot read these 7 bytes as an image: no known image format"),
        (Image.open(tmp_path / "cut.png"), "image: cannot read this PngImageFile as an image: "),
        (grey, "image: cannot read this Image as an image: its pixels have more than 8 bits (mode I;16), which would"),
        (array / 255, f"{arrays}float64 (4, 4, 3): pixels are whole numbers from 0 to 255; of floats from 0 to 1: "),
        (array.astype(int), f"{arrays}int64 (4, 4, 3): pixels are whole numbers "),
        (array[None], f"{arrays}uint8 (1, 4, 4, 3): of a batch, give a list of its images"),
        (array.repeat(2, 2)[..., :4], f"{arrays}uint8 (4, 4, 4): leave out the transparency"),
        (array.transpose(2, 0, 1), f"{arrays}uint8 (3, 4, 4): channels come last"),
        (array[:0], f"{arrays}uint8 (0, 4, 3): images are RGB or grey, channels last"),
        (
            7,
            "image: expected a path, the bytes of an image file, a uint8 array (h, w, 3), an image of Pillow or a list",
        ),
    ):
        assert refusal(eca_jax.preprocess, form, model).startswith(message)
        assert refusal(eca_jax.preprocess, [array, form], model).startswith(message)
    assert refusal(eca_jax.preprocess, [], model) == "image: expected an image or a list of them, got an empty one"
    assert (
        refusal(eca_jax.preprocess, array, CONFIG)
        == "model: expected one of eca_jax.create_model, got PreprocessConfig"
    )
    grey_model = nnx.eval_shape(lambda: eca_jax.create_model("resnet18", in_channels=1, rngs=nnx.Rngs(0)))
    message = refusal(eca_jax.preprocess, array, grey_model)
    assert message == "model: expected one that takes RGB, got one for images of 1 channels"
