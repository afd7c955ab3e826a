"""What a rule set is: a value that turns an analysed program and a mesh into choices."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from autoshard.dim_names import DimNames
from autoshard.errors import RuleError
from autoshard.mesh_shape import MeshShape, SplitMesh
from autoshard.named_dims import Analysis
from autoshard.structure import Structure
from passes.spec import Spec

# Axis names that people use for data parallelism; any other axis may be claimed for something else.
DATA_AXIS_NAMES = frozenset("data dp batch fsdp zero zero3 replica dcn ddp hsdp".split())
TENSOR_AXIS_NAMES = frozenset("model mp tensor tp tensor_parallel megatron".split())


AxisRules = tuple[tuple[str, str | None], ...]  # pairs (name of a dimension, mesh axis or None)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A program as rule sets see it."""

    analysis: Analysis
    structure: Structure
    names: DimNames


@dataclasses.dataclass(frozen=True)
class RuleContext:
    """A program on a mesh.

    Attributes:
      subject: the analysed program.
      mesh: the mesh, its axes split into prime parts.
      data_parts: parts that shard the batch, major to minor.
      tensor_parts: parts of the axes that rule sets claimed, major to minor.
      axis_rules: the user's pairs (name, axis or None), in order.
    """

    subject: Subject
    mesh: SplitMesh
    data_parts: tuple[str, ...]
    tensor_parts: tuple[str, ...]
    axis_rules: AxisRules = ()

    def parts(self, axis: str) -> tuple[str, ...]:
        """The parts of one of the user's axes."""
        return self.mesh.of(axis)


@dataclasses.dataclass(frozen=True)
class ClassChoice:
    """Shard a named dimension, wherever it occurs."""

    atom: int
    parts: tuple[str, ...]
    rule: str
    why: str


@dataclasses.dataclass(frozen=True)
class LeafChoice:
    """Lay out one array.

    Attributes:
      position: the program's input.
      spec: for each dimension the parts that shard it.
      storage: how it is stored, to be gathered over the data axes at its use; else how it is used.
    """

    position: int
    spec: Spec
    storage: bool
    rule: str
    why: str


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a rule set decides, and what it has to say about it."""

    classes: tuple[ClassChoice, ...] = ()
    leaves: tuple[LeafChoice, ...] = ()
    notes: tuple[str, ...] = ()


def _claims_nothing(subject: Subject, shape: MeshShape, rules: AxisRules) -> frozenset[str]:
    del subject, shape, rules
    return frozenset()


def _decides_nothing(context: RuleContext) -> Choices:
    del context
    return Choices()


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """A named way to lay out a program.

    Attributes:
      name: what the user calls it.
      decide: its choices. The batch is always sharded over the axes that no rule set claims.
      claims: the user's axes that it wants for other than data parallelism.
      zero_stage: 1 shards optimizer state over the data axes, 2 gradients too, 3 parameters too
        ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5).
      zero_axes: the data axes that do; empty: all of them.
      axis_rules: pairs (name of a dimension, axis) that this value adds to the context.
      reserves: axes that serve nothing but what this rule set decides.
    """

    name: str
    decide: Callable[[RuleContext], Choices] = _decides_nothing
    claims: Callable[[Subject, MeshShape, AxisRules], frozenset[str]] = _claims_nothing
    zero_stage: int = 0
    zero_axes: tuple[str, ...] = ()
    axis_rules: AxisRules = ()
    reserves: frozenset[str] = frozenset()


def is_data_axis(name: str) -> bool:
    """Whether an axis is by its name meant for data parallelism (`data`, `fsdp`, `data_0`, ...)."""
    return name.lower().rstrip("0123456789_") in DATA_AXIS_NAMES


def tensor_axis(shape: MeshShape, rule: str, wanted: str | None) -> str:
    """The axis for tensor parallelism: the one asked for, else by name, else the last.

    Raises:
      RuleError: the axis asked for is absent, or all axes are data axes by name.
    """
    if wanted is not None:
        check_axis(shape, wanted, f"rule set {rule!r}")
        return wanted
    named = [name for name in shape.names if name.lower() in TENSOR_AXIS_NAMES]
    if named:
        return named[0]
    free = [name for name in shape.names if not is_data_axis(name)]
    if not free:
        raise RuleError(
            f"rule set {rule!r} needs an axis for tensor parallelism, and every axis of the mesh "
            f"{shape} is a data axis by its name: call one of them 'model', or say "
            f"{rule}(axis={shape.names[-1]!r})"
        )
    return free[-1]


def check_axis(shape: MeshShape, axis: str, who: str) -> None:
    """Raises RuleError unless the mesh has the axis."""
    if axis not in shape.names:
        raise RuleError(
            f"{who} names mesh axis {axis!r}, and the mesh has {', '.join(shape.names)} "
            f"({shape}): use one of those, or give the mesh an axis {axis!r}"
        )


def take_parts(
    sizes: Mapping[str, int], parts: tuple[str, ...], extent: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Leading parts whose product divides `extent`, and the parts left over."""
    taken, product = 0, 1
    for part in parts:
        if extent % (product * sizes[part]):
            break
        product *= sizes[part]
        taken += 1
    return parts[:taken], parts[taken:]


def deal_out(
    context: RuleContext, atoms: Sequence[int], parts: tuple[str, ...]
) -> tuple[list[tuple[int, tuple[str, ...]]], tuple[str, ...]]:
    """Give the parts of an axis to a class, and what it leaves to those behind it.

    The next class gets some only if the one before it is sharded wholly.

    Returns:
      (pairs (class, its parts), the parts that none takes).
    """
    sizes, mesh, dealt = context.subject.analysis.sizes, context.mesh.refined, []
    for atom in atoms:
        taken, parts = take_parts(mesh.by_name, parts, sizes[atom])
        if taken:
            dealt.append((atom, taken))
        if not parts or mesh.shards(taken) != sizes[atom]:
            break
    return dealt, parts
