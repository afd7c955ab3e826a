"""Rule sets that say what the user said: Flax metadata, named dimensions, path patterns."""

import re
from collections.abc import Sequence
from typing import Any

from flax import linen

from autoshard.errors import RuleError
from autoshard.mesh_shape import MeshShape, Spec, SplitMesh
from autoshard.rule_sets.base import (
    TENSOR_AXIS_NAMES,
    Choices,
    ClassChoice,
    LeafChoice,
    RuleContext,
    RuleSet,
    Subject,
    check_axis,
    is_data_axis,
)
from passes.program import Leaf, Role

AxisRules = tuple[tuple[str, str | None], ...]

# Names that Flax examples give to dimensions which tensor parallelism splits, used when the user has no rule.
_TENSOR_DIMS = frozenset("heads kv_heads mlp ffn hidden vocab q_heads joined_kv".split())


def _check_divides(leaf: Leaf, spec: Spec, mesh: SplitMesh, who: str) -> None:
    """Raises RuleError unless every dimension divides by the axes that shard it."""
    for d, (size, parts) in enumerate(zip(leaf.shape, spec, strict=True)):
        shards = mesh.refined.shards(parts)
        if size % shards:
            axes = "*".join(dict.fromkeys(mesh.axis_of(p) for p in parts))
            raise RuleError(
                f"dimension {d} of {leaf.path} ({size}, shape {leaf.shape}) does not divide by mesh "
                f"axis {axes}={shards}, which {who} puts there: pad it to "
                f"{-(-size // shards) * shards}, or leave that dimension out of the rule"
            )


def _split_uses(
    position: int, leaf: Leaf, axes: Sequence[tuple[str, ...]], context: RuleContext, who: str, why: str
) -> list[LeafChoice]:
    """Axes of data parallelism say how an array is stored, the others how it is used."""
    used = [axis for dim in axes for axis in dim]
    repeated = sorted({axis for axis in used if used.count(axis) > 1})
    if repeated:
        raise RuleError(
            f"{who} shards two dimensions of {leaf.path} over mesh axis {repeated[0]!r}: an axis can "
            "shard one dimension of an array"
        )
    found = []
    for storage in (False, True):
        spec = tuple(
            tuple(p for axis in dim for p in context.parts(axis) if (p in context.data_parts) == storage)
            for dim in axes
        )
        if any(spec) or not storage:
            _check_divides(leaf, spec, context.mesh, who)
            found.append(LeafChoice(position, spec, storage, who, why))
    return found


def logical(*axis_rules: tuple[str, str | None]) -> RuleSet:
    """Flax metadata: `with_partitioning`, `with_logical_partitioning`, nnx sharding metadata.

    A name is looked up in `axis_rules` and other pairs among the rules, then among the mesh's axes,
    then in Flax's own logical axis rules, then among a few usual names (heads, mlp, vocab, ...) that
    mean the tensor axis. A name found nowhere means replicated.
    """

    def axis_of(name: str, shape: MeshShape, rules: AxisRules) -> str | None:
        for key, axis in rules:
            if key == name:
                if axis is not None:
                    check_axis(shape, axis, f"the axis rule for {name!r}")
                return axis
        if name in shape.names:
            return name
        for key, axis in linen.get_logical_axis_rules():
            if key == name:
                axes = [axis] if isinstance(axis, str) else list(axis or ())
                for one in axes:
                    check_axis(shape, one, f"flax's logical axis rule for {name!r}")
                return axes[0] if axes else None
        if name in TENSOR_AXIS_NAMES or is_data_axis(name):
            check_axis(shape, name, "the model's sharding metadata")
        if name in _TENSOR_DIMS:
            free = [n for n in shape.names if n.lower() in TENSOR_AXIS_NAMES]
            return free[0] if free else None
        return None

    def leaf_axes(leaf: Leaf, shape: MeshShape, rules: AxisRules) -> list[tuple[str, ...]]:
        if len(leaf.metadata) != len(leaf.shape):
            raise RuleError(
                f"the sharding metadata of {leaf.path} names {len(leaf.metadata)} dimensions "
                f"{leaf.metadata}, and its shape is {leaf.shape}: give one name (or None) a dimension"
            )
        axes = []
        for entry in leaf.metadata:
            names = (entry,) if isinstance(entry, str) else tuple(entry or ())
            mapped = [axis_of(name, shape, rules) for name in names]
            axes.append(tuple(axis for axis in mapped if axis is not None))
        return axes

    def annotated(subject: Subject) -> list[tuple[int, Leaf]]:
        program = subject.analysis.program
        found = [
            (i, program.inputs[i])
            for i in program.with_role(Role.PARAMETER)
            if program.inputs[i].metadata
        ]
        if not found:
            raise RuleError(
                f"rules='logical' reads Flax sharding metadata, and no parameter of {program.name} has "
                "any: annotate initialisers with nn.with_partitioning, nn.with_logical_partitioning or "
                "nnx.with_partitioning, or use rules='redco'"
            )
        return found

    def claims(subject: Subject, shape: MeshShape) -> frozenset[str]:
        used = {
            axis
            for _, leaf in annotated(subject)
            for dim in leaf_axes(leaf, shape, axis_rules)
            for axis in dim
        }
        return frozenset(axis for axis in used if not is_data_axis(axis))

    def decide(context: RuleContext) -> Choices:
        rules = (*axis_rules, *context.axis_rules)
        choices = []
        for position, leaf in annotated(context.subject):
            axes = leaf_axes(leaf, context.mesh.shape, rules)
            names = ", ".join(str(n) for n in leaf.metadata)
            choices += _split_uses(position, leaf, axes, context, "logical", f"metadata ({names})")
        return Choices(leaves=tuple(choices))

    return RuleSet("logical", decide, claims, axis_rules=axis_rules)


def dims(*pairs: tuple[str, str | None]) -> RuleSet:
    """Named dimensions of the analysis (or of Flax metadata) to mesh axes.

    An axis of data parallelism shards the storage of the parameters that carry the dimension; any other
    axis shards the dimension wherever it occurs.
    """
    label = " ".join(f"{name}={axis}" for name, axis in pairs)

    def claims(subject: Subject, shape: MeshShape) -> frozenset[str]:
        del subject
        for name, axis in pairs:
            if axis is not None:
                check_axis(shape, axis, f"the rule ({name!r}, {axis!r})")
        return frozenset(axis for _, axis in pairs if axis is not None and not is_data_axis(axis))

    def decide(context: RuleContext) -> Choices:
        subject, classes, leaves = context.subject, list[ClassChoice](), list[LeafChoice]()
        for name, axis in pairs:
            if axis is None:
                continue
            atoms = _find(subject, name)
            why = f"user's rule ({name}, {axis})"
            if context.parts(axis)[0] in context.data_parts:
                if name != "batch":
                    leaves += _stored(context, name, atoms, axis, label, why)
                continue
            for atom in atoms:
                size, degree = subject.analysis.sizes[atom], context.mesh.shape.size(axis)
                if size % degree:
                    raise RuleError(
                        f"{name} dimension {size} does not divide by mesh axis {axis}={degree}: pad it "
                        f"to {-(-size // degree) * degree} or use a smaller {axis}"
                    )
                classes.append(ClassChoice(atom, context.parts(axis), label, why))
        return Choices(tuple(classes), tuple(leaves))

    return RuleSet(label, decide, claims, axis_rules=pairs)


def _find(subject: Subject, name: str) -> tuple[int, ...]:
    found = subject.names.find(name)
    if found is not None:
        return found.atoms
    if any(name in leaf.metadata for leaf in subject.analysis.program.inputs):
        return ()  # a metadata name: the `logical` rule set reads it
    known = ", ".join(f"{d.name} ({'/'.join(map(str, d.sizes))})" for d in subject.names.dims)
    raise RuleError(
        f"no dimension of {subject.analysis.program.name} is called {name!r}: its named dimensions are "
        f"{known}"
    )


def _stored(
    context: RuleContext, name: str, atoms: tuple[int, ...], axis: str, rule: str, why: str
) -> list[LeafChoice]:
    found = []
    analysis = context.subject.analysis
    for position in analysis.program.with_role(Role.PARAMETER):
        leaf, leaf_dims = analysis.program.inputs[position], analysis.leaf_dims(position)
        carrying = [d for d, dim in enumerate(leaf_dims) if dim[:1] and dim[0] in atoms][:1]
        if carrying:
            spec = tuple(
                context.parts(axis) if d in carrying else () for d in range(len(leaf.shape))
            )
            _check_divides(leaf, spec, context.mesh, f"the rule ({name!r}, {axis!r})")
            found.append(LeafChoice(position, spec, True, rule, why))
    return found


def patterns(*pairs: tuple[str, Any]) -> RuleSet:
    """The user's regular expressions on parameter paths, first match wins.

    Args:
      *pairs: (regex searched in paths such as `h_0/attn/query/kernel`, PartitionSpec or tuple with one
        entry a dimension: None, an axis, or a tuple of axes; missing trailing entries are None).
    """
    compiled = [(re.compile(regex), tuple(spec)) for regex, spec in pairs]

    def normal(spec: tuple[Any, ...]) -> list[tuple[str, ...]]:
        return [(e,) if isinstance(e, str) else tuple(e or ()) for e in spec]

    def claims(subject: Subject, shape: MeshShape) -> frozenset[str]:
        del subject
        used = [(axis, r) for r, spec in compiled for dim in normal(spec) for axis in dim]
        for axis, regex in used:
            check_axis(shape, axis, f"the pattern {regex.pattern!r}")
        return frozenset(axis for axis, _ in used if not is_data_axis(axis))

    def decide(context: RuleContext) -> Choices:
        program = context.subject.analysis.program
        choices, matched = list[LeafChoice](), set[str]()
        for position in program.with_role(Role.PARAMETER):
            leaf = program.inputs[position]
            for regex, spec in compiled:
                if regex.search(leaf.path):
                    matched.add(regex.pattern)
                    axes = normal(spec)
                    if len(axes) > len(leaf.shape):
                        raise RuleError(
                            f"the pattern {regex.pattern!r} gives {len(axes)} entries and matches "
                            f"{leaf.path} of shape {leaf.shape}: give at most one entry a dimension"
                        )
                    axes += [()] * (len(leaf.shape) - len(axes))
                    why = f"pattern {regex.pattern!r}"
                    choices += _split_uses(position, leaf, axes, context, "patterns", why)
                    break
        unmatched = [r.pattern for r, _ in compiled if r.pattern not in matched]
        if unmatched:
            some = [program.inputs[i].path for i in program.with_role(Role.PARAMETER)][:5]
            raise RuleError(
                f"the pattern {unmatched[0]!r} matches no parameter that an earlier one has not taken; "
                f"paths look like {', '.join(some)}"
            )
        return Choices(leaves=tuple(choices))

    return RuleSet("patterns", decide, claims)
