"""Simulated steps of schedules written by hand, with times worked out by hand.

The machine makes 1 cycle a ns, 1 TFLOP/s, 1 GB/s in HBM and over each link, half of that to the
host.
"""

from typing import Any

import pytest

from autoshard.machine import machine_model
from autoshard.topology import Topology
from passes.hlo.errors import HloError
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate, streams
from passes.hlo.timeline import Basis, Timeline
from tests.passes.hlo.golden_programs import PROGRAMS, GoldenProgram
from tests.passes.hlo.texts import machine_of, module_of, ring, switch, text_of

US = 1e-6


def near(value: float) -> Any:
    """Also within tuples."""
    return pytest.approx(value)


TORUS = machine_of(ring(2, "y"), ring(4, "x"))
ADD = "add\n%u = f32[] parameter(0)\n%v = f32[] parameter(1)\nROOT %s = f32[] add(%u, %v)"
X_GROUPS = "replica_groups=[2,4]<=[8]"
Y_GROUPS = "replica_groups=[4,2]<=[2,4]T(1,0)"


def cycles(count: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


def run(entry: str, *computations: str, efficiency: float = 1.0) -> Timeline:
    module = module_of(entry, ADD, *computations, partitions=8)
    machine = machine_of(ring(2, "y"), ring(4, "x"), efficiency=efficiency)
    timeline = simulate(module, machine)
    # The cores compute or wait, and nothing else.
    total = timeline.compute_s + timeline.exposed_communication_s + timeline.exposed_copy_s
    assert timeline.step_s == near(total)
    return timeline


def test_cycles_add_up_and_sentinels_do_not() -> None:
    timeline = run(
        f"""
        %p = f32[250] parameter(0)
        %a = f32[250] negate(%p), {cycles(1000)}
        %b = f32[250] negate(%a), {cycles(3000)}
        %c = f32[250] negate(%b), {cycles(9223372036854775807)}
        ROOT %t = (f32[250]) tuple(%c)
        """
    )
    # The third is timed by its traffic: 1000 bytes in, 1000 out.
    assert timeline.step_s == near(1 * US + 3 * US + 2 * US)
    assert [(o.name, o.basis) for o in timeline.operations] == [
        ("b", Basis.CYCLES),
        ("c", Basis.ROOFLINE),
        ("a", Basis.CYCLES),
    ]
    assert [(s.name, s.start_s, s.end_s) for s in timeline.spans] == [
        ("a", 0.0, near(1 * US)),
        ("b", near(1 * US), near(4 * US)),
        ("c", near(4 * US), near(6 * US)),
    ]
    assert timeline.unmodelled == () and streams(timeline) == ("compute",)


# A ring of 4 used both ways: 4000 gathered bytes, of which a device receives 3000, at 2 GB/s.
GATHER_S = 1.5 * US
GATHER = f"""
%p = f32[250] parameter(0)
%start = (f32[250], f32[1000]) all-gather-start(%p), {X_GROUPS}, dimensions={{0}}
%work = f32[250] negate(%p), CYCLES
%done = f32[1000] all-gather-done(%start)
ROOT %more = f32[250] negate(%work), {cycles(500)}
"""


@pytest.mark.parametrize(("work", "exposed"), [(0, 1.5), (1000, 0.5), (1500, 0.0), (4000, 0.0)])
def test_an_asynchronous_collective_hides_behind_work(work: int, exposed: float) -> None:
    timeline = run(GATHER.replace("CYCLES", cycles(work)))
    assert timeline.step_s == near(max(work / 1000 * US, GATHER_S) + 0.5 * US)
    (gather,) = timeline.collectives
    assert (gather.kind, gather.payload_bytes, gather.group_size) == ("all-gather", 4000, 4)
    assert gather.axes == ("x",) and gather.repeats == 1
    assert gather.seconds == near(GATHER_S)
    assert gather.exposed_s == near(exposed * US)


def test_a_synchronous_collective_is_exposed_entirely() -> None:
    timeline = run(
        f"""
        %p = f32[1000] parameter(0)
        %work = f32[1000] negate(%p), {cycles(700)}
        ROOT %r = f32[1000] all-reduce(%p), {X_GROUPS}, to_apply=%add
        """
    )
    # Twice 3/4 of 4000 bytes at 2 GB/s.
    assert timeline.collectives[0].seconds == near(3 * US)
    assert timeline.exposed_communication_s == near(3 * US)
    assert timeline.step_s == near(3.7 * US)


def test_one_axis_takes_one_collective_at_a_time_and_two_axes_take_two() -> None:
    entry = f"""
    %p = f32[250] parameter(0)
    %a = (f32[250], f32[1000]) all-gather-start(%p), {X_GROUPS}, dimensions={{0}}
    %b = (f32[250], f32[1000]) all-gather-start(%p), SECOND, dimensions={{0}}
    %done.a = f32[1000] all-gather-done(%a)
    ROOT %done.b = f32[1000] all-gather-done(%b)
    """
    same = run(entry.replace("SECOND", X_GROUPS))
    assert same.step_s == near(2 * GATHER_S)
    assert [s.start_s for s in same.spans] == [0.0, near(GATHER_S)]
    # Along y there are two: 2000 bytes, half received, 2 GB/s: 0.5 us, beside the other.
    other = run(entry.replace("SECOND", Y_GROUPS))
    assert other.step_s == near(GATHER_S)
    assert [c.exposed_s for c in other.collectives] == [near(GATHER_S), 0.0]
    assert streams(other) == ("compute", "x", "y")


def test_a_permute_leaves_the_other_direction_free() -> None:
    pairs = "{{0,1},{1,2},{2,3},{3,0}}"
    back = "{{1,0},{2,1},{3,2},{0,3}}"
    entry = f"""
    %p = f32[250] parameter(0)
    %a = (f32[250], f32[250]) collective-permute-start(%p), source_target_pairs={pairs}
    %b = (f32[250], f32[250]) collective-permute-start(%p), source_target_pairs=BACK
    %done.a = f32[250] collective-permute-done(%a)
    ROOT %done.b = f32[250] collective-permute-done(%b)
    """
    assert run(entry.replace("BACK", back)).step_s == near(1 * US)
    assert run(entry.replace("BACK", pairs)).step_s == near(2 * US)


def test_copies_have_a_stream_and_the_host_has_one() -> None:
    timeline = run(
        f"""
        %p = f32[1000]{{0:S(5)}} parameter(0)
        %q = f32[1000] parameter(1)
        %fetch = (f32[1000], f32[1000]{{0:S(5)}}, u32[]) copy-start(%p)
        %local = (f32[1000]{{0:S(1)}}, f32[1000], u32[]) copy-start(%q)
        %second = (f32[1000]{{0:S(1)}}, f32[1000], u32[]) copy-start(%q)
        %work = f32[1000] negate(%q), {cycles(1000)}
        %got = f32[1000]{{0:S(1)}} copy-done(%local)
        %late = f32[1000]{{0:S(1)}} copy-done(%second)
        ROOT %here = f32[1000] copy-done(%fetch)
        """
    )
    # Within HBM 4 us each, one after the other; from the host 8 us, beside them.
    spans = {s.name: (s.stream, s.start_s, s.end_s) for s in timeline.spans}
    assert spans["fetch"] == ("host link", 0.0, near(8 * US))
    assert spans["local"] == ("HBM copies", 0.0, near(4 * US))
    assert spans["second"] == ("HBM copies", near(4 * US), near(8 * US))
    assert timeline.step_s == near(8 * US)
    assert timeline.exposed_copy_s == near(7 * US)
    assert timeline.compute_s == near(1 * US)


LOOP = """
%p = f32[250] parameter(0)
%zero = s32[] constant(0)
%init = (s32[], f32[250]) tuple(%zero, %p)
ROOT %loop = (s32[], f32[250]) while(%init), condition=%until, body=%body
"""
UNTIL = """
until
%c = (s32[], f32[250]) parameter(0)
%i = s32[] get-tuple-element(%c), index=0
%n = s32[] constant(7)
ROOT %less = pred[] compare(%i, %n), direction=LT
"""
BODY = f"""
body
%c = (s32[], f32[250]) parameter(0)
%i = s32[] get-tuple-element(%c), index=0
%x = f32[250] get-tuple-element(%c), index=1
%one = s32[] constant(1)
%next = s32[] add(%i, %one), {cycles(0)}
%start = (f32[250], f32[1000]) all-gather-start(%x), {X_GROUPS}, dimensions={{0}}
%work = f32[250] negate(%x), {cycles(1000)}
%done = f32[1000] all-gather-done(%start)
ROOT %out = (s32[], f32[250]) tuple(%next, %work)
"""


def test_loops_are_multiplied() -> None:
    timeline = run(LOOP, UNTIL, BODY)
    assert timeline.step_s == near(7 * GATHER_S)
    (gather,) = timeline.collectives
    assert gather.repeats == 7
    assert gather.seconds == near(7 * GATHER_S)
    assert gather.exposed_s == near(7 * 0.5 * US)
    (work,) = timeline.operations
    assert (work.name, work.repeats) == ("work", 7) and work.seconds == near(7 * US)
    depths = {s.name: (s.depth, s.repeats, s.end_s) for s in timeline.spans}
    assert depths["loop"] == (0, 1, near(7 * GATHER_S))
    assert depths["work"] == (1, 7, near(1 * US))


def test_a_computation_that_is_called_twice() -> None:
    body = GATHER.replace("CYCLES", cycles(1000)).replace("ROOT %more", "ROOT %end")
    timeline = run(
        """
        %p = f32[250] parameter(0)
        %a = f32[250] call(%p), to_apply=%both
        ROOT %b = f32[250] call(%a), to_apply=%both
        """,
        f"both\n{body}",
    )
    assert timeline.step_s == near(2 * (GATHER_S + 0.5 * US))
    assert [c.exposed_s for c in timeline.collectives] == [near(0.5 * US)] * 2


def test_a_loop_of_unknown_length_is_counted_once_and_reported() -> None:
    timeline = run(LOOP, UNTIL.replace("s32[] constant(7)", "s32[] parameter(1)"), BODY)
    assert timeline.step_s == near(GATHER_S)
    assert timeline.unmodelled == (("loop whose trip count is unknown, counted once", 1),)


def test_a_loop_that_never_runs() -> None:
    timeline = run(LOOP, UNTIL.replace("constant(7)", "constant(0)"), BODY)
    assert timeline.step_s == 0 and timeline.spans == ()


def test_calls_run_once_and_of_branches_the_longest() -> None:
    timeline = run(
        """
        %p = f32[250] parameter(0)
        %c = pred[] parameter(1)
        %a = f32[250] call(%p), to_apply=%slow
        %b = f32[250] conditional(%c, %p, %p, %p), branch_computations={%quick, %slow, %quick}
        ROOT %d = f32[250] conditional(%c, %p, %p), true_computation=%quick, \
false_computation=%quick
        """,
        f"slow\n%p = f32[250] parameter(0)\nROOT %n = f32[250] negate(%p), {cycles(5000)}",
        f"quick\n%p = f32[250] parameter(0)\nROOT %n = f32[250] negate(%p), {cycles(2000)}",
    )
    assert timeline.step_s == near((5 + 5 + 2) * US)
    assert {s.kind for s in timeline.spans} == {"call", "elementwise"}


# 2 x 50 x 100 x 200 operations at 1 TFLOP/s; 10^5 bytes of operands and result at 1 GB/s.
PRODUCT = """
%a = f32[50,100]{1,0:S(1)} parameter(0)
%b = f32[100,200]{1,0:S(1)} parameter(1)
ROOT %r = f32[50,200]{1,0:S(1)} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
"""


@pytest.mark.parametrize(
    ("note", "efficiency", "expected_us", "basis"),
    [
        (5000, 1.0, 2.0, Basis.ROOFLINE),  # the compiler's figure is an upper bound
        (5000, 0.5, 4.0, Basis.ROOFLINE),
        (1500, 1.0, 1.5, Basis.CYCLES),
    ],
)
def test_products(note: int, efficiency: float, expected_us: float, basis: Basis) -> None:
    timeline = run(f"{PRODUCT.rstrip()}, {cycles(note)}\n", efficiency=efficiency)
    assert timeline.step_s == near(expected_us * US)
    assert (timeline.operations[0].basis, timeline.operations[0].kind) == (basis, "matmul")
    assert timeline.flops == 2 * 50 * 100 * 200


def test_products_without_a_note_pay_for_tiles_that_are_partly_empty() -> None:
    """50 x 200 in tiles of 128: two, of 32768 places, for 10000 results; one core."""
    timeline = run(PRODUCT)
    assert timeline.step_s == near(2 * US * 32768 / 10000)


def test_products_bound_by_memory() -> None:
    timeline = run(PRODUCT.replace("{1,0:S(1)}", ""))
    assert timeline.step_s == near((5000 + 20000 + 10000) * 4 / 1e9)
    assert timeline.operations[0].hbm_bytes == 140_000


def test_slices_reduce_over_the_outermost_axis_by_the_host() -> None:
    transfer = (
        'frontend_attributes={_xla_host_transfer_rendezvous="r.1_0",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    module = module_of(
        f"""
        %p = f32[1000] parameter(0)
        %t = token[] after-all()
        %send = (f32[1000], u32[], token[]) send(%p, %t), is_host_transfer=true, {transfer}
        %recv = (f32[1000], u32[], token[]) recv(%t), is_host_transfer=true, {transfer}
        %work = f32[1000] negate(%p), {cycles(1000)}
        %sent = token[] send-done(%send)
        %got = (f32[1000], token[]) recv-done(%recv)
        ROOT %r = f32[1000] get-tuple-element(%got), index=0
        """,
        partitions=4,
    )
    timeline = simulate(module, machine_of(switch(2, "dcn"), ring(4, "x")))
    # Twice half of 4000 bytes through the port.
    assert timeline.step_s == near(4 * US)
    (transferred,) = timeline.collectives
    assert (transferred.kind, transferred.axes) == ("all-reduce", ("dcn",))
    assert transferred.exposed_s == near(3 * US)
    assert simulate(module, machine_of()).step_s == near(1 * US)


def test_starts_and_ends_without_their_other_half() -> None:
    timeline = run(
        f"""
        %p = f32[250] parameter(0)
        %q = (f32[250], f32[1000]) parameter(1)
        %stray = f32[1000] all-gather-done(%q)
        %start = (f32[250], f32[1000]) all-gather-start(%p), {X_GROUPS}, dimensions={{0}}
        ROOT %t = (f32[1000]) tuple(%stray)
        """
    )
    assert timeline.step_s == near(GATHER_S)  # it ends with the program


def test_groups_that_cannot_be_read_are_reported() -> None:
    timeline = run(
        """
        %p = f32[250] parameter(0)
        ROOT %r = f32[250] all-reduce(%p), replica_groups=elsewhere, to_apply=%add
        """
    )
    assert timeline.step_s == 0
    assert timeline.unmodelled == (("replica groups are not understood: 'elsewhere'", 1),)


def test_kernels_of_which_nothing_is_known_are_reported() -> None:
    timeline = run(
        """
        %p = f32[250] parameter(0)
        ROOT %mine.7 = f32[250] custom-call(%p), custom_call_target="tpu_custom_call"
        """
    )
    assert timeline.unmodelled == (("kernel mine", 1),)
    assert timeline.operations[0].basis is Basis.UNKNOWN


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ROOT %a = f32[] call(), to_apply=%main", "calls itself"),
        ("ROOT %a = f32[] while(), body=%nobody, condition=%nobody", "'nobody' is called and not"),
        ("ROOT %a = f32[] conditional(), branch_computations={%nobody}", "'nobody' is called"),
    ],
)
def test_damaged_programs(entry: str, message: str) -> None:
    with pytest.raises(HloError, match=message):
        simulate(parse(text_of(entry)), TORUS)


def test_programs_without_a_schedule() -> None:
    text = text_of("ROOT %a = f32[] constant(1)").replace("is_scheduled=true, ", "")
    with pytest.raises(HloError, match=r"'test' is not scheduled.*compiled program"):
        simulate(parse(text), TORUS)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_golden_programs_keep_the_books(program: GoldenProgram) -> None:
    """What the cores do and wait for is the step, and nothing takes less than no time."""
    timeline = simulate(parse(program.read()), machine_model(Topology.parse(program.topology)))
    total = timeline.compute_s + timeline.exposed_communication_s + timeline.exposed_copy_s
    assert timeline.step_s == near(total)
    assert all(0 <= c.exposed_s <= timeline.step_s and c.seconds > 0 for c in timeline.collectives)
    assert all(0 <= s.start_s <= s.end_s <= timeline.step_s * (1 + 1e-9) for s in timeline.spans)
    assert list(timeline.memory.times_s) == sorted(timeline.memory.times_s)
    by_stream: dict[tuple[str, int], float] = {}
    for span in timeline.spans:  # of the program itself: a stream does one thing at a time
        if span.depth == 0 and span.kind != "call":
            key = (span.stream, span.depth)
            assert span.start_s >= by_stream.get(key, 0.0) - 1e-12
            by_stream[key] = span.end_s
