"""What loops keep for the backward pass: saved, made again, or kept on the host.

    flat body of each loop -> its values named -> what the backward pass reads (`remat_trace`)
    -> the best decision for all loops under one budget (`remat_solver`)
    -> the body as a region of `jax.checkpoint` that saves those names

Without placement only the built-in policies are there, which look at single operations.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from passes import ir
from passes.equation_cost import CostModel
from passes.errors import PassError
from passes.inline_calls import inline_calls
from passes.program import Program, Role
from passes.remat_body import NamedBody, flat_body
from passes.remat_problem import Choice, Rates, kept_bytes
from passes.remat_regions import count_regions, with_policy
from passes.remat_solver import saved_bytes, solve_any
from passes.remat_trace import BlockTrace, Loop, trace_block, value_names
from passes.spec import Spec
from passes.token_split import split_tokens, token_splits

_POLICIES = jax.checkpoint_policies
_BUILT_IN: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "full": _POLICIES.nothing_saveable,
        "none": _POLICIES.everything_saveable,
        "dots": _POLICIES.dots_saveable,
        "dots_no_batch": _POLICIES.dots_with_no_batch_dims_saveable,
        "offload_dots": _POLICIES.offload_dot_with_no_batch_dims("device", "pinned_host"),
    }
)
# Of parameters, beside themselves: gradient, and two moments of an optimizer, where no budget says.
_STATE_COPIES = 4
_HBM_SHARE = 0.9
_LISTED = 12
DECISION = "what loops keep for the backward pass (remat(offload='auto') saves and offloads)"


@dataclasses.dataclass(frozen=True)
class Remat:
    """Chooses what the program's loops over layers keep for the backward pass.

    It replaces the checkpoint regions that their bodies have. One of JAX's policies is that of the
    regions around unrolled layers, too; a program without loops may have nothing else.

    Attributes:
      policy: `auto`: decided by cost under the budget; or one of JAX's own for every loop: `full`
        (nothing but what is carried), `dots` (results of products), `dots_no_batch` (of products
        with parameters), `offload_dots` (those, on the host), `none` (everything).
      budget_bytes: of a device, for what `auto` saves of all iterations, carried values included;
        None: what parameters, gradients and two optimizer moments leave of 90% of the memory.
      offload: `auto`: values may go to the host as far as that is hidden behind the forward pass
        of their iteration; `all`: without that limit; `none`.
      token_wise: with `auto`, whether the tokens may be computed in two groups, so that a share of
        a value is kept and the rest made again (`token_split`); which share, eighths are tried,
        and whether at all, is decided by cost.
    """

    policy: Literal["auto", "full", "none", "dots", "dots_no_batch", "offload_dots"] = "auto"
    budget_bytes: float | None = None
    offload: Literal["none", "auto", "all"] = "none"
    token_wise: bool = False
    name: str = dataclasses.field(default="remat", init=False, repr=False)
    after_planning: ClassVar[bool] = True
    decides: ClassVar[str] = DECISION

    def apply(self, program: Program) -> Program:
        """The program with a checkpoint region around each loop's body.

        Raises:
          PassError: no loop over parameters (and no region of the user's, for a policy of JAX's),
            an unknown setting, no plan, or a budget that is too small.
        """
        self._check(program)
        if self.policy != "auto":
            return self._built_in(program)
        flat, loops = flat_loops(program)
        candidates = [Candidate(flat, planned_blocks(flat, loops))]
        if self.token_wise:
            candidates += split_candidates(flat, loops)
        budget = self.budget_bytes if self.budget_bytes is not None else default_budget(flat)
        all_problems = [[trace.problem for trace in one.traces] for one in candidates]
        which, choice = solve_any(all_problems, budget, rates_of(flat, self.offload))
        flat, traces, note = candidates[which]
        problems = all_problems[which]
        return realised(flat, traces, choice).noting(
            f"saved on a device: {_mib(saved_bytes(problems, choice))} of a budget of "
            f"{_mib(budget)}; {choice.seconds * 1e3:.3f} ms a step for what is made again and the "
            "traffic of what is kept"
            + ("" if choice.proved else " (the best choice found, not proved best)"),
            *note,
            *summary(traces, choice),
        )

    def _built_in(self, program: Program) -> Program:
        """The program with all loops and all of the user's regions under one of JAX's policies."""
        flat, loops = _flattened(program)
        regions = count_regions(flat.jaxpr)
        if not loops and not regions:
            raise PassError(_no_loop(program, ", or jax.checkpoint around its layers"))
        policy = _BUILT_IN[self.policy]
        bodies = {id(x.eqn): checkpointed(x, {}, policy) for x in loops}
        done = with_bodies(flat, bodies)
        if regions:
            saving = None if self.policy == "none" else policy
            done = dataclasses.replace(done, jaxpr=with_policy(done.jaxpr, saving))
        changed = [f"{n} {what}" for n, what in ((len(loops), "loops"), (regions, "regions")) if n]
        return done.noting(f"{' and '.join(changed)} under JAX's policy {self.policy!r}")

    def _check(self, program: Program) -> None:
        if self.policy != "auto" and self.policy not in _BUILT_IN:
            raise PassError(
                f"unknown policy {self.policy!r}: use 'auto' or one of "
                + ", ".join(map(repr, _BUILT_IN))
            )
        if self.offload not in ("none", "auto", "all"):
            raise PassError(f"offload={self.offload!r}: use 'none', 'auto' or 'all'")
        if self.policy != "auto" and (
            self.budget_bytes is not None or self.offload != "none" or self.token_wise
        ):
            raise PassError(
                f"policy {self.policy!r} has no budget, offload or shares of tokens: use "
                "policy='auto'"
            )
        if self.budget_bytes is not None and self.budget_bytes < 0:
            raise PassError(f"budget_bytes={self.budget_bytes} is below zero")


def rates_of(program: Program, offload: Literal["none", "auto", "all"] = "none") -> Rates:
    """What keeping a value costs where a planned program runs."""
    assert program.placement is not None
    machine = program.placement.machine
    return Rates(
        machine.hbm_bytes_per_s, machine.host_bytes_per_s, offload != "none", offload != "all"
    )


def flat_loops(program: Program) -> tuple[Program, list[Loop]]:
    """The program with flat loop bodies, and its loops over parameters.

    Raises:
      PassError: there is none, or the gradient is no longer that of the equations.
    """
    flat, loops = _flattened(program)
    if not loops:
        raise PassError(_no_loop(program))
    return flat, loops


def _no_loop(program: Program, otherwise: str = "") -> str:
    return (
        f"{program.name} has no loop over layers: put stack_layers before, or build the model with "
        f"scanned layers{otherwise}"
    )


def _flattened(program: Program) -> tuple[Program, list[Loop]]:
    if program.gradient is not None:
        raise PassError("the gradient is computed by a pass before it: put this one first")
    jaxpr, consts = ir.closed(inline_calls(program.jaxpr))
    eqns = [flat_body(eqn) if eqn.primitive.name == "scan" else eqn for eqn in jaxpr.eqns]
    flat = dataclasses.replace(program, jaxpr=ir.ClosedJaxpr(jaxpr.replace(eqns=eqns), consts))
    return flat, list(_loops(flat))


def _loops(program: Program) -> Iterator[Loop]:
    jaxpr, _ = ir.closed(program.jaxpr)
    parameters = set(program.with_role(Role.PARAMETER))
    trained = {var for i, var in enumerate(jaxpr.invars) if i in parameters}
    origin: dict[Any, str] = {
        var: program.inputs[i].path for i, var in enumerate(jaxpr.invars) if i in parameters
    }
    found = 0
    for eqn in jaxpr.eqns:
        operands = [x for x in eqn.invars if not ir.is_literal(x)]
        if not any(x in trained for x in operands):
            continue
        trained.update(x for x in eqn.outvars if not ir.is_dropped(x))
        if len(operands) == 1 and operands[0] in origin:
            origin.update((x, origin[operands[0]]) for x in eqn.outvars)
        if eqn.primitive.name != "scan":
            continue
        num_consts, num_carry = ir.scan_counts(eqn)
        held = num_consts + num_carry
        if not num_carry or not any(x in trained for x in eqn.invars[held:]):
            continue
        reached = tuple(
            num_consts <= i < held or (not ir.is_literal(x) and x in trained)
            for i, x in enumerate(eqn.invars)
        )
        names = tuple("" if ir.is_literal(x) else origin.get(x, "") for x in eqn.invars)
        yield Loop(f"block{found}", eqn, reached, names)
        found += 1


def planned_blocks(
    program: Program, loops: list[Loop], specs: Mapping[ir.Var, Spec] | None = None
) -> list[BlockTrace]:
    """The problem of each loop of a program.

    Args:
      program: the program.
      loops: its loops.
      specs: how its variables are sharded; by default as its plan says.

    Raises:
      PassError: the program is not planned.
    """
    placement = program.placement
    if placement is None:
        raise PassError(
            "there is no plan yet, and what a value costs depends on its sharding: plan first, or "
            "use one of Remat's policies " + ", ".join(map(repr, _BUILT_IN))
        )
    specs = placement.specs(program) if specs is None else specs
    costs = CostModel(placement.machine, placement.mesh)
    return [trace_block(loop, value_names(loop), specs, costs) for loop in loops]


class Candidate(NamedTuple):
    """A program that a decision could be made for, its loops' problems, and notes about it."""

    program: Program
    traces: list[BlockTrace]
    notes: tuple[str, ...] = ()


def split_candidates(program: Program, loops: list[Loop]) -> list[Candidate]:
    """A planned program with the tokens of its loops in two groups, for each size of the first."""
    placement = program.placement
    assert placement is not None
    specs = placement.specs(program)
    costs = CostModel(placement.machine, placement.mesh)
    splits = [token_splits(loop, specs, costs) for loop in loops]
    found = []
    for k in range(max(map(len, splits))):
        bodies, known, notes = {}, dict(specs), []
        for loop, own in zip(loops, splits, strict=True):
            if not own:
                continue
            split = own[min(k, len(own) - 1)]
            bodies[id(loop.eqn)], of_body = split_tokens(loop, split, specs)
            known.update(of_body)
            notes.append(
                f"{loop.label}: tokens in groups of {split.first} and {split.size - split.first}, "
                f"along dimension {split.dim} of what is carried"
            )
        changed = with_bodies(program, bodies)
        traces = planned_blocks(changed, list(_loops(changed)), known)
        found.append(Candidate(changed, traces, tuple(notes)))
    return found


def default_budget(program: Program) -> float:
    """Bytes of a device that are left for activations where the user gives no budget.

    Parameters are taken to be sharded as they are used, which is too much for those that are
    gathered for use: give a budget there.
    """
    placement = program.placement
    assert placement is not None
    costs, specs = CostModel(placement.machine, placement.mesh), placement.specs(program)
    jaxpr, _ = ir.closed(program.jaxpr)
    held = sum(
        costs.local_bytes(jaxpr.invars[i].aval, specs.get(jaxpr.invars[i], ()))
        for i in program.with_role(Role.PARAMETER)
    )
    return max(0.0, _HBM_SHARE * placement.machine.hbm_bytes - _STATE_COPIES * held)


def realised(program: Program, traces: list[BlockTrace], choice: Choice) -> Program:
    """The program with each loop's body in a region that keeps what was chosen."""
    bodies = {}
    for trace, one in zip(traces, choice.blocks, strict=True):
        carries = set(trace.loop.carries)
        values = trace.problem.values
        saved = {
            trace.variable[i]: values[i].name for i in one.saved if trace.variable[i] not in carries
        }
        host = {trace.variable[i]: values[i].name for i in one.offloaded}
        names = _POLICIES.save_only_these_names(*sorted(saved.values()))
        if host:
            names = _POLICIES.save_and_offload_only_these_names(
                names_which_can_be_saved=sorted(saved.values()),
                names_which_can_be_offloaded=sorted(host.values()),
                offload_src="device",
                offload_dst="pinned_host",
            )
        bodies[id(trace.loop.eqn)] = checkpointed(trace.loop, {**saved, **host}, names)
    return with_bodies(program, bodies)


def checkpointed(
    loop: Loop, names: Mapping[ir.Var, str], policy: Callable[..., Any]
) -> ir.ClosedJaxpr:
    """A loop's body as one checkpoint region."""
    body = NamedBody(loop.body, loop.consts, names)
    # Between iterations of a loop the compiler cannot share what a region computes again.
    region = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.make_jaxpr(region)(*(ir.spec(x) for x in loop.body.invars))


def with_bodies(program: Program, bodies: Mapping[int, ir.ClosedJaxpr]) -> Program:
    """The program with other bodies of some loops, by the identity of their equations."""
    jaxpr, consts = ir.closed(program.jaxpr)
    eqns = [
        eqn.replace(params={**eqn.params, "jaxpr": bodies[id(eqn)]}) if id(eqn) in bodies else eqn
        for eqn in jaxpr.eqns
    ]
    return dataclasses.replace(program, jaxpr=ir.ClosedJaxpr(jaxpr.replace(eqns=eqns), consts))


def summary(traces: list[BlockTrace], choice: Choice) -> list[str]:
    """What is kept of each loop, in sentences; sizes are of a device."""
    notes = []
    for trace, one in zip(traces, choice.blocks, strict=True):
        problem = trace.problem
        again = sum(problem.steps[e].flops for e in one.repeated)
        share = again / problem.forward_flops if problem.forward_flops else 0.0
        host = kept_bytes(problem, one.offloaded)
        notes.append(
            f"{problem.label}, {problem.length} iterations: {share:.1%} of the forward FLOPs run "
            f"again, {_mib(kept_bytes(problem, one.saved))} saved"
            + (f", {_mib(host)} on the host" if host else "")
        )
        for label, indices in (("saved", one.saved), ("host", one.offloaded)):
            largest = sorted(indices, key=lambda i: -problem.values[i].size_bytes)
            items = [
                f"{problem.values[i].name} {_mib(problem.values[i].size_bytes)}"
                for i in largest[:_LISTED]
            ]
            more = len(largest) - len(items)
            if items:
                tail = f", and {more} more" if more > 0 else ""
                notes.append(f"{label} an iteration: {', '.join(items)}{tail}")
    return notes


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.2f} MiB"
