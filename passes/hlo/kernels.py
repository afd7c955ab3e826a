"""Work of kernels that the compiler takes as they are: custom calls.

A Pallas kernel carries a cost estimate where its author wrote one. The attention kernels that ship
with JAX carry none (0.10.2): theirs is counted from their operands' shapes. A kernel of which
nothing is known is reported, and only its traffic is counted.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.shapes import Array, arrays

# Targets that do no work: notes to the compiler, views.
FREE_TARGETS = frozenset(
    """AssumeGatherIndicesInBound AllocateBuffer ConcatBitcast GatherScatterIndicesBitpacked
    Sharding SPMDFullToShardShape SPMDShardToFullShape AsyncCollectiveStart AsyncCollectiveDone
    annotate_device_placement MoveToHost MoveToDevice PinToDevice xla.sdy.FuncResultSharding
    SliceId PrepareAsyncCallStart PrepareAsyncCallDone""".split()
)


@dataclasses.dataclass(frozen=True)
class KernelWork:
    """What one execution does.

    Attributes:
      flops: of matrix products.
      transcendentals: exponentials and the like.
      bytes: read and written in HBM, or None where the shapes tell.
    """

    flops: float
    transcendentals: float
    bytes: float | None


def target_of(i: Instruction) -> str:
    """The custom call's target."""
    return i.attributes.get("custom_call_target", "").strip('"')


def kernel_work(module: HloModule, c: Computation, i: Instruction) -> KernelWork | None:
    """Work of a custom call; None where nothing tells.

    Args:
      module, c: where it stands.
      i: the custom call.
    """
    estimate = i.backend_config.get("custom_call_config", {})
    if isinstance(estimate, dict) and isinstance(estimate.get("cost_estimate"), dict):
        return _written(estimate["cost_estimate"])
    for pattern, counted in _KNOWN.items():
        if re.match(pattern, i.name) or re.search(f"/{pattern}", i.op_name):
            return counted(module, c, i)
    if target_of(i).startswith(("__cublas", "__cudnn", "__triton", "__onednn")):
        return _library_product(module, c, i)
    return None


def _written(estimate: dict[str, object]) -> KernelWork:
    def number(*names: str) -> float:
        for name in names:
            value = estimate.get(name, "")
            text = str(value) if isinstance(value, int | str) else ""
            if text.isdecimal() and len(text) < 25:
                return float(text)
        return 0.0

    return KernelWork(
        number("flops"), number("transcendentals"), number("bytes_accessed", "bytesAccessed")
    )


def _four_dims(module: HloModule, c: Computation, i: Instruction) -> list[Array]:
    """The kernel's large operands: [batch, heads, positions, width], or without a batch."""
    shapes = [module.shape_of(c, name) for name in i.operands]
    return [
        s for s in shapes if isinstance(s, Array) and len(s.dims) in (3, 4) and s.dtype[0] in "fb"
    ]


def _splash(products: int, exponentials: int) -> Callable[..., KernelWork | None]:
    """Splash attention: `products` matrix products over the blocks that its mask visits.

    With a sequence of query numbers among the operands the mask is computed in the kernel, and is
    taken to be causal: of n x n blocks n (n + 1) / 2 are visited.
    """

    def count(module: HloModule, c: Computation, i: Instruction) -> KernelWork | None:
        large = _four_dims(module, c, i)
        if len(large) < 3:
            return None
        query, key = large[0].dims, large[1].dims
        pairs = math.prod(query[:-2]) * float(query[-2]) * key[-2]
        shapes = [s for n in i.operands for s in arrays(module.shape_of(c, n))]
        computed_mask = any(
            s.dtype == "s32" and query[-2] in s.dims and len(s.dims) == 2 for s in shapes
        )
        blocks = next((s.dims[-1] for s in shapes if s.dtype == "s8" and s.size > 1), 1)
        visited = (blocks + 1) / (2 * blocks) if computed_mask else 1.0
        return KernelWork(
            2.0 * products * pairs * query[-1] * visited, exponentials * pairs * visited, None
        )

    return count


# Forward: scores and their product with the values. Backward, for keys and values: scores again,
# the weights' gradient, and two products; for queries: scores, the weights' gradient, one product.
_KNOWN: dict[str, Callable[..., KernelWork | None]] = {
    "splash_m[hq]a_fwd": _splash(2, 1),
    "splash_m[hq]a_dkv": _splash(4, 1),
    "splash_m[hq]a_dq": _splash(3, 1),
}


def _library_product(module: HloModule, c: Computation, i: Instruction) -> KernelWork | None:
    """A matrix product or convolution of a GPU library, from the shapes of what it takes and gives.

    For a product [m,k] x [k,n] -> [m,n] with b batches, m n k b = sqrt(mk nk mn b) in elements.
    """
    given = [s for n in i.operands[:2] for s in arrays(module.shape_of(c, n))]
    made = next(iter(arrays(i.shape)), None)
    if len(given) < 2 or made is None or not (given[0].size and given[1].size and made.size):
        return None
    if "conv" in target_of(i).lower():
        spatial = math.prod(_numbers(i.attributes.get("window", "")))
        channels = _channels(i, given, made)
        return KernelWork(2.0 * made.size * spatial * channels, 0.0, None)
    batch = _batch(i, given[0])
    product = math.sqrt(float(given[0].size) * given[1].size * made.size / batch)
    return KernelWork(2.0 * product, 0.0, None)


def _numbers(window: str) -> list[int]:
    match = re.search(r"size=([\dx]{1,60})", window)
    return [int(n) for n in match[1].split("x") if n] if match else [1]


def _channels(i: Instruction, given: list[Array], made: Array) -> int:
    """Input features that one output element of a convolution sums over."""
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", i.attributes.get("dim_labels", ""))
    if labels is None or "i" not in labels[2]:
        return 1
    kernel = made if "Filter" in target_of(i) else given[1]
    position = labels[2].index("i")
    return kernel.dims[position] if position < len(kernel.dims) else 1


def _batch(i: Instruction, left: Array) -> int:
    numbers = i.backend_config.get("gemm_backend_config", {})
    numbers = numbers.get("dot_dimension_numbers", {}) if isinstance(numbers, dict) else {}
    dims = numbers.get("lhs_batch_dimensions", []) if isinstance(numbers, dict) else []
    named = {str(d) for d in dims if isinstance(d, int | str)} if isinstance(dims, list) else set()
    known = [n for n in range(len(left.dims)) if str(n) in named]
    return max(1, math.prod(left.dims[d] for d in known))
