"""Image files that the user names: read, and what is wrong with one in a line."""

import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

from eca_jax.errors import EcaJaxError

T = TypeVar("T")
OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""What the shell hands over: `predict <(curl ...)`."""


def read_image(file: str | os.PathLike, use: Callable[[bytes], T]) -> T:
    """What `use` makes of the content of a file, which is an encoded image.

    Raises:
      EcaJaxError: names the file that is missing, a directory or a pipe, or of which `use` makes nothing.
    """
    path = pathlib.Path(file)
    if path.exists() and not (path.is_file() or path.is_dir() or str(file).startswith(OPEN_ALREADY)):
        raise EcaJaxError(f"{file} is no regular file but a pipe, a socket or a device; give an image file")
    try:
        return use(path.read_bytes())
    except FileNotFoundError:
        raise EcaJaxError(f"there is no file {file}") from None
    except IsADirectoryError:
        raise EcaJaxError(f"{file} is a directory; give image files, such as {file}/*.jpg") from None
    except MemoryError:
        raise  # of the machine, not of the file
    except Exception as error:  # whatever a decoder says of damaged bytes
        raise EcaJaxError(f"cannot read {file} as an image: {error}") from error
