"""Parts of JPEG files: the pixels of the whole, and at a reduced scale no further off than another filter would be."""

import io
import itertools
import pathlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn import datasets

from eca_jax.data import preprocess
from eca_jax.data.jpeg import MARGIN, open_jpeg, reduction_for
from eca_jax.data.preprocess import PreprocessConfig, crop_box, decode, resize, train_image

PHOTOS = pathlib.Path(datasets.__file__).parent / "images"  # two JPEG files of 640 x 427
SHIPPED = {name: (PHOTOS / name).read_bytes() for name in ("china.jpg", "flower.jpg")}
CHINA, FLOWER = (Image.open(PHOTOS / name).convert("RGB") for name in SHIPPED)
BILINEAR, BICUBIC, BOX = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def oddly_sampled() -> bytes:
    """Three columns of brightness to one of colour, which few write and TurboJPEG does not know."""
    data = encode(CHINA, subsampling="4:4:4")
    jpeg = open_jpeg(data)
    assert jpeg is not None
    at = jpeg.height_at + 6  # after height, width, number of components, and the first one's name
    assert data[at] == 0x11
    return data[:at] + b"\x31" + data[at + 1 :]


def files() -> dict[str, bytes]:
    """Baseline files: every subsampling, sides that no block divides, grey, restart markers, tables of their own."""
    piece = CHINA.crop((201, 4, 434, 205))
    return SHIPPED | {
        "4:2:0": encode(piece, subsampling="4:2:0", quality=95),
        "4:2:2": encode(piece, subsampling="4:2:2"),
        "4:4:4": encode(piece, subsampling="4:4:4", quality=97),
        "4:4:0": simplejpeg.encode_jpeg(np.asarray(piece), colorsubsampling="440"),
        "4:1:1": simplejpeg.encode_jpeg(np.asarray(piece), colorsubsampling="411"),
        "RGB": encode(piece, keep_rgb=True),
        "grey": encode(piece.convert("L")),
        "restarts": encode(piece, restart_marker_rows=1),
        "optimised, with a comment": encode(piece, optimize=True, comment=b"\xff\xd9 \xff\xc0 not a frame"),
        "a row of pixels": encode(piece.crop((0, 0, 100, 1))),
    }


@pytest.mark.parametrize("name", files())
def test_a_part_has_the_pixels_of_the_whole(name):
    """Exactly Pillow's, wherever the crop ends: the rows that are not decoded have no influence on those that are."""
    data = files()[name]
    jpeg, whole = open_jpeg(data), np.asarray(decode(data))
    assert jpeg is not None
    height, width, _ = whole.shape
    assert jpeg.size == (width, height)
    for bottom in sorted({*range(1, min(height, 40)), *range(max(height - 20, 1), height + 1)}):
        left, top = bottom * 7 % width, bottom // 3
        part, box = jpeg.decode((left, top, width - left, bottom - top))
        np.testing.assert_array_equal(part, whole[top:bottom, left:])
        assert box == (0, 0, width - left, bottom - top)


def test_a_reduced_part_lies_where_the_box_is():
    """A ramp tells where a pixel comes from: one of n x n pixels has their mean, and half a level is rounded away."""
    ramp = Image.fromarray(np.broadcast_to(np.arange(256, dtype=np.uint8), (200, 256)))
    for image, axis in ((ramp, 1), (ramp.transpose(Image.Transpose.TRANSPOSE), 0)):
        jpeg = open_jpeg(encode(image, quality=100))
        assert jpeg is not None
        for reduction, start in itertools.product((2, 4, 8), range(30, 50)):
            box = [13, 17, 101, 102]
            box[1 - axis], box[3 - axis] = start, 101
            part, inside = jpeg.decode((box[0], box[1], box[2], box[3]), reduction)
            for k, length in ((0, part.shape[1]), (1, part.shape[0])):
                assert 0 <= inside[k] < 1
                assert inside[k] + inside[2 + k] <= length < inside[k] + inside[2 + k] + 1
            means = part[..., 0].mean(axis=1 - axis)
            centres = (np.arange(len(means)) + 0.5 - inside[1 - axis]) * reduction + start - 0.5
            assert np.abs(means - centres).max() <= 1


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_crop_differs_less_than_another_filter_would(name, subsampling, reduction):
    """At `MARGIN`, the closest that is admitted: beside the full decode, bicubic and box resize, all by Pillow."""
    image = {"china.jpg": CHINA, "flower.jpg": FLOWER}[name]
    jpeg = open_jpeg(encode(image, subsampling=subsampling, quality=95))
    assert jpeg is not None
    size = int(min(image.size) / (MARGIN * reduction))
    side = int(np.ceil(size * MARGIN * reduction))
    assert reduction_for((side, side), size) == reduction
    for left, top in ((0, 0), (101, 0), (image.width - side, image.height - side)):
        box = (left, top, side, side)
        whole = Image.fromarray(jpeg.decode(box)[0])
        expected = np.asarray(whole.resize((size, size), BILINEAR)).astype(int)
        ours = np.abs(resize(*jpeg.decode(box, reduction), size, BILINEAR) - expected)
        for other in (BICUBIC, BOX):
            theirs = np.abs(np.asarray(whole.resize((size, size), other)) - expected)
            assert ours.mean() < 0.75 * theirs.mean()
            assert np.percentile(ours, 99) < 0.75 * np.percentile(theirs, 99)


def test_without_the_vector_code_pillow_resizes(monkeypatch):
    """Also a box that has fractions; each within a level of the exact filter, as above."""
    pixels, box = np.asarray(CHINA.crop((0, 0, 300, 200))), (0.5, 0.25, 299.0, 199.5)
    fast = resize(pixels, box, 64, BILINEAR).astype(int)
    monkeypatch.setattr(preprocess, "cykooz_resizer", None)
    plain = resize(pixels, box, 64, BILINEAR)
    assert plain.shape == (64, 64, 3)
    assert 0 < np.abs(fast - plain).max() <= 2


@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [((500, 375), 224, 1), ((784, 783), 224, 1), ((784, 784), 224, 2), ((4000, 1568), 224, 4), ((9999, 9999), 8, 8)],
)
def test_a_crop_is_reduced_only_where_it_stays_large(crop, size, expected):
    assert reduction_for(crop, size) == expected


@pytest.mark.parametrize(("filter_", "name", "most"), [(BILINEAR, "bilinear", 2), (BICUBIC, "bicubic", 12)])
def test_a_training_image_is_pillow_s_to_a_grey_level(filter_, name, most):
    """Crops that shrink and crops that grow. Both round between the axes, one goes down first and the other across.

    So each is up to a level off the exact filter, and two pixels in a million are two levels apart. Bicubic overshoots
    at edges and is cut off at black and white between the axes, by both, which puts Pillow 6 levels off the exact one.
    """
    config = PreprocessConfig(image_size=160, eval_resize=160, interpolation=name, flip=False, crop_area=(0.02, 1.0))
    off = []
    for seed, data in enumerate([*SHIPPED.values()] * 10):
        left, top, width, height = crop_box(640, 427, config, np.random.default_rng(seed))
        assert reduction_for((width, height), 160) == 1
        crop = decode(data).crop((left, top, left + width, top + height))
        expected = np.asarray(crop.resize((160, 160), filter_)).astype(int)
        off.append(np.abs(train_image(data, np.random.default_rng(seed), config) - expected))
    assert np.max(off) <= most
    assert np.mean(off) < 0.2
    assert np.mean(np.asarray(off) > 1) < 1e-3


@pytest.mark.parametrize(
    "data",
    [
        encode(CHINA, progressive=True),
        encode(CHINA.convert("CMYK")),
        oddly_sampled(),
        encode(CHINA.crop((0, 0, 9, 9)), "PNG"),
        SHIPPED["china.jpg"][:-2],
        SHIPPED["china.jpg"][:50_000],
        SHIPPED["china.jpg"][:100],
        SHIPPED["china.jpg"] + b"\0",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xc4\xff\xd9",
        b"",
    ],
    ids=[
        "progressive",
        "CMYK",
        "sampling",
        "PNG",
        "no end",
        "cut off",
        "cut off in the head",
        "a tail",
        "empty",
        "no frame",
        "none",
    ],
)
def test_other_files_are_left_to_pillow(data):
    assert open_jpeg(data) is None


def test_a_file_is_decoded_as_far_as_its_crop_and_no_further():
    """Damage below the crop is not met; the end of the file is looked at all the same."""
    data = bytearray(SHIPPED["china.jpg"])
    middle = len(data) // 2
    data[middle:-2] = bytes(len(data) - 2 - middle)
    jpeg = open_jpeg(bytes(data))
    assert jpeg is not None
    whole = np.asarray(decode(SHIPPED["china.jpg"]))
    np.testing.assert_array_equal(jpeg.decode((0, 0, 640, 100))[0], whole[:100])
    assert (jpeg.decode((0, 0, 640, 427))[0][-100:] != whole[-100:]).any()
