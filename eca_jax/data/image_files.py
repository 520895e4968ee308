"""Image files that the user names: read, and what is wrong with one in a line."""

import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

from eca_jax.errors import EcaJaxError, printable

T = TypeVar("T")
OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""What the shell hands over: `predict <(curl ...)`."""


def expect_file(file: str | os.PathLike) -> str:
    """The path of a file that can be read.

    Raises:
      EcaJaxError: there is none, or it is a directory, a pipe, a socket or a device.
    """
    file = os.fspath(file)
    if not os.path.exists(file):
        raise EcaJaxError(f"there is no file {printable(file)}")
    if os.path.isdir(file):
        raise EcaJaxError(f"{file} is a directory; give image files, such as {file}/*.jpg")
    if not (os.path.isfile(file) or file.startswith(OPEN_ALREADY)):
        raise EcaJaxError(f"{file} is no regular file but a pipe, a socket or a device; give an image file")
    return file


def read_image(file: str | os.PathLike, use: Callable[[bytes], T]) -> T:
    """What `use` makes of the content of a file, which is an encoded image.

    Raises:
      EcaJaxError: as `expect_file`, or names the file of which `use` makes nothing.
    """
    path = pathlib.Path(expect_file(file))
    try:
        return use(path.read_bytes())
    except MemoryError:
        raise  # of the machine, not of the file
    except Exception as error:  # whatever a decoder says of damaged bytes
        raise EcaJaxError(f"cannot read {printable(str(file))} as an image: {error}") from error
