"""Interleaved 1F1B: each stage holds several chunks of the model, so its ticks are shorter.

Piece p = c * S + s is chunk c of stage s. Microbatches go in groups of S. A tick is a chunk's work,
1/v of a stage's, and the S-1 ticks that are lost are those: (S-1) / (Mv + S-1) of the time.
("Efficient Large-Scale Language Model Training", Narayanan et al., 2021, section 2.2.2, in
lockstep.)

The epilogue and prologue have something to do in S of S * v ticks, and run in those alone.
"""

from passes.errors import PassError
from passes.pipelining.schedule import Backward, Phase, Run, Schedule


def interleaved(stages: int, microbatches: int, chunks: int) -> Schedule:
    """The schedule.

    Raises:
      PassError: microbatches do not divide into groups of as many as there are stages.
    """
    if microbatches % stages:
        up = -(-microbatches // stages) * stages
        raise PassError(
            f"interleaved takes microbatches in groups of {stages}, one for each stage, and "
            f"{microbatches} do not divide: use {up} microbatches, or schedule='1f1b'"
        )
    everything = Backward.EVERYTHING
    rest = stages * (chunks - 1)
    busy = Run(stages, True, True, True, everything, True)
    return Schedule(
        "interleaved",
        stages,
        microbatches,
        chunks,
        (
            Phase((Run(stages - 1, enters=True, forward=True), Run(rest, forward=True))),
            Phase((busy, Run(rest, forward=True, backward=everything)), microbatches // stages - 1),
            Phase((busy,)),
            Phase((Run(rest, backward=everything),)),
            Phase((Run(stages - 1, backward=everything, returns=True),)),
        ),
    )
