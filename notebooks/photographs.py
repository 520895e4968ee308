"""Twelve photographs that come with scikit-image and scikit-learn, tiles of them as a small data set, and pictures.

The class of a tile is the photograph from which it is. A fifth of the tiles, spread over each photograph, is held out.
So the accuracy on these says whether a network knows other places of the same pictures, and nothing of other pictures.
Nothing is downloaded: all twelve are in the two packages' wheels.
"""

import functools
import importlib
import io
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

SIDE = 480
"""Photographs are resized so that the shorter side has so many pixels."""
TILE = 48
"""The side of a tile, in pixels."""


def _of_skimage(name: str) -> np.ndarray:
    """Imported here, as the two of scikit-learn need no scikit-image."""
    return getattr(importlib.import_module("skimage.data"), name)()


PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": functools.partial(_of_skimage, "astronaut"),
    "brick": functools.partial(_of_skimage, "brick"),
    "cat": functools.partial(_of_skimage, "chelsea"),
    "coffee": functools.partial(_of_skimage, "coffee"),
    "flower": functools.partial(load_sample_image, "flower.jpg"),
    "galaxies": functools.partial(_of_skimage, "hubble_deep_field"),
    "grass": functools.partial(_of_skimage, "grass"),
    "gravel": functools.partial(_of_skimage, "gravel"),
    "motorcycle": lambda: _of_skimage("stereo_motorcycle")[0],
    "palace": functools.partial(load_sample_image, "china.jpg"),
    "retina": functools.partial(_of_skimage, "retina"),
    "rocket": functools.partial(_of_skimage, "rocket"),
}
"""The name of each class -> its photograph, uint8 (h, w, 3) or (h, w); in the order of the names, as in a folder.

The flower (by vultilion) and the palace (by danielbuechele, both on Flickr, CC BY 2.0) come with scikit-learn, the
others with scikit-image, whose documentation says of each whose it is: most are CC0 or in the public domain; the
motorcycle is of the Middlebury stereo benchmark of 2014. The galaxies are Hubble's deep field.
"""


def photograph(name: str) -> np.ndarray:
    """One of `PHOTOGRAPHS`, uint8 (h, w, 3), whose shorter side has `SIDE` pixels."""
    picture = Image.fromarray(PHOTOGRAPHS[name]()).convert("RGB")
    scale = SIDE / min(picture.size)
    return np.asarray(picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC))


def is_held_out(row: int, column: int) -> bool:
    """Whether a tile is of the split 'test': every fifth of a row, each row two further to the right, so none touch."""
    return (column - 2 * row) % 5 == 0


def tiles(name: str, split: str, side: int = TILE) -> Iterator[np.ndarray]:
    """The tiles of a photograph, uint8 (side, side, 3), row by row: the held-out ones for 'test', or the others."""
    picture = photograph(name)
    for row in range(picture.shape[0] // side):
        for column in range(picture.shape[1] // side):
            if is_held_out(row, column) == (split == "test"):
                yield picture[row * side : (row + 1) * side, column * side : (column + 1) * side]


def held_out(side: int = TILE) -> tuple[list[np.ndarray], np.ndarray]:
    """All held-out tiles, in the order of the classes, and the class of each, int64 (n)."""
    found = [(tile, number) for number, name in enumerate(PHOTOGRAPHS) for tile in tiles(name, "test", side)]
    return [tile for tile, _ in found], np.array([number for _, number in found])


def write_folder(folder: pathlib.Path) -> None:
    """The data set as image files, FOLDER/{train,test}/CLASS/NNN.png; once."""
    if folder.is_dir():
        return
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split in ("train", "test"):
        for name in PHOTOGRAPHS:
            (unfinished / split / name).mkdir(parents=True)
            for number, tile in enumerate(tiles(name, split)):
                Image.fromarray(tile).save(unfinished / split / name / f"{number:03}.png")
    unfinished.rename(folder)


def jpeg(figure):
    """A figure of pyplot with photographs in it, to be shown by a cell: a tenth as large as the usual PNG."""
    import IPython.display
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=120)
    plt.close(figure)
    return IPython.display.Image(buffer.getvalue())
