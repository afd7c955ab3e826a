"""Mesh axes as the planner sees them: every axis a product of prime parts.

Two key-value heads on a four-way axis need it as 2 x 2: queries take both parts, keys and values
one, and then only all-reduces remain. Decisions are made on prime parts, and parts that no layout
tells apart are merged again (`coalesce`), so that a plan mentions `model`, or `model.0` and
`model.1` where it must.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from autoshard.errors import MeshError
from passes.spec import Spec


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Named axes with sizes, major to minor.

    Attributes:
      names: the axes' names.
      sizes: their sizes.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise MeshError(
                f"mesh axes {self.names} with sizes {self.sizes}: every axis needs one size and a "
                "name of its own"
            )
        bad = [f"{n}={s}" for n, s in zip(self.names, self.sizes, strict=True) if s < 1]
        if bad or not self.names:
            raise MeshError(
                f"mesh axes must have sizes of at least 1, got {', '.join(bad) or 'none'}"
            )

    @property
    def device_count(self) -> int:
        """Product of the sizes."""
        return math.prod(self.sizes)

    @property
    def by_name(self) -> dict[str, int]:
        """Size of each axis."""
        return dict(zip(self.names, self.sizes, strict=True))

    def size(self, name: str) -> int:
        """Size of one axis."""
        return self.sizes[self.names.index(name)]

    def shards(self, parts: Iterable[str]) -> int:
        """Product of the sizes of some axes."""
        return math.prod(self.size(part) for part in parts)

    def __str__(self) -> str:
        return ",".join(f"{n}={s}" for n, s in zip(self.names, self.sizes, strict=True))

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """From `data=2,model=4`.

        Raises:
          MeshError: the text is not of that form.
        """
        names, sizes = [], []
        for item in text.split(","):
            name, equals, size = item.strip().partition("=")
            if not equals or not name or not size.strip().isdigit():
                raise MeshError(
                    f"cannot read mesh {text!r}: write axes as 'data=2,model=4' (at {item!r}) or a "
                    "topology such as 'cpu:8'"
                )
            names.append(name.strip())
            sizes.append(int(size))
        return cls(tuple(names), tuple(sizes))


def prime_factors(number: int) -> tuple[int, ...]:
    """Prime factors of a positive number, ascending; () for 1."""
    factors, rest, candidate = [], number, 2
    while candidate * candidate <= rest:
        while rest % candidate == 0:
            factors.append(candidate)
            rest //= candidate
        candidate += 1
    return tuple(factors + ([rest] if rest > 1 else []))


@dataclasses.dataclass(frozen=True)
class SplitMesh:
    """A mesh whose axes may be split into parts.

    Attributes:
      shape: the user's axes.
      parts: for each of the user's axes, its parts' names, major to minor.
      part_sizes: the parts' sizes, in the same arrangement.
    """

    shape: MeshShape
    parts: tuple[tuple[str, ...], ...]
    part_sizes: tuple[tuple[int, ...], ...]

    @property
    def refined(self) -> MeshShape:
        """The mesh with the parts as its axes; as many devices in the same order."""
        return MeshShape(
            tuple(p for parts in self.parts for p in parts),
            tuple(s for sizes in self.part_sizes for s in sizes),
        )

    def of(self, axis: str) -> tuple[str, ...]:
        """The parts of one of the user's axes."""
        return self.parts[self.shape.names.index(axis)]

    def axis_of(self, part: str) -> str:
        """The user's axis that a part belongs to."""
        return next(
            name for name, parts in zip(self.shape.names, self.parts, strict=True) if part in parts
        )


def _named(axis: str, sizes: tuple[int, ...]) -> tuple[str, ...]:
    return (axis,) if len(sizes) == 1 else tuple(f"{axis}.{i}" for i in range(len(sizes)))


def split_into_primes(shape: MeshShape) -> SplitMesh:
    """Every axis split into its prime factors; an axis of size 1 stays."""
    sizes = tuple(prime_factors(size) or (1,) for size in shape.sizes)
    parts = tuple(_named(n, s) for n, s in zip(shape.names, sizes, strict=True))
    return SplitMesh(shape, parts, sizes)


def coalesce(mesh: SplitMesh, specs: Iterable[Spec]) -> tuple[SplitMesh, Mapping[str, str]]:
    """Merge neighbouring parts that every spec uses side by side or not at all.

    Returns:
      The smaller mesh, and for each old part the new part that it became the head of, or "" for a
      part that was merged into the one before it. `rename` applies the map to a spec.
    """
    dims = {dim for spec in specs for dim in spec if dim}
    parts, sizes, renamed = [], [], {}
    for axis, old, old_sizes in zip(mesh.shape.names, mesh.parts, mesh.part_sizes, strict=True):
        groups = [[0]]
        for i in range(1, len(old)):
            if _inseparable(old[i - 1], old[i], dims):
                groups[-1].append(i)
            else:
                groups.append([i])
        new_sizes = tuple(math.prod(old_sizes[i] for i in group) for group in groups)
        names = _named(axis, new_sizes)
        for name, group in zip(names, groups, strict=True):
            renamed[old[group[0]]] = name
            renamed.update({old[i]: "" for i in group[1:]})
        parts.append(names)
        sizes.append(new_sizes)
    return SplitMesh(mesh.shape, tuple(parts), tuple(sizes)), renamed


def _inseparable(first: str, second: str, dims: set[tuple[str, ...]]) -> bool:
    for dim in dims:
        if (first in dim) != (second in dim):
            return False
        if first in dim and dim.index(second) != dim.index(first) + 1:
            return False
    return True


def rename(spec: Spec, renamed: Mapping[str, str]) -> Spec:
    """A spec in terms of the parts that `coalesce` left."""
    return tuple(tuple(renamed[p] for p in dim if renamed[p]) for dim in spec)
