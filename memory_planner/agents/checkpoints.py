"""A learner on disk, through Orbax: complete or absent, whatever kills the process.

Everything that a learner is goes in, its replay included, so that a run that was killed goes on to
the same parameters as one that was not.
"""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from memory_planner.agents.learner import Learner
from memory_planner.agents.replay import Replay
from memory_planner.errors import MemoryPlannerError


class LearnerCheckpoints:
    """The newest learners of one run.

    Args:
      directory: made if absent; holds nothing but checkpoints.
      run: what the run is, which must be the same when it goes on.
      keep: how many checkpoints stay.

    Raises:
      MemoryPlannerError: the directory holds something else, or cannot be written.
    """

    def __init__(self, directory: pathlib.Path, run: str, keep: int = 2):
        self.directory = directory.expanduser().resolve()
        self._run = run
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in self.directory.iterdir()]
        except OSError as error:
            raise MemoryPlannerError(
                f"{self.directory} cannot be written ({error.strerror}): name another folder."
            ) from error
        foreign = [n for n in names if not n.split(".")[0].isdigit() and not n.startswith(".")]
        if foreign:
            raise MemoryPlannerError(
                f"{self.directory} holds {foreign[0]}, which is no checkpoint: name an empty "
                f"folder."
            )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    def save(self, learner: Learner) -> None:
        """Writes the learner, under the number of its iteration."""
        leaves = {name: np.asarray(leaf) for name, leaf in _named(learner).items()}
        self._manager.save(
            learner.iteration,
            args=ocp.args.Composite(
                learner=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave({"run": self._run})
            ),
            force=True,
        )

    def restore(self, fresh: Learner) -> Learner:
        """The newest learner saved; `fresh` where there is none.

        Args:
          fresh: one of the same run that has not played yet, for the shapes.

        Raises:
          MemoryPlannerError: the run was another, or the checkpoint is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return fresh
        wanted = {name: np.asarray(leaf) for name, leaf in _named(fresh).items()}
        try:
            about = self._manager.restore(
                step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
            )["about"]
            if about["run"] != self._run:
                raise MemoryPlannerError(
                    f"{self.directory} holds another run: {about['run']}, and not {self._run}. Use "
                    f"the settings of then, or name another folder."
                )
            restored = self._manager.restore(
                step, args=ocp.args.Composite(learner=ocp.args.StandardRestore(wanted))
            )["learner"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, MemoryPlannerError):
                raise
            raise MemoryPlannerError(
                f"Checkpoint {step} in {self.directory} is damaged ({error}): remove its folder to "
                f"go on from the one before."
            ) from error
        return _rebuilt(fresh, restored)

    def close(self) -> None:
        """Frees what Orbax holds."""
        self._manager.close()


def _tree(learner: Learner) -> Any:
    return {
        "params": learner.params,
        "optimizer": learner.optimizer_state,
        "samples": learner.replay.samples,
        "added": learner.replay.added,
        "iteration": np.asarray(learner.iteration, np.int64),
    }


def _named(learner: Learner) -> dict[str, Any]:
    """Leaves by their paths."""
    leaves, _ = jax.tree.flatten_with_path(_tree(learner))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _rebuilt(fresh: Learner, leaves: dict[str, Any]) -> Learner:
    """The learner of named leaves; replay arrays are copied, as it writes into them."""
    names = list(_named(fresh))
    structure = jax.tree.structure(_tree(fresh))
    tree = jax.tree.unflatten(structure, [np.array(leaves[name]) for name in names])
    return Learner(
        params=tree["params"],
        optimizer_state=tree["optimizer"],
        replay=Replay(tree["samples"], tree["added"]),
        iteration=int(tree["iteration"]),
    )
