"""Image files that the user names: read, and what is wrong with one in a line."""

import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

from eca_jax.errors import EcaJaxError, printable

T = TypeVar("T")
OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""What the shell hands over: `predict <(curl ...)`."""


def check_image_file(file: str) -> str:
    """Refuses a name without a file, and what may not be read as one: a directory, or a pipe, which may never end."""
    if not os.path.exists(file):
        raise EcaJaxError(f"there is no file {file}")
    if os.path.isdir(file):
        raise EcaJaxError(f"{file} is a directory; give an image file")
    if not (os.path.isfile(file) or file.startswith(OPEN_ALREADY)):
        raise EcaJaxError(f"{file} is no regular file but a pipe, a socket or a device; give an image file")
    return file


def read_image_file(file: str, use: Callable[[bytes], T]) -> T:
    """What `use` makes of the content of a file, which is an encoded image.

    Raises:
      EcaJaxError: names the file that cannot be read, or of which `use` makes nothing.
    """
    try:
        return use(pathlib.Path(file).read_bytes())
    except MemoryError:
        raise  # of the machine, not of the file
    except Exception as error:  # whatever a decoder says of damaged bytes
        raise EcaJaxError(f"cannot read {printable(file)} as an image: {error}") from error
