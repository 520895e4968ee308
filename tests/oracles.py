"""What NumPy says."""

from collections.abc import Callable

import jax
import numpy as np

from eca_jax.data.preprocess import PreprocessConfig, eval_image
from eca_jax.data.records import Source


def top_1_and_5(
    logits_of: Callable[[np.ndarray], jax.Array], preprocess: PreprocessConfig, source: Source
) -> tuple[float, float]:
    """The shares of the labelled images whose best, or one of whose five best, classes are right.

    One image at a time, sorted by NumPy. `logits_of`: float32 (1, h, w, 3), normalised -> (1, classes).
    """
    hits = []
    for data, label in source:
        right = {label} if isinstance(label, int) else {*label}
        pixels = eval_image(data, preprocess).astype(np.float32) / 255
        image = (pixels - np.float32(preprocess.mean)) / np.float32(preprocess.std)
        logits = np.asarray(logits_of(image[None]))[0]
        choice = np.arange(len(logits)) if source.candidates is None else np.asarray(source.candidates)
        best = choice[np.argsort(-logits[choice])]
        if right:
            hits.append((int(best[0]) in right, bool({*best[:5].tolist()} & right)))
    top1, top5 = np.mean(hits, axis=0)
    return float(top1), float(top5)
