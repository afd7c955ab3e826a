"""From decisions about buffers to options of the TPU compiler.

Memory-space assignment takes buffers in an order and gives each the best place that is left.
`xla_tpu_msa_sort_order_overrides` sets a buffer's place in that order,
`xla_tpu_preferred_prefetch_overrides` how early a copy into fast memory begins.
"""

import dataclasses
import re

ORDER_OPTION = "xla_tpu_msa_sort_order_overrides"
PREFETCH_OPTION = "xla_tpu_preferred_prefetch_overrides"
# The compiler matches every name whenever it compares two buffers: more make it slow.
MOST_NAMED = 128


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


def moved(order: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What an order moves before and behind the buffers that it leaves as they are.

    Args:
      order: of all buffers, numbered in the compiler's own order.

    Returns:
      The buffers before and behind the longest ascending run of the order, each first placed
      first. The run itself need not be named: the compiler has its buffers in that order anyway.
      Of more than `MOST_NAMED`, those nearest to the run are left to the compiler, too.
    """
    begin = first = length = 0
    for n in range(1, len(order) + 1):
        if n == len(order) or order[n] < order[n - 1]:
            if n - begin > length:
                first, length = begin, n - begin
            begin = n
    before, behind = order[:first], order[first + length :]
    if len(order) - length > MOST_NAMED:
        share = MOST_NAMED * len(before) // (len(order) - length)
        before, behind = before[:share], behind[len(behind) - (MOST_NAMED - share) :]
    return before, behind


def order_options(
    before: tuple[tuple[str, int], ...],
    behind: tuple[tuple[str, int], ...] = (),
    prefetches: tuple[Prefetch, ...] = (),
) -> dict[str, str]:
    """Compiler options that place buffers before or behind all others.

    Args:
      before: instruction and tuple index (-1: the whole) of each buffer, first to be placed first.
      behind: the same, behind what is not named.
      prefetches: overrides of when copies begin.

    Returns:
      Options as for `lowered.compile(compiler_options=...)`.
    """
    ranked = [(rank - len(before), name) for rank, name in enumerate(before)]
    ranked += [(rank + 1, name) for rank, name in enumerate(behind)]
    entries = []
    for rank, (instruction, index) in ranked:
        element = "" if index < 0 else f" tuple_index {{ index: {index} }}"
        entries.append(
            f'overrides {{ hlo_position_matcher {{ instruction_name_regex: "{_regex(instruction)}"'
            f"{element} }} override_options {{ assign_value: {rank} }} }}"
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
