"""Every pair of passes, on every family of models, on eight devices: loss and gradients are those
of the untransformed program on one device.

A pair is planned, rewritten and lowered as `autoshard.compile` does it, and its gradient function
is compiled alone. Programs are as small as the passes accept. Pairs that cannot be combined must
say so, and what to do: `REFUSED`.

    simplify x stack_layers          unrolled layers
    stack_layers x anything          unrolled layers
    all others                       layers that the model scans itself
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import models
from autoshard import lower, planning, rule_sets
from autoshard.adapters import adapt
from autoshard.apply_passes import Passes, Rewritten, finish, rewrite
from autoshard.errors import PassError
from autoshard.losses import default_loss
from autoshard.pass_registry import parse_passes
from autoshard.plan import Plan
from autoshard.precision import Precision
from autoshard.target import resolve
from autoshard.trace import TracedModel, trace_model
from passes.compare import random_inputs
from passes.hlo.machine import MachineModel
from passes.pass_pipeline import Checks
from passes.precision import MixedPrecision
from passes.program import Program, Role
from tests.passes import programs

Pair = tuple[str, str]

ROWS, LENGTH = 8, 8
NARROW = {"d_model": 16, "num_heads": 2}
TEXT = {**NARROW, "vocab_size": 32, "max_seq_len": LENGTH}
LLAMA = {**TEXT, "num_kv_heads": 2, "d_ff": 32}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gpt2_tiny": TEXT,
    "llama3_tiny": LLAMA,
    "mixtral_tiny": {**LLAMA, "group_size": LENGTH},
    "t5_tiny": {**TEXT, "d_ff": 32},
    "vit_tiny": {**NARROW, "d_ff": 32, "image_size": 16},
}
# T5's first layers make the position biases, and stay outside a loop.
UNROLLED_LAYERS = {"t5_tiny": 3}

# In the order in which they are applied. `precision` is not among them: see the test of it.
PASSES = (
    *("simplify", "stack_layers", "microbatch", "sequence", "constrain", "remat", "offload"),
    "pipeline",
)
SETTINGS: Mapping[str, str] = {
    "stack_layers": "stack_layers(least=2, required=True)",
    "microbatch": "microbatch(count=2)",
    "remat": "remat(budget_bytes=20000000)",
    "offload": "offload(values=('*/carry',))",
}
# Ways of sequence and pipeline, by the other pass of the pair.
METHODS = {
    "simplify": "heads",
    "stack_layers": "ulysses",
    "microbatch": "ulysses",
    "constrain": "heads",
    "remat": "ring",
    "offload": "ulysses",
}
SCHEDULES = {
    "simplify": "gpipe",
    "stack_layers": "1f1b",
    "microbatch": "zero_bubble",
    "constrain": "gpipe",
    "remat": "1f1b",
    "offload": "gpipe",
}
# One pass does both; as two, the second would undo the first.
IN_ONE = {("remat", "offload"): "remat(budget_bytes=0, offload='all')"}
NOT_COMBINED = (("sequence", "pipeline"),)
PAIRS = tuple(p for p in itertools.combinations(PASSES, 2) if p not in NOT_COMBINED)


def text_of(pair: Pair) -> str:
    """The pair as a user writes it."""
    if pair in IN_ONE:
        return IN_ONE[pair]

    def one(name: str, other: str) -> str:
        if name == "sequence":
            return f"sequence(method='{METHODS[other]}')"
        if name == "pipeline":
            return f"pipeline(schedule='{SCHEDULES[other]}', microbatches=2)"
        return SETTINGS.get(name, name)

    return f"{one(*pair)}, {one(*pair[::-1])}"


def mesh_of(pair: Pair) -> tuple[str, str]:
    """A mesh of eight devices with the axes that a pair needs, and rules for it."""
    if "pipeline" in pair:
        return "stage=2,data=4", "data"
    if "sequence" in pair:
        return "data=4,seq=2", "data"
    return "data=4,model=2", "redco"


@functools.cache
def traced_model(family: str, scanned: bool) -> TracedModel:
    layers = 2 if scanned else UNROLLED_LAYERS.get(family, 2)
    spec = models.get(family, **FAMILIES[family], num_layers=layers, scan_layers=scanned)
    batch = spec.example_batch(ROWS, None if family == "vit_tiny" else LENGTH)
    return trace_model(adapt(spec.build()), default_loss, batch, True, Precision())


@functools.cache
def drawn(family: str, scanned: bool) -> dict[str, Any]:
    """Inputs by `role/path`; integers of the batch are below 16."""
    found = random_inputs(traced_model(family, scanned).program)
    rng = np.random.default_rng(0)
    for key, x in found.items():
        if key.startswith(Role.BATCH.value) and np.issubdtype(x.dtype, np.integer):
            found[key] = rng.integers(0, 16, x.shape).astype(x.dtype)
    return found


@functools.cache
def reference(family: str, scanned: bool) -> tuple[float, dict[str, np.ndarray]]:
    program = traced_model(family, scanned).program
    return programs.loss_and_gradients(program, drawn(family, scanned))


@dataclasses.dataclass(frozen=True)
class Planned:
    rewritten: Rewritten
    plan: Plan
    mesh: Mesh
    machine: MachineModel


@functools.cache
def planned(
    family: str, scanned: bool, before: tuple[Any, ...], mesh: tuple[str, str], pins: Any
) -> Planned:
    traced = traced_model(family, scanned)
    rewritten = rewrite(traced, Passes(before, (), Checks()), optax.sgd(0.1))
    target, wishes = resolve(mesh[0]), planning.Wishes(rule_sets.parse(mesh[1]), pins=pins)
    plan = next(planning.make(rewritten.traced.program, target, wishes, lambda layout: 0)).plan
    return Planned(rewritten, plan, target.mesh(plan.mesh), target.machine(plan.mesh))


def rewritten_by(text: str, family: str, scanned: bool, mesh: tuple[str, str]) -> tuple[Any, Any]:
    """(the model after passes, its shardings)."""
    passes = Passes.of(parse_passes(text), Checks())
    made = planned(family, scanned, passes.before, mesh, passes.pins)
    done, _ = finish(made.rewritten.traced, passes, made.plan, made.mesh, made.machine)
    return done, lower.make_shardings(made.plan, made.mesh, done, None)


def loss_and_gradients(
    done: TracedModel, shardings: lower.Shardings, given: Mapping[str, Any]
) -> tuple[float, dict[str, np.ndarray]]:
    """As `programs.loss_and_gradients`, compiled for the mesh."""
    whole, leaves = done.program.whole_inputs, []
    for leaf in whole:
        own = [given[f"{leaf.role.value}/{path}"] for path in leaf.parts or (leaf.path,)]
        leaves.append(np.stack(own) if leaf.parts else own[0])
    trees = done.params, done.model_state, done.batch, leaves[-1]
    state = shardings.state
    arguments = jax.device_put(
        jax.tree.unflatten(jax.tree.structure(trees), leaves),
        (state.params, state.model_state, shardings.batch, state.rng),
    )
    lowered = jax.jit(lower.make_gradient(done, shardings)).lower(*arguments)
    (loss, _), gradients = lowered.compile(programs.FAST)(*arguments)
    found = {}
    parameters = [leaf for leaf in whole if leaf.role is Role.PARAMETER]
    for leaf, gradient in zip(parameters, jax.tree.leaves(gradients), strict=True):
        array = np.asarray(gradient)
        for k, path in enumerate(leaf.parts or (leaf.path,)):
            found[path] = array[k] if leaf.parts else array
    return float(loss), found


CASES = [
    pytest.param(family, pair, id="-".join((family, *pair)), marks=pytest.mark.xdist_group(family))
    for family in FAMILIES
    for pair in PAIRS
]


@pytest.mark.parametrize(("family", "pair"), CASES)
def test_pairs(family: str, pair: Pair) -> None:
    scanned = "stack_layers" not in pair
    done, shardings = rewritten_by(text_of(pair), family, scanned, mesh_of(pair))
    assert done_something(pair, done.program)
    loss, gradients = loss_and_gradients(done, shardings, drawn(family, scanned))
    wanted, others = reference(family, scanned)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert gradients.keys() == others.keys()
    largest = max(float(np.max(np.abs(x))) for x in others.values())
    for path, gradient in gradients.items():
        # Of an array's own greatest gradient, if that is not tiny beside those of the others.
        scale = max(float(np.max(np.abs(others[path]))), 1e-2 * largest)
        worst = float(np.max(np.abs(gradient - others[path])))
        assert worst <= 1e-4 * scale, (path, worst, scale)


# What a pass says where it has changed a program.
SAID = {
    "simplify": "equations, loops' and calls' own included",
    "stack_layers": "became a loop",
    "microbatch": "microbatches of",
    "sequence": "became",
    "constrain": "constraints",
    "remat": "of the forward FLOPs run again",
    "offload": "on the host",
    "pipeline": "stages wait",
}


def done_something(pair: Pair, program: Program) -> bool:
    """Whether both passes of a pair say so."""
    return all(any(SAID[name] in note for note in program.notes) for name in pair)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_precision_of_the_programs_own_type_changes_nothing(family: str, scanned: bool) -> None:
    """So a pair of it and another pass is the other pass; a narrower type has other results."""
    program = traced_model(family, scanned).program
    assert MixedPrecision(compute="float32").apply(program) is program


BOTH = ("stage=2,data=2,seq=2", "data")
# What cannot be combined, in one order or in both, and what the error says.
REFUSED = (
    ("sequence(method='ring'), pipeline(microbatches=2)", "not work inside stages yet: leave one"),
    ("pipeline(microbatches=2), sequence(method='ring')", "put sequence first"),
    ("sequence(method='ring'), microbatch(count=2)", "put microbatch before sequence"),
    ("pipeline(microbatches=2), microbatch(count=2)", "leave one of the two out"),
    ("microbatch(count=2), pipeline(microbatches=4)", "give both the same number, or leave"),
    ("microbatch(count=2), microbatch(count=2)", "leave one of the two out"),
    ("pipeline(microbatches=2), pipeline(microbatches=2)", "leave one of them out"),
    ("pipeline(microbatches=2), constrain", "put constrain first"),
    ("pipeline(microbatches=2), remat", "put this one first"),
    ("pipeline(microbatches=2), offload(values=('*/carry',))", "put this one first"),
    ("remat, offload(values=('*/carry',))", r"remat\(offload='auto'\) saves and offloads"),
    ("offload(values=('*/carry',)), remat", r"remat\(offload='auto'\) saves and offloads"),
    *(
        (f"{late}, {early}", f"{early!r} works on the program before it is planned.*put it before")
        for late in ("microbatch(count=2)", "sequence", "constrain", "remat", "offload", "pipeline")
        for early in ("simplify", "precision", "stack_layers")
    ),
)


@pytest.mark.xdist_group("gpt2_tiny")
@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_pairs_that_cannot_be_combined_say_so(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        rewritten_by(text, "gpt2_tiny", True, BOTH)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_over_devices_stays_out_of_stages(family: str) -> None:
    """`NOT_COMBINED`, on every family."""
    text = "sequence(method='ring'), pipeline(microbatches=2)"
    with pytest.raises(PassError, match="leave one of the two out"):
        rewritten_by(text, family, True, BOTH)
