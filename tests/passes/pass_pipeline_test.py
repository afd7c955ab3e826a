"""The pipeline: order, checks, blame, dumps."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from passes import ir
from passes.errors import PassError
from passes.pass_pipeline import Checks, Pass, run_passes
from passes.program import Program
from passes.verify import verify
from tests.passes import programs


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A user's own pass: the loss, times a factor."""

    factor: float = 2.0
    name: str = "scaled"

    def apply(self, program: Program) -> Program:
        function = ir.as_function(program.jaxpr)

        def scaled(*inputs: Any) -> list[Any]:
            loss, *rest = function(*inputs)
            return [self.factor * loss, *rest]

        specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.jaxpr.in_avals]
        jaxpr = jax.make_jaxpr(scaled)(*specs)
        return dataclasses.replace(program, jaxpr=jaxpr).noting(f"times {self.factor}")


@dataclasses.dataclass(frozen=True)
class Broken:
    """Passes that break programs, each in its own way."""

    way: str
    name: str = "broken"

    def apply(self, program: Program) -> Any:
        jaxpr, consts = ir.closed(program.jaxpr)
        if self.way == "raises":
            raise KeyError("a thing")
        if self.way == "nothing":
            return None
        eqns = list(jaxpr.eqns)
        if self.way == "order":
            eqns = eqns[::-1]
        if self.way == "twice":
            eqns = [*eqns, eqns[-1]]
        if self.way == "missing":
            eqns = eqns[1:]
        inputs = program.inputs
        if self.way == "role":
            inputs = (dataclasses.replace(inputs[0], shape=(9, 9)), *inputs[1:])
        made = ir.ClosedJaxpr(jaxpr.replace(eqns=eqns), consts)
        return dataclasses.replace(program, jaxpr=made, inputs=inputs)


def simple() -> Program:
    def loss(params: Any, batch: Any) -> Any:
        return jnp.mean(jnp.tanh(batch["x"] @ params["w"]))

    return programs.of_function(
        loss,
        {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)},
        {"x": jax.ShapeDtypeStruct((2, 4), jnp.float32)},
    )


def test_passes_are_applied_in_order_and_report() -> None:
    seen: list[str] = []
    program, reports = run_passes(simple(), [Scaled(), Scaled(3.0)], Checks(progress=seen.append))
    assert seen == ["scaled", "scaled"]
    assert isinstance(Scaled(), Pass)
    assert [r.notes for r in reports] == [("times 2.0",), ("times 3.0",)]
    assert [r.settings for r in reports] == ["", "factor=3.0"]
    assert "scaled(factor=3.0)" in str(reports[1]) and "times 3.0" in str(reports[1])
    value, _ = programs.loss_and_gradients(program)
    plain, _ = programs.loss_and_gradients(simple())
    assert value == pytest.approx(6 * plain)


@dataclasses.dataclass(frozen=True)
class Ruled:
    """A pass that computes the gradient by a rule of its own."""

    name: str = "ruled"

    def apply(self, program: Program) -> Program:
        def rule(inputs: Any, wrt: Any, gathers: Any) -> tuple[list[Any], list[Any]]:
            return list(ir.as_function(program.jaxpr)(*inputs)), [inputs[i] for i in wrt]

        return dataclasses.replace(program, gradient=rule)


def test_a_change_that_the_gradient_would_not_follow_is_refused() -> None:
    program, _ = run_passes(simple(), [Scaled(), Ruled()])
    assert program.gradient is not None
    with pytest.raises(PassError, match=r"'scaled': the gradient is .* put scaled first"):
        run_passes(simple(), [Ruled(), Scaled()])


@dataclasses.dataclass(frozen=True)
class Deciding(Scaled):
    """A pass that decides something alone."""

    decides: str = "the scale"


def test_two_passes_that_decide_the_same_are_refused() -> None:
    run_passes(simple(), [Deciding(), Scaled()])
    message = r"'second': it decides the scale, as 'first' does before it.*leave one of the two out"
    with pytest.raises(PassError, match=message):
        run_passes(simple(), [Deciding(name="first"), Deciding(name="second")])


def test_comparison_blames_a_pass_that_changes_values() -> None:
    run_passes(simple(), [Scaled(1.0)], Checks(compare=True))
    with pytest.raises(PassError, match="'scaled': it broke the program: output 'loss' differs by"):
        run_passes(simple(), [Scaled(1.0), Scaled(1.01)], Checks(compare=True))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("raises", "it failed with KeyError"),
        ("nothing", "apply returned NoneType, not a Program"),
        ("order", "reads a variable that nothing before it makes"),
        ("twice", "makes a variable that was made before"),
        ("missing", "reads a variable that nothing before it makes"),
        ("role", r"input 'w' is float32\[9, 9\] by its role"),
    ],
)
def test_a_broken_pass_is_blamed_by_name(way: str, message: str) -> None:
    program = simple()
    before = str(program.jaxpr)
    with pytest.raises(PassError, match=f"pass 'broken': .*{message}"):
        run_passes(program, [Broken(way)])
    assert str(program.jaxpr) == before
    verify(program)


def test_dumps(tmp_path: pathlib.Path) -> None:
    run_passes(simple(), [Scaled(), Scaled(3.0)], Checks(dump_to=str(tmp_path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{number}-scaled.{kind}"
        for number in ("01", "02")
        for kind in ("after.txt", "before.txt", "diff")
    ]
    lines = (tmp_path / "01-scaled.diff").read_text().splitlines()
    changed = [x for x in lines if x[:1] in "+-" and not x.startswith(("+++", "---"))]
    assert any("mul" in x for x in changed) and not any("tanh" in x for x in changed)


def test_dumps_are_written_when_a_pass_breaks_the_program(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PassError):
        run_passes(simple(), [Broken("order")], Checks(dump_to=str(tmp_path)))
    assert (tmp_path / "01-broken.after.txt").exists()


def test_nested_programs_are_checked() -> None:
    def loss(params: Any, batch: Any) -> Any:
        return jnp.mean(jax.lax.scan(lambda c, _: (c @ params["w"], None), batch["x"], None, 3)[0])

    shapes = (
        {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)},
        {"x": jax.ShapeDtypeStruct((2, 4), jnp.float32)},
    )
    program = programs.of_function(loss, *shapes)
    verify(program)
    jaxpr, consts = ir.closed(program.jaxpr)
    place = next(i for i, e in enumerate(jaxpr.eqns) if e.primitive.name == "scan")
    scan = jaxpr.eqns[place]
    body, inner = ir.closed(scan.params["jaxpr"])
    wrong = ir.ClosedJaxpr(body.replace(eqns=[]), inner)
    eqns = list(jaxpr.eqns)
    eqns[place] = scan.replace(params={**scan.params, "jaxpr": wrong})
    broken = dataclasses.replace(program, jaxpr=ir.ClosedJaxpr(jaxpr.replace(eqns=eqns), consts))
    with pytest.raises(PassError, match=r"a result in equation \d+ \(scan"):
        verify(broken)
