"""Attention over a mesh axis, compiled for TPUs that are not here: memory up to a million tokens,
and what each way round a ring waits for.

  python -m benchmarks.sequence

Two attention layers in a loop, forward and backward, bf16, heads of 128. Memory: 1,048,576 tokens
on `v5p:8x8x8`, one sequence for each device of the rest of the mesh, causal on a zig-zag ring; what
is compared is what the compiler needs besides arguments and results. Waiting: sequences so short
that transfers outlast computation (512 or 1,024 positions a device), simulated from the compiled
schedule.
"""

import argparse
import dataclasses
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from autoshard import target
from autoshard.compiled_program import CompiledMemory
from autoshard.compiling import compile_program
from autoshard.mesh_shape import SplitMesh
from passes import ir
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.timeline import Timeline
from passes.program import Leaf, Placement, Program, Role
from passes.sequence import Sequence

HEAD_DIM, LAYERS = 128, 2
MIB = 2**20

# The greatest share of the one-way ring's exposed communication, and the greatest distance of
# memory from 1 / axis.
WAIT_BAR, MEMORY_BAR = 0.6, 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """One compilation.

    Attributes:
      topology: the machine.
      data, seq: sizes of the mesh axes.
      tokens: of each sequence.
      method: of the pass.
      causal: whether attention is.
      heads: query, key and value heads.
    """

    topology: str
    data: int
    seq: int
    tokens: int
    method: Any
    causal: bool
    heads: int = 4


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the compiler made.

    Attributes:
      note: what the pass did.
      memory: of a device.
      timeline: simulated from the schedule.
      compile_s: of the compiler.
    """

    note: str
    memory: CompiledMemory
    timeline: Timeline
    compile_s: float


def layers(case: Case) -> Program:
    """Attention layers without projections, so that attention is what is measured."""
    width = case.heads * HEAD_DIM
    shape = (case.data, case.tokens, width)

    def loss(x: Any, scales: Any) -> Any:
        def layer(x: Any, scale: Any) -> tuple[Any, None]:
            heads = (x * scale[None, None]).reshape(*x.shape[:2], case.heads, HEAD_DIM)
            result = jax.nn.dot_product_attention(
                heads, heads * 0.5, heads * 2, is_causal=case.causal
            )
            return x + result.reshape(x.shape), None

        return jnp.sum(jnp.square(jax.lax.scan(layer, x, scales)[0].astype(jnp.float32)))

    leaves = (
        Leaf("x", Role.BATCH, shape, "bfloat16"),
        Leaf("scales", Role.PARAMETER, (LAYERS, width), "bfloat16"),
    )
    specs = [jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16) for leaf in leaves]
    return Program("attention", jax.make_jaxpr(loss)(*specs), leaves, ("loss",))


def outcome(case: Case) -> Outcome:
    """Compile a case."""
    wanted = target.resolve(f"{case.topology} data={case.data},seq={case.seq}")
    shape = wanted.shapes[0]
    split = SplitMesh(shape, tuple((n,) for n in shape.names), tuple((s,) for s in shape.sizes))
    mesh, machine = wanted.mesh(split), wanted.machine(split)
    placed = dataclasses.replace(
        layers(case), placement=Placement(mesh, machine, lambda program: {})
    )
    program = Sequence(method=case.method).apply(placed)
    function = ir.as_function(program.jaxpr)
    cut = NamedSharding(mesh, PartitionSpec("data", "seq"))
    whole = NamedSharding(mesh, PartitionSpec())
    x, scales = (ir.spec(v) for v in ir.closed(program.jaxpr)[0].invars)
    step = jax.jit(
        jax.value_and_grad(lambda scales, x: function(x, scales)[0]), in_shardings=(whole, cut)
    )
    compiled = compile_program(
        step.lower(scales, x), topology=case.topology, devices=tuple(mesh.devices.flat)
    )
    if compiled.memory is None:
        raise SystemExit(f"{case} does not fit: {compiled.out_of_memory}")
    timeline = simulate(parse(compiled.hlo_text), machine)
    return Outcome(program.notes[-1], compiled.memory, timeline, compiled.compile_s)


def memory_cases(topology: str, devices: int, tokens: int) -> list[Case]:
    """The axis from an eighth of the devices to all of them."""
    sizes = [devices // 8, devices // 4, devices // 2, devices]
    return [Case(topology, devices // n, n, tokens, "ring", True) for n in sizes]


def activation_bytes(memory: CompiledMemory) -> int:
    """What a step needs besides what it is given and what it returns."""
    return memory.needed_bytes - memory.arguments_bytes - memory.outputs_bytes


def print_memory(topology: str, devices: int, tokens: int) -> bool:
    """Prints memory against the axis; whether it falls as 1 / axis."""
    print(f"{tokens} tokens on {topology}: MiB of activations a device")
    print(f"{'axis':>5} {'MiB':>9} {'x axis':>9} {'against the first':>18} {'compile s':>10}")
    first, good = 0.0, True
    for case in memory_cases(topology, devices, tokens):
        found = outcome(case)
        size = activation_bytes(found.memory) / MIB
        first = first or size * case.seq
        off = size * case.seq / first - 1
        good = good and abs(off) <= MEMORY_BAR
        print(
            f"{case.seq:>5} {size:>9.1f} {size * case.seq:>9.0f} {off:>+18.1%} "
            f"{found.compile_s:>10.1f}",
            flush=True,
        )
    return good


def exposed_s(found: Outcome) -> float:
    """Seconds that a step waits for what goes round, and for what swaps chunks for the zig-zag."""
    costs = found.timeline.collectives
    return sum(c.exposed_s for c in costs if c.kind == "collective-permute")


def print_waits(cases: list[Case]) -> bool:
    """Prints exposed communication of both rings; whether it is below the bar both ways, and the
    step no slower."""
    good = True
    columns = f"{'machine':>10} {'axis':>4} {'tokens':>7} {'causal':>6}"
    print(f"{columns}  exposed us: one way, both ways, ratio; step us: one way, both ways")
    for case in cases:
        both = dataclasses.replace(case, method="bidirectional")
        one, two = outcome(case), outcome(both)
        one_s, two_s = exposed_s(one), exposed_s(two)
        ratio = two_s / one_s
        good = good and ratio <= WAIT_BAR and two.timeline.step_s <= one.timeline.step_s
        print(
            f"{case.topology:>10} {case.seq:>4} {case.tokens:>7} {case.causal!s:>6}  "
            f"{one_s * 1e6:>10.1f} {two_s * 1e6:>10.1f} {ratio:>6.2f}  "
            f"{one.timeline.step_s * 1e6:>10.1f} {two.timeline.step_s * 1e6:>10.1f}",
            flush=True,
        )
    return good


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2**20)
    options = parser.parse_args()
    short = [
        Case("v5p:8x8x8", 64, 8, 4096, "ring", causal=False, heads=8),
        Case("v5p:8x8x8", 64, 8, 8192, "ring", causal=True, heads=8),
        Case("v5p:8x8x8", 8, 64, 32768, "ring", causal=False, heads=8),
    ]
    good = print_waits(short)
    good = print_memory("v5p:8x8x8", 512, options.tokens) and good
    if not good:
        raise SystemExit("a bar is missed")


if __name__ == "__main__":
    main()
