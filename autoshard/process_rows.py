"""With several processes: the global batch, of which each process passes its own rows."""

from typing import Any

import jax

from autoshard.errors import PlanError


def global_batch(batch: Any, shardings: Any) -> Any:
    """The global batch; with one process it is the batch itself.

    Args:
      batch: this process's rows, as NumPy arrays or fully addressable arrays of JAX.
      shardings: of the global batch; None where it is not planned yet.

    Raises:
      PlanError: several processes, and nothing is planned.
    """
    if jax.process_count() == 1:
        return batch
    if shardings is None:
        raise PlanError(
            "with several processes the global batch must be known before the first step: pass "
            "batch= (ShapeDtypeStructs of the global batch) to autoshard.compile"
        )

    def whole(sharding: Any, x: Any) -> Any:
        local = not isinstance(x, jax.Array) or x.is_fully_addressable
        return jax.make_array_from_process_local_data(sharding, x) if local else x

    return jax.tree.map(whole, shardings, batch)
