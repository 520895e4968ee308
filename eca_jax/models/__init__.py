"""Backbones and their registry."""

from eca_jax.models.registry import create_model as create_model, list_models as list_models
