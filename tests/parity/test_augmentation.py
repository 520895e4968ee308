"""Training images against torchvision and timm: the same distribution of crops, the same pixels of every operation."""

import collections
import math
import pathlib
import random

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn import datasets

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
timm_data = pytest.importorskip("timm.data")

from timm.data import auto_augment  # noqa: E402
from timm.data.random_erasing import RandomErasing  # noqa: E402
from timm.data.transforms import RandomResizedCropAndInterpolation  # noqa: E402
from torchvision.transforms import (  # noqa: E402
    ColorJitter,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    functional as F,
)

from eca_jax.data import preprocess  # noqa: E402
from eca_jax.data.color_jitter import ADJUSTMENTS, color_jitter, draw_adjustments  # noqa: E402
from eca_jax.data.preprocess import INTERPOLATIONS, PreprocessConfig, crop_box, train_image  # noqa: E402
from eca_jax.data.randaugment import NUM_OPERATIONS, OPERATIONS, PROBABILITY, draw_operations  # noqa: E402
from eca_jax.tasks.erasing import erase, rectangles  # noqa: E402

pytestmark = pytest.mark.parity

PHOTOS = pathlib.Path(datasets.__file__).parent / "images"  # two JPEG files of 640 x 427
CONFIG = PreprocessConfig()
DRAWS = 100_000
P = 1e-6
"""Of a statistic as far off as the one seen, were the distributions equal. The seeds are fixed."""
NAMES = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
"""Ours -> timm's."""


def torchvision_boxes(width: int, height: int, draws: int) -> np.ndarray:
    """(draws, 4): left, top, width, height."""
    torch.manual_seed(0)
    image = Image.new("L", (width, height))
    drawn = [RandomResizedCrop.get_params(image, CONFIG.crop_area, CONFIG.crop_ratio) for _ in range(draws)]
    return np.array(drawn)[:, [1, 0, 3, 2]]


@pytest.mark.parametrize("draws", [DRAWS // 5, pytest.param(DRAWS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("width", "height", "fallback", "share"),
    [
        (500, 375, (0, 0, 500, 375), (0, 0.01)),  # ImageNet's commonest size
        (1000, 150, (400, 0, 200, 150), (0.1, 0.9)),  # few crops fit
        (12, 19, (0, 1, 12, 16), (0, 0.01)),  # whole pixels are coarse
    ],
)
def test_crops_have_the_distribution_of_torchvision_s(width, height, fallback, share, draws):
    """Kolmogorov and Smirnov's test of two samples: it sees distribution functions 0.027 apart, at 10^5 draws 0.012.

    For values with ties, as whole pixels are, its p is an upper bound.
    """
    rng = np.random.default_rng(0)
    ours = np.array([crop_box(width, height, CONFIG, rng) for _ in range(draws)])
    theirs = torchvision_boxes(width, height, draws)
    features = {
        "area": lambda x, y, w, h: w * h,
        "ratio": lambda x, y, w, h: w / h,
        "left": lambda x, y, w, h: x,
        "top": lambda x, y, w, h: y,
        "right": lambda x, y, w, h: x + w,
        "bottom": lambda x, y, w, h: y + h,
        "position": lambda x, y, w, h: (x + y) / np.maximum(width - w + height - h, 1),
    }
    for name, feature in features.items():
        assert stats.ks_2samp(feature(*ours.T), feature(*theirs.T), method="asymp").pvalue > P, name

    counts = [int((boxes == fallback).all(axis=1).sum()) for boxes in (ours, theirs)]
    mean = sum(counts) / (2 * draws)
    assert share[0] <= mean <= share[1]
    assert abs(counts[0] - counts[1]) <= 5 * math.sqrt(2 * draws * mean * (1 - mean))


class SharedNumbers:
    """Takes from `random`, as timm does."""

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)

    def integers(self, stop: int) -> int:
        return random.randint(0, stop - 1)


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (1000, 150), (19, 12), (90, 2)])
def test_from_the_same_random_numbers_come_the_same_crops_as_timm_s(size):
    image = Image.new("L", size)
    for seed in range(2000):
        random.seed(seed)
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(
            image, CONFIG.crop_area, CONFIG.crop_ratio
        )
        random.seed(seed)
        assert crop_box(*size, CONFIG, SharedNumbers()) == (left, top, width, height)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_timm_s_pixels(name, monkeypatch):
    china, flower = (Image.open(PHOTOS / file).convert("RGB") for file in ("china.jpg", "flower.jpg"))
    function, value = OPERATIONS[name]
    fill = (124, 116, 104)
    for image in (china.resize((96, 96)), flower.crop((201, 120, 300, 190))):
        for magnitude in (0, 0.3, 2.5, 6.49, 7, 9.99):
            for sign in (1, -1):
                for interpolation in INTERPOLATIONS.values():
                    monkeypatch.setattr(random, "random", lambda sign=sign: 0.1 if sign > 0 else 0.9)
                    hparams = {"img_mean": fill, "interpolation": interpolation}
                    theirs = auto_augment.AugmentOp(NAMES[name], prob=1.0, magnitude=magnitude, hparams=hparams)(image)
                    monkeypatch.undo()
                    ours = function(image, value(sign * magnitude / 10), resample=interpolation, fillcolor=fill)
                    np.testing.assert_array_equal(
                        np.asarray(ours), np.asarray(theirs), err_msg=f"{magnitude} {sign} {interpolation}"
                    )


def timm_s_chain(**options) -> list:
    chain = timm_data.create_transform(
        (3, 224, 224), is_training=True, auto_augment="rand-m7-mstd0.5-inc1", **options
    ).transforms
    assert [type(part) for part in chain[:3]] == [
        RandomResizedCropAndInterpolation,
        RandomHorizontalFlip,
        auto_augment.RandAugment,
    ]
    return chain


@pytest.mark.parametrize("train_interpolation", ["bilinear", "bicubic", "random"])
def test_the_transform_is_set_up_as_timm_s(train_interpolation, monkeypatch):
    """Order, operations, their number and probability, and the filters and the colour that they get."""
    crop, _, randaugment, *_ = timm_s_chain(interpolation=train_interpolation)
    assert sorted(op.name for op in randaugment.ops) == sorted(NAMES.values())
    assert NAMES.keys() == OPERATIONS.keys()
    assert randaugment.num_layers == NUM_OPERATIONS
    assert {op.prob for op in randaugment.ops} == {PROBABILITY}
    assert {(op.magnitude, op.magnitude_std) for op in randaugment.ops} == {(7, 0.5)}

    seen = []
    monkeypatch.setattr(preprocess, "rand_augment", lambda image, rng, **fields: seen.append(fields) or image)
    config = PreprocessConfig(randaugment=7, train_interpolation=train_interpolation)
    image = preprocess.augment(Image.new("RGB", (300, 200)), np.random.default_rng(0), config)
    assert image.shape == (224, 224, 3)  # RandAugment comes after the crop, as there
    (fields,) = seen
    assert (fields["magnitude"], fields["std"]) == (7, 0.5)
    assert {op.kwargs["fillcolor"] for op in randaugment.ops} == {fields["fill"]}
    filters = {fields["resample"]() for _ in range(50)}
    for theirs in (*(op.kwargs["resample"] for op in randaugment.ops), crop.interpolation):
        theirs = theirs if isinstance(theirs, tuple) else (theirs,)
        assert {getattr(f, "name", f).lower() for f in filters} == {getattr(f, "name", f).lower() for f in theirs}


def test_operations_and_their_strength_have_timm_s_distribution():
    randaugment, theirs = timm_s_chain()[2], collections.defaultdict(list)
    for op in randaugment.ops:
        op.aug_fn = lambda image, *args, name=op.name, **_: theirs[name].append(args[0] if args else 0) or image
    random.seed(0)
    np.random.seed(0)  # timm draws from both
    for _ in range(DRAWS):
        randaugment(None)

    rng, ours = np.random.default_rng(0), collections.defaultdict(list)
    for _ in range(DRAWS):
        for name, level in draw_operations(rng, 7, 0.5):
            ours[NAMES[name]].append(OPERATIONS[name][1](level) or 0)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert abs(len(ours[name]) - len(theirs[name])) < 5 * math.sqrt(2 * DRAWS / 15), name  # near Poisson's
        assert stats.ks_2samp(ours[name], theirs[name], method="asymp").pvalue > P, name


def photographs() -> list[Image.Image]:
    """Of two sizes, one with noise of every value, one grey."""
    china, flower = (Image.open(PHOTOS / file).convert("RGB") for file in ("china.jpg", "flower.jpg"))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8))
    return [china.resize((96, 96)), flower.crop((201, 120, 300, 190)), noise, china.convert("L").convert("RGB")]


STRENGTHS = [(0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.4, 0.0), (2.5, 3.0, 2.0, 0.5), (0.0, 0.0, 0.0, 0.5)]
"""timm's with a hue, its --color-jitter 0.4, stronger than is sensible, and the hue alone."""


@pytest.mark.parametrize("strengths", STRENGTHS)
def test_colours_are_jittered_to_torchvision_s_pixels(strengths):
    for image in photographs():
        for seed in range(60):
            theirs = image
            for name, factor in draw_adjustments(np.random.default_rng(seed), strengths):
                theirs = getattr(F, f"adjust_{name}")(theirs, factor)
            ours = color_jitter(image, np.random.default_rng(seed), strengths)
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=f"{image.size} {seed}")


def test_orders_and_factors_have_torchvision_s_distribution():
    """One that is not asked for is drawn by torchvision too, as None."""
    strengths, draws = (0.4, 1.5, 0.0, 0.1), 20_000
    torch.manual_seed(0)
    jitter = ColorJitter(*strengths)
    orders, theirs = collections.Counter(), collections.defaultdict(list)
    for _ in range(draws):
        order, *factors = ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        drawn = [(list(ADJUSTMENTS)[i], factors[i]) for i in order if factors[i] is not None]
        orders[tuple(name for name, _ in drawn)] += 1
        for name, factor in drawn:
            theirs[name].append(factor)
    rng, our_orders, ours = np.random.default_rng(0), collections.Counter(), collections.defaultdict(list)
    for _ in range(draws):
        drawn = draw_adjustments(rng, strengths)
        our_orders[tuple(name for name, _ in drawn)] += 1
        for name, factor in drawn:
            ours[name].append(factor)
    assert ours.keys() == theirs.keys() == {"brightness", "contrast", "hue"}
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name], method="asymp").pvalue > P, name
    assert our_orders.keys() == orders.keys()
    assert stats.chi2_contingency([[our_orders[key], orders[key]] for key in orders]).pvalue > P


def test_flips_and_jitter_stand_where_timm_has_them(monkeypatch):
    """Of timm, colour is jittered beside RandAugment where it is told to (force_color_jitter)."""
    chain = timm_data.transforms_factory.transforms_imagenet_train(
        vflip=0.5, color_jitter=0.4, force_color_jitter=True, auto_augment="rand-m7-mstd0.5-inc1"
    ).transforms
    kinds = [RandomResizedCropAndInterpolation, RandomHorizontalFlip, RandomVerticalFlip, auto_augment.RandAugment]
    assert [type(part) for part in chain[:5]] == [*kinds, ColorJitter]
    assert [chain[4].brightness, chain[4].contrast, chain[4].saturation, chain[4].hue] == [(0.6, 1.4)] * 3 + [None]

    steps = []
    for name in ("rand_augment", "color_jitter"):
        monkeypatch.setattr(
            preprocess, name, lambda image, *_, name=name, **__: steps.append((name, np.asarray(image))) or image
        )
    config = PreprocessConfig(
        image_size=20,
        eval_resize=20,
        augment="none",
        vertical_flip=True,
        randaugment=7,
        color_jitter=(0.4, 0.4, 0.4, 0),
    )
    image = Image.open(PHOTOS / "china.jpg")
    straight = preprocess.resize_and_crop(image, 20, 20, INTERPOLATIONS["bilinear"])
    ways = [f(g(straight)) for f in (F.vflip, lambda image: image) for g in (F.hflip, lambda image: image)]
    seen = set()
    for seed in range(40):
        pixels = train_image((PHOTOS / "china.jpg").read_bytes(), np.random.default_rng(seed), config)
        assert [name for name, _ in steps] == ["rand_augment", "color_jitter"]
        assert all(np.array_equal(seen_by, pixels) for _, seen_by in steps)  # both after the flips
        steps.clear()
        seen.add(next(i for i, way in enumerate(ways) if np.array_equal(np.asarray(way), pixels)))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("size", "probability", "count", "untouched"),
    [
        ((32, 32), 0.6, 1, (0.35, 0.45)),
        ((24, 40), 1.0, 1, (0, 0.01)),
        ((5, 60), 1.0, 1, (0.02, 0.9)),  # few rectangles fit
        ((30, 40), 0.6, 3, (0.35, 0.45)),
    ],
)
def test_what_is_erased_has_timm_s_distribution(size, probability, count, untouched):
    """Area, sides, aspect and place of what is erased, by Kolmogorov and Smirnov's test of two samples; and how often
    nothing is. Of several rectangles, which overlap, the box around them."""
    draws = 8000
    random.seed(0)
    erasing = RandomErasing(probability, mode="const", max_count=count, device="cpu")
    theirs = (erasing(torch.ones(draws, 1, *size)) == 0).numpy()[:, 0]
    ours = np.asarray(jax.jit(lambda: rectangles(jax.random.key(0), (draws, *size), probability, count).any(1))())

    none = [int((~masks.any((1, 2))).sum()) for masks in (ours, theirs)]
    share = sum(none) / (2 * draws)
    assert abs(none[0] - none[1]) <= 5 * math.sqrt(2 * draws * share * (1 - share))
    assert untouched[0] <= share <= untouched[1]
    ours, theirs = (features(masks[masks.any((1, 2))]) for masks in (ours, theirs))
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name], method="asymp").pvalue > P, name


def features(masks: np.ndarray) -> dict[str, np.ndarray]:
    """(n, h, w), each with something in it -> values (n) by name."""
    rows, columns = masks.any(2), masks.any(1)
    top, left = rows.argmax(1), columns.argmax(1)
    height = rows.shape[1] - rows[:, ::-1].argmax(1) - top
    width = columns.shape[1] - columns[:, ::-1].argmax(1) - left
    sides = {"top": top, "left": left, "height": height, "width": width}
    below, right = np.maximum(rows.shape[1] - height, 1), np.maximum(columns.shape[1] - width, 1)
    return sides | {"area": masks.sum((1, 2)), "aspect": height / width, "down": top / below, "across": left / right}


@pytest.mark.parametrize("mode", ["rand", "pixel"])
def test_noise_is_timm_s(mode):
    """Of a batch whose images are erased with certainty: as many different values in a rectangle, and their share."""
    size, draws = (16, 20), 400
    random.seed(0)
    torch.manual_seed(0)
    theirs = RandomErasing(1.0, mode=mode, device="cpu")(torch.full((draws, 3, *size), 100.0)).permute(0, 2, 3, 1)
    config = PreprocessConfig(random_erasing=1.0, random_erasing_mode=mode)
    ours = jax.jit(lambda x: erase(x, jax.random.key(0), config))(np.full((draws, *size, 3), 100, np.float32))
    values = []
    for images in (np.asarray(ours), theirs.numpy()):
        assert ((images != 100).all(-1) == (images != 100).any(-1)).all()  # all channels
        noise = [image[image[..., 0] != 100] for image in images]
        assert {len(np.unique(pixels, axis=0)) for pixels in noise if len(pixels)} <= {1} or mode == "pixel"
        values.append(np.concatenate([np.unique(pixels, axis=0) for pixels in noise]).ravel())
    assert stats.ks_2samp(*values, method="asymp").pvalue > P
