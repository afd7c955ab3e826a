"""What is learned of operations, how equal ones are recognised, and options for the compiler."""

from memory_planner.cost_table import CostTable, operands_of_products
from memory_planner.signature import likeness, placement, positions, signature
from passes.hlo.module import HloModule
from passes.hlo.parse import parse
from tests.memory_planner import golden
from tests.memory_planner.chain_compiler import program
from tests.passes.hlo.texts import in_entry, machine_of, module_of


def chain(*fast: str, with_cycles: bool = True) -> HloModule:
    return parse(program(list(fast), with_cycles=with_cycles))


def test_placement_and_signature_are_apart() -> None:
    plain, fast = in_entry(chain(), "r.1.0"), in_entry(chain("v.1"), "r.1.0")
    assert placement(*plain) == (False, False) and placement(*fast) == (True, False)
    assert [number for number, _ in positions(*plain)] == [0, -1]
    assert signature(*plain) == signature(*fast)
    assert signature(*plain) != signature(*in_entry(chain(), "v.1"))
    # Equal work under other names is equal.
    assert signature(*plain) == signature(*in_entry(chain(), "r.3.4"))


def test_other_shapes_are_other_work() -> None:
    lines = "p = {0} parameter(0)\nx = {0} negate(p)"
    small, large = (
        module_of(lines.format(shape)) for shape in ("f32[8,128]{1,0}", "f32[8,256]{1,0}")
    )
    assert signature(*in_entry(small, "x")) != signature(*in_entry(large, "x"))


def test_what_was_compiled_is_known_exactly() -> None:
    table = CostTable(machine_of())
    bare = chain("v.1", with_cycles=False)
    assert table.cycles_of(*in_entry(bare, "r.1.0")) is None
    table.learn(chain())
    table.learn(chain("v.1"))
    assert table.cycles_of(*in_entry(bare, "r.1.0")) == 9_000
    assert table.cycles_of(*in_entry(chain(with_cycles=False), "r.1.0")) == 10_000
    assert (table.hits, table.misses) == (2, 0)


def test_what_was_not_is_as_the_nearest_that_was_and_no_quicker_than_any() -> None:
    table = CostTable(machine_of())
    table.learn(chain())
    guess = table.cycles_of(*in_entry(chain("v.1", with_cycles=False), "r.1.0"))
    assert guess == 10_000 and table.misses == 1
    savings = table.savings(*in_entry(chain(), "r.1.0"))
    assert (savings.slow_cycles, savings.reached_cycles) == (10_000, 10_000)
    assert savings.floor_cycles < 10_000
    assert savings.cycles((False, False)) == 10_000
    assert savings.cycles((True, True)) <= savings.cycles((True, False)) < 10_000
    table.learn(chain("v.1"))
    fitted = table.savings(*in_entry(chain(), "r.1.0"))
    assert fitted.reached_cycles == 9_000 and fitted.cycles((False, False)) == 10_000
    assert savings.cycles((True, False)) < fitted.cycles((True, False)) < 10_000


def test_operands_of_products_are_found_behind_a_fusions_other_work() -> None:
    module = golden.module("without")
    entry = module.entry_computation
    products = [i for i in entry.instructions if operands_of_products(module, i)]
    assert len(products) >= 12
    for i in products:
        factors = operands_of_products(module, i)
        # Two operands are multiplied; what is added after the product is none of them.
        assert len(factors) == 2 and factors < frozenset(range(max(3, len(i.operands))))


def fusion(x: str, y: str, body: str, cycles: int | None = None) -> HloModule:
    """A fusion of two values whose memories are written as `S(1)` or nothing."""
    shape = "f32[8,128]{{1,0:T(8,128){}}}"
    written = "" if cycles is None else f', backend_config={{"estimated_cycles":"{cycles}"}}'
    inner = "\n".join(f"  {line}" for line in body.splitlines())
    return parse(
        f"HloModule m, is_scheduled=true\n\nbody {{\n{inner}\n}}\n\nENTRY main {{\n"
        f"  x = {shape.format(x)} parameter(0)\n  y = {shape.format(y)} parameter(1)\n"
        f"  ROOT f = {shape.format('')} fusion(x, y), kind=kLoop, calls=body{written}\n}}\n"
    )


_BODY = """a = f32[8,128]{{1,0}} parameter({0})
b = f32[8,128]{{1,0}} parameter({1})
s = f32[8,128]{{1,0}} {2}(a, b)
ROOT n = f32[8,128]{{1,0}} {3}(s)"""
ADDS, SUBTRACTS = _BODY.format(0, 1, "add", "negate"), _BODY.format(0, 1, "subtract", "negate")


def test_operations_that_are_alike_teach_each_other_what_they_have_not_shown() -> None:
    adds, subtracts = (in_entry(fusion("", "", body), "f") for body in (ADDS, SUBTRACTS))
    divides = in_entry(fusion("", "", _BODY.format(0, 1, "divide", "negate")), "f")
    assert signature(*adds) != signature(*subtracts)
    assert likeness(*adds) == likeness(*subtracts) != likeness(*divides)
    # In another order, it is still the same work.
    swapped = "\n".join([*ADDS.splitlines()[1::-1], *ADDS.splitlines()[2:]])
    assert likeness(*in_entry(fusion("", "", swapped), "f")) == likeness(*adds)

    table = CostTable(machine_of())
    table.learn(fusion("", "", ADDS, 9_000))
    table.learn(fusion("S(1)", "", SUBTRACTS, 7_000))
    assert table.cycles_of(*in_entry(fusion("S(1)", "", ADDS), "f")) == 7_000
    # Its own cycles come before those of others.
    table.learn(fusion("S(1)", "", ADDS, 7_010))
    assert table.cycles_of(*in_entry(fusion("S(1)", "", ADDS), "f")) == 7_010
    # What has never been compiled itself is not guessed from others alone.
    assert table.cycles_of(*in_entry(fusion("", "", swapped), "f")) is None


def test_what_moves_to_hbm_takes_its_time_there() -> None:
    machine = machine_of()
    moved = 8 * 128 * 4 / machine.hbm_bytes_per_s * machine.clock_hz
    table = CostTable(machine)
    table.learn(fusion("", "", ADDS, 90_000))
    table.learn(fusion("S(1)", "S(1)", ADDS, 20_000))
    # Whatever the model says that the other operand saves.
    assert table.cycles_of(*in_entry(fusion("S(1)", "", ADDS), "f")) >= 20_000 + moved  # type: ignore[operator]
