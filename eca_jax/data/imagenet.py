"""The names of ImageNet's classes, which of them its offsprings have, and how many images it has."""

import functools
import importlib.resources

from eca_jax.errors import printable

CLASSES = 1000
TRAINING_EXAMPLES = 1_281_167


@functools.cache
def synsets() -> dict[str, str]:
    """WordNet identifier -> English name, in the order of the labels: {'n01440764': 'tench', ...}."""
    text = importlib.resources.files("eca_jax.data").joinpath("imagenet_classes.txt").read_text()
    return dict(line.split(" ", 1) for line in text.splitlines())


@functools.cache
def candidates(data_set: str) -> tuple[int, ...] | None:
    """The labels among which a prediction on a TFDS data set is made; None is all that the model knows.

    ImageNet-A and ImageNet-R have images of 200 of the 1000 classes each, and their papers (Hendrycks et al.,
    arXiv:1907.07174 and 2006.16241) let the model choose among those.
    """
    if data_set not in ("imagenet_a", "imagenet_r"):
        return None
    numbers = {name: i for i, name in enumerate(synsets())}
    text = importlib.resources.files("eca_jax.data").joinpath(f"{data_set}.txt").read_text()
    return tuple(numbers[name] for name in text.split())


def class_names(num_classes: int) -> tuple[str, ...]:
    """Names for weights that bring none: ImageNet's where there are 1000, else the labels."""
    return tuple(synsets().values()) if num_classes == CLASSES else tuple(str(i) for i in range(num_classes))


def readable(name: str) -> str:
    """'n01440764' -> 'tench'; other names stay, with what is not printable escaped."""
    return printable(synsets().get(name, name))
