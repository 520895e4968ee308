"""ECA-Net, efficient channel attention for deep convolutional networks (CVPR 2020), in JAX and Flax NNX."""

import importlib
from typing import TYPE_CHECKING

from eca_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from eca_jax.convert.convert import save as save
    from eca_jax.convert.pretrained import create_model as create_model, load_pretrained as load_pretrained
    from eca_jax.models import list_models as list_models
    from eca_jax.models.preprocess import preprocess as preprocess

_HOMES = {
    "create_model": "eca_jax.convert.pretrained",
    "list_models": "eca_jax.models",
    "load_pretrained": "eca_jax.convert.pretrained",
    "preprocess": "eca_jax.models.preprocess",
    "save": "eca_jax.convert.convert",
}
__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    """Imports the public functions when they are first used, because every module of the package imports this file."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eca_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
