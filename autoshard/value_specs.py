"""How a plan shards each value of a program that passes have rewritten."""

from collections.abc import Callable, Mapping

from autoshard.mesh_shape import Spec
from autoshard.named_dims import analyse
from autoshard.plan import Plan
from autoshard.sharded_program import ShardedProgram
from passes.ir import Var
from passes.program import Program


def value_specs(plan: Plan) -> Callable[[Program], Mapping[Var, Spec]]:
    """A function from a program with the plan's inputs to the spec of each of its variables.

    Variables of called and scanned programs are included. The program is analysed as it is, so that
    what passes have added is laid out after what it is computed from.
    """

    def specs(program: Program) -> Mapping[Var, Spec]:
        analysis = analyse(program)
        sharded = ShardedProgram(analysis, plan.layout)
        return {
            var: spec
            for var, value in analysis.graph.of_variable.items()
            if any(spec := sharded.spec(value))
        }

    return specs
