"""HBM over schedules written by hand. Arrays are f32[1000]: 4000 bytes, `K` each."""

import pytest

from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.timeline import MemoryCurve
from tests.passes.hlo.texts import machine_of, module_of, text_of

K = 4000
WORK = 'backend_config={"window_config":{"estimated_cycles":"1000"}}'


def curve(entry: str, *computations: str) -> MemoryCurve:
    return simulate(module_of(entry, *computations), machine_of()).memory


def steps(memory: MemoryCurve) -> list[tuple[int, int]]:
    """(us, arrays) where the curve changes."""
    assert all(live % K == 0 for live in memory.live_bytes)
    points = zip(memory.times_s, memory.live_bytes, strict=True)
    changes: list[tuple[int, int]] = []
    for time, live in points:
        if not changes or changes[-1][1] != live // K:
            changes.append((round(time * 1e6), live // K))
    return changes


def test_values_live_from_where_they_are_made_to_their_last_use() -> None:
    memory = curve(
        f"""
        %p = f32[1000] parameter(0)
        %a = f32[1000] negate(%p), {WORK}
        %b = f32[1000] negate(%a), {WORK}
        %c = f32[1000] add(%a, %b), {WORK}
        %d = f32[1000] negate(%c), {WORK}
        ROOT %e = f32[1000] negate(%d), {WORK}
        """
    )
    # p, always; a while b and c are made; and so on.
    assert steps(memory) == [(0, 2), (1, 3), (2, 4), (3, 3)]
    assert {name for name, _, _ in memory.peak_names} == {"a", "b", "c"}
    assert all(size == K for _, size, _ in memory.peak_names)


def test_views_and_tuples_hold_nothing_and_keep_what_they_show_alive() -> None:
    memory = curve(
        f"""
        %p = f32[1000] parameter(0)
        %a = f32[1000] negate(%p), {WORK}
        %v = f32[10,100] bitcast(%a)
        %t = (f32[10,100], f32[1000]) tuple(%v, %p)
        %b = f32[1000] negate(%p), {WORK}
        %c = f32[1000] negate(%b), {WORK}
        %g = f32[10,100] get-tuple-element(%t), index=0
        ROOT %e = f32[1000] add(%g, %c), {WORK}
        """
    )
    assert steps(memory) == [(0, 2), (1, 3), (2, 4)]
    assert {name for name, _, _ in memory.peak_names} >= {"a", "c"}


def test_elements_of_nested_tuples() -> None:
    memory = curve(
        f"""
        %p = f32[1000] parameter(0)
        %a = f32[1000] negate(%p), {WORK}
        %b = f32[1000] negate(%p), {WORK}
        %in = (f32[1000], f32[1000]) tuple(%p, %a)
        %t = ((f32[1000], f32[1000]), f32[1000]) tuple(%in, %b)
        %first = (f32[1000], f32[1000]) get-tuple-element(%t), index=0
        %mine = f32[1000] get-tuple-element(%first), index=1
        %c = f32[1000] negate(%mine), {WORK}
        ROOT %d = f32[1000] negate(%c), {WORK}
        """
    )
    # a ends when c is made, b when the tuple is taken apart.
    assert steps(memory) == [(0, 2), (1, 3)]


def test_what_lies_in_vmem_or_with_the_host_is_not_in_hbm() -> None:
    memory = curve(
        f"""
        %p = f32[1000] parameter(0)
        %h = f32[1000]{{0:S(5)}} parameter(1)
        %a = f32[1000]{{0:S(1)}} negate(%p), {WORK}
        %s = s32[] constant(7)
        ROOT %b = f32[1000] negate(%a), {WORK}
        """
    )
    assert steps(memory) == [(0, 1), (1, 2)]


def test_updates_are_in_place() -> None:
    memory = curve(
        f"""
        %p = f32[1000] parameter(0)
        %i = s32[] constant(3)
        %a = f32[1000] negate(%p), {WORK}
        %b = f32[1000] dynamic-update-slice(%a, %i, %i), {WORK}
        %c = f32[1000] fusion(%b, %i), kind=kLoop, calls=%update, {WORK}
        %d = f32[1000] fusion(%c, %i), kind=kLoop, calls=%other, {WORK}
        ROOT %e = f32[1000] negate(%d), {WORK}
        """,
        """
        update
        %x = f32[1000] parameter(0)
        %i = s32[] parameter(1)
        %u = f32[1000] dynamic-update-slice(%x, %i, %i)
        ROOT %r = f32[1000] bitcast(%u)
        """,
        "other\n%x = f32[1000] parameter(0)\nROOT %r = f32[1000] negate(%x)",
    )
    assert steps(memory) == [(0, 2), (3, 3)]


DONATED = f"""
%p = f32[1000] parameter(0)
%a = f32[1000] negate(%p), {WORK}
%b = f32[1000] negate(%a), {WORK}
ROOT %t = (f32[1000], f32[1000]) tuple(%b, %a)
"""


def test_donated_results_lie_where_an_input_was() -> None:
    assert steps(curve(DONATED)) == [(0, 2), (1, 3)]
    alias = "input_output_alias={ {0}: (0, {}, may-alias) }, is_scheduled=true"
    text = text_of(DONATED).replace("is_scheduled=true", alias)
    assert steps(simulate(parse(text), machine_of()).memory) == [(0, 2)]


def test_loops_add_what_one_iteration_needs() -> None:
    memory = curve(
        f"""
        %p = f32[1000] parameter(0)
        %zero = s32[] constant(0)
        %a = f32[1000] negate(%p), {WORK}
        %init = (s32[], f32[1000]) tuple(%zero, %a)
        %loop = (s32[], f32[1000]) while(%init), condition=%until, body=%body, \
backend_config={{"known_trip_count":{{"n":"5"}}}}
        %out = f32[1000] get-tuple-element(%loop), index=1
        ROOT %e = f32[1000] negate(%out), {WORK}
        """,
        "until\n%c = (s32[], f32[1000]) parameter(0)\nROOT %t = pred[] constant(true)",
        f"""
        body
        %c = (s32[], f32[1000]) parameter(0)
        %i = s32[] get-tuple-element(%c), index=0
        %x = f32[1000] get-tuple-element(%c), index=1
        %y = f32[1000] negate(%x), {WORK}
        %z = f32[1000] negate(%y), {WORK}
        %w = f32[1000] dynamic-update-slice(%x, %z, %i), {WORK}
        ROOT %r = (s32[], f32[1000]) tuple(%i, %w)
        """,
    )
    # p and a; in the loop y, then y and z, then z; then the result.
    assert steps(memory)[:4] == [(0, 2), (1, 3), (2, 4), (3, 3)]
    assert max(memory.live_bytes) == 4 * K
    assert {name for name, _, _ in memory.peak_names} == {"a", "y", "z"}
    assert memory.times_s[-1] == pytest.approx(16e-6)  # after five iterations of 3 us


def test_buffers_name_their_sources() -> None:
    memory = curve(
        f"""
        %p = f32[1000] parameter(0)
        ROOT %a = f32[1000] negate(%p), metadata={{op_name="x" source_file="/h/m.py" \
source_line=7}}, {WORK}
        """
    )
    assert memory.peak_names == (("a", K, "m.py:7"),)


def test_a_fetch_from_the_host_lives_from_its_start() -> None:
    memory = curve(
        f"""
        %h = f32[1000]{{0:S(5)}} parameter(0)
        %start = (f32[1000], f32[1000]{{0:S(5)}}, u32[]) copy-start(%h)
        %a = f32[1000] negate(%h), {WORK}
        %done = f32[1000] copy-done(%start)
        ROOT %b = f32[1000] add(%a, %done), {WORK}
        """
    )
    assert steps(memory) == [(0, 2), (8, 3)]
