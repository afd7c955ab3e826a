"""What is learned of operations, how equal ones are recognised, and options for the compiler."""

from memory_planner.cost_table import CostTable, operands_of_products
from memory_planner.signature import placement, positions, signature
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
