"""From decisions about buffers to options of the TPU compiler.

Memory-space assignment takes buffers in an order and gives each the best place that is left.
`xla_tpu_msa_sort_order_overrides` sets a buffer's place in that order,
`xla_tpu_preferred_prefetch_overrides` how early a copy into fast memory begins.
"""

import dataclasses
import re

ORDER_OPTION = "xla_tpu_msa_sort_order_overrides"
PREFETCH_OPTION = "xla_tpu_preferred_prefetch_overrides"


@dataclasses.dataclass(frozen=True)
class Prefetch:
    """How early the copy of an operand begins.

    Attributes:
      instruction: that reads it.
      operand: its number.
      eagerness: 0 as early as it can, 1 as late.
    """

    instruction: str
    operand: int
    eagerness: float


def order_options(
    order: tuple[tuple[str, int], ...], prefetches: tuple[Prefetch, ...] = ()
) -> dict[str, str]:
    """Compiler options that place buffers in an order.

    Args:
      order: instruction and tuple index (-1: the whole) of each buffer, first to be placed first;
        buffers not named come behind.
      prefetches: overrides of when copies begin.

    Returns:
      Options as for `lowered.compile(compiler_options=...)`.
    """
    entries = []
    for rank, (instruction, index) in enumerate(order):
        element = "" if index < 0 else f" tuple_index {{ index: {index} }}"
        entries.append(
            f'overrides {{ hlo_position_matcher {{ instruction_name_regex: "{_regex(instruction)}"'
            f"{element} }} override_options {{ assign_value: {rank - len(order)} }} }}"
        )
    options = {ORDER_OPTION: " ".join(entries)} if entries else {}
    if prefetches:
        options[PREFETCH_OPTION] = " ".join(
            f'overrides {{ hlo_operand_filter {{ instruction_name_regex: "{_regex(p.instruction)}" '
            f"operand_number: {p.operand} }} override_options {{ prefetch_eagerness: "
            f"{p.eagerness:g} }} }}"
            for p in prefetches
        )
    return options


def _regex(name: str) -> str:
    """A pattern for one name, with backslashes doubled as a text proto wants them."""
    return re.escape(name).replace("\\", "\\\\")
