"""How an array is sharded."""

from jax.sharding import PartitionSpec

# For each dimension of an array, the mesh axes that shard it, major to minor.
Spec = tuple[tuple[str, ...], ...]


def partition_spec(spec: Spec) -> PartitionSpec:
    """JAX's form of a spec."""
    return PartitionSpec(*(dim if len(dim) > 1 else (dim[0] if dim else None) for dim in spec))


def spec_of(partition: PartitionSpec, rank: int) -> Spec:
    """The spec of an array of some rank that JAX's form describes."""
    dims = [() if d is None else (d,) if isinstance(d, str) else tuple(d) for d in partition]
    return (*dims, *((),) * (rank - len(dims)))
