"""A `Report` as plain values for JSON, and as a table for people."""

import dataclasses
import importlib.metadata
from typing import Any

import jax

from eca_jax.precompile.hlo import Collective, tally
from eca_jax.precompile.precompile import Report

COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax-cuda13-pjrt", "jax-cuda12-pjrt")}


def versions(platform: str) -> dict[str, str]:
    """The versions of JAX and of the package with the compiler."""
    found = {"jax": jax.__version__}
    for package in COMPILERS[platform]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sources(platform: str) -> dict[str, str]:
    """Where each number comes from."""
    analysed = "the compiler's cost analysis of the compiled step"
    return {
        "memory": "the compiler's plan for the compiled step",
        "flops": analysed if platform == "tpu" else "XLA's cost analysis of the step before compilation, by the chips",
        "bytes_moved": analysed if platform == "tpu" else "operands and results of the compiled step's operations",
        "collectives": "the text of the compiled step",
        "seconds": "arithmetic with the published peaks: bounds, not measurements",
    }


def to_dict(report: Report) -> dict[str, Any]:
    """Everything in the report, for one chip, in bytes, FLOP and seconds; each collective separately."""
    target, step, config = report.target, report.step, report.config
    chip = target.chip
    return {
        "target": {"name": target.name, "chips": target.chips, "description": target.describe()},
        "chip": {
            "hbm": chip.hbm,
            "share": chip.share,
            "peak_flops": chip.peak_flops,
            "hbm_bandwidth": chip.hbm_bandwidth,
            "interconnect": target.link,
        },
        "model": config.model.name,
        "dtype": config.model.dtype,
        "num_classes": report.num_classes,
        "image_size": config.task.preprocess.train_size,
        "batch_norm_group": config.model.batch_norm_group,
        "batch_size": config.batch_size,
        "parameters": report.parameters,
        "state_bytes": report.state_bytes,
        "memory": dataclasses.asdict(step.memory) | {"peak": step.memory.peak},
        "flops": step.flops,
        "bytes_moved": step.bytes_moved,
        "seconds": {
            "compute": report.compute_seconds,
            "memory": report.memory_seconds,
            "roofline": report.roofline_seconds,
            "all_reduce": report.all_reduce_seconds,
        },
        "bound": "memory" if report.memory_seconds >= report.compute_seconds else "arithmetic",
        "images_per_second": config.batch_size / report.roofline_seconds,
        "collectives": [dataclasses.asdict(collective) for collective in step.collectives],
        "compile_seconds": step.compile_seconds,
        "versions": versions(chip.platform),
        "sources": sources(chip.platform),
    }


def to_table(values: dict[str, Any]) -> str:
    """`to_dict`'s values for the terminal, which is Markdown too."""
    chip, memory, seconds, source = (values[key] for key in ("chip", "memory", "seconds", "sources"))
    chips, batch_size = values["target"]["chips"], values["batch_size"]
    built = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    limit = f", of which JAX takes {chip['share']:.0%}" if chip["share"] < 1 else ""
    rows = [
        ("parameters", f"{values['parameters']:,}", f"with statistics and optimiser {_mb(values['state_bytes'])}"),
        ("HBM: arguments", _mb(memory["arguments"]), "state and batch"),
        ("HBM: outputs", _mb(memory["outputs"]), f"the next state; {_mb(memory['aliased'])} in the place of arguments"),
        ("HBM: temporaries", _mb(memory["temporaries"]), source["memory"]),
        ("HBM: program", _mb(memory["program"]), ""),
        ("HBM: peak", _mb(memory["peak"]), f"{memory['peak'] / chip['hbm']:.0%} of {_gb(chip['hbm'])}{limit}"),
        ("FLOP", f"{values['flops'] / 1e12:.3f} T", source["flops"]),
        ("bytes moved", _gb(values["bytes_moved"]), source["bytes_moved"]),
        ("arithmetic", _ms(seconds["compute"]), f"at {chip['peak_flops'] / 1e12:g} TFLOP/s"),
        ("memory", _ms(seconds["memory"]), f"at {chip['hbm_bandwidth'] / 1e9:g} GB/s"),
        ("step, at least", _ms(seconds["roofline"]), f"bound by {values['bound']}: the roofline, not a measurement"),
        (
            "images/s, at most",
            f"{values['images_per_second'] / chips:,.0f}",
            f"{values['images_per_second']:,.0f} of all chips",
        ),
        ("all-reduce", _ms(seconds["all_reduce"]), f"by itself, in a ring that sends {_gb(chip['interconnect'])}/s"),
    ]
    collectives = [
        (
            c.kind,
            c.dtype,
            "in a loop" if c.times is None else f"{c.times}",
            f"{c.arrays}",
            f"{c.elements:,}",
            f"{c.bytes:,}",
        )
        for c in tally([Collective(**collective) for collective in values["collectives"]])
    ]
    return "\n".join(
        [
            f"{values['model']}, {values['dtype']}, {values['image_size']} px, {values['num_classes']} classes, "
            f"batch {batch_size} = {batch_size / chips:g} a chip, "
            f"batch norm over {values['batch_norm_group'] or batch_size}",
            f"{values['target']['name']}: {values['target']['description']}",
            f"compiled in {values['compile_seconds']:.0f} s with {built}",
            "",
            *_markdown(("per chip", "", "from"), rows),
            "",
            *_markdown(
                ("collective", "type", "operations", "arrays", "elements", "bytes"),
                collectives or [("none", "", "0", "0", "0", "0")],
            ),
        ]
    )


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    rule = " | ".join("-" * width for width in widths)
    return [f"| {line} |" for line in (lines[0], rule, *lines[1:])]


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f} MB"


def _gb(n: float) -> str:
    return f"{n / 1e9:,.1f} GB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
