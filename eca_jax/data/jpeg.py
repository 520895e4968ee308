"""Decodes only the part of a JPEG file that a crop needs, at the scale that it needs (libjpeg-turbo, by simplejpeg).

Two thirds of the time for a training image is decoding. Two thirds of that is reading the entropy coding, which has to
be read from its beginning. Everything below the crop can be left out without changing a pixel: if the header gives a
smaller height, the file is decoded only so far. If the crop is much larger than the final image, the inverse DCT gives
4 x 4, 2 x 2 or 1 pixel for each block: see `MARGIN`.
"""

import dataclasses
import struct
from collections.abc import Sequence

import numpy as np
import simplejpeg

Box = tuple[float, float, float, float]
"""left, top, width, height."""

SEQUENTIAL = (0xC0, 0xC1)
"""Markers of frames whose pixels come from top to bottom (SOF0, SOF1). Progressive ones have to be read to the end."""
OTHERS = (*range(0xC2, 0xC4), *range(0xC5, 0xD0), 0xDA)
"""Markers of other kinds of frames, and of a scan without a frame."""
SAMPLINGS = {bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x21, 0x12, 0x22, 0x41, 0x14)}
"""TurboJPEG's subsamplings of the three components, 4:4:4 to 4:1:1. A byte has the horizontal and vertical factor."""
END_OF_IMAGE = b"\xff\xd9"
CONTEXT = 2
"""The interpolation of the colours uses so many rows below the crop."""
REDUCTIONS = (8, 4, 2)
"""Reductions in each direction: the scales of the DCT at which libjpeg-turbo is faster than at full size."""
MARGIN = 1.75
"""A reduced crop is at least so many times larger than the final image. On photographs, the pixels then differ from the
full decode by less than three quarters of the difference that bicubic or box instead of bilinear would make, in the
mean and in the 99th percentile (tests/data/test_jpeg.py; docs/performance.md)."""


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """An encoded image whose parts can be decoded. `size` is (width, height), as in Pillow."""

    data: bytes
    size: tuple[int, int]
    height_at: int
    """The position of the height in the file."""

    def decode(self, box: tuple[int, int, int, int], reduction: int = 1) -> tuple[np.ndarray, Box]:
        """(pixels, uint8 (h, w, 3), that contain the box (left, top, width, height); the box in these pixels).

        With reduction 1, the pixels are exactly the box, and the same as Pillow's; otherwise there may be one pixel
        more on each side.

        Raises:
          ValueError: libjpeg-turbo cannot decode it.
        """
        left, top, width, height = box
        columns, rows = self.size[0], min(self.size[1], top + height + CONTEXT * reduction)
        shorter = b"".join((self.data[: self.height_at], rows.to_bytes(2), self.data[self.height_at + 2 :]))
        # Not strict: what follows the last row that was asked for is no error, and `open_jpeg` has seen the end.
        pixels = simplejpeg.decode_jpeg(
            shorter,
            min_height=-(-rows // reduction),
            min_width=-(-columns // reduction),
            min_factor=reduction,
            strict=False,
        )
        x, y, w, h = (side / reduction for side in box)
        x0, y0 = int(x), int(y)
        part = pixels[y0 : -(-(top + height) // reduction), x0 : -(-(left + width) // reduction)]
        return part, (x - x0, y - y0, w, h)


def open_jpeg(data: bytes) -> Jpeg | None:
    """A file whose parts can be decoded: complete, sequential, 8 bits, grey or three colours; None for any other file.

    A file without its end-of-image marker is left to Pillow, which refuses it. The two bytes of the marker do not occur
    inside the coded pixels, so a file that was cut off there does not end with them.
    """
    if not (data.startswith(b"\xff\xd8") and data.endswith(END_OF_IMAGE)):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in SEQUENTIAL:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            sampling = data[at + 11 : at + 10 + 3 * components : 3]
            readable = bits == 8 and width and height and (components == 1 or sampling in SAMPLINGS)
            return Jpeg(data, (width, height), at + 5) if readable else None
        if marker in OTHERS:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def reduction_for(crop: Sequence[int], size: int) -> int:
    """The largest reduction after which a crop (width, height) is `MARGIN` times as large as `size` on both sides."""
    return next((r for r in REDUCTIONS if min(crop) >= MARGIN * r * size), 1)
