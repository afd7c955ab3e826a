"""HBM traffic, worked out by hand. 1 MiB matrices: f32[512,512]."""

import pytest

from passes.hlo.traffic import hbm_bytes, hbm_traffic
from tests.passes.hlo.texts import in_entry, module_of

MIB = 1 << 20
ROW = 512 * 4
OPERANDS = """
%a = f32[512,512] parameter(0)
%b = f32[512,512] parameter(1)
%v = f32[512,512]{1,0:S(1)} parameter(2)
%h = f32[512,512]{1,0:S(5)} parameter(3)
%row = f32[1,512] parameter(4)
%i = s32[] parameter(5)
%big = f32[64,512,512] parameter(6)
%few = s32[8,1] parameter(7)
"""


def traffic(operation: str, *computations: str) -> float:
    module = module_of(f"{OPERANDS}ROOT %r = {operation}", *computations)
    return hbm_traffic(*in_entry(module, "r"))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("f32[512,512] add(%a, %b)", 3 * MIB),
        ("f32[512,512] add(%a, %a)", 2 * MIB),  # read once
        ("f32[512,512]{1,0:S(1)} add(%a, %b)", 2 * MIB),  # the result stays in VMEM
        ("f32[512,512] add(%a, %v)", 2 * MIB),
        ("f32[512,512] add(%v, %h)", MIB),  # neither comes from HBM
        ("f32[512,512] copy(%h)", MIB),
        ("(f32[512,512], f32[1,512]) sort(%a, %row)", 2 * (MIB + ROW)),
        ("f32[1,512] dynamic-slice(%a, %i, %i)", 2 * ROW),
        ("f32[2,512] slice(%a), slice={[0:2], [0:512]}", 4 * ROW),
        ("f32[8,512] gather(%a, %few)", 16 * ROW),
        ("f32[512,512] dynamic-update-slice(%a, %row, %i, %i)", 2 * ROW),
        ("f32[512,512] scatter(%a, %few, %row), to_apply=%add", 2 * ROW),
        ("f32[512,512] dynamic-update-slice(%a)", 0),
        ("f32[512,512] scatter()", 0),
        # Tiles: 3 rows take 8, 5 columns 128.
        ("f32[3,5]{1,0:T(8,128)} negate(%i)", 4 + 8 * 128 * 4),
    ],
)
def test_operations(operation: str, expected: float) -> None:
    assert (
        traffic(operation, "add\n%x = f32[] parameter(0)\nROOT %s = f32[] add(%x, %x)") == expected
    )


FUSIONS = {
    "plain": ("f32[512,512] fusion(%a, %b)", """
        %x = f32[512,512] parameter(0)
        %y = f32[512,512] parameter(1)
        %n = f32[512,512] negate(%x)
        ROOT %s = f32[512,512] add(%n, %y)
        """, 3 * MIB),
    "one operand twice": ("f32[512,512] fusion(%a, %a)", """
        %x = f32[512,512] parameter(0)
        %y = f32[512,512] parameter(1)
        ROOT %s = f32[512,512] add(%x, %y)
        """, 2 * MIB),
    "a slice of a large operand": ("f32[512,512] fusion(%big, %i, %a)", """
        %x = f32[64,512,512] parameter(0)
        %i = s32[] parameter(1)
        %y = f32[512,512] parameter(2)
        %d = f32[1,512,512] dynamic-slice(%x, %i, %i, %i)
        %t = f32[512,512] bitcast(%d)
        ROOT %s = f32[512,512] add(%t, %y)
        """, 3 * MIB + 4),
    "a slice of a view": ("f32[512,512] fusion(%big, %i)", """
        %x = f32[64,512,512] parameter(0)
        %i = s32[] parameter(1)
        %v = f32[64,262144] bitcast(%x)
        %d = f32[1,262144] dynamic-slice(%v, %i, %i)
        ROOT %s = f32[512,512] bitcast(%d)
        """, 2 * MIB + 4),
    "two slices": ("f32[512,512] fusion(%big)", """
        %x = f32[64,512,512] parameter(0)
        %d = f32[1,512,512] slice(%x), slice={[0:1], [0:512], [0:512]}
        %e = f32[2,512,512] slice(%x), slice={[2:4], [0:512], [0:512]}
        ROOT %s = f32[512,512] fusion(%d, %e), kind=kLoop, calls=%add
        """, 4 * MIB),
    "a slice, and all of it": ("f32[512,512] fusion(%big)", """
        %x = f32[64,512,512] parameter(0)
        %d = f32[1,512,512] slice(%x), slice={[0:1], [0:512], [0:512]}
        ROOT %s = f32[512,512] reduce(%x, %d), dimensions={0}, to_apply=%add
        """, 65 * MIB),
    "an update in place": ("f32[64,512,512] fusion(%big, %a, %i)", """
        %x = f32[64,512,512] parameter(0)
        %y = f32[512,512] parameter(1)
        %i = s32[] parameter(2)
        %u = f32[1,512,512] bitcast(%y)
        ROOT %s = f32[64,512,512] dynamic-update-slice(%x, %u, %i, %i, %i)
        """, 2 * MIB + 4),
    "an update in place of an update computed in VMEM": ("f32[64,512,512] fusion(%big, %v, %i)", """
        %x = f32[64,512,512] parameter(0)
        %y = f32[512,512]{1,0:S(1)} parameter(1)
        %i = s32[] parameter(2)
        %u = f32[1,512,512]{2,1,0:S(1)} bitcast(%y)
        %w = f32[64,512,512] dynamic-update-slice(%x, %u, %i, %i, %i)
        ROOT %s = f32[64,512,512] bitcast(%w)
        """, MIB + 4),
    "two results, one in place": ("(f32[64,512,512], f32[1,512]) fusion(%big, %a, %row)", """
        %x = f32[64,512,512] parameter(0)
        %y = f32[512,512] parameter(1)
        %z = f32[1,512] parameter(2)
        %w = f32[64,512,512] dynamic-update-slice(%x, %y)
        %n = f32[1,512] negate(%z)
        ROOT %s = (f32[64,512,512], f32[1,512]) tuple(%w, %n)
        """, 2 * MIB + 2 * ROW),
    "a result in VMEM and one handed on": (
        "(f32[512,512]{1,0:S(1)}, f32[512,512]) fusion(%a, %b)", """
        %x = f32[512,512] parameter(0)
        %y = f32[512,512] parameter(1)
        %n = f32[512,512] negate(%x)
        ROOT %s = (f32[512,512], f32[512,512]) tuple(%n, %y)
        """, MIB),
    "a root that views itself": ("f32[512,512] fusion(%a)", """
        %x = f32[512,512] parameter(0)
        ROOT %s = f32[512,512] bitcast(%s)
        """, MIB),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions(name: str) -> None:
    operation, inner, expected = FUSIONS[name]
    add = "add\n%x = f32[] parameter(0)\nROOT %s = f32[] add(%x, %x)"
    assert traffic(f"{operation}, kind=kLoop, calls=%inner", f"inner\n{inner}", add) == expected


def test_a_fusion_of_nothing_that_is_there() -> None:
    assert traffic("f32[512,512] fusion(%a, %v), kind=kLoop, calls=%nobody") == 2 * MIB


def test_bytes_in_hbm_alone() -> None:
    module = module_of(OPERANDS + "ROOT %r = (f32[512,512], f32[512,512]{1,0:S(1)}) tuple(%a, %v)")
    assert hbm_bytes(module.entry_computation.root.shape) == MIB
