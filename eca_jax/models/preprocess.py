"""`eca_jax.preprocess`: an image, in whatever form, as the array that a model takes."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from eca_jax.data.image_files import check_image_file, read_image_file
from eca_jax.data.preprocess import as_rgb, decode, eval_pixels, normalise
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone

Picture = str | os.PathLike | bytes | np.ndarray | jax.Array | Image.Image
"""A path; the content of an image file; uint8 (h, w, 3), RGB, or grey (h, w) or (h, w, 1); or an image of Pillow."""


def preprocess(image: Picture | Sequence[Picture], model: Backbone) -> jax.Array:
    """The normalised batch that the model takes: float32 (1, size, size, 3); of a list of n images (n, size, size, 3).

    The image is made as `model.preprocess` says, with the pixels that `eca-jax predict` and `evaluate` see: the short
    side is resized to `eval_resize`, of which the middle `image_size` x `image_size` are taken, scaled to 0..1, minus
    `mean`, divided by `std`. EXIF's rotation and transparency are ignored, as `eca_jax.data.preprocess.decode` says.

    Args:
      image: a path; the bytes of an image file; a uint8 array (h, w, 3), RGB, or grey (h, w) or (h, w, 1);
        an image of Pillow; or a list of those.
      model: of `create_model`, `load_pretrained` or `load_run`.

    Raises:
      EcaJaxError: there is no such file or it is no image, the array has another type or shape, the list is empty, or
        the model takes images of other channels than RGB.

    Example:
      >>> import eca_jax
      >>> import numpy as np
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> photograph = np.full((300, 400, 3), 128, np.uint8)
      >>> images = eca_jax.preprocess(photograph, model)
      >>> images.shape, images.dtype
      ((1, 224, 224, 3), dtype('float32'))
    """
    if not isinstance(model, Backbone):
        raise EcaJaxError(f"model: expected one of eca_jax.create_model, got {type(model).__name__}")
    if model.in_channels != 3:
        raise EcaJaxError(f"model: expected one that takes RGB, got one for images of {model.in_channels} channels")
    images = image if isinstance(image, list | tuple) else [image]
    if not images:
        raise EcaJaxError("image: expected an image or a list of them, got an empty one")
    pixels = np.stack([of_picture(one, lambda rgb: eval_pixels(rgb, model.preprocess)) for one in images])
    return normalise(jnp.asarray(pixels), model.preprocess)


def of_picture(image: Any, make: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `make` makes of an image in RGB, which is given in any of the forms of `Picture`.

    Raises:
      EcaJaxError: there is no such file or it is no image, or the array has another type or shape.
    """
    if isinstance(image, str | os.PathLike):
        file = check_image_file(os.fspath(image))
        return read_image_file(file, lambda data: make(decode(data)))
    if isinstance(image, bytes | bytearray | memoryview):
        return _made(f"these {len(image)} bytes", lambda: make(decode(bytes(image))))
    if isinstance(image, Image.Image):
        return _made(f"this {type(image).__name__}", lambda: make(as_rgb(image)))
    if not isinstance(image, np.ndarray | jax.Array):
        raise EcaJaxError(
            "image: expected a path, the bytes of an image file, a uint8 array (h, w, 3), an image of Pillow or a list "
            f"of those, got {type(image).__name__}"
        )
    return make(as_rgb(Image.fromarray(_checked(np.asarray(image)))))


def _made(what: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return make()
    except MemoryError:
        raise  # of the machine, not of the image
    except Exception as error:  # whatever a decoder says of damaged bytes, which Pillow may not have looked at yet
        raise EcaJaxError(f"image: cannot read {what} as an image: {error}") from error


def _checked(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) or (h, w); what is neither is refused, with a line that says how to make it so."""
    advice = None
    if image.dtype != np.uint8:
        advice = "pixels are whole numbers from 0 to 255; of floats from 0 to 1: (255 * x).round().astype('uint8')"
    elif image.ndim == 4:
        advice = "of a batch, give a list of its images: list(x)"
    elif image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        advice = "channels come last: x.transpose(1, 2, 0)"
    elif image.ndim == 3 and image.shape[2] == 4:
        advice = "leave out the transparency: x[..., :3]"
    elif image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)) or not image.size:
        advice = "images are RGB or grey, channels last"
    if advice:
        raise EcaJaxError(f"image: expected a uint8 array (h, w, 3), got {image.dtype} {image.shape}: {advice}")
    return image[..., 0] if image.shape[2:] == (1,) else image
