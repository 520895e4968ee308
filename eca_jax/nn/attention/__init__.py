"""Channel attention: the modules that can stand at the end of every residual branch.

A `ChannelGate` takes the average of every channel over the pixels, s (b, c), and computes gates (b, c) in (0, 1). If
you call it on an activation (b, ..., c), it averages the channels, computes the gates and multiplies by them. A block
that already knows the averages calls `gate(s)` itself. Any other attention maps an activation to one of the same shape.
To add an attention, write a class and add a row to `ATTENTIONS`.
"""

from eca_jax.nn.attention.ba import BA as BA
from eca_jax.nn.attention.base import (
    Attention as Attention,
    ChannelGate as ChannelGate,
    Identity as Identity,
    Informed as Informed,
    NoOptions as NoOptions,
    Place as Place,
    Slot as Slot,
    of_slot as of_slot,
    squeeze as squeeze,
)
from eca_jax.nn.attention.cbam import CBAM as CBAM
from eca_jax.nn.attention.config import AttentionConfig as AttentionConfig, build_attention as build_attention
from eca_jax.nn.attention.coordinate import CoordinateAttention as CoordinateAttention
from eca_jax.nn.attention.eca import (
    ECA as ECA,
    ECA_NS as ECA_NS,
    KernelOptions as KernelOptions,
    KernelSizes as KernelSizes,
    adaptive_kernel_size as adaptive_kernel_size,
)
from eca_jax.nn.attention.ela import ELA as ELA
from eca_jax.nn.attention.ema import EMA as EMA
from eca_jax.nn.attention.emca import EMCA as EMCA
from eca_jax.nn.attention.fca import FCA as FCA
from eca_jax.nn.attention.gather_excite import (
    GE as GE,
    ExtentOptions as ExtentOptions,
    GE_Minus as GE_Minus,
    GE_MinusExtent as GE_MinusExtent,
    GE_Plus as GE_Plus,
    GEOptions as GEOptions,
    GEPlusOptions as GEPlusOptions,
)
from eca_jax.nn.attention.gc import GC as GC
from eca_jax.nn.attention.gct import GCT as GCT, GCTConv as GCTConv
from eca_jax.nn.attention.mca import MCA as MCA
from eca_jax.nn.attention.sa import SA as SA
from eca_jax.nn.attention.se import (
    ESE as ESE,
    SE as SE,
    SE_GC as SE_GC,
    SE_Var1 as SE_Var1,
    SEOptions as SEOptions,
    hidden_width as hidden_width,
)
from eca_jax.nn.attention.simam import SimAM as SimAM
from eca_jax.nn.attention.srm import SRM as SRM
from eca_jax.nn.attention.table import ATTENTIONS as ATTENTIONS, attention_row as attention_row
from eca_jax.nn.attention.triplet import TripletAttention as TripletAttention
