"""Optimizer state in host memory, streamed through the device layer by layer.

plan_offload    which state lives on the host, and how it is cut into pieces
state_memories  the state's shardings, in those memories
make_update     gradients, state, parameters -> parameters, state: `passes.host_stream`
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from autoshard.adapters import path_name
from autoshard.lower import plain_update
from autoshard.optimizer_paths import mirrored_paths
from passes.host_cuts import Cut, cut_of
from passes.host_stream import DEVICE, HOST, Stream, in_memory, streamed

# Below this a transfer is mostly latency.
_LEAST_BYTES = 1 << 20
# State on its way, before and after its update, may take a sixteenth of what is on the host.
_PIECES = 32
_LARGEST_PIECE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Offload:
    """Which of an optimizer's state lives on the host.

    Attributes:
      mirrors: for each array of the state, the position of the parameter whose shape it has, among
        the tree's leaves; None for counts and the like.
      cuts: for each parameter, how it, its gradient and its state are cut; None where its state
        stays on the device.
      loops: positions of the parameters that are updated in one loop; loops follow one another.
      host_bytes: of state on the host, of each device's share.
      device_bytes: at most so much of that is on a device at once, before and after its update.
    """

    mirrors: tuple[int | None, ...]
    cuts: tuple[Cut | None, ...]
    loops: tuple[tuple[int, ...], ...]
    host_bytes: int
    device_bytes: int

    @property
    def on_host(self) -> tuple[bool, ...]:
        """For each array of the state, whether it lives on the host."""
        return tuple(i is not None and self.cuts[i] is not None for i in self.mirrors)


def mirrored_parameters(opt_state: Any, params: Any) -> tuple[int | None, ...]:
    """For each array of the state, the position of the parameter that it belongs to.

    It does if its path ends with the parameter's and the shapes are equal.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
    position = {path: i for i, path in enumerate(shapes)}
    mirrored = mirrored_paths(opt_state, shapes)
    return tuple(None if path is None else position[path] for path in mirrored)


def plan_offload(
    params: Any,
    opt_state: Any,
    shardings: Any,
    stacked: Sequence[bool],
    *,
    wanted_bytes: int | None = None,
    least_bytes: int = _LEAST_BYTES,
    piece_bytes: int | None = None,
) -> Offload:
    """State of large parameters goes to the host, that of small ones and counts stays.

    Where less is wanted than all, the largest goes first: what stays is updated where it is, and
    nothing need wait for it (Maurya et al., "Deep Optimizer States", 2024).

    A stack is cut into its layers, if those are not sharded over devices. Anything else is cut into
    the fewest pieces of at most `piece_bytes`. Stacks share a loop while a layer of theirs has no
    more than that.

    Args:
      params: the parameters, abstract.
      opt_state: the optimizer's state, abstract.
      shardings: of the state, `NamedSharding`s.
      stacked: for each parameter, whether its leading dimension is that of layers.
      wanted_bytes: of state that a device is to be rid of; None is all that can go.
      least_bytes: on a device, below which the state of a parameter stays there.
      piece_bytes: of state that a device should fetch at a time; None is a small part of it all.
    """
    mirrors = mirrored_parameters(opt_state, params)
    arrays: list[list[tuple[Any, Sequence[int]]]] = [[] for _ in stacked]
    leaves, places = jax.tree.leaves(opt_state), jax.tree.leaves(shardings)
    tiled = any(place.mesh.devices.flat[0].platform == "tpu" for place in places[:1])
    for position, leaf, place in zip(mirrors, leaves, places, strict=True):
        if position is not None:
            arrays[position].append((leaf, place.shard_shape(tuple(leaf.shape))))
    sizes = [sum(math.prod(local) * x.dtype.itemsize for x, local in own) for own in arrays]
    large = [i for i, size in enumerate(sizes) if size >= max(1, least_bytes)]
    moved = _enough(large, sizes, wanted_bytes)
    host_bytes = sum(sizes[i] for i in moved)
    if piece_bytes is None:
        piece_bytes = max(_LEAST_BYTES, min(_LARGEST_PIECE_BYTES, host_bytes // _PIECES))
    cuts: list[Cut | None] = [None] * len(stacked)
    for i in moved:
        (leaf, local), share = arrays[i][0], max(1, piece_bytes // len(arrays[i]))
        cuts[i] = cut_of(
            leaf.shape, local, leaf.dtype.itemsize, share, layers=stacked[i], tiled=tiled
        )
    loops = _loops(moved, cuts, sizes, stacked, piece_bytes)
    in_flight = [sum(2 * sizes[i] // _count(cuts[i]) for i in loop) for loop in loops]
    return Offload(mirrors, tuple(cuts), loops, host_bytes, max(in_flight, default=0))


def _enough(large: Sequence[int], sizes: Sequence[int], wanted: int | None) -> list[int]:
    """The largest of some parameters until their state makes up what is wanted, in order."""
    if wanted is None:
        return list(large)
    taken, total = [], 0
    for i in sorted(large, key=lambda i: -sizes[i]):
        if total >= wanted:
            break
        taken.append(i)
        total += sizes[i]
    return sorted(taken)


def _loops(
    moved: Sequence[int],
    cuts: Sequence[Cut | None],
    sizes: Sequence[int],
    stacked: Sequence[bool],
    piece_bytes: int,
) -> tuple[tuple[int, ...], ...]:
    """Parameters by loop: stacks of one number of layers while their pieces are small together."""
    loops: list[list[int]] = []
    last: dict[int, tuple[list[int], int]] = {}
    for i in moved:
        count = _count(cuts[i])
        piece = sizes[i] // count
        loop, size = last.get(count, ([], 0))
        if not (stacked[i] and loop and size + piece <= piece_bytes):
            loop, size = [], 0
            loops.append(loop)
        loop.append(i)
        if stacked[i]:
            last[count] = (loop, size + piece)
    return tuple(map(tuple, loops))


def _count(cut: Cut | None) -> int:
    return 1 if cut is None else cut.count


def state_memories(shardings: Any, offload: Offload) -> Any:
    """The shardings of the state, each in the memory where its array lives."""
    leaves, structure = jax.tree.flatten(shardings)
    kinds = [HOST if host else DEVICE for host in offload.on_host]
    return jax.tree.unflatten(structure, map(in_memory, leaves, kinds))


def on_device(shardings: Any) -> Any:
    """Any tree of shardings, in the memory of the device: what all other arguments need."""
    return jax.tree.map(
        lambda s: in_memory(s, DEVICE) if isinstance(s, NamedSharding) else s, shardings
    )


def make_update(
    optimizer: optax.GradientTransformation, offload: Offload
) -> Callable[..., tuple[Any, Any]]:
    """(gradients, state, parameters, **scalars) -> (parameters, state), as optax would make them.

    To be called under `jax.jit` with the state donated. Parameters that share a number of layers
    are updated in one loop, then the others one after another.

    Raises (when traced):
      PassError: the optimizer does not update a parameter of the plan element by element.
    """
    update = plain_update(optimizer)

    def whole(gradients: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> Any:
        return update(gradients, state, params, **extra)

    def run(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        arguments = (gradients, state, params, extra)
        specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        program, shapes = jax.make_jaxpr(whole, return_shape=True)(*specs)
        function = streamed(program, _groups(offload, params))
        results = function(*jax.tree.leaves(arguments))
        made: tuple[Any, Any] = jax.tree.unflatten(jax.tree.structure(shapes), results)
        return made

    return run


def _groups(offload: Offload, params: Any) -> list[list[Stream]]:
    """Streams by loop; positions are those of `make_update`'s program."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    count, states = len(paths), len(offload.mirrors)

    def stream(position: int) -> Stream:
        own = [j for j, mirrored in enumerate(offload.mirrors) if mirrored == position]
        replaced = [(count + states + position, position), *((count + j, count + j) for j in own)]
        cut = offload.cuts[position]
        assert cut is not None
        return Stream(paths[position], cut, (position,), tuple(replaced))

    return [[stream(position) for position in loop] for loop in offload.loops]
