"""From text to `HloModule`."""

import pytest

from passes.hlo.errors import HloError
from passes.hlo.module import INT64_MAX
from passes.hlo.parse import matching, parse, split_top
from passes.hlo.shapes import Array, Tuple
from tests.passes.hlo.texts import module_of, text_of

SMALL = """\
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }, \
entry_computation_layout={(f32[2,2]{1,0})->f32[2,2]{1,0}}, num_partitions=4, replica_count=2

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0), metadata={op_name="x"}
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%unused.1 () -> s32[2] {
  ROOT %c = s32[2]{0} constant({1, 2})
}

ENTRY %main.7 (x.1: f32[2,2]) -> f32[2,2] {
  %x.1 = f32[2,2]{1,0} parameter(0), sharding={devices=[2,1]<=[2]}
  %zero = f32[] constant(0)
  %i = s32[2,2]{1,0} iota(), iota_dimension=1
  %sums = f32[2]{0} reduce(%x.1, /*index=1*/f32[] %zero), dimensions={0,1}, to_apply=%add
  %t = (f32[2]{0}, s32[2,2]{1,0}) tuple(%sums, %i)
  ROOT %out = f32[2,2]{1,0} negate(%x.1), \
metadata={op_name="jit(f)/\\'a,(b\\'/neg" source_file="m.py" source_line=3}, \
backend_config={"a":[1,{"b":"}\\")"}],"window_config":{"estimated_cycles":"123"}}
}

"""


def test_a_small_module() -> None:
    module = parse(SMALL)
    assert module.name == "jit_f" and module.is_scheduled and module.device_count == 8
    assert module.attributes["input_output_alias"] == "{ {0}: (0, {}, may-alias) }"
    assert module.unknown == ()
    assert list(module.computations) == ["add", "unused.1", "main.7"]
    entry = module.entry_computation
    assert entry.is_entry and entry.name == "main.7"
    assert [i.name for i in entry.instructions] == ["x.1", "zero", "i", "sums", "t", "out"]
    assert [i.line for i in entry.instructions] == [14, 15, 16, 17, 18, 19]
    sums, out = entry.by_name["sums"], entry.by_name["out"]
    assert sums.operands == ("x.1", "zero") and sums.called == ("add",)
    assert sums.ints("dimensions") == (0, 1) and sums.ints("absent") == ()
    assert entry.root is out and out.is_root and not sums.is_root
    assert out.op_name == "jit(f)/'a,(b'/neg" and module.source(out) == "m.py:3"
    assert out.backend_config["a"] == [1, {"b": '}")'}] and out.estimated_cycles == 123
    assert entry.parameters == {0: entry.by_name["x.1"]}
    assert entry.by_name["x.1"].attributes["sharding"] == "{devices=[2,1]<=[2]}"
    assert entry.by_name["zero"].literal == "0" and entry.by_name["t"].shape == Tuple(
        (Array("f32", (2,), (0,), bits=32), Array("s32", (2, 2), (1, 0), bits=32))
    )
    assert module.computations["add"].root.name == "sum"
    assert module.shape_of(entry, "x.1") == Array("f32", (2, 2), (1, 0), bits=32)
    assert module.shape_of(entry, "nobody") == Array("opaque", ())


def test_an_instruction_of_several_lines() -> None:
    module = module_of(
        """
        %p = f32[2]{0} parameter(0)
        %k = f32[2]{0} custom-call(%p), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
        "xprof_metadata":"{\\"block_q\\": 512,
        \\"x\\": 1}"
        }}, metadata={op_name="a/kernel" stack_frame_id=3}, backend_config={"a":1}
        ROOT %n = f32[2]{0} negate(%k)
        """
    )
    assert [i.name for i in module.entry_computation.instructions] == ["p", "k", "n"]
    kernel = module.entry_computation.by_name["k"]
    assert kernel.op_name == "a/kernel" and kernel.frame == 3 and kernel.backend_config == {"a": 1}
    assert "xprof_metadata" in kernel.attributes["frontend_attributes"]
    assert module.entry_computation.root.operands == ("k",)


def test_a_brace_on_a_line_of_its_own_within_an_instruction() -> None:
    """JSON written over several lines has such lines."""
    text = text_of("ROOT %k = f32[2]{0} custom-call(), frontend_attributes={a={\nBRACE\n}}, x=1")
    module = parse(text.replace("  BRACE\n", '{\n"b":1\n}\n'))
    kernel = module.entry_computation.root
    assert kernel.attributes["frontend_attributes"].count("}") == 3
    assert kernel.attributes["x"] == "1" and module.unknown == ()


def test_what_a_called_computation_is() -> None:
    module = module_of(
        """
        %p = pred[] parameter(0)
        %a = f32[] conditional(%p, %p, %p), true_computation=%yes, false_computation=%no
        ROOT %b = f32[] conditional(%p, %p, %p), branch_computations={%no, %yes, %no}
        """,
        "yes\nROOT %c = f32[] constant(1)",
        "no\nROOT %c = f32[] constant(0)",
    )
    entry = module.entry_computation
    assert entry.by_name["a"].called == ("yes", "no")
    assert entry.by_name["b"].called == ("no", "yes", "no")


@pytest.mark.parametrize(
    ("cycles", "expected"),
    [
        ('"estimated_cycles":"7"', 7),
        ('"estimated_cycles":"0"', 0),
        (f'"estimated_cycles":"{INT64_MAX}"', None),
        (f'"estimated_cycles":"{INT64_MAX // 2}"', None),
        ('"estimated_cycles":"-1"', None),
        ('"cycles":"7"', None),
    ],
)
def test_cycles_and_sentinels(cycles: str, expected: int | None) -> None:
    module = module_of(f"ROOT %a = f32[] constant(1), backend_config={{{cycles}}}")
    assert module.entry_computation.root.estimated_cycles == expected


DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize("config", ["", "[1]", "{'a':1}", '{"a":1,}', "x", DEEP])
def test_notes_that_are_no_object(config: str) -> None:
    module = parse(text_of(f"ROOT %a = f32[] constant(1), backend_config={config}"))
    assert module.entry_computation.root.backend_config == {}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("%b = f32[2]{0} frobnicate(%a)", "operation frobnicate"),
        ("%b = q9[2]{0} negate(%a)", "type q9"),
        ("%b = f32[2]{0} negate(%a", "line that cannot be read (a bracket is not closed)"),
        ("%b = f32[2 negate(%a)", "line that cannot be read (not a shape)"),
        ("%b = f32[2]{0}", "line that cannot be read (no operation in line 5)"),
    ],
)
def test_what_is_not_known_is_counted(line: str, what: str) -> None:
    good = "ROOT %c = f32[] constant(1)"
    module = parse(text_of(f"%a = f32[2]{{0}} parameter(0)\n{line}\n{good}"))
    assert module.unknown == ((what, 1),)
    assert module.entry_computation.root.name == "c"


def test_other_lines_that_are_not_known() -> None:
    text = text_of("ROOT %c = f32[] constant(1)")
    assert parse("garbage\n" + text).unknown == (("line outside computations", 1),)
    assert parse(text + "%empty () -> f32[] {\n}\n").unknown == (("empty computation", 1),)
    assert parse(text.rstrip().removesuffix("}")).unknown == (("computation cut off", 1),)
    inside = text.replace("  ROOT", "what is this\n  ROOT")
    assert parse(inside).unknown == (("line that is no instruction", 1),)


@pytest.mark.parametrize("text", ["", "\n\n", "hello", SMALL[:400], SMALL.replace("ENTRY ", "")])
def test_text_without_an_entry(text: str) -> None:
    with pytest.raises(HloError, match=r"no ENTRY computation.*as_text"):
        parse(text)


def test_brackets_and_pieces() -> None:
    assert matching('(a[")"]{})b', 0) == 10
    assert split_top('a={1,2}, b="x,\\"y", c=(f(1,2)), , d') == [
        "a={1,2}", 'b="x,\\"y"', "c=(f(1,2))", "d",
    ]  # fmt: skip
    for text in ("(", "(]", '("', "(a))"[:2]):
        with pytest.raises(HloError, match="not closed"):
            matching(text, 0)


def test_numbers_of_devices_that_are_none() -> None:
    text = text_of("ROOT %c = f32[] constant(1)")
    for count in ("²", "-3", "99999999999", "x"):
        assert parse(text.replace("num_partitions=1", f"num_partitions={count}")).device_count == 1
