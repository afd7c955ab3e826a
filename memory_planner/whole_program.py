"""Options that change memory-space assignment for a program as a whole.

They change how operations are tiled, so that what is known of an operation's cycles does not hold
under others: each is judged by a whole compilation.
"""

import dataclasses
from collections.abc import Callable, Mapping

from memory_planner.evaluation import Compiler, Evaluator, Trial

SWEEP = "option sweep"
# `xla_tpu_scoped_vmem_limit_kib` is what operations may take for themselves; what is left of VMEM
# is for values. The other bounds how long before its use a value may be fetched.
OPTIONS: tuple[Mapping[str, str], ...] = (
    {"xla_tpu_scoped_vmem_limit_kib": "8192"},
    {"xla_tpu_scoped_vmem_limit_kib": "24576"},
    {"xla_tpu_scoped_vmem_limit_kib": "32768"},
    {"xla_msa_max_overlap_to_mem_size_async_copy_ratio": "2"},
)


def sweep(
    evaluator: Evaluator, options: tuple[Mapping[str, str], ...], progress: Callable[[str], None]
) -> list[Trial]:
    """Compile a program wholly under each of some options."""
    trials = []
    for chosen in options:
        trial = evaluator.confirm(Trial(tuple(sorted(chosen.items())), SWEEP))
        trials.append(trial)
        total = "does not compile" if trial.confirmed is None else f"{trial.confirmed.total:.0f}"
        progress(f"{', '.join(f'{k}={v}' for k, v in chosen.items())}: {total}")
    return trials


@dataclasses.dataclass(frozen=True)
class WithOptions:
    """A compiler under options that all of its compilations have.

    Attributes:
      compiler: the one beneath.
      options: what it always gets; those of a compilation go before them.
    """

    compiler: Compiler
    options: Mapping[str, str]

    def assign(self, options: Mapping[str, str], *, with_log: bool) -> tuple[str, str]:
        """See `evaluation.Compiler`."""
        return self.compiler.assign({**self.options, **options}, with_log=with_log)

    def compile(self, options: Mapping[str, str]) -> str:
        """See `evaluation.Compiler`."""
        return self.compiler.compile({**self.options, **options})
