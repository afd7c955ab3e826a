"""Arrays that collectives move, loops multiplied, each with its own source."""

from passes.hlo.moved_arrays import MovedArray, moved_arrays
from passes.hlo.parse import parse

# Ten iterations of a combined all-reduce of two arrays; a third array, which the loop stacks, is
# reduced behind it; a reduce-scatter hidden in a fusion; a gather in two halves.
PROGRAM = """HloModule step, is_scheduled=true, num_partitions=8

FileNames
1 "model.py"

FunctionNames
1 "block"
2 "head"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7}
2 {file_name_id=1 function_name_id=1 line=8}
3 {file_name_id=1 function_name_id=2 line=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=3 parent_frame_id=1}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%scattered (p: f32[16,8]) -> f32[2,8] {
  %p = f32[16,8]{1,0} parameter(0)
  %inner = f32[16,8]{1,0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[2,8]{1,0} dynamic-slice(%inner, %zero, %zero), dynamic_slice_sizes={2,8}
}

%body (t: (s32[], f32[4], bf16[10,4])) -> (s32[], f32[4], bf16[10,4]) {
  %t = (s32[], f32[4], bf16[10,4]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[4] get-tuple-element(%t), index=1
  %stack = bf16[10,4] get-tuple-element(%t), index=2
  %first = f32[4] negate(%x), metadata={op_name="first" stack_frame_id=1}
  %second = f32[6] broadcast(%x), dimensions={0}, metadata={op_name="second" stack_frame_id=2}
  %both = (f32[4], f32[6]) all-reduce(%first, %second), replica_groups=[2,4]<=[8], to_apply=%add, metadata={op_name="first" stack_frame_id=1}
  %y = f32[4] get-tuple-element(%both), index=0
  %row = bf16[10,4] negate(%stack), metadata={op_name="rows" stack_frame_id=2}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[4], bf16[10,4]) tuple(%next, %y, %row)
}

%condition (t.1: (s32[], f32[4], bf16[10,4])) -> pred[] {
  %t.1 = (s32[], f32[4], bf16[10,4]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %ten = s32[] constant(10)
  ROOT %less = pred[] compare(%i.1, %ten), direction=LT
}

ENTRY %main (v: f32[4], s: bf16[10,4], m: f32[16,8]) -> f32[8] {
  %v = f32[4] parameter(0)
  %s = bf16[10,4] parameter(1)
  %m = f32[16,8]{1,0} parameter(2)
  %start = s32[] constant(0)
  %initial = (s32[], f32[4], bf16[10,4]) tuple(%start, %v, %s)
  %loop = (s32[], f32[4], bf16[10,4]) while(%initial), condition=%condition, body=%body
  %rows = bf16[10,4] get-tuple-element(%loop), index=2
  %late = f32[3] negate(%v), metadata={op_name="late" stack_frame_id=3}
  %after = (bf16[10,4], f32[3]) all-reduce(%rows, %late), replica_groups=[1,8]<=[8], to_apply=%add, metadata={op_name="late" stack_frame_id=3}
  %cut = f32[2,8]{1,0} fusion(%m), kind=kCustom, calls=%scattered, metadata={op_name="cut" stack_frame_id=3}
  %begun = (f32[1], f32[8]) all-gather-start(%late), replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="begun" stack_frame_id=3}
  ROOT %gathered = f32[8] all-gather-done(%begun)
}
"""  # noqa: E501  # HLO has one instruction a line


def test_arrays_are_counted_with_their_loops_and_sources() -> None:
    seven, eight, nine = "model.py:7 (block)", "model.py:8 (block)", "model.py:9 (head)"
    assert moved_arrays(parse(PROGRAM)) == (
        MovedArray("all-reduce", 16, 4, 10, seven, "first", "both", in_loop=True),
        MovedArray("all-reduce", 24, 4, 10, eight, "first", "both", in_loop=True),
        MovedArray("all-reduce", 80, 8, 1, eight, "late", "after", in_loop=False),
        MovedArray("all-reduce", 12, 8, 1, nine, "late", "after", in_loop=False),
        MovedArray("reduce-scatter", 512, 8, 1, nine, "cut", "cut", in_loop=False),
        MovedArray("all-gather", 96, 8, 1, nine, "begun", "begun", in_loop=False),
    )


def test_a_program_without_collectives_moves_nothing() -> None:
    entry = "ENTRY %main (x: f32[2]) -> f32[2] {\n  ROOT %x = f32[2] parameter(0)\n}\n"
    assert moved_arrays(parse(f"HloModule idle\n\n{entry}")) == ()
