"""Detectors by themselves: padding, the other images of a batch, what is refused. tests/parity has torchvision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.data.detection import DetectionPreprocess, bucket_of
from eca_jax.errors import EcaJaxError
from eca_jax.models.detection import create_detector, detect, list_detectors
from eca_jax.models.detection.anchors import Anchors
from eca_jax.models.detection.registry import headless
from eca_jax.nn.attention import AttentionConfig
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.detection import TORCHVISION
from eca_jax.nn.norm import FixedBatchNorm
from eca_jax.nn.valid import Valid

SIZES = np.asarray([[50, 90], [64, 64], [96, 33]], np.int32)


def images(padded: tuple[int, int], beyond: float = 0.0) -> jax.Array:
    """Noise in the images of `SIZES`, and `beyond` outside of them."""
    batch = np.full((len(SIZES), *padded, 3), beyond, np.float32)
    for i, (height, width) in enumerate(SIZES):
        batch[i, :height, :width] = np.random.default_rng(i).standard_normal((height, width, 3))
    return jnp.asarray(batch)


def randomised(model: nnx.Module) -> None:
    """Gives every array that starts at 0 or 1 another value: a fresh batch norm hides what is beyond an image."""
    state, key = nnx.state(model, (nnx.Param, nnx.BatchStat)), jax.random.key(0)
    for i, (path, leaf) in enumerate(nnx.to_flat_state(state)):
        if path[-1] in ("bias", "mean", "scale", "var"):
            noise = jax.random.uniform(jax.random.fold_in(key, i), leaf.shape, minval=0.1)
            leaf.set_value(leaf[...] + noise)
    nnx.update(model, state)


@pytest.mark.parametrize("name", ["eca_resnet18", "se_mobilenet_v2", "ba_resnet18", "emca_resnet18"])
def test_padding_leaves_the_features_alone(name):
    """Of three images that are padded by different amounts, with NaN beyond them."""
    bricks = Bricks(
        AttentionConfig(name.split("_")[0] if name[:2] in ("ec", "se") else "none"),
        nnx.Rngs(0),
        normalisation=FixedBatchNorm,
    )
    body = headless(name, bricks, 0.125)
    body.eval()
    randomised(body)
    valid = jnp.asarray(-(-SIZES // 32) * 32)

    @functools.partial(jax.jit, static_argnums=2)
    def features(batch, sizes, padded):
        return body.features(Valid(sizes, padded).mask(batch), valid=Valid(valid[: len(batch)], padded))

    results = [features(images(padded, np.nan), SIZES, padded) for padded in ((96, 96), (160, 128))]
    for stage in results[0]:
        small, large = (np.asarray(result[stage]) for result in results)
        for i, sides in enumerate(np.asarray(Valid(jnp.asarray(valid), (96, 96)).sides(small.shape))):
            mine, other = (x[i, : sides[0], : sides[1]] for x in (small, large))
            assert np.isfinite(mine).all()
            assert mine.std() > 0
            np.testing.assert_allclose(mine, other, atol=2e-6 * np.abs(mine).max(), err_msg=f"{stage} of image {i}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet"])
def test_padding_leaves_the_detections_alone(kind):
    """Each image alone and in a batch, in a small and in a large padding."""
    model = create_detector(f"{kind}_eca_resnet18_fpn", width_multiplier=0.25, num_classes=5, rngs=nnx.Rngs(0))
    model.eval()
    randomised(model)
    if kind == "mask_rcnn":  # else its logits are in the hundreds, and a probability says nothing of the digits
        model.roi_heads.mask_predictor.mask_fcn_logits.kernel[...] /= 30
    compiled = jax.jit(lambda batch, sizes: model(batch, sizes))
    together = compiled(images((96, 96), np.nan), SIZES)
    for i in range(len(SIZES)):
        alone = compiled(images((160, 160))[i : i + 1], SIZES[i : i + 1])
        count = int(alone.valid.sum())
        assert count == int(together.valid[i].sum()) > 0
        assert np.array_equal(alone.labels[0], together.labels[i])
        np.testing.assert_allclose(alone.scores[0, :count], together.scores[i, :count], atol=1e-5)
        np.testing.assert_allclose(alone.boxes[0, :count], together.boxes[i, :count], atol=1e-5 * 160)
        if kind == "mask_rcnn":
            np.testing.assert_allclose(alone.masks[0, :count], together.masks[i, :count], atol=1e-5)


def test_valid_sizes_of_every_level():
    """An image of 800 has 25, 13 and 7 rows on P5, P6 and P7, however far it is padded."""
    valid = Valid(jnp.asarray([[800, 96]]), (1344, 1088))
    for stride, expected in {4: (200, 24), 32: (25, 3), 64: (13, 2), 128: (7, 1)}.items():
        shape = (1, -(-1344 // stride), -(-1088 // stride), 256)
        assert np.asarray(valid.sides(shape)).tolist() == [list(expected)]
        assert int(valid.inside(shape).sum()) == expected[0] * expected[1]


def test_anchors_of_the_padding_are_marked():
    """Of images with 4 x 3 and 3 x 3 cells on one level of 4 x 3; all anchors of a cell together."""
    anchors = Anchors(TORCHVISION, (16,), ((32, 64),))
    count = 4 * 3 * anchors.in_a_cell
    outputs = [(jnp.zeros((2, count)), jnp.zeros((2, count, 4)))]
    (level,) = anchors.levels([jnp.zeros((2, 4, 3, 1))], outputs, Valid(jnp.asarray([[64, 48], [40, 33]]), (64, 48)))
    assert level.anchors.shape == (2, count, 4)
    for image, (rows, columns) in enumerate([(4, 3), (3, 3)]):
        assert level.inside[image].tolist() == [
            i < rows and j < columns for i in range(4) for j in range(3) for _ in range(anchors.in_a_cell)
        ]


def test_attention_that_knows_no_padding_is_refused():
    body = headless("resnet18", Bricks(AttentionConfig("cbam"), nnx.Rngs(0), normalisation=FixedBatchNorm), 0.125)
    body.eval()
    valid = Valid(jnp.asarray([[32, 32]]), (32, 64))
    with pytest.raises(EcaJaxError, match="CBAM: this attention looks at pixels"):
        nnx.eval_shape(lambda: body.features(jnp.zeros((1, 32, 64, 3)), valid=valid))


def test_trained_batch_norm_is_refused():
    """Its statistics would be those of the padding."""
    body = headless("resnet18", Bricks(AttentionConfig("none"), nnx.Rngs(0)), 0.125)
    with pytest.raises(EcaJaxError, match="batch norm"):
        nnx.eval_shape(lambda: body.features(jnp.zeros((1, 32, 64, 3)), valid=Valid(jnp.asarray([[32, 32]]), (32, 64))))


def test_fixed_norm_stays_fixed():
    norm = FixedBatchNorm(3)
    norm.train()
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    np.testing.assert_allclose(norm(x), np.asarray(x) / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert np.array_equal(norm.mean[...], np.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "mask_rcnn_eca_resnet5_fpn"}, "unknown detector.*mask_rcnn_eca_resnet50_fpn"),
        ({"convention": "mmdet2"}, "convention.*torchvision, mmdet1"),
        ({"num_classes": 0}, "num_classes"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(EcaJaxError, match=said):
        create_detector(**{"name": "retinanet_resnet18_fpn", "rngs": nnx.Rngs(0), **arguments})


def test_wrong_images():
    model = nnx.eval_shape(lambda: create_detector("retinanet_resnet18_fpn", width_multiplier=0.125, rngs=nnx.Rngs(0)))
    with pytest.raises(EcaJaxError, match="33 x 64; expected sides that are multiples of 32"):
        model(jnp.zeros((1, 33, 64, 3)))
    with pytest.raises(EcaJaxError, match="expected sizes of whole numbers"):
        model(jnp.zeros((1, 32, 64, 3)), jnp.zeros((1, 2)))
    with pytest.raises(EcaJaxError, match="threshold"):
        detect(model, np.zeros((8, 8, 3), np.uint8), threshold=2.0)


def test_buckets_hold_every_image():
    config = DetectionPreprocess()
    for size in [(1, 1), (335, 500), (20_000, 100), (100, 20_000), (800, 800), (3, 4), (4, 3)]:
        resized = config.resized(*size)
        bucket = bucket_of(resized, config.buckets())
        assert all(side % 32 == 0 and side >= own for side, own in zip(bucket, resized, strict=True))
    assert config.resized(335, 500) == (799, 1194)
    with pytest.raises(EcaJaxError, match="2000 x 2000 pixels fits into none"):
        bucket_of((2000, 2000), config.buckets())


def test_names():
    assert len(list_detectors()) == 54
    assert list_detectors("*_eca_resnet50_fpn") == [
        f"{kind}_eca_resnet50_fpn" for kind in ("faster_rcnn", "mask_rcnn", "retinanet")
    ]
