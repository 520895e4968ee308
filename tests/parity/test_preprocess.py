"""Evaluation images against torchvision's and timm's transforms on Pillow images: the same pixels, exactly."""

import io
import itertools
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn import datasets

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
timm_data = pytest.importorskip("timm.data")

from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.datasets.folder import default_loader  # noqa: E402
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights  # noqa: E402

import eca_jax  # noqa: E402
from eca_jax.data.preprocess import PreprocessConfig, decode, eval_image, normalise  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Palette images with Transparency"),  # Pillow's advice on one of the files
]

PHOTOS = pathlib.Path(datasets.__file__).parent / "images"  # two JPEG files of 640 x 427
V1 = ResNet50_Weights.IMAGENET1K_V1
V2 = ResNet50_Weights.IMAGENET1K_V2
HALF = (0.5, 0.5, 0.5)  # the mean and std of some of timm's weights


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_files() -> dict[str, bytes]:
    """File name -> bytes. Every mode and kind of compression, and sides that no size divides."""
    china, flower = (Image.open(PHOTOS / name).convert("RGB") for name in ("china.jpg", "flower.jpg"))
    portrait, landscape = china.crop((201, 4, 452, 423)), flower.crop((98, 57, 599, 338))
    palette = landscape.quantize(64)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the tag Orientation: turn by 90 degrees to view
    return {
        "as_shipped_1.jpg": (PHOTOS / "china.jpg").read_bytes(),
        "as_shipped_2.jpg": (PHOTOS / "flower.jpg").read_bytes(),
        "progressive_420.jpg": encode(portrait, "JPEG", progressive=True, subsampling="4:2:0", quality=70),
        "portrait_422.jpg": encode(portrait, "JPEG", subsampling="4:2:2"),
        "landscape_444.jpg": encode(landscape, "JPEG", subsampling="4:4:4", quality=97),
        "short_side_256.jpg": encode(china.crop((0, 0, 333, 256)), "JPEG"),
        "short_side_224.jpg": encode(china.crop((200, 100, 424, 401)), "JPEG"),
        "square.jpg": encode(flower.crop((111, 7, 522, 418)), "JPEG"),
        "tall.jpg": encode(china.crop((301, 0, 340, 427)), "JPEG"),
        "wide.jpg": encode(china.crop((0, 200, 639, 247)), "JPEG"),
        "small.jpg": encode(flower.crop((300, 200, 345, 231)), "JPEG"),
        "exif_rotated.jpg": encode(landscape, "JPEG", exif=rotated),
        "grey.jpg": encode(landscape.convert("L"), "JPEG"),
        "cmyk.jpg": encode(portrait.convert("CMYK"), "JPEG"),
        "palette.png": encode(palette, "PNG"),
        "palette_one_transparent.png": encode(palette, "PNG", transparency=3),
        "palette_alpha.png": encode(palette, "PNG", transparency=bytes(range(0, 256, 4))),
        "grey_alpha.png": encode(portrait.convert("LA"), "PNG"),
        "rgba.png": encode(Image.merge("RGBA", [*portrait.split(), portrait.getchannel("G")]), "PNG"),
        "two_colours.png": encode(portrait.convert("1"), "PNG"),
    }


@pytest.fixture(scope="module")
def files() -> Iterator[dict[str, bytes]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on few cores, threads that wait for one another take longer than a whole image
    yield make_files()
    torch.set_num_threads(threads)


def compare(files: dict[str, bytes], config: PreprocessConfig, theirs) -> None:
    mean, std = np.array(config.mean), np.array(config.std)
    for name, data in files.items():
        floats = theirs(Image.open(io.BytesIO(data)).convert("RGB")).numpy().transpose(1, 2, 0)
        # What float32 loses is less than 1e-3 of a level: the nearest whole number is the pixel before ToTensor.
        expected = np.rint((floats * std + mean) * 255).astype(int)
        pixels = eval_image(data, config)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected, err_msg=name)
        # A last bit of pixel / 255 is 6e-8, over std 3e-7; a last bit of the result is 2e-7.
        ours = normalise(jnp.asarray(pixels[None]), config)[0]
        np.testing.assert_allclose(ours, floats, rtol=0, atol=1e-6, err_msg=name)


def test_files_are_decoded_as_the_image_folders_do(files, tmp_path):
    """Above all: EXIF's rotation is not applied, and a transparent pixel keeps the colour under it."""
    (tmp_path / "a_class").mkdir()
    for name, data in files.items():
        (tmp_path / "a_class" / name).write_bytes(data)
    torchvision_folder, timm_folder = ImageFolder(tmp_path), timm_data.ImageDataset(str(tmp_path))
    assert len(torchvision_folder) == len(timm_folder) == len(files)
    for i, (path, _) in enumerate(torchvision_folder.samples):
        pixels = np.asarray(decode(pathlib.Path(path).read_bytes()))
        np.testing.assert_array_equal(pixels, np.asarray(torchvision_folder[i][0]), err_msg=path)
        j = timm_folder.filenames(absolute=True).index(path)  # timm sorts in another order
        np.testing.assert_array_equal(pixels, np.asarray(timm_folder[j][0]), err_msg=path)


def test_the_authors_images(files):
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    chain = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
    compare(files, PreprocessConfig(), transforms.Compose(chain))


@pytest.mark.parametrize(("weights", "resize"), [(V1, 256), (V2, 232), (MobileNet_V2_Weights.IMAGENET1K_V2, 232)])
def test_the_images_of_torchvision_s_weights(files, weights, resize):
    compare(files, PreprocessConfig(image_size=224, eval_resize=resize), weights.transforms())


def timm_s(size: int, share: float, interpolation: str, mean: tuple, std: tuple):
    return timm_data.create_transform(
        (3, size, size),
        is_training=False,
        crop_pct=share,
        crop_mode="center",
        interpolation=interpolation,
        mean=mean,
        std=std,
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [0.875, 0.94, 0.95, 0.965, 1.0])
@pytest.mark.parametrize("size", [160, 224, 256, 288, 320])
def test_timm_s_images(files, size, share, interpolation):
    config = PreprocessConfig.from_crop_share(size, share, interpolation=interpolation, mean=HALF, std=HALF)
    compare(files, config, timm_s(size, share, interpolation, HALF, HALF))


def test_eca_jax_preprocess_makes_the_arrays_of_both_in_whatever_form_the_image_comes(tmp_path):
    data = (PHOTOS / "china.jpg").read_bytes()
    image = Image.open(io.BytesIO(data))
    forms = [PHOTOS / "china.jpg", str(PHOTOS / "china.jpg"), data, np.array(image), jnp.asarray(image), image]
    model = nnx.eval_shape(lambda: eca_jax.create_model("resnet18", rngs=nnx.Rngs(0)))
    timm_config = PreprocessConfig.from_crop_share(288, 0.95, interpolation="bicubic", mean=HALF, std=HALF)
    for config, theirs in (
        (PreprocessConfig(eval_resize=232), V2.transforms()),
        (timm_config, timm_s(288, 0.95, "bicubic", HALF, HALF)),
    ):
        model.preprocess = config
        want = theirs(image).numpy().transpose(1, 2, 0)
        batch = eca_jax.preprocess(forms, model)
        assert batch.shape == (len(forms), *want.shape)
        for form, one in zip(forms, batch, strict=True):
            np.testing.assert_array_equal(eca_jax.preprocess(form, model), one[None])
            np.testing.assert_allclose(one, want, rtol=0, atol=1e-6)  # as of `compare`: the same pixels
            mean, std = np.array(config.mean), np.array(config.std)
            levels, expected = ((np.asarray(x) * std + mean) * 255 for x in (one, want))
            np.testing.assert_array_equal(np.rint(levels), np.rint(expected))


def test_moving_pictures_and_16_bits_in_colour_are_what_the_image_folders_make_of_them(tmp_path):
    """The first picture; the upper 8 bits."""
    photo = Image.open(PHOTOS / "flower.jpg").crop((300, 100, 340, 130))
    photo.save(tmp_path / "moving.gif", save_all=True, append_images=[photo.rotate(180)], duration=100)
    # Pillow writes no colours of 16 bits: a binary PPM does.
    wide = (np.asarray(photo).astype(">u2") * 257 - (np.asarray(photo) > 128) * 100).astype(">u2")
    (tmp_path / "wide.ppm").write_bytes(b"P6 40 30 65535\n" + wide.tobytes())
    for path in sorted(tmp_path.iterdir()):
        pixels = np.asarray(decode(path.read_bytes()))
        np.testing.assert_array_equal(pixels, np.asarray(default_loader(str(path))), err_msg=path.name)
        np.testing.assert_allclose(pixels.astype(int), np.asarray(photo), atol=60)


def test_crop_shares_are_timm_s():
    """Sizes and shares by the thousand: floor(size / share) depends on how the quotient is rounded."""
    for size, share in itertools.product(range(32, 513, 32), [i / 200 for i in range(100, 201)]):
        expected = timm_s(size, share, "bilinear", HALF, HALF).transforms[0].size
        assert PreprocessConfig.from_crop_share(size, share).eval_resize == expected, (size, share)
