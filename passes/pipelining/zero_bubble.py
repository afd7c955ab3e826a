"""Zero bubble: weight gradients that are early wait for the ticks that would be idle.

    warm-up S-1 ticks      forward
    next S-1 ticks         forward, input gradients           no weight gradient yet
    until the last F       forward, input and weight gradients
    last S-1 ticks         input and weight gradients

In the second phase stage s meets its first s microbatches; at the end it has s ticks in which no
other microbatch is left, and does their weight gradients there. So all stages do weight gradients
in the same M ticks, and only these have them: M(f + b + w) + (S-1)(f + b) in all, where 1F1B takes
(S-1) w longer. The price is computed again for deferred microbatches; what is kept for them, an
input and an output gradient of the stage each, fits into the 2S-1 slots that 1F1B's first stage
needs, because the stages that defer most have fewest microbatches under way.

The split of the backward pass is that of "Zero Bubble Pipeline Parallelism" (Qi et al., 2023).
Their ZB-H1 waits (S-1)(f + b - w): there stages do different work at the same time.
"""

from passes.errors import PassError
from passes.pipelining.schedule import Backward, Phase, Run, Schedule


def zero_bubble(stages: int, microbatches: int) -> Schedule:
    """The schedule.

    Raises:
      PassError: fewer microbatches than stages.
    """
    if microbatches < stages:
        raise PassError(
            f"zero_bubble needs a microbatch for each of its {stages} stages, and there are "
            f"{microbatches}: use more microbatches, or schedule='1f1b'"
        )
    inputs, everything = Backward.INPUTS, Backward.EVERYTHING
    return Schedule(
        "zero_bubble",
        stages,
        microbatches,
        1,
        (
            Phase((Run(stages - 1, enters=True, forward=True),)),
            Phase((Run(stages - 1, True, True, True, inputs),)),
            Phase((Run(microbatches - stages + 1, True, True, True, everything, True),)),
            Phase((Run(stages - 1, backward=everything, returns=True),)),
        ),
        defers=True,
    )
