"""Attention, batch norm and layers, from which the networks are built."""

from eca_jax.nn.attention import (
    ECA as ECA,
    ECA_NS as ECA_NS,
    SE as SE,
    AttentionConfig as AttentionConfig,
    ChannelGate as ChannelGate,
    adaptive_kernel_size as adaptive_kernel_size,
)
from eca_jax.nn.norm import BatchNorm as BatchNorm
