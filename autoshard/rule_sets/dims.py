"""The user's pairs of a named dimension and a mesh axis."""

from autoshard.errors import RuleError
from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets.base import (
    AxisRules,
    Choices,
    ClassChoice,
    LeafChoice,
    RuleContext,
    RuleSet,
    Subject,
    check_axis,
    is_data_axis,
)
from autoshard.rule_sets.user_rules import check_divides, split_uses
from passes.program import Role


def dims(*pairs: tuple[str, str | None]) -> RuleSet:
    """Named dimensions of the analysis (or of Flax metadata) to mesh axes.

    An axis of data parallelism shards the storage of the parameters that carry the dimension; any
    other axis shards the dimension wherever it occurs.
    """
    label = " ".join(f"{name}={axis}" for name, axis in pairs)

    def claims(subject: Subject, shape: MeshShape, rules: AxisRules) -> frozenset[str]:
        del subject, rules
        for name, axis in pairs:
            if axis is not None:
                check_axis(shape, axis, f"the rule ({name!r}, {axis!r})")
        return frozenset(axis for _, axis in pairs if axis is not None and not is_data_axis(axis))

    def decide(context: RuleContext) -> Choices:
        subject, classes, leaves = context.subject, list[ClassChoice](), list[LeafChoice]()
        leaves += _annotated(context, pairs, label)
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
                        f"{name} dimension {size} does not divide by mesh axis {axis}={degree}: "
                        f"pad it to {-(-size // degree) * degree} or use a smaller {axis}"
                    )
                classes.append(ClassChoice(atom, context.parts(axis), label, why))
        return Choices(tuple(classes), tuple(leaves))

    return RuleSet(label, decide, claims, axis_rules=pairs)


def _annotated(context: RuleContext, pairs: AxisRules, rule: str) -> list[LeafChoice]:
    """Parameters whose Flax metadata uses names of the pairs that are not named dimensions."""
    names, found = context.subject.names, list[LeafChoice]()
    axes_of = {n: a for n, a in pairs if a is not None and names.find(n) is None}
    program = context.subject.analysis.program
    for position in program.with_role(Role.PARAMETER):
        leaf = program.inputs[position]
        axes = [(axes_of[n],) if isinstance(n, str) and n in axes_of else () for n in leaf.metadata]
        if any(axes) and len(axes) == len(leaf.shape):
            why = f"user's rules for metadata ({', '.join(map(str, leaf.metadata))})"
            found += split_uses(position, leaf, axes, context, rule, why)
    return found


def _find(subject: Subject, name: str) -> tuple[int, ...]:
    found = subject.names.find(name)
    if found is not None:
        return found.atoms
    if any(name in leaf.metadata for leaf in subject.analysis.program.inputs):
        return ()  # a metadata name: `_annotated` lays those parameters out
    known = ", ".join(f"{d.name} ({'/'.join(map(str, d.sizes))})" for d in subject.names.dims)
    raise RuleError(
        f"no dimension of {subject.analysis.program.name} is called {name!r}: its named "
        f"dimensions are {known}"
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
            check_divides(leaf, spec, context.mesh, f"the rule ({name!r}, {axis!r})")
            found.append(LeafChoice(position, spec, True, rule, why))
    return found
