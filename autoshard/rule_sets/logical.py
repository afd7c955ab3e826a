"""Flax metadata as a rule set."""

from flax import linen

from autoshard.errors import RuleError
from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets.base import (
    TENSOR_AXIS_NAMES,
    AxisRules,
    Choices,
    RuleContext,
    RuleSet,
    Subject,
    check_axis,
    is_data_axis,
)
from autoshard.rule_sets.user_rules import split_uses
from passes.program import Leaf, Role

# Names that Flax examples give to dimensions which tensor parallelism splits; a last resort.
_TENSOR_DIMS = frozenset("heads kv_heads mlp ffn hidden vocab q_heads joined_kv".split())


def _axes_of(name: str, shape: MeshShape, rules: AxisRules) -> tuple[str, ...]:
    """The mesh axes that a dimension of this name is sharded over."""
    for key, axis in rules:
        if key == name:
            if axis is not None:
                check_axis(shape, axis, f"the axis rule for {name!r}")
            return () if axis is None else (axis,)
    if name in shape.names:
        return (name,)
    for key, flax_axes in linen.get_logical_axis_rules():
        if key == name:
            axes = (flax_axes,) if isinstance(flax_axes, str) else tuple(flax_axes or ())
            for one in axes:
                check_axis(shape, one, f"flax's logical axis rule for {name!r}")
            return axes
    if name in TENSOR_AXIS_NAMES or is_data_axis(name):
        check_axis(shape, name, "the model's sharding metadata")
    if name in _TENSOR_DIMS:
        return tuple(n for n in shape.names if n.lower() in TENSOR_AXIS_NAMES)[:1]
    return ()


def _leaf_axes(leaf: Leaf, shape: MeshShape, rules: AxisRules) -> list[tuple[str, ...]]:
    if len(leaf.metadata) != len(leaf.shape):
        raise RuleError(
            f"the sharding metadata of {leaf.path} names {len(leaf.metadata)} dimensions "
            f"{leaf.metadata}, and its shape is {leaf.shape}: give one name (or None) a "
            "dimension"
        )
    axes = []
    for entry in leaf.metadata:
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        axes.append(tuple(axis for name in names for axis in _axes_of(name, shape, rules)))
    return axes


def _annotated(subject: Subject) -> list[tuple[int, Leaf]]:
    program = subject.analysis.program
    found = [
        (i, program.inputs[i])
        for i in program.with_role(Role.PARAMETER)
        if program.inputs[i].metadata
    ]
    if not found:
        raise RuleError(
            "rules='logical' reads Flax sharding metadata, and no parameter of "
            f"{program.name} has any: annotate initialisers with nn.with_partitioning, "
            "nn.with_logical_partitioning or nnx.with_partitioning, or use rules='redco'"
        )
    return found


def logical(*axis_rules: tuple[str, str | None]) -> RuleSet:
    """Flax metadata: `with_partitioning`, `with_logical_partitioning`, nnx sharding metadata.

    A name is looked up in `axis_rules` and other pairs among the rules, then among the mesh's axes,
    then in Flax's own logical axis rules, then among a few usual names (heads, mlp, vocab, ...)
    that mean the tensor axis. A name found nowhere means replicated.
    """

    def claims(subject: Subject, shape: MeshShape, rules: AxisRules) -> frozenset[str]:
        used = {
            axis
            for _, leaf in _annotated(subject)
            for dim in _leaf_axes(leaf, shape, rules)
            for axis in dim
        }
        return frozenset(axis for axis in used if not is_data_axis(axis))

    def decide(context: RuleContext) -> Choices:
        choices = []
        for position, leaf in _annotated(context.subject):
            axes = _leaf_axes(leaf, context.mesh.shape, context.axis_rules)
            names = ", ".join(str(n) for n in leaf.metadata)
            choices += split_uses(position, leaf, axes, context, "logical", f"metadata ({names})")
        return Choices(leaves=tuple(choices))

    return RuleSet("logical", decide, claims, axis_rules=axis_rules)
