"""Gates or activations by class."""

import dataclasses

import numpy as np

from eca_jax.errors import EcaJaxError


@dataclasses.dataclass(frozen=True)
class ClassStatistics:
    """What values (n, c), such as the gates of one block, are for the images of each of k classes."""

    classes: np.ndarray
    """(k), their numbers."""
    counts: np.ndarray
    """(k), int64: images of each."""
    means: np.ndarray
    """(k, c), float64: over the images of a class."""
    deviations: np.ndarray
    """(k, c), float64: the standard deviations over the images of a class."""

    @property
    def between(self) -> np.ndarray:
        """(c): the variance between classes: of the means, a class counting by its images."""
        mean = np.average(self.means, axis=0, weights=self.counts)
        return np.average((self.means - mean) ** 2, axis=0, weights=self.counts)

    @property
    def within(self) -> np.ndarray:
        """(c): the variance within a class, a class counting by its images."""
        return np.average(self.deviations**2, axis=0, weights=self.counts)

    @property
    def share_between(self) -> float:
        """How much of the variance over the images lies between the classes, of all channels together: 0 to 1.

        It is 0 where nothing differs between images.
        """
        between, within = self.between.sum(), self.within.sum()
        return float(between / (between + within)) if between else 0.0


def class_statistics(values: np.ndarray, labels: np.ndarray, classes: np.ndarray | None = None) -> ClassStatistics:
    """What gates or activations are for each class: means, standard deviations, and what differs between classes.

    Args:
      values: (n, c), of n images; of maps (n, h, w, c) take an average before.
      labels: (n), the class of each image.
      classes: (k), the classes that are asked for; None is all that the labels have, in order.

    Returns:
      Of the images of these classes alone, computed in float64.

    Raises:
      EcaJaxError: the values have another shape, are not finite, or there is no image of one of the classes.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import class_statistics
      >>> gates = np.array([[0.2, 0.5], [0.4, 0.5], [0.8, 0.5]])  # of three images
      >>> statistics = class_statistics(gates, labels=np.array([0, 0, 1]))
      >>> statistics.means
      array([[0.3, 0.5],
             [0.8, 0.5]])
      >>> round(statistics.share_between, 2)  # of the variance
      0.89
    """
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise EcaJaxError(
            f"values: expected an array (images, channels) and a label for each image, got the shapes {values.shape} "
            f"and {labels.shape}"
        )
    if not np.isfinite(values).all():
        raise EcaJaxError("values: some are not finite numbers: the weights are damaged, or of a training that failed")
    classes = np.unique(labels) if classes is None else np.asarray(classes)
    means = class_means(values, labels, classes)
    return ClassStatistics(
        classes,
        np.array([np.sum(labels == c) for c in classes]),
        means,
        np.stack([values[labels == c].std(axis=0) for c in classes]),
    )


def class_means(gates: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The average gate of each channel over the images of each class.

    Args:
      gates: (n, c), of n images.
      labels: (n), the class of each image.
      classes: (k), the classes that are asked for.

    Returns:
      (k, c), float64.

    Raises:
      EcaJaxError: there is no image of one of the classes.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import class_means
      >>> gates = np.array([[0.2, 0.5], [0.4, 0.5], [0.8, 0.5]])  # of three images
      >>> class_means(gates, np.array([0, 0, 1]), classes=np.array([1]))
      array([[0.8, 0.5]])
    """
    gates, means = np.asarray(gates, np.float64), []
    for c in classes:
        of_class = gates[labels == c]
        if not len(of_class):
            raise EcaJaxError(f"there is no image of the class {c}")
        means.append(of_class.mean(axis=0))
    return np.stack(means)
