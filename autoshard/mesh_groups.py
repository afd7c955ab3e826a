"""Which devices of a mesh take part in a collective together."""

import math

import numpy as np

from autoshard.mesh_shape import MeshShape
from passes.hlo.replica_groups import Groups


def groups_over(mesh: MeshShape, axes: tuple[str, ...]) -> Groups:
    """Devices, by their place in the mesh, that differ along `axes` only."""
    ids = np.arange(mesh.device_count).reshape(mesh.sizes)
    inside = [mesh.names.index(axis) for axis in axes]
    outside = [d for d in range(len(mesh.names)) if d not in inside]
    width = math.prod(mesh.sizes[d] for d in inside)
    return tuple(map(tuple, ids.transpose(*outside, *inside).reshape(-1, width).tolist()))
