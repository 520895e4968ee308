"""What a trained model says of image files."""

import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from eca_jax.compiler_options import compiler_options
from eca_jax.data.imagenet import readable
from eca_jax.data.preprocess import PreprocessConfig, eval_image
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.training.step import normalise


def predict_files(
    files: Sequence[str], *, model: Backbone, class_names: Sequence[str], top: int = 5
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(file, [(class name, probability), ...]) with the `top` most probable classes, best first.

    Raises:
      EcaJaxError: names the file that is missing or is not an image; no file is left out.
    """

    def probabilities(image: jax.Array) -> jax.Array:
        return jax.nn.softmax(model(normalise(image, model.preprocess))[0])

    images = [(file, read_image(file, model.preprocess)) for file in files]
    probabilities = jax.jit(probabilities, compiler_options=compiler_options())
    for file, image in images:
        p = np.asarray(probabilities(jnp.asarray(image[None])))
        yield file, [(readable(class_names[int(i)]), float(p[i])) for i in np.argsort(-p)[:top]]


def read_image(file: str, config: PreprocessConfig) -> np.ndarray:
    """An image file -> uint8 (image_size, image_size, 3), as in evaluation."""
    try:
        return eval_image(pathlib.Path(file).read_bytes(), config)
    except FileNotFoundError:
        raise EcaJaxError(f"there is no file {file}") from None
    except IsADirectoryError:
        raise EcaJaxError(f"{file} is a directory; give image files, such as {file}/*.jpg") from None
    except Image.UnidentifiedImageError:
        raise EcaJaxError(f"cannot read {file} as an image: no known image format") from None
    except Exception as error:  # whatever a decoder says of damaged bytes
        raise EcaJaxError(f"cannot read {file} as an image: {error}") from error
