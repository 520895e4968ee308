"""Images in every mode that files have, and augmentations that stay inside their bounds."""

import collections
import dataclasses
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from eca_jax.config import Config, from_dict, to_dict
from eca_jax.data import preprocess
from eca_jax.data.preprocess import (
    PreprocessConfig,
    augment,
    crop_box,
    decode,
    eval_image,
    random_resized_crop,
    resize_and_crop,
    train_image,
)
from eca_jax.errors import EcaJaxError
from eca_jax.tasks import Classification


def encode(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GRADIENT = Image.fromarray(
    np.stack([np.add.outer(np.arange(20), np.arange(30)) * f for f in (1, 2, 3)], -1).astype(np.uint8)
)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGB", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    assert np.asarray(decode(encode(GRADIENT.convert(mode)))).shape == (20, 30, 3)


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_what_is_no_image_is_answered_without_a_place_in_memory(data):
    for decoded in (decode, lambda data: eval_image(data, PreprocessConfig())):
        with pytest.raises(EcaJaxError, match=r"^no known image format$"):
            decoded(data)


def test_a_drawing_is_no_image():
    """Pillow would give it to Ghostscript, a program that runs what the file says."""
    with pytest.raises(EcaJaxError, match=r"^no known image format$"):
        decode(encode(GRADIENT, "EPS"))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PPM", "SGI", "TGA", "TIFF", "WEBP"])
def test_every_format_of_pixels_is_read(kind):
    assert decode(encode(GRADIENT, kind)).size == (30, 20)


def test_cmyk_jpeg_becomes_rgb():
    assert decode(encode(GRADIENT.convert("CMYK"), "JPEG")).mode == "RGB"


def test_grey_keeps_its_value_in_all_channels():
    np.testing.assert_array_equal(np.asarray(decode(encode(Image.new("L", (2, 2), 7)))), 7)


def test_exif_does_not_rotate():
    exif = Image.Exif()
    exif[0x0112] = 6  # the tag Orientation: turn by 90 degrees to view
    np.testing.assert_array_equal(np.asarray(decode(encode(GRADIENT, exif=exif))), np.asarray(GRADIENT))


@pytest.mark.parametrize("size", [(3, 7), (7, 3), (1, 1)])
def test_an_image_smaller_than_the_crop_is_enlarged_and_not_padded(size):
    config = PreprocessConfig(image_size=16, eval_resize=17)
    np.testing.assert_array_equal(eval_image(encode(Image.new("L", size, 9)), config), np.full((16, 16, 3), 9))


def test_centre_crop_is_the_centre():
    image = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    out = eval_image(encode(image), PreprocessConfig(image_size=4, eval_resize=10))
    np.testing.assert_array_equal(out[..., 0], np.arange(100).reshape(10, 10)[3:7, 3:7])


@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_and_crop", "none"])
def test_training_images_depend_on_the_generator_alone(kind):
    config = PreprocessConfig(image_size=8, eval_resize=8, augment=kind)
    data = encode(GRADIENT)
    a, b = (train_image(data, np.random.default_rng(1), config) for _ in range(2))
    assert a.shape == (8, 8, 3)
    assert a.dtype == np.uint8
    np.testing.assert_array_equal(a, b)
    others = [train_image(data, np.random.default_rng(seed), config) for seed in range(10)]
    assert len({other.tobytes() for other in others}) == (2 if kind == "none" else 10)  # 'none' is still mirrored


@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_and_crop", "none"])
def test_interpolation_is_that_of_every_resize(kind):
    """Two halves of grey: at their edge bicubic goes below the darker and above the lighter, bilinear never."""
    image = Image.fromarray(np.repeat([[64, 192]], 20, axis=1).repeat(40, axis=0).astype(np.uint8))
    for interpolation, beyond in (("bilinear", False), ("bicubic", True)):
        config = PreprocessConfig(
            image_size=16, eval_resize=16, interpolation=interpolation, augment=kind, pad=0, crop_area=(0.9, 1.0)
        )
        data, rng = encode(image), np.random.default_rng(0)
        for pixels in (eval_image(data, config), train_image(data, rng, config)):
            assert (pixels.min() < 64) == (pixels.max() > 192) == beyond


def test_crops_have_the_area_and_ratio_asked_for():
    """A gradient tells where a crop was taken: its corner values give width and height back."""
    side = 200
    x = np.broadcast_to(np.arange(side), (side, side))
    image = Image.fromarray(np.stack([x, x.T, x], -1).astype(np.uint8))
    config = PreprocessConfig(image_size=64, augment="random_resized_crop", crop_area=(0.2, 0.5))
    rng, areas, ratios = np.random.default_rng(0), [], []
    for _ in range(200):
        out = np.asarray(random_resized_crop(image, config, rng)).astype(float)
        # The centres of the first and last of 64 output pixels are 63/64 of the crop's side apart.
        w = (out[0, -1, 0] - out[0, 0, 0]) * 64 / 63
        h = (out[-1, 0, 1] - out[0, 0, 1]) * 64 / 63
        areas.append(w * h / side**2)
        ratios.append(w / h)
    assert 0.18 < min(areas) < 0.23
    assert 0.45 < max(areas) < 0.53
    assert 0.72 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.39


def test_pad_and_crop_shifts_by_at_most_pad():
    image = Image.new("L", (8, 8), 255)
    config = PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=2, flip=False)
    rng, shifts = np.random.default_rng(0), set()
    for _ in range(300):
        out = train_image(encode(image), rng, config)[..., 0]
        rows, columns = np.flatnonzero(out.any(1)), np.flatnonzero(out.any(0))
        assert (out[np.ix_(rows, columns)] == 255).all()
        shifts.add((8 - len(rows), 8 - len(columns)))
    assert shifts == {(a, b) for a in range(3) for b in range(3)}


def test_flip_mirrors():
    config = PreprocessConfig(image_size=20, eval_resize=20, augment="none")
    straight = train_image(encode(GRADIENT), np.random.default_rng(0), dataclasses.replace(config, flip=False))
    seen = {train_image(encode(GRADIENT), np.random.default_rng(seed), config).tobytes() for seed in range(50)}
    assert seen == {straight.tobytes(), straight[:, ::-1].tobytes()}


def test_half_is_turned_upside_down_whether_or_not_it_is_mirrored():
    config = PreprocessConfig(image_size=20, eval_resize=20, augment="none", vertical_flip=True)
    straight = train_image(encode(GRADIENT), np.random.default_rng(0), dataclasses.replace(config, flip=False))
    straight = straight if straight[0].sum() < straight[-1].sum() else straight[::-1]
    seen = collections.Counter(
        train_image(encode(GRADIENT), np.random.default_rng(seed), config).tobytes() for seed in range(400)
    )
    turned = (straight, straight[:, ::-1], straight[::-1], straight[::-1, ::-1])
    assert seen.keys() == {pixels.tobytes() for pixels in turned}
    assert all(abs(count - 100) < 4.5 * np.sqrt(400 * 1 / 4 * 3 / 4) for count in seen.values())


def test_erasing_is_left_to_the_device():
    """Neither the pixels nor what is drawn for them changes."""
    data, config = encode(GRADIENT), PreprocessConfig(image_size=8, eval_resize=8)
    rngs = [np.random.default_rng(0) for _ in range(2)]
    plain, asked = (
        train_image(data, rng, dataclasses.replace(config, random_erasing=share))
        for rng, share in zip(rngs, (0.0, 1.0), strict=True)
    )
    np.testing.assert_array_equal(plain, asked)
    assert rngs[0].random() == rngs[1].random()


def test_exactly_half_is_mirrored():
    """Over 10^5 (seed, epoch, example, copy), and whether one is says nothing about the next, epoch or example.

    4.5 standard deviations: a right implementation fails for one set of seeds in 10^5, and these are fixed.
    """
    config = PreprocessConfig(image_size=2, eval_resize=2, augment="none")
    image = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8)).convert("RGB")

    def flipped(epoch: int, example: int) -> bool:
        return np.asarray(augment(image, np.random.default_rng((0, epoch, example, 0)), config))[0, 0, 0] == 255

    flips = np.array([[flipped(epoch, example) for example in range(1000)] for epoch in range(100)])
    limit = 4.5 * 0.5 * np.sqrt(flips.size)
    for event in (flips, flips[1:] == flips[:-1], flips[:, 1:] == flips[:, :-1]):
        assert abs(event.sum() - event.size / 2) < limit


def triangle_filter(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resizes the first axis: each new pixel is the average under a triangle as wide as two new pixels."""
    n = len(pixels)
    scale = n / size
    reach = max(scale, 1.0)
    distance = np.abs((np.arange(size)[:, None] + 0.5) * scale - (np.arange(n)[None] + 0.5)) / reach
    weights = np.maximum(1 - distance, 0)
    return np.tensordot(weights / weights.sum(axis=1, keepdims=True), pixels, axes=1)


@pytest.mark.parametrize("size", [(180, 130), (20, 30)])
def test_a_crop_is_antialiased_when_it_shrinks(rng, size):
    """As Pillow's resize: both axes by hand, with one rounding between them and one at the end, are a level apart."""
    noise = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    config = PreprocessConfig(image_size=32, eval_resize=32, flip=False, crop_area=(0.8, 1.0))
    for seed in range(20):
        left, top, width, height = crop_box(size[1], size[0], config, np.random.default_rng(seed))
        crop = noise[top : top + height, left : left + width].astype(float)
        expected = triangle_filter(triangle_filter(crop, 32).swapaxes(0, 1), 32).swapaxes(0, 1)
        out = train_image(encode(Image.fromarray(noise)), np.random.default_rng(seed), config)
        assert np.abs(out - expected).max() <= 1.01
        if width > 100:  # without it, noise would stay as it was: a standard deviation of 74
            assert out.std() < 30


def test_a_random_filter_is_one_or_the_other():
    data = encode(GRADIENT)
    config = PreprocessConfig(image_size=8, eval_resize=8, augment="none", flip=False)
    expected = {
        train_image(data, np.random.default_rng(0), dataclasses.replace(config, train_interpolation=name)).tobytes()
        for name in ("bilinear", "bicubic")
    }
    assert len(expected) == 2
    config = dataclasses.replace(config, train_interpolation="random")
    assert {train_image(data, np.random.default_rng(seed), config).tobytes() for seed in range(20)} == expected
    np.testing.assert_array_equal(
        eval_image(data, config), eval_image(data, dataclasses.replace(config, train_interpolation=None))
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": "crop"}, "unknown 'crop'; expected one of random_resized_crop"),
        ({"interpolation": "lanczos"}, "interpolation: unknown 'lanczos'; expected one of bilinear, bicubic"),
        (
            {"train_interpolation": "any"},
            "train_interpolation: unknown 'any'; expected one of bilinear, bicubic, random",
        ),
        ({"image_size": 300}, "image_size <= eval_resize, got 300 and 256"),
        ({"std": (1.0, 0.0, 1.0)}, "expected positive numbers"),
    ],
)
def test_a_wrong_configuration_is_refused(fields, message):
    with pytest.raises(EcaJaxError, match=message):
        PreprocessConfig(**fields)


def test_a_crop_share_is_the_crop_s_part_of_the_short_side():
    fields = {"interpolation": "bicubic", "std": (1.0, 1.0, 1.0)}
    expected = PreprocessConfig(image_size=224, eval_resize=235, **fields)  # 224 / 0.95 is 235.8
    assert PreprocessConfig.from_crop_share(224, 0.95, **fields) == expected


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, 87.5, float("nan")])
def test_a_crop_share_that_is_none_is_refused(share):
    with pytest.raises(EcaJaxError, match=f"expected 0 < crop_share <= 1, got {share}"):
        PreprocessConfig.from_crop_share(224, share)


def test_interpolation_is_part_of_a_saved_configuration():
    config = Config(task=Classification(PreprocessConfig(interpolation="bicubic")))
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(values) == config
    del values["task"]["preprocess"]["interpolation"]  # as a run has it that was saved before there was the field
    assert from_dict(values).task.preprocess.interpolation == "bilinear"
    values["task"]["preprocess"]["interpolation"] = "nearest"
    with pytest.raises(EcaJaxError, match=r"preprocess\.interpolation: unknown 'nearest'"):
        from_dict(values)


def test_more_than_8_bits_are_refused_and_not_cut_off():
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(EcaJaxError, match=r"more than 8 bits \(mode I;16\)"):
        eval_image(buffer.getvalue(), PreprocessConfig(image_size=8, eval_resize=8))


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """(h, w, 2 or 3) uint16 -> a PNG file: grey and transparency, or colour. (Pillow writes none.)"""
    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(">u2"))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [2, 3])
def test_of_16_bits_a_channel_in_colour_the_upper_8_count(rng, channels):
    pixels = rng.integers(0, 2**16, (5, 7, channels))
    expected = pixels >> 8 if channels == 3 else np.repeat(pixels[..., :1] >> 8, 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(decode(png_of_16_bits(pixels))), expected)


def in_two_steps(image: Image.Image, short_side: int, size: int, resample: Image.Resampling) -> np.ndarray:
    """torchvision's Resize and CenterCrop, the whole image in between."""
    width, height = image.size
    if min(width, height) != short_side:
        new = (short_side, int(short_side * height / width))
        new = new if width <= height else (int(short_side * width / height), short_side)
        image = image.resize(new, resample)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_what_the_crop_shows_of_a_thin_image_is_what_it_shows_of_the_whole(rng, resample):
    """To the bit, whatever the shape; black and white noise overshoots most."""
    shapes = [tuple(np.exp(rng.uniform(0, [3, 7])).astype(int)) for _ in range(100)]
    assert sum(short * preprocess.LONG < long for short, long in shapes) > 50
    for n, (short, long) in enumerate(shapes):
        short_side = int(rng.integers(1, 48))
        size = int(rng.integers(1, short_side + 1))
        noise = rng.integers(0, 256, (long, short, 3)) if n % 2 else 255 * rng.integers(0, 2, (long, short, 3))
        for pixels in (noise, np.swapaxes(noise, 0, 1)):
            image = Image.fromarray(pixels.astype(np.uint8))
            np.testing.assert_array_equal(
                np.asarray(resize_and_crop(image, short_side, size, resample)),
                in_two_steps(image, short_side, size, resample),
                err_msg=f"{image.size} -> {short_side}, {size}",
            )


@pytest.mark.parametrize("size", [(1, 8000), (8000, 1), (3, 60000)])
@pytest.mark.parametrize("augment", ["evaluation", "none", "pad_and_crop"])
def test_a_thin_image_is_never_enlarged_as_a_whole(monkeypatch, size, augment):
    resize, areas = Image.Image.resize, []

    def watched(self, new, *args, **kwargs):
        areas.append(new[0] * new[1])
        return resize(self, new, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    data = encode(Image.new("L", size, 9))
    if augment == "evaluation":
        pixels = eval_image(data, PreprocessConfig())
    else:
        pixels = train_image(data, np.random.default_rng(0), PreprocessConfig(augment=augment, pad=0))
    np.testing.assert_array_equal(pixels, np.full((224, 224, 3), 9))
    assert sum(areas) <= 256 * 8000


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
def test_an_image_of_too_many_pixels_is_refused(monkeypatch, kind, augment):
    data = encode(Image.new("RGB", (40, 26)), kind)
    config = PreprocessConfig(image_size=8, eval_resize=8, augment=augment)

    def made() -> list[np.ndarray]:
        return [eval_image(data, config), train_image(data, np.random.default_rng(0), config)]

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 26 // 2)
    with pytest.warns(Image.DecompressionBombWarning):
        made()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 26 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError, match="1040 pixels"):
        eval_image(data, config)
    with pytest.raises((EcaJaxError, Image.DecompressionBombError), match=r"1040 pixels|its 40 x 26 pixels are more"):
        train_image(data, np.random.default_rng(0), config)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    made()


@pytest.mark.parametrize(
    "fields",
    [
        {"pad": -1},
        {"crop_area": (0.5, 0.1)},
        {"crop_area": (-1.0, 0.5)},
        {"crop_ratio": (0.0, 1.0)},
        {"pad": 224, "augment": "pad_and_crop"},
        {"pad": 32, "train_image_size": 32, "augment": "pad_and_crop"},
        {"mean": (0.5, float("nan"), 0.5)},
        {"mean": (float("inf"), 0.5, 0.5)},
        {"std": (0.2, 0.2, float("nan"))},
        {"std": (float("inf"), 0.2, 0.2)},
        {"std": (0.2, 0.0, 0.2)},
        {"randaugment": 10.5},
        {"randaugment": float("nan")},
        {"randaugment_std": -0.5},
        {"color_jitter": (-0.1, 0.0, 0.0, 0.0)},
        {"color_jitter": (0.4, float("nan"), 0.4, 0.0)},
        {"color_jitter": (0.4, 0.4, 0.4, 0.6)},
        {"random_erasing": 1.5},
        {"random_erasing": float("nan")},
        {"random_erasing_mode": "noise"},
        {"random_erasing_count": 0},
        {"random_erasing_count": 11},
    ],
)
def test_a_value_that_cannot_work_is_refused(fields):
    with pytest.raises(EcaJaxError, match=rf"preprocess\.{next(iter(fields))}: expected"):
        PreprocessConfig(**fields)


def test_evaluation_images_that_would_fill_the_memory_are_refused():
    task = Classification(PreprocessConfig(image_size=8, eval_resize=8))
    for changes in ({"image_size": 100_000}, {"eval_resize": 100_000}):
        with pytest.raises(EcaJaxError, match=r"^preprocess: .* and eval_resize 100000; expected at most 8192 "):
            task.with_preprocess(changes)
    assert task.with_preprocess({"image_size": 8192}).preprocess.eval_resize == 8192
