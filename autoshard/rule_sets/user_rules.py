"""What rule sets that say what the user said have in common: checks that name the way out."""

from collections.abc import Sequence

from autoshard.errors import RuleError
from autoshard.mesh_shape import SplitMesh
from autoshard.rule_sets.base import LeafChoice, RuleContext
from passes.program import Leaf
from passes.spec import Spec


def check_divides(leaf: Leaf, spec: Spec, mesh: SplitMesh, who: str) -> None:
    """Raises RuleError unless every dimension divides by the axes that shard it."""
    for d, (size, parts) in enumerate(zip(leaf.shape, spec, strict=True)):
        shards = mesh.refined.shards(parts)
        if size % shards:
            axes = "*".join(dict.fromkeys(mesh.axis_of(p) for p in parts))
            raise RuleError(
                f"dimension {d} of {leaf.path} ({size}, shape {leaf.shape}) does not divide by "
                f"mesh axis {axes}={shards}, which {who} puts there: pad it to "
                f"{-(-size // shards) * shards}, or leave that dimension out of the rule"
            )


def split_uses(
    position: int,
    leaf: Leaf,
    axes: Sequence[tuple[str, ...]],
    context: RuleContext,
    who: str,
    why: str,
) -> list[LeafChoice]:
    """Axes of data parallelism say how an array is stored, the others how it is used."""
    used = [axis for dim in axes for axis in dim]
    repeated = sorted({axis for axis in used if used.count(axis) > 1})
    if repeated:
        raise RuleError(
            f"{who} shards two dimensions of {leaf.path} over mesh axis {repeated[0]!r}: an axis "
            "can shard one dimension of an array"
        )
    found = []
    for storage in (False, True):
        spec = tuple(
            tuple(
                p
                for axis in dim
                for p in context.parts(axis)
                if (p in context.data_parts) == storage
            )
            for dim in axes
        )
        if any(spec) or not storage:
            check_divides(leaf, spec, context.mesh, who)
            found.append(LeafChoice(position, spec, storage, who, why))
    return found
