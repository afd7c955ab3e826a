"""1F1B: a microbatch's backward pass begins in the tick in which its forward pass ends.

    stage 0   F F F F3 F4 ..          Bk: backward of microbatch k, in the same tick as a forward
    stage 1     F F F2B0 ..           S = 3: after S-1 ticks of forward alone, every tick does both;
    stage 2       F0B0 F1B1 ..        at the end S-1 ticks of backward alone

A stage keeps its inputs of at most 2S-1 microbatches, however many there are. ("PipeDream-Flush",
Narayanan et al., 2021, section 2.2.1, in lockstep.)
"""

from passes.pipelining.schedule import Backward, Phase, Run, Schedule


def one_f_one_b(stages: int, microbatches: int) -> Schedule:
    """The schedule."""
    everything = Backward.EVERYTHING
    return Schedule(
        "1f1b",
        stages,
        microbatches,
        1,
        (
            Phase((Run(stages - 1, enters=True, forward=True),)),
            Phase((Run(microbatches, True, True, True, everything, True),)),
            Phase((Run(stages - 1, backward=everything, returns=True),)),
        ),
    )
