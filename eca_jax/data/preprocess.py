"""From the bytes of an image file to uint8 pixels of a fixed size: pure functions of bytes and a random generator.

Pillow decodes and resizes (with antialiasing), step by step as torchvision's transforms and timm's do on Pillow images,
so that a PyTorch recipe sees the same pixels here. In training, `random_resized_crop` has the same pixels to a grey
level, in two thirds of the time: of a JPEG file only the part that the crop needs is decoded (jpeg.py), and the filters
are vector code (cykooz-resizer). Nothing here holds the GIL for long. Only `normalise` is for the device: it is a part
of the step.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from eca_jax.data.color_jitter import color_jitter
from eca_jax.data.jpeg import Box, open_jpeg, reduction_for
from eca_jax.data.randaugment import MAX_MAGNITUDE, rand_augment
from eca_jax.data.resample import resize_lines, taps
from eca_jax.errors import EcaJaxError, expect_one_of
from eca_jax.plain import TypedFields

try:
    import cykooz_resizer
except ImportError:  # ARM Linux: there is no wheel
    cykooz_resizer = None

AUGMENTATIONS = ("random_resized_crop", "pad_and_crop", "none")
ERASING_MODES = ("const", "rand", "pixel")
MOST_ERASED = 10
"""Rectangles in an image: each is a pass over the batch."""
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "catmull_rom"}
"""Pillow's -> cykooz-resizer's: its bicubic is Catmull and Rom's, with a = -1/2."""
LONG = 8
"""The long side over the short one, from which on an image is not enlarged as a whole before its centre is cut out."""


LARGEST_SIDE = 8192
"""Of evaluation images, in pixels: one takes 200 MB, decoded. Those in use have 800."""


@dataclasses.dataclass(frozen=True)
class PreprocessConfig(TypedFields, at="preprocess"):
    """How training and evaluation images are made. Sizes in pixels."""

    image_size: int = 224
    """Side of the square that the network sees."""
    train_image_size: int | None = None
    """Of training alone; None is `image_size`."""
    eval_resize: int = 256
    """Evaluation: the short side is resized to this before the centre crop."""
    interpolation: str = "bilinear"
    """'bilinear' or 'bicubic': of every resize, in evaluation and in training."""
    train_interpolation: str | None = None
    """Of training alone: 'bilinear', 'bicubic' or 'random' (timm's: either, each time); None is `interpolation`."""
    augment: str = "random_resized_crop"
    """'random_resized_crop', 'pad_and_crop' (zeros all round, then a random crop), or 'none'."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """random_resized_crop: the share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """random_resized_crop: width over height."""
    pad: int = 4
    """pad_and_crop: zeros on every side."""
    flip: bool = True
    """Mirror half of the training images."""
    randaugment: float | None = None
    """Magnitude, 0 to 10, of timm's RandAugment after crop and flip ("ResNet strikes back": 7, A3: 6); None: none."""
    randaugment_std: float = 0.5
    """Standard deviation of the magnitude."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from the pixels (0 to 1), a channel each."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides the result."""
    vertical_flip: bool = False
    """Turn half of the training images upside down."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """torchvision's ColorJitter(brightness, contrast, saturation, hue), after crop, flips and RandAugment; timm's 0.4
    is 0.4 0.4 0.4 0."""
    random_erasing: float = 0.0
    """The share of the training images in which a rectangle is erased, on the device, after normalisation and mixing
    (timm's --reprob)."""
    random_erasing_mode: str = "pixel"
    """What takes the rectangle's place (timm's --remode): 'const' (0, the mean colour), 'rand' (a colour of normal
    noise) or 'pixel' (normal noise in every pixel)."""
    random_erasing_count: int = 1
    """The most rectangles in an image (timm's --recount), which share the area that one would have."""

    def __post_init__(self):
        if self.augment not in AUGMENTATIONS:
            raise EcaJaxError(
                f"preprocess.augment: unknown {self.augment!r}; expected one of {', '.join(AUGMENTATIONS)}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise EcaJaxError(
                f"preprocess.interpolation: unknown {self.interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}"
            )
        if self.train_interpolation not in (None, "random", *INTERPOLATIONS):
            raise EcaJaxError(
                f"preprocess.train_interpolation: unknown {self.train_interpolation!r}; "
                f"expected one of {', '.join(INTERPOLATIONS)}, random"
            )
        if not 0 < self.image_size <= self.eval_resize:
            raise EcaJaxError(
                f"preprocess: expected 0 < image_size <= eval_resize, got {self.image_size} and {self.eval_resize}; "
                "set both: eval_resize is usually 8/7 of image_size"
            )
        if self.train_size < 1:
            raise EcaJaxError(f"preprocess.train_image_size: expected 1 or more, got {self.train_image_size}")
        if not all(math.isfinite(value) for value in self.mean):
            raise EcaJaxError(f"preprocess.mean: expected finite numbers, got {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise EcaJaxError(f"preprocess.std: expected positive numbers, got {self.std}")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise EcaJaxError(f"preprocess.crop_area: expected 0 < smallest <= largest <= 1, got {self.crop_area}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise EcaJaxError(f"preprocess.crop_ratio: expected 0 < smallest <= largest, got {self.crop_ratio}")
        self._check_augmentation()

    def _check_augmentation(self):
        if self.pad < 0:
            raise EcaJaxError(f"preprocess.pad: expected 0 or more, got {self.pad}")
        if self.augment == "pad_and_crop" and self.pad >= self.train_size:
            raise EcaJaxError(
                f"preprocess.pad: expected less than the side of the training images, {self.train_size} (a crop could "
                f"miss the image), got {self.pad}"
            )
        if self.randaugment is not None and not 0 <= self.randaugment <= MAX_MAGNITUDE:
            raise EcaJaxError(f"preprocess.randaugment: expected 0 to {MAX_MAGNITUDE}, got {self.randaugment}")
        if not 0 <= self.randaugment_std < math.inf:
            raise EcaJaxError(f"preprocess.randaugment_std: expected 0 or more, got {self.randaugment_std}")
        if not all(0 <= strength < math.inf for strength in self.color_jitter) or self.color_jitter[-1] > 0.5:
            raise EcaJaxError(
                "preprocess.color_jitter: expected brightness, contrast and saturation of 0 or more and a hue of at "
                f"most 0.5, got {self.color_jitter}"
            )
        if not 0 <= self.random_erasing <= 1:
            raise EcaJaxError(f"preprocess.random_erasing: expected a share of 0 to 1, got {self.random_erasing}")
        expect_one_of("preprocess.random_erasing_mode", self.random_erasing_mode, ERASING_MODES)
        if not 1 <= self.random_erasing_count <= MOST_ERASED:
            raise EcaJaxError(
                f"preprocess.random_erasing_count: expected 1 to {MOST_ERASED}, got {self.random_erasing_count}"
            )

    @property
    def train_size(self) -> int:
        """Side of the training images."""
        return self.image_size if self.train_image_size is None else self.train_image_size

    @property
    def crop_share(self) -> float:
        """The inverse of `from_crop_share`: its quotient is `eval_resize` again, whatever the rounding of this one."""
        share = self.image_size / self.eval_resize
        while math.floor(self.image_size / share) < self.eval_resize:
            share = math.nextafter(share, 0)
        return share

    def for_evaluation(self, changes: Mapping[str, Any]) -> "PreprocessConfig":
        """With fields of `EVALUATION` set anew; an `image_size` without `eval_resize` keeps the share of the crop."""
        changes = dict(changes)
        if "image_size" in changes and "eval_resize" not in changes:
            changes["eval_resize"] = math.floor(changes["image_size"] / self.crop_share)
        changed = dataclasses.replace(self, **changes)
        changed.expect_sides("preprocess")
        return changed

    def expect_sides(self, where: str) -> None:
        """Refuses evaluation images beyond `LARGEST_SIDE`, which would fill the memory before the network sees them.

        Not of the configuration of a training: that has its own arithmetic of what it needs.
        """
        if self.eval_resize > LARGEST_SIDE:
            raise EcaJaxError(
                f"{where}: image_size {self.image_size} and eval_resize {self.eval_resize}; expected at most "
                f"{LARGEST_SIDE} pixels"
            )

    def describe_evaluation(self) -> str:
        """'image_size 224, eval_resize 256, interpolation bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225'."""
        return ", ".join(f"{name} {' '.join(words(getattr(self, name)))}" for name in EVALUATION)

    @classmethod
    def from_crop_share(cls, image_size: int, crop_share: float, **fields) -> "PreprocessConfig":
        """timm's way to say `eval_resize`: the centre crop is `crop_share` (its `crop_pct`) of the resized short side.

        `fields` are the other fields, by name.
        """
        if not 0 < crop_share <= 1:
            raise EcaJaxError(f"preprocess: expected 0 < crop_share <= 1, got {crop_share}")
        return cls(image_size=image_size, eval_resize=math.floor(image_size / crop_share), **fields)


EVALUATION = ("image_size", "eval_resize", "interpolation", "mean", "std")
"""The fields of `PreprocessConfig` that an evaluation image depends on."""


def words(value: Any) -> list[str]:
    """A field's value as the command line takes it: one word, or one for each channel."""
    return [str(v) for v in (value if isinstance(value, tuple | list) else (value,))]


VECTOR = ("EPS", "WMF")
"""Formats of drawings. For EPS, Pillow would start Ghostscript, which runs what stands in the file."""


def open_image(data: bytes) -> Image.Image:
    """An encoded image of whichever format of pixels Pillow knows, its header read alone.

    Raises:
      EcaJaxError: it is of none.
      Image.DecompressionBombError: as `decode`.
    """
    Image.preinit()  # the usual formats, which are to be asked first
    Image.init()
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in Image.ID if name not in VECTOR])
    except Image.UnidentifiedImageError:  # which names the place of the bytes in memory
        raise EcaJaxError("no known image format") from None


def decode(data: bytes) -> Image.Image:
    """An encoded image with 8 bits a channel (colour, grey, palette, CMYK) -> RGB.

    As in torchvision's and timm's image folders, the EXIF tag that asks viewers for a rotation is ignored, and so is
    transparency: published accuracies are of such pixels. Of 16 bits a channel in colour (or grey with transparency)
    Pillow keeps the upper 8.

    Raises:
      EcaJaxError: grey pixels of more than 8 bits, which Pillow would cut off at white.
      Image.DecompressionBombError: more than 178,956,970 pixels (twice `Image.MAX_IMAGE_PIXELS`), and whatever
        else Pillow says of what it cannot read.
    """
    with open_image(data) as image:
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """`decode` of an image that Pillow has opened."""
    if image.mode.startswith(("I", "F")):
        raise EcaJaxError(f"its pixels have more than 8 bits (mode {image.mode}), which would be cut off; scale them")
    return image.convert("RGB")


def check_area(width: int, height: int) -> None:
    """Refuses what has more pixels than Pillow opens, where Pillow is not asked: a small file could fill the memory."""
    limit = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf
    if width * height > limit:
        raise EcaJaxError(
            f"its {width} x {height} pixels are more than {limit:,} (PIL.Image.MAX_IMAGE_PIXELS, twice); scale it down"
        )


def train_image(data: bytes, rng: np.random.Generator, config: PreprocessConfig) -> np.ndarray:
    """Encoded image -> augmented uint8 (train_size, train_size, 3). The same generator state gives the same pixels."""
    return begin_train_image(data, rng, config)()


def begin_train_image(data: bytes, rng: np.random.Generator, config: PreprocessConfig) -> Callable[[], np.ndarray]:
    """`train_image` in two halves: what can be done without a pixel is done now, the rest by what is returned."""
    jpeg = open_jpeg(data) if config.augment == "random_resized_crop" else None
    if jpeg is None:
        return lambda: augment(decode(data), rng, config)
    check_area(*jpeg.size)
    left, top, width, height = crop_box(*jpeg.size, config, rng)

    def finish() -> np.ndarray:
        reduction = reduction_for((width, height), config.train_size)
        pixels, box = jpeg.decode((left, top, width, height), reduction)
        pixels = resize(pixels, box, config.train_size, train_filter(config, rng))
        return after_crop(pixels, rng, config)

    return finish


def augment(image: Image.Image, rng: np.random.Generator, config: PreprocessConfig) -> np.ndarray:
    """Crop, flips, RandAugment, colour jitter: timm's order."""
    if config.augment == "random_resized_crop":
        return after_crop(random_resized_crop(image, config, rng), rng, config)
    image = resize_and_crop(image, config.train_size, config.train_size, train_filter(config, rng))
    if config.augment == "pad_and_crop":
        image = pad_and_crop(image, config.pad, rng)
    return after_crop(np.asarray(image), rng, config)


def after_crop(pixels: np.ndarray, rng: np.random.Generator, config: PreprocessConfig) -> np.ndarray:
    """What comes after the crop; nothing is drawn for what is not asked for."""
    if config.flip and rng.random() < 0.5:  # a multiple of 2^-53 below 1: exactly half of the values are less
        pixels = mirrored(pixels)
    if config.vertical_flip and rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[::-1])
    if config.randaugment is None and not any(config.color_jitter):
        return pixels
    image = Image.fromarray(pixels)
    if config.randaugment is not None:
        image = rand_augment(
            image,
            rng,
            magnitude=config.randaugment,
            std=config.randaugment_std,
            resample=lambda: train_filter(config, rng),
            fill=tuple(min(255, round(255 * mean)) for mean in config.mean),
        )
    if any(config.color_jitter):
        image = color_jitter(image, rng, config.color_jitter)
    return np.asarray(image)


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """pixels[:, ::-1], copied a channel at a time, which takes a fifth of the time."""
    out = np.empty_like(pixels)
    for channel in range(pixels.shape[-1]):
        out[..., channel] = pixels[:, ::-1, channel]
    return out


def train_filter(config: PreprocessConfig, rng: np.random.Generator) -> Image.Resampling:
    """The filter of one resize in training."""
    name = config.train_interpolation or config.interpolation
    return INTERPOLATIONS[tuple(INTERPOLATIONS)[rng.integers(len(INTERPOLATIONS))] if name == "random" else name]


def eval_image(data: bytes, config: PreprocessConfig) -> np.ndarray:
    """Encoded image -> resized and centre-cropped uint8 (image_size, image_size, 3)."""
    return eval_pixels(decode(data), config)


def eval_pixels(image: Image.Image, config: PreprocessConfig) -> np.ndarray:
    """`eval_image` of an image that is decoded: RGB."""
    return np.asarray(
        resize_and_crop(image, config.eval_resize, config.image_size, INTERPOLATIONS[config.interpolation])
    )


def resize_and_crop(image: Image.Image, short_side: int, size: int, resample: Image.Resampling) -> Image.Image:
    """torchvision's Resize(short_side), with antialiasing, and CenterCrop(size), size <= short_side.

    The long side is truncated to a whole pixel. Of a thin image that is enlarged only what the crop shows is computed,
    the same pixels: else a file of a hundred bytes, a line of 8000 pixels, would become an image of 256 x 2,048,000.
    """
    width, height = image.size
    if min(width, height) == short_side:
        return center_crop(image, size)
    long_side = int(short_side * max(width, height) / min(width, height))
    if min(width, height) < short_side and max(width, height) > LONG * min(width, height):
        return _enlarge_and_crop(image, short_side, long_side, size, resample)
    new = (short_side, long_side) if width <= height else (long_side, short_side)
    return center_crop(image.resize(new, resample), size)


def _enlarge_and_crop(
    image: Image.Image, short_side: int, long_side: int, size: int, resample: Image.Resampling
) -> Image.Image:
    """As Pillow does it, which enlarges every row before the columns, of whatever shape the image is."""
    needed = taps(max(image.size), long_side, round((long_side - size) / 2), size, resample)
    across = round((short_side - size) / 2)
    if image.width > image.height:
        part = image.crop((needed.start, 0, needed.stop, image.height))
        rows = Image.fromarray(resize_lines(np.asarray(part), needed)).resize((size, short_side), resample)
        return rows.crop((0, across, size, across + size))
    part = image.crop((0, needed.start, image.width, needed.stop))
    rows = part.resize((short_side, part.height), resample).crop((across, 0, across + size, part.height))
    return Image.fromarray(np.swapaxes(resize_lines(np.swapaxes(np.asarray(rows), 0, 1), needed), 0, 1))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """torchvision's CenterCrop(size) on an image that is at least that large."""
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(image: Image.Image, config: PreprocessConfig, rng: np.random.Generator) -> np.ndarray:
    """A random part of the image, resized (antialiased, as Pillow's reducing resize is)."""
    left, top, width, height = crop_box(*image.size, config, rng)
    # Cut out first: with a box in the larger image, pixels from outside the box would come in.
    crop = np.asarray(image.crop((left, top, left + width, top + height)))
    return resize(crop, (0, 0, width, height), config.train_size, train_filter(config, rng))


def resize(pixels: np.ndarray, box: Box, size: int, resample: Image.Resampling) -> np.ndarray:
    """Pillow's `resize((size, size), resample, box)` to a grey level: the same filters in fixed point, vectorised."""
    if cykooz_resizer is None:
        left, top, width, height = box
        resized = Image.fromarray(pixels).resize((size, size), resample, (left, top, left + width, top + height))
        return np.asarray(resized)
    options = cykooz_resizer.ResizeOptions(
        resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType[FILTERS[resample]]),
        crop_box=cykooz_resizer.CropBox(*box),
        use_alpha=False,
    )
    height, width, _ = pixels.shape
    rgb = cykooz_resizer.PixelType.U8x3
    resized = cykooz_resizer.ImageData(size, size, rgb)
    cykooz_resizer.Resizer().resize(cykooz_resizer.ImageData(width, height, rgb, pixels.tobytes()), resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size, size, 3)


def crop_box(width: int, height: int, config: PreprocessConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop of an image of that size: torchvision's RandomResizedCrop.

    Area and logarithm of the ratio are uniform; what does not fit into the image is drawn again, up to ten times.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*config.crop_area)
        ratio = math.exp(rng.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, w, h
    # The whole image, cut down to the nearest allowed ratio.
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def pad_and_crop(image: Image.Image, pad: int, rng: np.random.Generator) -> Image.Image:
    """Shifts the image by up to `pad` pixels each way; what comes in is black."""
    left, top = (int(offset) for offset in rng.integers(-pad, pad, size=2, endpoint=True))
    return image.crop((left, top, left + image.width, top + image.height))


def normalise(image: jax.Array, config: PreprocessConfig, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """uint8 (b, h, w, 3) -> (image / 255 - mean) / std in `dtype`."""
    mean, std = (jnp.asarray(value, dtype) for value in (config.mean, config.std))
    return (image.astype(dtype) / 255 - mean) / std
