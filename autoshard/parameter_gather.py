"""How a parameter that is stored in shards is laid out for use (ZeRO stage 3).

The gradient of the gather is constrained to the gradient's own layout, so that the partitioner
reduces and scatters instead of all-reducing at full size.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding

from autoshard.staged_gather import in_stages
from passes.row_lookup import Lookup, RowMove, row_move
from passes.spec import Spec, partition_spec


def _laid(x: jax.Array, mesh: Mesh, spec: Spec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(spec)))


@dataclasses.dataclass(frozen=True)
class ParameterGather:
    """An identity that lays a parameter out for use, and its cotangent as the gradient is kept.

    Attributes:
      path: of the parameter.
      mesh: the mesh.
      stored, used, gradient: layouts.
      inner: neighbours that gather first, where all devices take part; see `staged_gather`.
    """

    path: str
    mesh: Mesh
    stored: Spec
    used: Spec
    gradient: Spec
    inner: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """The parameter, laid out for use."""
        # Summed and cut, which the TPU compiler makes one reduce-scatter; told of the shards alone
        # it makes a ring of small products. The GPU compiler is better off without.
        on_tpu = self.mesh.devices.flat[0].platform == "tpu"

        @jax.custom_vjp
        def gather(x: jax.Array) -> jax.Array:
            return self._gathered(x)

        def forward(x: jax.Array) -> tuple[jax.Array, None]:
            return self._gathered(x), None

        def backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
            if on_tpu:
                cotangent = _laid(cotangent, self.mesh, self.used)
            return (_laid(cotangent, self.mesh, self.gradient),)

        gather.defvjp(forward, backward)
        return gather(x)

    def _gathered(self, x: jax.Array) -> jax.Array:
        x = in_stages(x, self.mesh, self.stored, self.used, self.inner)
        return _laid(x, self.mesh, self.used)

    def of_slice(self, dim: int) -> "ParameterGather | None":
        """The gather of a slice along `dim`; None where the stored parameter is cut along `dim`."""
        if self.stored[dim]:
            return None
        stored, used, gradient = (
            (*s[:dim], *s[dim + 1 :]) for s in (self.stored, self.used, self.gradient)
        )
        return dataclasses.replace(self, stored=stored, used=used, gradient=gradient)

    def of_rows(self, lookup: Lookup) -> "RowsOfShards | None":
        """How rows are looked up in its shards; None where it is to be gathered first."""
        move = row_move(lookup, self.stored, self.used, dict(self.mesh.shape))
        return None if move is None else RowsOfShards(self.mesh, move)


@dataclasses.dataclass(frozen=True)
class RowsOfShards:
    """Rows of a table, looked up in its shards and moved to where they are used."""

    mesh: Mesh
    move: RowMove

    def __call__(
        self,
        table: jax.Array,
        indices: jax.Array,
        take: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        """The rows, laid out for use."""
        rows = take(table, _laid(indices, self.mesh, self.move.indices))
        return _laid(_laid(rows, self.mesh, self.move.cut), self.mesh, self.move.moved)
