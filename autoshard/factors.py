"""Factor maps: what an operation does to the dimensions of its operands and results.

An operation has *factors*, as an einsum has letters. `dot_general` of [i, k] and [k, j] is
`([i,k],[k,j])->([i,j])` with k contracted. A dimension may be a product of factors, major to minor,
which is how a reshape reads: `([i,j])->([i.j])`. The form is Shardy's `OpShardingRule`; one rule a
primitive lives in `autoshard.sharding_rules`.
"""

import dataclasses
import enum
from collections.abc import Sequence


class FactorRole(enum.Enum):
    """What must be communicated when a factor is sharded.

    PARALLEL: nothing.
    CONTRACTED: results are partial sums; they are all-reduced over the axis.
    INDEXED: rows picked by a gather; the picked rows are all-reduced, as each device has only some.
    BLOCKED: the operation needs the whole dimension; the operand is all-gathered first.
    HALO: neighbours exchange a border (convolution windows).
    """

    PARALLEL = "parallel"
    CONTRACTED = "contracted"
    INDEXED = "indexed"
    BLOCKED = "blocked"
    HALO = "halo"


@dataclasses.dataclass(frozen=True)
class Factor:
    """One letter of the rule: its size and role."""

    size: int
    role: FactorRole = FactorRole.PARALLEL


DimFactors = tuple[int, ...]  # factor numbers that make up one dimension, major to minor
ArrayFactors = tuple[DimFactors, ...]  # one entry a dimension


@dataclasses.dataclass(frozen=True)
class OpRule:
    """The factor map of one operation.

    Attributes:
      factors: the letters.
      operands: for each operand, for each dimension, the factors it is made of. Dimensions of size
        1 have none.
      results: the same for the results.
      modelled: False for the conservative rule of an unknown primitive.
    """

    factors: tuple[Factor, ...]
    operands: tuple[ArrayFactors, ...]
    results: tuple[ArrayFactors, ...]
    modelled: bool = True

    def positions(self, factor: int, arrays: Sequence[ArrayFactors]) -> list[tuple[int, int]]:
        """(array, dimension) pairs among `arrays` that carry `factor`."""
        return [
            (a, d) for a, array in enumerate(arrays) for d, dim in enumerate(array) if factor in dim
        ]

    def __str__(self) -> str:
        def array(dims: ArrayFactors) -> str:
            return "[" + ",".join(".".join(_letter(f) for f in d) or "1" for d in dims) + "]"

        def side(arrays: tuple[ArrayFactors, ...]) -> str:
            return "(" + ",".join(array(a) for a in arrays) + ")"

        roles = ", ".join(
            f"{_letter(i)} {factor.role.value}"
            for i, factor in enumerate(self.factors)
            if factor.role is not FactorRole.PARALLEL
        )
        return f"{side(self.operands)}->{side(self.results)}" + (f" {{{roles}}}" if roles else "")


def _letter(factor: int) -> str:
    letters = "ijklmnopqrstuvwxyzabcdefgh"
    return letters[factor] if factor < len(letters) else f"f{factor}"


class RuleWriter:
    """Collects factors while a rule function writes an `OpRule`."""

    def __init__(self) -> None:
        self._factors: list[Factor] = []

    def new(self, size: int, role: FactorRole = FactorRole.PARALLEL) -> DimFactors:
        """A fresh factor as a dimension; no factor at all for size 1."""
        if size == 1:
            return ()
        self._factors.append(Factor(size, role))
        return (len(self._factors) - 1,)

    def dims(
        self, shape: Sequence[int], role: FactorRole = FactorRole.PARALLEL
    ) -> tuple[DimFactors, ...]:
        """A fresh factor for every dimension of `shape`."""
        return tuple(self.new(size, role) for size in shape)

    def rule(self, operands: Sequence[ArrayFactors], results: Sequence[ArrayFactors]) -> OpRule:
        """The finished rule."""
        return OpRule(
            tuple(self._factors),
            tuple(tuple(a) for a in operands),
            tuple(tuple(a) for a in results),
        )
