"""Which classes were taken for which."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from eca_jax.errors import EcaJaxError
from eca_jax.plots.style import COLUMN, own_or_new, styled

MOST_NAMED = 20
"""From more classes on, there is room neither for their names nor for the numbers in the cells."""
DARK = 0.5
"""From this share on, a cell is so dark that its number is white."""


def plot_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """The numbers of images in cells, true classes from top to bottom, predicted ones from left to right.

    The darkness of a cell is its share of the images of its true class; a class without images has a white row.

    Args:
      matrix: (k, k), of `eca_jax.analysis.confusion_matrix`.
      class_names: k of them. With more than 20, there are no names and no numbers.
      ax: where to draw; None is new square axes of a column's width.

    Raises:
      EcaJaxError: the matrix is not square, or there are other classes than names.

    Example:
      >>> import numpy as np
      >>> from eca_jax.plots import plot_confusion_matrix
      >>> ax = plot_confusion_matrix(np.array([[9, 1], [2, 8]]), ["cat", "dog"])
      >>> ax.figure.savefig("confusion.png")
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(class_names), len(class_names)):
        raise EcaJaxError(
            f"matrix: expected a row and a column for each of {len(class_names)} names, got {matrix.shape}"
        )
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with styled():
        ax = own_or_new(ax, COLUMN)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        ax.set_xlabel("predicted class")
        ax.set_ylabel("true class")
        if len(class_names) <= MOST_NAMED:
            ticks = range(len(class_names))
            ax.set_xticks(ticks, class_names, rotation=90 if max(map(len, class_names)) > 2 else 0)
            ax.set_yticks(ticks, class_names)
            for i, j in np.argwhere(matrix > 0):
                color = "white" if share[i, j] > DARK else "black"
                ax.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, fontsize=6)
    return ax
