"""Matching and sampling against torchvision's, image by image."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher  # noqa: E402

from eca_jax.nn.detection import BELOW, BETWEEN, TORCHVISION, iou, match_torchvision, sample  # noqa: E402
from tests.nn.detection import cases  # noqa: E402

pytestmark = pytest.mark.parity

RPN, RETINANET, BOX_HEAD = (0.7, 0.3, True), (0.5, 0.4, True), (0.5, 0.5, False)
RULES = pytest.mark.parametrize("rule", [RPN, RETINANET, BOX_HEAD], ids=["rpn", "retinanet", "box_head"])


def theirs(overlaps, valid, candidates, rule):
    """What torchvision makes of the objects and candidates that there are; it refuses images without, and the networks
    take everything for background then."""
    found = np.full(len(candidates), BETWEEN)
    if candidates.any():
        found[candidates] = BELOW
        if valid.any():
            matches = Matcher(*rule)(torch.from_numpy(overlaps[valid][:, candidates])).numpy()
            found[candidates] = np.where(matches >= 0, np.flatnonzero(valid)[matches.clip(0)], matches)
    return found


def ours(overlaps, valid, candidates, rule):
    high, low, low_quality = rule
    return match_torchvision(overlaps, valid, candidates, high=high, low=low, low_quality=low_quality)


@RULES
def test_matches(rng, rule):
    """With ties, overlaps equal to a threshold, NaN, objects that overlap nothing, and no objects."""
    overlaps, valid, candidates = cases.overlaps(rng, 4, 12)
    got = jax.jit(jax.vmap(lambda *case: ours(*case, rule)))(overlaps, valid, candidates)
    want = [theirs(*case, rule) for case in zip(overlaps, valid, candidates, strict=True)]
    assert len(want) == cases.CASES
    np.testing.assert_array_equal(got, want)


@RULES
def test_matches_of_boxes(rng, rule):
    """Overlaps and matches compiled together: no best candidate is lost, as it would be if its overlap were computed
    twice and rounded in two ways."""
    objects, candidates = cases.boxes(rng, cases.CASES, 3, broken=False), cases.boxes(rng, cases.CASES, 40)
    valid, there = rng.random((cases.CASES, 3)) < 0.8, np.ones(40, bool)
    run = jax.jit(jax.vmap(lambda a, b, valid: ours(iou(a, b, TORCHVISION), valid, there, rule)))
    overlaps = torchvision.ops.box_iou(torch.from_numpy(objects), torch.from_numpy(candidates)).numpy()
    want = [theirs(*case, there, rule) for case in zip(overlaps, valid, strict=True)]
    np.testing.assert_array_equal(run(objects, candidates, valid), want)


@pytest.mark.parametrize(("number", "fraction"), [(8, 0.5), (8, 0.25), (5, 0.5), (64, 0.25)])
def test_numbers_of_samples(rng, number, fraction):
    """As many positives and negatives as torchvision takes."""
    share = rng.dirichlet([1, 1, 1], cases.CASES)[:, None]
    labels = (rng.random((cases.CASES, 24, 1)) > share.cumsum(-1)).sum(-1).clip(0, 2) - 1
    keys = jax.random.split(jax.random.key(0), cases.CASES)
    got = jax.jit(jax.vmap(lambda key, labels: sample(key, labels, number, fraction)))(keys, labels)
    want = BalancedPositiveNegativeSampler(number, fraction)(list(torch.from_numpy(labels)))
    for mine, chosen in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine.sum(1), [int(mask.sum()) for mask in chosen])
