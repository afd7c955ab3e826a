"""The mapping, in bytes, that a game's memory stands for."""

import numpy as np

from memory_planner.games.placement import Memory
from memory_planner.padding import PaddedProblem
from memory_planner.problem import MemoryMapping, MemoryProblem, Stay


def to_mapping(problem: MemoryProblem, padded: PaddedProblem, memory: Memory) -> MemoryMapping:
    """One stay for each run of uses that are served at one place from one time on.

    Args:
      problem: what was padded.
      padded: its arrays, not a batch of them.
      memory: of one state.
    """
    served = np.asarray(memory.stays)
    hbm_from = np.asarray(memory.hbm_from)
    unit_bytes = int(padded.unit_bytes)
    operations, units = padded.shape.operations, padded.shape.units
    stays = []
    for number, buffer in enumerate(problem.buffers):
        row = served[number, : len(buffer.uses)]
        for code in dict.fromkeys(row[row >= 0].tolist()):
            begin, offset = divmod(code, units)
            uses = tuple(np.flatnonzero(row == code).tolist())
            end = buffer.uses[uses[-1]].time + 1
            is_copied = buffer.starts_in_hbm or begin != buffer.begin
            if not is_copied and hbm_from[number] <= operations:
                end = max(end, int(hbm_from[number]))
            stays.append(Stay(number, begin, end, offset * unit_bytes, is_copied, uses))
    return MemoryMapping(tuple(stays))
