"""What a trained model says of image files."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from eca_jax.errors import EcaJaxError
from eca_jax.memory import SMALLER, names_lack_of_memory
from eca_jax.models.base import Backbone
from eca_jax.tasks.base import Task


def predict_files(files: Sequence[str], *, model: Backbone, task: Task) -> Iterator[tuple[str, Any]]:
    """(file, prediction), as the task's `describe_prediction` takes it. All files are decoded before the first.

    Raises:
      EcaJaxError: names the file that is missing or is not an image; no file is left out.
    """
    predict = task.predictor(model)
    size = task.preprocess.image_size
    what, remedies = f"predictions on images of {size} x {size} pixels", ["fewer files at once", SMALLER]
    with names_lack_of_memory(what, remedies, jax.local_devices()):
        for file, compute in [(file, _decoded(file, predict)) for file in files]:
            yield file, compute()


OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""What the shell hands over: `predict <(curl ...)`."""


def _decoded(file: str, predict: Callable[[bytes], Callable[[], Any]]) -> Callable[[], Any]:
    path = pathlib.Path(file)
    if path.exists() and not (path.is_file() or path.is_dir() or file.startswith(OPEN_ALREADY)):
        raise EcaJaxError(f"{file} is no regular file but a pipe, a socket or a device; give an image file")
    try:
        return predict(path.read_bytes())
    except FileNotFoundError:
        raise EcaJaxError(f"there is no file {file}") from None
    except IsADirectoryError:
        raise EcaJaxError(f"{file} is a directory; give image files, such as {file}/*.jpg") from None
    except MemoryError:
        raise  # of the machine, not of the file
    except Exception as error:  # whatever a decoder says of damaged bytes
        raise EcaJaxError(f"cannot read {file} as an image: {error}") from error
