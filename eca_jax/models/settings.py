"""Which values the settings of a network may have: of `create_model`'s arguments and of a run's `ModelConfig` alike."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from eca_jax.errors import EcaJaxError, expect_one_of, expect_positive, expect_share, expect_weight
from eca_jax.plain import of_type

DTYPES = ("float32", "bfloat16", "float64")
OUTPUT_STRIDES = (8, 16, 32)


def _expect_classes(name: str, value: int) -> None:
    if value == 0:
        raise EcaJaxError(
            f"{name}: expected a positive number, got 0: a network always has a classifier, and what it would get "
            "is model.head(features, pre_logits=True)"
        )
    expect_positive(name, value)


def _expect_output_stride(name: str, value: int) -> None:
    if value not in OUTPUT_STRIDES:
        raise EcaJaxError(f"{name}: expected one of {', '.join(map(str, OUTPUT_STRIDES))}, got {value}")


SETTINGS = {
    "name": (str, None),
    "num_classes": (int, _expect_classes),
    "in_channels": (int, expect_positive),
    "small_stem": (bool, None),
    "output_stride": (int, _expect_output_stride),
    "width_multiplier": (float, expect_positive),
    "dropout": (float | None, expect_share),
    "drop_path": (float, expect_share),
    "rematerialise": (bool, None),
    "batch_norm_group": (int | None, expect_positive),
    "batch_norm_momentum": (float, expect_weight),
}
"""Name -> (type, what refuses values that cannot work)."""


def checked(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Those of `values` that are in `SETTINGS`, with their types; `at` is what stands before a name: 'model.'.

    Raises:
      EcaJaxError: names the setting whose value has the wrong type, or cannot work, alone or with another.
    """
    fitting = {name: of_type(at + name, values[name], SETTINGS[name][0]) for name in SETTINGS if name in values}
    for name, value in fitting.items():
        check = SETTINGS[name][1]
        if check is not None and value is not None:
            check(at + name, value)
    if fitting.get("small_stem") and (stride := fitting.get("output_stride", 32)) != 32:
        raise EcaJaxError(
            f"{at}output_stride: expected 32, which changes nothing, with {at}small_stem, got {stride}: "
            "such a network shrinks images by 8 at most"
        )
    return fitting


def checked_dtype(name: str, value: DTypeLike, options: tuple[str, ...] = (*DTYPES, "float16")) -> np.dtype:
    """The type of numbers that `value` means.

    Raises:
      EcaJaxError: it is none of the options, or wider than JAX computes as it is set up.
    """
    try:
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    expect_one_of(name, value if dtype is None else dtype.name, options)
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise EcaJaxError(f"{name}: float64 needs the environment variable JAX_ENABLE_X64=1")
    return jnp.dtype(dtype)
