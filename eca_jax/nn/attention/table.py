"""The attentions by name, `ATTENTIONS`."""

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.base import Attention, Identity, attention_fault, of_slot
from eca_jax.nn.attention.cbam import CBAM, CBAMOptions
from eca_jax.nn.attention.coordinate import CoordinateAttention, CoordinateOptions
from eca_jax.nn.attention.eca import ECA, ECA_NS, ECAOptions, KernelOptions
from eca_jax.nn.attention.ela import ELA, ELAOptions
from eca_jax.nn.attention.ema import EMA, EMAOptions
from eca_jax.nn.attention.fca import FCA, FCAOptions
from eca_jax.nn.attention.gather_excite import GE, ExtentOptions, GE_Plus, GEOptions, GEPlusOptions, ge_minus, of_map
from eca_jax.nn.attention.gc import GCOptions, build_gc
from eca_jax.nn.attention.mca import MCA
from eca_jax.nn.attention.sa import SA, SAOptions
from eca_jax.nn.attention.se import ESE, SE, SE_Var1, SEOptions, grouped, groups_of
from eca_jax.nn.attention.simam import SimAM, SimAMOptions
from eca_jax.nn.attention.srm import SRM
from eca_jax.nn.attention.triplet import TripletAttention, TripletOptions
from eca_jax.plugins import Registry

ATTENTIONS: Registry[Attention] = Registry(
    "attention",
    {
        "none": Attention(lambda slot, options, rngs: Identity()),
        "eca": Attention(
            lambda slot, options, rngs: ECA(
                slot.channels,
                options.kernel_size(slot),
                circular=options.circular,
                param_dtype=slot.param_dtype,
                rngs=rngs,
            ),
            ECAOptions,
        ),
        "eca_ns": Attention(
            lambda slot, options, rngs: ECA_NS(
                slot.channels, options.kernel_size(slot), param_dtype=slot.param_dtype, rngs=rngs
            ),
            KernelOptions,
        ),
        "se": Attention(
            lambda slot, options, rngs: SE(
                slot.channels,
                options.hidden(slot),
                bias=options.bias,
                param_dtype=slot.param_dtype,
                rngs=rngs,
            ),
            SEOptions,
        ),
        "ese": Attention(of_slot(ESE)),
        "se_var1": Attention(of_slot(SE_Var1)),
        "se_var2": Attention(grouped(groups_of(1))),
        "se_var3": Attention(grouped(lambda channels: 1)),
        "se_gc1": Attention(grouped(lambda channels: 16)),
        "se_gc2": Attention(grouped(groups_of(16))),
        "se_gc3": Attention(grouped(groups_of(8))),
        "cbam": Attention(of_slot(CBAM), CBAMOptions),
        "srm": Attention(of_slot(SRM)),
        "triplet": Attention(of_slot(TripletAttention), TripletOptions),
        "mca": Attention(of_slot(MCA)),
        "simam": Attention(of_slot(SimAM), SimAMOptions),
        "fca": Attention(of_slot(FCA), FCAOptions),
        "gc": Attention(build_gc, GCOptions),
        "ge_minus": Attention(ge_minus, ExtentOptions),
        "ge": Attention(of_map(GE), GEOptions),
        "ge_plus": Attention(of_map(GE_Plus), GEPlusOptions),
        "sa": Attention(of_slot(SA), SAOptions),
        "coordinate": Attention(of_slot(CoordinateAttention), CoordinateOptions),
        "ela": Attention(of_slot(ELA), ELAOptions),
        "ema": Attention(of_slot(EMA), EMAOptions),
    },
    attention_fault,
)
"""The attentions by their kind; `ATTENTIONS.register("my_gate", Attention(...))` adds one."""
INSIDE = ("gct", "ba", "emca")
"""Attentions inside of blocks, which are no kinds: `gct_resnet50` is a model."""


def attention_row(kind: str) -> Attention:
    """The row of a kind in `ATTENTIONS`.

    Raises:
      EcaJaxError: the kind is not registered; the message names the most similar ones, or the models that have it.
    """
    if kind in INSIDE and kind not in ATTENTIONS:
        raise EcaJaxError(
            f"attention.kind: {kind!r} does not stand at the end of a branch, and has networks of its own: choose the "
            f"model {kind}_resnet50, or another {kind}_*, without an attention.kind"
        )
    if kind not in ATTENTIONS:
        raise EcaJaxError(f"attention.kind: {ATTENTIONS.unknown(kind)}")
    return ATTENTIONS[kind]
