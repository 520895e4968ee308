"""Images of several sizes in one batch: which pixels of a padded activation belong to an image.

A detector takes images of any size. Images of one batch are padded with zeros to a common size, and without care the
padding changes the result: a bias makes it nonzero after the first convolution, and an average over the pixels counts
it. Here an activation is set to zero outside of its image before every operation that mixes pixels, and averages
divide by the pixels of the image, so that the result is the same in every batch and for every amount of padding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.tree_util.register_dataclass, data_fields=["sizes"], meta_fields=["padded"])
@dataclasses.dataclass(frozen=True)
class Valid:
    """How large the images of a padded batch are."""

    sizes: jax.Array
    """(b, 2), whole numbers: height and width of every image in pixels, at the top left of what it is padded to."""
    padded: tuple[int, int]
    """The height and width to which all are padded."""

    def sides(self, shape: tuple[int, ...]) -> jax.Array:
        """(b, 2): the valid height and width of activations of this shape (b, h, w, ...), computed from the images.

        Every stride of 2 halves the height, rounded up, so that n of them leave ceil(height / 2^n).
        """
        strides = jnp.asarray([_stride(whole, part) for whole, part in zip(self.padded, shape[1:3], strict=True)])
        return -(-self.sizes // strides)

    def inside(self, shape: tuple[int, ...]) -> jax.Array:
        """(b, h, w), whether a pixel of activations of this shape (b, h, w, ...) belongs to its image."""
        sides = self.sides(shape)
        rows, columns = (jnp.arange(n) < sides[:, axis, None] for axis, n in enumerate(shape[1:3]))
        return rows[:, :, None] & columns[:, None, :]

    def mask(self, x: jax.Array) -> jax.Array:
        """x (b, h, w, c) with zeros outside of the images."""
        return jnp.where(self.inside(x.shape)[..., None], x, 0)

    def mean(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, c): the averages over the pixels of each image, in float32 or wider."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return self.mask(wide).sum((1, 2)) / self.sides(x.shape).prod(1)[:, None].astype(wide.dtype)


def masked(x: jax.Array, valid: Valid | None) -> jax.Array:
    """x (b, h, w, c) with zeros outside of the images; without `valid`, x as it is."""
    return x if valid is None else valid.mask(x)


def _stride(whole: int, part: int) -> int:
    """The power of two by which `whole` pixels became `part`."""
    stride = 1
    while -(-whole // stride) > part:
        stride *= 2
    return stride
