"""What compilers say when memory runs out, and what they dumped before."""

from pathlib import Path

import pytest

from autoshard.compiled_program import CompiledMemory, LargeBuffer, OutOfMemory
from autoshard.out_of_memory import explain, verdict_against, verdict_of
from autoshard.peak_buffers import ARGUMENT, PeakMemory, read_peak

MIB, GIB = 2**20, 2**30

EARLY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(198.54G) exceeds available HBM (95.74G)."
)

# As libtpu 0.0.42 writes it, all but the first entries left out.
LATE = """\
RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in\
 memory space hbm. Used 160.88M of 160.00M hbm. Exceeded hbm capacity by 896.0K.

Total hbm usage >= 393.88M:
    reserved        258.00M
    program         102.88M
    arguments        33.00M

Output size 25.00M; shares 0B with arguments.

Program hbm requirement 102.88M:
    HLO temp        100.16M (100.0% utilization: Unpadded (100.00M) Padded (100.00M), 0.2%\
 fragmentation (155.0K))
    overlays          2.72M

  Largest program allocations in hbm:

  1. Size: 2.50M
     Shape: (bf16[4096,1024]{1,0:T(8,128)(2,1)})
     Unpadded size: 2.50M
     XLA label: slice-start.2 = slice-start(param), slice={[2048:3072], [0:1024]}
     Allocation type: HLO temp
     ==========================

  2. Size: 100.00M
     Operator: op_name="jit(<lambda>)/jvp()/dot_general" source_file="/home/me/model.py" \
source_line=7
     Shape: bf16[4096,12800]{1,0:T(8,128)(2,1)}
     Unpadded size: 100.00M
     XLA label: fusion.4 = fusion(param, copy-done), kind=kOutput, calls=fused_computation.8
     Allocation type: HLO temp
     ==========================

  3. Size: 2.72M
     XLA label: overlays
     Allocation type: overlays
     ==========================
"""

VMEM = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 160.88M of 128.00M vmem. "
    "Exceeded vmem capacity by 32.88M."
)


def test_a_total_before_buffers_are_placed() -> None:
    verdict = verdict_of(EARLY, None)
    assert verdict is not None
    assert verdict.needed_bytes == round(198.54 * GIB)
    assert verdict.available_bytes == round(95.74 * GIB)
    assert verdict.buffers == () and verdict.message == EARLY


def test_a_dump_makes_the_total_exact_and_has_the_buffers() -> None:
    buffer = LargeBuffer(GIB, "f32[1]", "x", "")
    verdict = verdict_of(EARLY, PeakMemory(213_181_123_456, (buffer,)))
    assert verdict is not None
    assert verdict.needed_bytes == 213_181_123_456 and verdict.buffers == (buffer,)


def test_the_allocations_that_the_compiler_lists() -> None:
    verdict = verdict_of(LATE, None)
    assert verdict is not None
    assert verdict.needed_bytes == round(160.88 * MIB)
    assert verdict.available_bytes == 160 * MIB
    assert verdict.buffers == (
        LargeBuffer(100 * MIB, "bf16[4096,12800]", "jit(<lambda>)/jvp()/dot_general", "model.py:7"),
        LargeBuffer(round(2.5 * MIB), "(bf16[4096,1024])", "slice-start.2", ""),
    )


@pytest.mark.parametrize("message", ["", "INTERNAL: fault", VMEM, "RESOURCE_EXHAUSTED: too many"])
def test_other_errors_are_no_verdict(message: str) -> None:
    assert verdict_of(message, None) is None


def test_a_program_against_a_limit() -> None:
    memory = CompiledMemory(
        arguments_bytes=100,
        outputs_bytes=60,
        aliased_bytes=50,
        temporaries_bytes=40,
        code_bytes=10**6,
    )
    assert verdict_against(memory, 150, None, "h100:8") is None
    verdict = verdict_against(memory, 149, None, "h100:8")
    assert verdict is not None
    assert (verdict.needed_bytes, verdict.available_bytes) == (150, 149)
    assert "h100:8" in verdict.message


def test_the_explanation_puts_the_remedy_for_the_larger_part_first() -> None:
    state = LargeBuffer(6 * GIB, "f32[3]", "state.params['w']", ARGUMENT)
    made = LargeBuffer(4 * GIB, "f32[2]", "jit(step)/dot_general", "model.py:7 (f)")
    verdict = OutOfMemory(18 * GIB, 16 * GIB, (state, made), "")
    text = explain(verdict)
    lines = text.splitlines()
    assert lines[0] == (
        "The program needs 18.00 GiB on each device and there are 16.00 GiB: 2.00 GiB too much."
    )
    assert "  6.00 GiB f32[3] state.params['w'] (argument)" in lines
    assert "  4.00 GiB f32[2] jit(step)/dot_general at model.py:7 (f)" in lines
    assert text.index("zero3") < text.index("smaller batch") < text.index("dtype='bfloat16'")
    activations = explain(OutOfMemory(18 * GIB, 16 * GIB, (state, made, made), ""))
    assert "  2 x 4.00 GiB f32[2] jit(step)/dot_general at model.py:7 (f)" in activations
    assert activations.index("smaller batch") < activations.index("zero3")


def test_the_explanation_of_a_verdict_without_buffers() -> None:
    text = explain(OutOfMemory(1500, 1000, (), ""))
    assert text.startswith("The program needs 1.46 KiB on each device and there are 1000 B: 500 B")
    assert "largest buffers" not in text and "more devices" in text


# x is an argument of 3000 bytes; a loop carries 4000 from `start` to `update` and makes 2000 in it,
# in all 9003 with `small`, which is too small to tell. `early` is larger than any of them and alive
# with x alone; the file calls that the peak, as XLA does where the rest is inside a loop. Nothing
# of another memory space or of an instruction's inside counts.
ASSIGNMENT = """\
BufferAssignment:
allocation 0: size 3000, parameter 0, shape |f32[750]| at ShapeIndex {}, maybe-live-out:
 value: <1 x @0> (size=3000,offset=0): f32[750]{0:T(512)}
 value: <2 result{0} @0> (size=3000,offset=0): f32[750]{0:T(512)}
allocation 1: size 9000, preallocated-temp:
 value: <3 start @0> (size=4000,offset=512): f32[10,100]{1,0:T(8,128)}
 value: <4 param{1} (phi) @0> (size=4000,offset=512): f32[10,100]{1,0:T(8,128)}
 value: <11 while.1{1} @0> (size=4000,offset=512): f32[10,100]{1,0:T(8,128)}
 value: <5 update @0> (size=4000,offset=512): f32[10,100]{1,0:T(8,128)}
 value: <6 product @0> (size=2000,offset=5000): bf16[10,100]{1,0:T(8,128)(2,1)}
 value: <7 early @0> (size=5000,offset=512): f32[1250]{0}
 value: <8 small @0> (size=3,offset=8900): pred[3]{0}
allocation 2: size 70000, color 1, preallocated-temp:
 value: <9 scratch @1> (size=70000,offset=0): f32[17500]{0:S(1)}
allocation 3: size 512, thread-local:
 value: <10 inner @0> (size=512,offset=0): f32[]{:T(128)}
"""

LIVE_RANGE = """\
HloLiveRange (max 9):
  InstructionSequence:
    0:x
  BufferLiveRange:
    x{}:0-9
    early{}:0-1
    start{}:2-3
    small{}:0-9
    scratch{}:0-9
    param{1}:4-7
    while.1{1}:7-9
    product{}:5-6
    update{}:7-9
    result{0}:9-9
  Live ranges at 1 (peak):
    early{}: 5000 bytes (cumulative: 5000 bytes)
"""

PROGRAM = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/model.py"

FunctionNames
1 "Model.layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

body {
  %param = (s32[], f32[10,100]) parameter(0)
  %product = bf16[10,100]{1,0:T(8,128)(2,1)} dot(%param), metadata={op_name="jit(step)/dot"}
  ROOT %update = f32[10,100] fusion(%product), metadata={op_name="jit(step)/add" stack_frame_id=1}
}

ENTRY %main {
  %x = f32[750]{0:T(512)} parameter(0), metadata={op_name="state.params[\\'w\\']"}
  %start = f32[10,100]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %while.1 = (f32[10,100]) while(%start), metadata={op_name="jit(step)/while" stack_frame_id=1}
}
"""

BUFFERS = (
    LargeBuffer(4000, "f32[10,100]", "jit(step)/add", "model.py:12 (Model.layer)"),
    LargeBuffer(3000, "f32[750]", "state.params['w']", ARGUMENT),
    LargeBuffer(2000, "bf16[10,100]", "jit(step)/dot", ""),
)


def dump(folder: Path, assignment: str, live_range: str | None, program: str | None) -> None:
    parts = {"-buffer-assignment": assignment, "-live-range": live_range, "": program}
    for suffix, text in parts.items():
        if text is not None:
            name = f"module_0007.jit_step.cl_1.after_optimizations{suffix}.txt"
            (folder / name).write_text(text)


def test_what_fills_the_memory_at_the_peak(tmp_path: Path) -> None:
    dump(tmp_path, ASSIGNMENT, LIVE_RANGE, PROGRAM)
    (tmp_path / "module_0001.helper.after_optimizations-buffer-assignment.txt").write_text("")
    assert read_peak(tmp_path) == PeakMemory(12_000, BUFFERS)


def test_a_dump_without_all_of_its_files(tmp_path: Path) -> None:
    assert read_peak(tmp_path) is None
    dump(tmp_path, ASSIGNMENT, None, None)
    peak = read_peak(tmp_path)
    assert peak is not None and peak.total_bytes == 12_000
    # Nobody says what is alive, so the largest value of each place is told, by its own name.
    assert [(b.size_bytes, b.op_name) for b in peak.buffers] == [
        (5000, "early"),
        (3000, "x"),
        (2000, "product"),
    ]


def test_a_dump_of_another_form_tells_nothing(tmp_path: Path) -> None:
    dump(tmp_path, "something else\n", "entirely\n", PROGRAM)
    assert read_peak(tmp_path) == PeakMemory(0, ())
