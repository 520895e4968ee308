"""ECA-Net, efficient channel attention for deep convolutional networks (CVPR 2020), in JAX and Flax NNX."""

from eca_jax.convert.pretrained import load_pretrained as load_pretrained
from eca_jax.models import create_model as create_model, list_models as list_models

__version__ = "0.1.0"
