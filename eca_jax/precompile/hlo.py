"""Finds the collectives in the text of a compiled program, and counts the bytes that it moves."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
NO_TRAFFIC = {
    "parameter",
    "constant",
    "iota",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
}
"""Operations that read and write no memory."""
_NO_TRAFFIC_CALL = 'custom_call_target="ConcatBitcast"'
"""XLA:TPU's name for parts that were copied side by side."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,<=]*)\]")
_ARRAY_AND_LAYOUT = re.compile(r"\b[a-z]+\d*\w*\[[\d,<=]*\](?:\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|(?:true|false)_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_ON_CHIP = re.compile(r"\b[a-z]+\d*\w*\[[\d,<=]*\]\{[^}]*\bS\([1-9]\d*\)[^}]*\}")
"""An array that is not in HBM: XLA:TPU writes S(1) for VMEM."""
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    """The shape of the result: 'f32[8,128]{1,0}', or a tuple of such shapes."""
    opcode: str
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    attributes: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """A communication between chips."""

    kind: str
    dtype: str
    """'f32', or several: 'bf16+f32'."""
    arrays: int
    """The number of arrays that are combined in it."""
    elements: int
    bytes: int
    """Bytes of the result on one chip, each time it runs."""
    times: int | None
    """How often it runs in one step; None in a loop whose length the compiler does not know."""


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of an HLO module by name, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            name, shape, opcode, rest = match.groups()
            end = _closing(rest)
            operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
            current.append(Instruction(name, shape, opcode, operands, rest[end:]))
    return computations, entry


def _closing(text: str) -> int:
    """The position of the bracket that closes the one before the text."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def scheduled(text: str) -> Iterator[tuple[Instruction, dict[str, Instruction], int | None]]:
    """The separate operations: (instruction, its computation by name, how often it runs in one call of the program).

    Includes those inside loops, calls, branches (each counts as taken) and asynchronous computations. A fusion counts
    as one operation.
    """
    computations, entry = parse(text)

    def walk(name: str, times: int | None):
        scope = {instruction.name: instruction for instruction in computations.get(name, ())}
        for instruction in scope.values():
            called, inner = [], times
            if instruction.opcode in ("call", "async-start", "while", "conditional"):
                named = (one or several for one, several in _CALLED.findall(instruction.attributes))
                called = [n.strip(" %") for names in named for n in names.split(",")]
            if instruction.opcode == "while":
                trips = _TRIP_COUNT.search(instruction.attributes)
                inner = times * int(trips[1]) if trips and times is not None else None
            if called:
                for n in called:
                    yield from walk(n, inner)
            elif not instruction.opcode.startswith("async-"):
                yield instruction, scope, times

    return walk(entry, 1)


def arrays(shape: str) -> list[tuple[str, int]]:
    """(dtype, elements) of every array in a shape."""
    found = []
    for dtype, dimensions in _ARRAY.findall(shape):
        sizes = [int(size.lstrip("<=")) for size in dimensions.split(",") if size]
        found.append((dtype, math.prod(sizes)))
    return found


def itemsize(dtype: str) -> float:
    """Bytes of an element: 4 of 'f32', 2 of 'bf16', 1 of 'f8e4m3fn' and 'pred', 8 of 'c64', 0 of a token."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) / 8 if digits else float(dtype == "pred")


def shape_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape, without padding."""
    return math.ceil(sum(itemsize(dtype) * elements for dtype, elements in arrays(shape)))


def find_collectives(text: str) -> list[Collective]:
    """Every collective, in the order of the schedule. A pair of start and done is one, with the result's bytes."""
    found = []
    for instruction, _, times in scheduled(text):
        kind = instruction.opcode.removesuffix("-done")
        if kind in COLLECTIVES:
            parts = arrays(instruction.shape)
            dtype = "+".join(sorted({dtype for dtype, _ in parts}))
            elements = sum(elements for _, elements in parts)
            found.append(Collective(kind, dtype, len(parts), elements, shape_bytes(instruction.shape), times))
    return found


def tally(found: list[Collective]) -> list[Collective]:
    """One row for each kind, type and place: `times` counts the operations of a step, `bytes` their sum."""
    rows: dict[tuple, list[Collective]] = collections.defaultdict(list)
    for c in found:
        rows[c.kind, c.dtype, c.times is None].append(c)
    return [
        Collective(
            kind,
            dtype,
            arrays=sum(c.arrays * (c.times or 1) for c in row),
            elements=sum(c.elements * (c.times or 1) for c in row),
            bytes=sum(c.bytes * (c.times or 1) for c in row),
            times=None if unknown else sum(c.times or 1 for c in row),
        )
        for (kind, dtype, unknown), row in rows.items()
    ]


def bytes_moved(text: str) -> int:
    """Bytes that one step reads from the main memory and writes to it: of operands and results of all operations.

    A loop of unknown length counts once; an operation that reads only a part of an operand counts the whole; what
    stays in a cache counts as if it did not. What XLA:TPU keeps in VMEM does not count, where its cost analysis
    ("bytes accessed") counts both memories.
    """
    total = 0
    for instruction, scope, times in scheduled(text):
        if instruction.opcode in NO_TRAFFIC or _NO_TRAFFIC_CALL in instruction.attributes:
            continue
        # Of an asynchronous pair the start names what is read, and the done what was written.
        operands = [_hbm_bytes(scope[name].shape) for name in instruction.operands if name in scope]
        if instruction.opcode == "slice-start":  # (operand, slice, context): reads as much as it writes
            operands = [shape_bytes(_ARRAY_AND_LAYOUT.findall(instruction.shape)[1])] if any(operands) else []
        reads = 0 if instruction.opcode.endswith("-done") else sum(operands)
        written = 0 if instruction.opcode.endswith("-start") else _hbm_bytes(instruction.shape)
        total += (reads + written) * (1 if times is None else times)
    return total


def _hbm_bytes(shape: str) -> int:
    return shape_bytes(_ON_CHIP.sub("", shape))
