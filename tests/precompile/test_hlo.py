"""Programs written by hand, counted by hand."""

import pytest

from eca_jax.precompile.hlo import Collective, bytes_moved, find_collectives, itemsize, shape_bytes, tally

# What XLA:TPU writes: layouts with tiles and memory spaces, comments in long tuples, a combined all-reduce.
COMBINED = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main.1_spmd (param: f32[8], param.1: bf16[3,3,2,4]) -> f32[8] {
  %param = f32[8]{0:T(128)} parameter(0)
  %param.1 = bf16[3,3,2,4]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-reduce.1 = (f32[8]{0:T(128)S(1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%param, %loss), to_apply=%add
  %get-tuple-element = f32[8]{0:T(128)} get-tuple-element(%all-reduce.1), index=0, metadata={op_name="all-reduce(x)"}
  %all-reduce.2 = bf16[3,3,2,4]{3,2,1,0} all-reduce(%param.1), replica_groups={{0,1}}, to_apply=%add
  ROOT %add.2 = f32[8]{0:T(128)} add(%param, %get-tuple-element)
}
"""

# What XLA:GPU writes: asynchronous pairs, sugared and not, a loop with a known length inside a call.
ASYNCHRONOUS = """\
HloModule step

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[], f32[16]{0}) parameter(0)
  %x = f32[16]{0} get-tuple-element(%p), index=1
  %all-gather-start = (f32[16]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %all-gather-done = f32[32]{0} all-gather-done(%all-gather-start)
  ROOT %t = (s32[], f32[16]{0}) tuple(%i, %x)
}

%command_buffer (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  %init = (s32[], f32[16]{0}) tuple(%c, %p)
  %while = (s32[], f32[16]{0}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %y = f32[16]{0} get-tuple-element(%while), index=1
}

%async_computation (p: f32[16]) -> f32[8] {
  %p = f32[16]{0} parameter(0)
  ROOT %reduce-scatter.1 = f32[8]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

ENTRY %main (param: f32[16]) -> f32[16] {
  %param = f32[16]{0} parameter(0)
  %all-reduce-start.3 = f32[16]{0} all-reduce-start(%param), to_apply=%add
  %fusion = f32[16]{0} fusion(%param), kind=kLoop, calls=%fused
  %all-reduce-done.3 = f32[16]{0} all-reduce-done(%all-reduce-start.3)
  %async-start = ((f32[16]{0}), f32[8]{0}) async-start(%param), calls=%async_computation
  %async-done = f32[8]{0} async-done(%async-start)
  ROOT %call = f32[16]{0} call(%fusion), to_apply=%command_buffer
}
"""


def test_a_combined_all_reduce_is_one_with_the_bytes_of_all_its_arrays():
    assert find_collectives(COMBINED) == [
        Collective("all-reduce", "f32", arrays=2, elements=9, bytes=36, times=1),
        Collective("all-reduce", "bf16", arrays=1, elements=72, bytes=144, times=1),
    ]


def test_start_and_done_are_one_collective_and_a_loop_says_how_often_it_runs():
    assert find_collectives(ASYNCHRONOUS) == [
        Collective("all-reduce", "f32", arrays=1, elements=16, bytes=64, times=1),
        Collective("reduce-scatter", "f32", arrays=1, elements=8, bytes=32, times=1),
        Collective("all-gather", "f32", arrays=1, elements=32, bytes=128, times=4),
    ]


def test_a_loop_of_unknown_length_is_said_to_be_one():
    unknown = ASYNCHRONOUS.replace(', backend_config={"known_trip_count":{"n":"4"}}', "")
    assert find_collectives(unknown)[2].times is None
    assert bytes_moved(ASYNCHRONOUS) - bytes_moved(unknown) == 3 * (64 + 128)


def test_a_tally_adds_what_a_step_runs():
    rows = tally(find_collectives(ASYNCHRONOUS) + find_collectives(COMBINED))
    assert [(row.kind, row.dtype, row.times, row.bytes) for row in rows] == [
        ("all-reduce", "f32", 2, 64 + 36),
        ("reduce-scatter", "f32", 1, 32),
        ("all-gather", "f32", 4, 512),
        ("all-reduce", "bf16", 1, 144),
    ]


def test_a_branch_counts_as_taken():
    text = """\
%yes (p: f32[4]) -> f32[4] {
  ROOT %all-reduce = f32[4]{0} all-reduce(%p), to_apply=%add
}
%no (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} parameter(0)
}
ENTRY %main (p: pred[]) -> f32[4] {
  ROOT %c = f32[4]{0} conditional(%p, %x, %y), BRANCHES
}
"""
    for branches in ("true_computation=%yes, false_computation=%no", "branch_computations={%no, %yes}"):
        assert [c.bytes for c in find_collectives(text.replace("BRANCHES", branches))] == [16]


def test_bytes_moved_are_operands_and_results_of_what_runs():
    # The loss is not defined in the text: its 4 bytes are not seen. One result and one operand are in VMEM.
    all_reduces = (32 + 4) + (0 + 144)
    assert bytes_moved(COMBINED) == all_reduces + (32 + 32 + 32)
    outside = (64 + 64) + (64 + 64) + (64 + 32)  # all-reduce, fusion, reduce-scatter
    assert bytes_moved(ASYNCHRONOUS) == outside + 4 * (64 + 128)


VMEM = """\
HloModule jit_step, is_scheduled=true

ENTRY %main.1 (param: bf16[8,4]) -> bf16[8,4] {
  %param = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %slice-start = (bf16[8,4]{1,0:T(8,128)(2,1)}, bf16[2,4]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%param)
  %slice-done = bf16[2,4]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  %copy-start = (bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, bf16[8,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%param)
  %copy-done = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %on_chip = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} fusion(%copy-done, %slice-done), kind=kLoop, calls=%f
  ROOT %out = bf16[8,4]{1,0:T(8,128)(2,1)} fusion(%on_chip, %param), kind=kLoop, calls=%g
}
"""


def test_what_stays_on_the_chip_is_not_moved():
    slice_, copy, fusions = 2 * 4 * 2, 8 * 4 * 2, (8 * 4 * 2) + (8 * 4 * 2)  # the second fusion reads one, writes one
    assert bytes_moved(VMEM) == slice_ + copy + fusions


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[]", 4),
        ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12),
        ("(f32[4]{0}, u8[7]{0}, pred[])", 24),
        ("f8e4m3fn[10]", 10),
        ("s4[3]{0:E(4)}", 2),
        ("f32[<=8]{0}", 32),
        ("token[]", 0),
        ("c64[2]", 16),
    ],
)
def test_bytes_of_a_shape(shape, expected):
    assert shape_bytes(shape) == expected


def test_itemsize():
    assert (itemsize("f64"), itemsize("s4"), itemsize("pred"), itemsize("token")) == (8, 0.5, 1, 0)
