"""What is compiled to be compared: layouts that differ in what the estimate cannot tell."""

import dataclasses
from typing import Any

import optax

from autoshard.memory import MemoryEstimate
from autoshard.mesh_shape import MeshShape
from autoshard.search.answer import Answer
from autoshard.search.decision import Decision, MemoryChoice
from autoshard.search.evaluate import Evaluated
from autoshard.search_record import SearchRecord
from autoshard.step_time import StepTime
from tests.autoshard import cases

RECORD: Any = SearchRecord(0, 1.0, 0.0, None, ())


def layouts() -> dict[str, Any]:
    spec = cases.small("llama", num_layers=1)
    plans = {
        rules: cases.compile_case(spec, "data=8", rules, optimizer=optax.sgd(0.1)).plan
        for rules in ("data", "zero3")
    }
    return {rules: (plan.layout, plan.cost) for rules, plan in plans.items()}


KNOWN = layouts()


def one(seconds: float, memory_bytes: int, remat: str = "as written", zero: int = 3) -> Evaluated:
    layout, cost = KNOWN["zero3" if zero else "data"]
    cost = dataclasses.replace(
        cost,
        time=StepTime(products_s=seconds),
        memory=MemoryEstimate(0, 0, 0, 0, 0, memory_bytes),
    )
    shape = MeshShape(("data", "model"), (8, 1))
    decision = Decision(shape, (), zero, (), MemoryChoice(remat))
    return Evaluated(decision, (), layout, cost)


def test_a_choice_that_saves_less_is_compiled_beside_the_best() -> None:
    """GPT-2 XL on H100: the estimate would save attention's scores, and the compiler's schedule is
    quicker with the results of plain products alone, which take a quarter of that."""
    best, nearly = one(0.330, 52, "auto"), one(0.331, 50, "dots")
    less, written = one(0.345, 15, "dots_no_batch"), one(0.362, 5)
    whole = one(0.410, 27, zero=0)
    answer = Answer((best, nearly, less, written, whole), RECORD)
    assert answer.finalists(4) == (best, written, less, whole)


def test_what_cannot_be_told_apart_is_compiled_once() -> None:
    best, same = one(0.33, 52), one(0.33, 52, "none")
    answer = Answer((best, same, one(0.4, 52, "full")), RECORD)
    assert same not in answer.finalists(3)


def test_what_is_far_behind_is_not_compiled_for_its_memory() -> None:
    best, far = one(0.33, 52, "auto"), one(0.66, 5, "dots")
    near = one(0.34, 50, "none")
    assert Answer((best, near, far), RECORD).finalists(2) == (best, near)
