"""Vocabulary layers split over the stages.

The table of an embedding and the weight of a vocabulary layer are the largest layers of many
models, and there is one of each: on the first and the last stage alone they would make these the
slowest. Split along the vocabulary, each stage holds and computes 1/S of both, at the cost of one
exchange of activations each ("Balancing Pipeline Parallelism with Vocabulary Parallelism", Yeung et
al., 2024, section 4).

Here prologue and epilogue are left to the partitioner, so it is enough to lay out the weights: the
rows of a table that is looked up, and the dimension of a product's weight that the product does not
sum over.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from passes import ir
from passes.pipelining.segments import Segments

# What a weight goes through with its dimensions in place; a transposition moves them.
_SAME = frozenset("convert_element_type copy name sharding_constraint stop_gradient".split())


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which shared values are split over the stages.

    Attributes:
      mesh, axis: the mesh and its stage axis.
      dims: (place among the shared values, dimension) pairs.
      others: for each of `dims`, mesh axes that shard the dimension besides.
    """

    mesh: Mesh
    axis: str
    dims: tuple[tuple[int, int], ...] = ()
    others: tuple[tuple[str, ...], ...] = ()

    def split(self, shared: Sequence[Any]) -> list[Any]:
        """The shared values, laid out."""
        result = list(shared)
        for (place, dim), others in zip(self.dims, self.others, strict=True):
            free = PartitionSpec.UNCONSTRAINED
            axes = (*others, self.axis)
            spec = [axes if d == dim else free for d in range(result[place].ndim)]
            sharding = NamedSharding(self.mesh, PartitionSpec(*spec))
            result[place] = jax.lax.with_sharding_constraint(result[place], sharding)
        return result


def find_vocabulary(segments: Segments, stages: int) -> tuple[tuple[int, int], ...]:
    """(place among the shared values, dimension) of weights that divide over the stages.

    A weight counts where it has two dimensions or more, is not read by the layers, and its
    vocabulary is larger than its other dimensions together.
    """
    found: dict[int, int] = {}
    in_layers = set(segments.shared_constants)
    for program in (segments.prologue, segments.epilogue):
        jaxpr, _ = ir.closed(program)
        count = len(segments.shared_specs)
        tracked = {var: (i, tuple(range(len(ir.spec(var).shape))))
                   for i, var in enumerate(jaxpr.invars[:count])}  # fmt: skip
        for place, dim in _uses(jaxpr, tracked):
            spec = segments.shared_specs[place]
            if not segments.shared_active[place] or place in in_layers or len(spec.shape) < 2:
                continue
            others = math.prod(spec.shape) // spec.shape[dim]
            if spec.shape[dim] % stages == 0 and spec.shape[dim] > others:
                found.setdefault(place, dim)
    return tuple(found.items())


def source_of(segments: Segments, place: int, dim: int) -> tuple[int, int] | None:
    """(input of `segments.shared`, its dimension) of which a shared value is a cast or view."""
    jaxpr, _ = ir.closed(segments.shared)
    made = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    var: Any = jaxpr.outvars[place]
    while var in made:
        eqn = made[var]
        if eqn.primitive.name == "transpose":
            dim = eqn.params["permutation"][dim]
        elif eqn.primitive.name not in _SAME:
            return None
        var = eqn.invars[0]
    return (jaxpr.invars.index(var), dim) if var in jaxpr.invars else None


def _uses(
    jaxpr: ir.Jaxpr, tracked: Mapping[ir.Var, tuple[int, tuple[int, ...]]]
) -> list[tuple[int, int]]:
    """(shared value, its vocabulary dimension) of each lookup and product of a tracked value."""
    where = dict(tracked)
    found = []
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        operands = [x for x in eqn.invars if not ir.is_literal(x)]
        held = [x for x in operands if x in where]
        called = ir.callee(eqn)
        if called is not None and held:
            inner = dict(zip(called[0].invars, eqn.invars, strict=True))
            known = {v: where[x] for v, x in inner.items() if not ir.is_literal(x) and x in where}
            found += _uses(called[0], known)
        elif name == "gather" and eqn.invars[0] in held:
            place, dims = where[eqn.invars[0]]
            indexed = eqn.params["dimension_numbers"].start_index_map
            found += [(place, dims[d]) for d in indexed if d < len(dims)]
        elif name == "dot_general":
            for x, contracted in zip(eqn.invars, eqn.params["dimension_numbers"][0], strict=True):
                if not ir.is_literal(x) and x in where:
                    place, dims = where[x]
                    free = [d for d in range(len(dims)) if d not in contracted]
                    sizes = ir.spec(x).shape
                    found += [(place, dims[max(free, key=lambda d: sizes[d])])] if free else []
        elif name in _SAME and held:
            where[eqn.outvars[0]] = where[held[0]]
        elif name == "transpose" and held:
            place, dims = where[held[0]]
            where[eqn.outvars[0]] = place, tuple(dims[d] for d in eqn.params["permutation"])
    return found
