"""Trip counts: loops written by hand, and those of compiled scans."""

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from passes.hlo.loops import trip_count
from passes.hlo.module import HloModule
from passes.hlo.parse import parse
from tests.passes.hlo.texts import in_entry, module_of

BODY = """
body
%carried = (s32[], f32[4], s32[]) parameter(0)
%i = s32[] get-tuple-element(%carried), index=0
%x = f32[4] get-tuple-element(%carried), index=1
%n = s32[] get-tuple-element(%carried), index=2
%step = s32[] constant(STEP)
%y = f32[4] negate(%x)
%next = s32[] add(%i, %step)
ROOT %out = (s32[], f32[4], s32[]) tuple(%next, %y, %n)
"""
CONDITION = """
condition
%carried = (s32[], f32[4], s32[]) parameter(0)
%i = s32[] get-tuple-element(%carried), index=0
%limit = BOUND
ROOT %holds = pred[] compare(%i, %limit), direction=DIRECTION
"""
ENTRY = """
%x = f32[4] parameter(0)
%start = s32[] constant(START)
%bound = s32[] constant(END)
%init = (s32[], f32[4], s32[]) tuple(%start, %x, %bound)
ROOT %loop = (s32[], f32[4], s32[]) while(%init), condition=%condition, body=%body
"""
CONSTANT = "s32[] constant(END)"
CARRIED = "s32[] get-tuple-element(%carried), index=2"


def trips(entry: str, *computations: str, **values: Any) -> int | None:
    texts = [entry, *computations]
    for name, value in values.items():
        texts = [text.replace(name, str(value)) for text in texts]
    return trip_count(*in_entry(module_of(*texts), "loop"))


def counted(start: int, end: int, step: int, direction: str) -> int | None:
    """By running it."""
    holds = {
        "LT": lambda i: i < end, "LE": lambda i: i <= end, "GT": lambda i: i > end,
        "GE": lambda i: i >= end, "NE": lambda i: i != end, "EQ": lambda i: i == end,
    }[direction]  # fmt: skip
    for n in range(10_000):
        if not holds(start + n * step):
            return n
    return None


@hypothesis.given(
    st.integers(-50, 50),
    st.integers(-50, 50),
    st.sampled_from((-7, -2, -1, 1, 2, 3)),
    st.sampled_from(("LT", "LE", "GT", "GE", "NE", "EQ")),
    st.sampled_from((CONSTANT, CARRIED)),
)
@hypothesis.settings(max_examples=200)
def test_loops_that_count(start: int, end: int, step: int, direction: str, bound: str) -> None:
    found = trips(
        ENTRY, BODY, CONDITION,
        BOUND=bound, START=start, END=end, STEP=step, DIRECTION=direction,
    )  # fmt: skip
    assert found == counted(start, end, step, direction)


def test_long_loops() -> None:
    settings: dict[str, Any] = {"BOUND": CONSTANT, "START": 3, "STEP": 1}
    assert trips(ENTRY, BODY, CONDITION, **settings, END=10**9, DIRECTION="LT") == 10**9 - 3
    assert trips(ENTRY, BODY, CONDITION, **settings, END=10**9, DIRECTION="NE") == 10**9 - 3
    assert trips(ENTRY, BODY, CONDITION, **settings, END=10**15, DIRECTION="LT") is None
    assert trips(ENTRY, BODY, CONDITION, **settings, END=10**15, DIRECTION="NE") is None


COUNTS: dict[str, Any] = {"BOUND": CONSTANT, "START": 0, "END": 12, "STEP": 1, "DIRECTION": "LT"}


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ('{"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}', 5),
        ('{"known_trip_count":{"n":"0"}}', 0),
        ('{"known_trip_count":{"n":"999999999999999"}}', None),
        ('{"known_trip_count":{}}', 12),
        ("{}", 12),
    ],
)
def test_what_the_compiler_wrote_goes_first(note: str, expected: int | None) -> None:
    entry = ENTRY.replace("body=%body", f"body=%body, backend_config={note}")
    assert trips(entry, BODY, CONDITION, **COUNTS) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The tuple that the loop starts from, handed on.
        ("while(%init)", "while(%copied)"),
        # The number itself, in a copy; fetched from VMEM; from the host's view of another tuple.
        ("tuple(%start,", "tuple(%start_copy,"),
        ("tuple(%start,", "tuple(%start_done,"),
        ("tuple(%start,", "tuple(%from_tuple,"),
        ("tuple(%start,", "tuple(%computed,"),
    ],
)
def test_where_the_loop_starts_from(old: str, new: str) -> None:
    more = """
%start_copy = s32[] copy(%start)
%start_begin = (s32[], s32[], u32[]) copy-start(%start)
%start_done = s32[] copy-done(%start_begin)
%pair = (f32[4], s32[]) tuple(%x, %start)
%from_tuple = s32[] get-tuple-element(%pair), index=1
%four = s32[] constant(4)
%computed = s32[] subtract(%four, %four)
%init = """
    entry = ENTRY.replace("\n%init = ", more)
    entry = entry.replace("\nROOT", "\n%copied = (s32[], f32[4], s32[]) copy(%init)\nROOT")
    assert trips(entry.replace(old, new), BODY, CONDITION, **COUNTS) == 12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ROOT %out = (s32[], f32[4], s32[]) tuple(%next, %y, %n)",
         "%made = (s32[], f32[4], s32[]) tuple(%next, %y, %n)\n"
         "ROOT %out = (s32[], f32[4], s32[]) copy(%made)"),
        ("%next = s32[] add(%i, %step)", "%next = s32[] fusion(%i), kind=kLoop, calls=%increment"),
        ("%next = s32[] add(%i, %step)", "%next = s32[] add(%step, %i)"),
        ("%next = s32[] add(%i, %step)",
         "%once = s32[] add(%i, %step)\n%same = s32[] copy(%once)\n%next = s32[] bitcast(%same)"),
    ],
)  # fmt: skip
def test_how_the_body_steps(old: str, new: str) -> None:
    increment = "increment\n%p = s32[] parameter(0)\n%one = s32[] constant(1)\n"
    increment += "ROOT %sum = s32[] add(%p, %one)"
    assert trips(ENTRY, increment, BODY.replace(old, new), CONDITION, **COUNTS) == 12


def test_the_condition_in_a_fusion() -> None:
    """As the CPU compiler writes it."""
    wrapped = "wrapped\n%a = s32[] parameter(0)\n%b = s32[] parameter(1)\n"
    wrapped += "ROOT %less = pred[] compare(%a, %b), direction=LT"
    condition = CONDITION.replace(
        "compare(%i, %limit), direction=DIRECTION", "fusion(%i, %limit), kind=kLoop, calls=%wrapped"
    )
    assert trips(ENTRY, wrapped, BODY, condition, **COUNTS) == 12


def test_two_conditions_at_once() -> None:
    condition = CONDITION.replace(
        "ROOT %holds = pred[] compare(%i, %limit), direction=DIRECTION",
        "%first = pred[] compare(%i, %limit), direction=LT\n%five = s32[] constant(5)\n"
        "%second = pred[] compare(%i, %five), direction=LE\n"
        "ROOT %holds = pred[] and(%first, %second)",
    )
    assert trips(ENTRY, BODY, condition, **COUNTS) == 6


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%start = s32[] constant(START)", "%start = s32[] parameter(1)"),
        ("constant(STEP)", "parameter(1)"),
        ("add(%i, %step)", "multiply(%i, %i)"),
        ("add(%i, %step)", "add(%i, %i)"),
        ("tuple(%next, %y, %n)", "tuple(%i, %y, %n)"),  # stands still
        ("%y = f32[4] negate(%x)\n", "%y = f32[4] negate(%x)\n%m = s32[] add(%n, %step)\n"),
        ("direction=DIRECTION", "direction=SIDEWAYS"),
        ("condition=%condition", "condition=%nobody"),
        ("body=%body", "body=%nobody"),
        ("while(%init)", "while(%nobody)"),
        ("while(%init)", "while()"),
        ("while(%init)", "while(%x)"),
        ("index=0\n%limit", "index=1\n%limit"),
        ("= BOUND", "= s32[2] constant({1, 2})"),
        ("ROOT %out = (s32[], f32[4], s32[]) tuple(%next, %y, %n)",
         "ROOT %out = (s32[], f32[4], s32[]) copy(%out)"),
    ],
)  # fmt: skip
def test_what_cannot_be_told(old: str, new: str) -> None:
    texts = [text.replace(old, new) for text in (ENTRY, BODY, CONDITION)]
    if "%m =" in new:  # the bound moves, too
        texts = [text.replace("tuple(%next, %y, %n)", "tuple(%next, %y, %m)") for text in texts]
    bound = CARRIED if "%m =" in new else CONSTANT
    assert trips(*texts, **(COUNTS | {"BOUND": bound})) is None


def test_long_chains_of_sums_end() -> None:
    """Without recursion to their depth, and without running every branch of them."""
    chain = "%s0 = s32[] copy(%step)\n" + "".join(
        f"%s{n + 1} = s32[] OP(%s{n}, %s{n})\n" for n in range(2000)
    )
    for operation in ("add", "multiply"):
        body = BODY.replace("%next = s32[] add(%i, %step)", "%next = s32[] add(%i, %s2000)")
        body = body.replace("%y =", chain.replace("OP", operation) + "%y =")
        assert trips(ENTRY, body, CONDITION, **COUNTS) is None


def test_a_widened_windowed_product() -> None:
    """libtpu's loops of a windowed einsum carry their counter in the midst of other numbers."""
    module = module_of(
        """
        %zero = u32[]{:T(128)} constant(0)
        %device = u32[] partition-id()
        %x = bf16[8,8] parameter(0)
        %t = (bf16[8,8], u32[], u32[]{:T(128)}, u32[]) tuple(%x, %device, %zero, %device)
        ROOT %loop = (bf16[8,8], u32[], u32[], u32[]) while(%t), condition=%cond_rs, body=%body_rs
        """,
        """
        cond_rs
        %eight = u32[]{:T(128)} constant(8)
        %wide = (bf16[8,8], u32[], u32[], u32[]) parameter(0)
        %counter = u32[]{:T(128)} get-tuple-element(%wide), index=2
        ROOT %compare = pred[]{:T(512)} compare(%counter, %eight), direction=LT
        """,
        """
        body_rs
        %wide = (bf16[8,8], u32[], u32[], u32[]) parameter(0)
        %x = bf16[8,8] get-tuple-element(%wide), index=0
        %device = u32[] get-tuple-element(%wide), index=1
        %counter = u32[] get-tuple-element(%wide), index=2
        %one = u32[] constant(1)
        %first = u32[] add(%counter, %one)
        %second = u32[] add(%first, %one)
        %other = u32[] add(%device, %one)
        ROOT %out = (bf16[8,8], u32[], u32[], u32[]) tuple(%x, %device, %second, %other)
        """,
    )
    assert trip_count(*in_entry(module, "loop")) == 4


def loops_of(module: HloModule) -> list[int | None]:
    return [
        trip_count(module, computation, i)
        for computation in module.computations.values()
        for i in computation.instructions
        if i.opcode == "while"
    ]


def without_notes(text: str) -> str:
    """As libtpu writes: no trip counts."""
    return text.replace("known_trip_count", "unknown_trip_count")


def compiled(function: Any) -> str:
    """For an array so large that the CPU compiler does not hide its loops in calls."""
    x = jax.ShapeDtypeStruct((1 << 20,), jnp.float32)
    return str(jax.jit(function).lower(x).compile().as_text())


@hypothesis.given(st.integers(2, 300), st.integers(2, 20))
@hypothesis.settings(max_examples=5, deadline=None, phases=[hypothesis.Phase.generate])
def test_scans_that_jax_compiles(outer: int, inner: int) -> None:
    def function(x: jax.Array) -> jax.Array:
        def step(c: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.fori_loop(3, 3 + inner, lambda i, y: jnp.sin(y) * i, c), None

        return jax.lax.scan(step, x, None, length=outer)[0]

    text = compiled(function)
    assert sorted(n or 0 for n in loops_of(parse(text))) == sorted((inner, outer))
    bare = parse(without_notes(text))
    assert sorted(n or 0 for n in loops_of(bare)) == sorted((inner, outer))


def test_a_while_loop_that_counts_down_and_one_that_does_not_count() -> None:
    def down(x: jax.Array) -> Any:
        return jax.lax.while_loop(lambda s: s[0] > 4, lambda s: (s[0] - 3, s[1] * 2), (40, x))

    assert loops_of(parse(without_notes(compiled(down)))) == [12]

    def until(x: jax.Array) -> Any:
        return jax.lax.while_loop(lambda y: y[0] < 100, lambda y: y * 2, x)

    assert loops_of(parse(compiled(until))) == [None]
