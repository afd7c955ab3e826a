"""Checkpoints: a training state that comes back on any mesh, under any sharding rules.

A checkpoint directory holds one folder per saved step, written by Orbax, and a marker file that
says that the directory is ours. Everything is stored by the *name* of the leaf and its whole shape,
never by device, so what eight devices saved under one plan restores onto two under another.

    with Checkpointer("runs/gpt2", keep=3) as checkpoints:
        restored = checkpoints.restore(compiled.abstract_state)
        ...
        checkpoints.save(step, state, data_state=data.get_state(), plan=compiled.plan.to_json())

Two promises shape this file. A save is complete or absent, whatever kills the process. And no
input, however wrong, makes us delete or overwrite a checkpoint: what stands in the way of a resumed
run is moved aside, and a directory that we did not make is refused.
"""

import base64
import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from autoshard import checkpoint_directory, checkpoint_tree
from autoshard.errors import CheckpointError

# Of a step's contents; the directory's own format is in its marker.
FORMAT = 1

DataState = bytes | Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` brings back.

    Attributes:
      state: the pytree that was saved, on the shardings of the `abstract_state` that was asked for.
      data_state: the data iterator's state as it was given to `save` (bytes, dict or None).
      plan: the plan's JSON dict as it was given to `save`, or None.
      metrics: the metrics given to `save`, or None.
      step: the step of the checkpoint.
    """

    state: Any
    data_state: Any
    plan: dict[str, Any] | None
    metrics: dict[str, float] | None
    step: int


class Checkpointer:
    """Saves and restores training states in one directory.

    Args:
      directory: a path that is empty, absent, or was made by a Checkpointer. Created if absent.
      keep: how many of the newest steps stay; older ones are deleted once a newer one is complete.
      save_every: `save` without `force` does nothing unless `step` is a multiple of this.
      asynchronous: whether `save` returns once the state has left the devices, the writing going on
        in the background, or only when the files are complete.

    Raises:
      CheckpointError: the directory belongs to something else, cannot be written, or was made by a
        newer autoshard.
    """

    def __init__(
        self,
        directory: str | epath.PathLike,
        *,
        keep: int = 3,
        save_every: int = 1,
        asynchronous: bool = True,
    ):
        if keep < 1 or save_every < 1:
            raise CheckpointError(
                f"keep and save_every count checkpoints and steps and must be at least 1, but are "
                f"{keep} and {save_every}."
            )
        self.directory = epath.Path(directory).expanduser().resolve()
        self.save_every = save_every
        checkpoint_directory.claim(self.directory)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=asynchronous,
                # Opening must not fail on a damaged step: that is for `restore` to explain.
                lightweight_initialize=True,
            ),
        )
        # The step that this run goes on from; None until known. A directory that already holds
        # steps must be restored from before it is written to, else a forgotten `restore` would let
        # a new run's steps push the old run's out.
        self._base: int | None = None if self.steps() else -1

    def steps(self) -> tuple[int, ...]:
        """The steps on disk, in increasing order; the last may still be being written."""
        return tuple(sorted(self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """The newest complete step, or None. Waits for a save in progress."""
        self.wait()
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_state: DataState = None,
        plan: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Saves `state` as `step`; returns whether a save was started.

        The caller may donate the state's buffers as soon as this returns.

        Args:
          step: the number of updates that `state` has seen.
          state: any pytree of arrays, typed PRNG keys included.
          data_state: the data iterator's position, bytes or a JSON-able dict.
          plan: the plan's JSON dict, kept so that a checkpoint explains itself.
          metrics: plain numbers to keep beside the state.
          force: save also where `step` is not a multiple of `save_every`. A step that is complete
            already is never saved again.

        Raises:
          CheckpointError: the directory holds an earlier run's steps that were not restored from,
            or an earlier asynchronous save failed.
        """
        if not force and step % self.save_every:
            return False
        if step == self._base:
            return False
        self._make_way(step)
        if step in self.steps():
            return False
        leaves = checkpoint_tree.to_storable(state)
        about = {
            "format": FORMAT,
            "leaves": {name: spec.to_json() for name, spec in leaves.specs.items()},
            "data_state": _encode_data_state(data_state),
            "plan": None if plan is None else dict(plan),
            "metrics": None if metrics is None else {k: float(v) for k, v in metrics.items()},
        }
        json.dumps(about)  # Fail here, in the caller's stack, and not in the writing thread.
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves.arrays), about=ocp.args.JsonSave(about)
                ),
                force=True,
            )
        except Exception as error:
            raise self._save_failed(error) from error
        return True

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
        """Restores `step`, or the newest, onto the shardings of `abstract_state`.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` (arrays do as well) with the shardings
            wanted; a leaf without one goes to the default device.
          step: one of `steps()`.

        Raises:
          CheckpointError: there is no such step; it is damaged, in which case the message lists the
            older ones; or its leaves differ from `abstract_state`, all differences named.
        """
        self.wait()
        known = self.steps()
        if not known:
            raise CheckpointError(
                f"{self.directory} holds no complete checkpoint to restore. Start a new run there, "
                f"or name the directory of the run to go on with."
            )
        step = known[-1] if step is None else step
        if step not in known:
            raise CheckpointError(
                f"{self.directory} holds no checkpoint of step {step}; it holds "
                f"{_listed(known)}. Ask for one of these."
            )
        about = self._read_about(step, known)
        stored = {n: checkpoint_tree.LeafSpec.from_json(v) for n, v in about["leaves"].items()}
        wanted = checkpoint_tree.specs_of(abstract_state)
        differences = checkpoint_tree.differences(stored, wanted)
        if differences:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self.directory} is of another model or "
                f"optimizer: {'; '.join(differences)}. Restore it with the model, dtype and "
                f"optimizer that it was saved with; the mesh and the sharding rules may differ."
            )
        arrays = self._read_state(step, known, checkpoint_tree.restore_targets(abstract_state))
        self._base = step
        return Restored(
            state=checkpoint_tree.from_storable(arrays, stored, abstract_state),
            data_state=_decode_data_state(about["data_state"]),
            plan=about["plan"],
            metrics=about["metrics"],
            step=step,
        )

    def wait(self) -> None:
        """Returns when no save is in progress; raises CheckpointError if one failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_failed(error) from error

    def close(self) -> None:
        """Waits for a save in progress and releases the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def _make_way(self, step: int) -> None:
        """Moves steps newer than the restored one aside, where this run will save its own."""
        if self._base is None:
            raise CheckpointError(
                f"{self.directory} already holds the checkpoints of an earlier run "
                f"({_listed(self.steps())}). Restore from it first (--resume), or choose an empty "
                f"directory: saving step {step} of a new run there would drop the earlier run's."
            )
        stale = [s for s in self.steps() if s > self._base] if self._base >= 0 else []
        self._base = -1
        if not stale:
            return
        if ocp.multihost.is_primary_host(0):
            for old in stale:
                checkpoint_directory.move_aside(self.directory, old)
        ocp.multihost.sync_global_processes("autoshard_set_aside")
        self._manager.reload()

    def _read_about(self, step: int, known: Sequence[int]) -> dict[str, Any]:
        try:
            composite = self._manager.restore(
                step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
            )
            about = composite["about"]
            version = about["format"]
        except Exception as error:
            raise self._damaged(step, known, error) from error
        if version != FORMAT:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self.directory} has format {version}, and this "
                f"autoshard reads format {FORMAT}. Restore it with the version that wrote it."
            )
        return dict(about)

    def _read_state(self, step: int, known: Sequence[int], targets: dict[str, Any]) -> Any:
        try:
            composite = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(targets))
            )
            # Damage must show here, not in the first step, where arrays are filled lazily.
            return jax.block_until_ready(composite["state"])
        except Exception as error:
            raise self._damaged(step, known, error) from error

    def _damaged(self, step: int, known: Sequence[int], error: Exception) -> CheckpointError:
        others = [s for s in known if s < step]
        remedy = (
            f"Restore an older one, {_listed(others)} (--resume --resume_step={others[-1]}): "
            f"the damaged one is then moved aside, not deleted."
            if others
            else "There is no older one: start again in another directory."
        )
        cause = " ".join(str(error).split())[:200]
        return CheckpointError(
            f"The checkpoint of step {step} in {self.directory} is damaged and cannot be read "
            f"({type(error).__name__}: {cause}). {remedy}"
        )

    def _save_failed(self, error: Exception) -> CheckpointError:
        cause = " ".join(str(error).split())[:200]
        complete = sorted(
            int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and p.is_dir()
        )
        left = f"complete checkpoints: {_listed(complete)}" if complete else "none is complete yet"
        return CheckpointError(
            f"Saving a checkpoint in {self.directory} failed ({type(error).__name__}: {cause}); "
            f"{left}. Check the free space and the permissions there, then run again with --resume."
        )


def _encode_data_state(data_state: DataState) -> dict[str, Any] | None:
    if data_state is None:
        return None
    if isinstance(data_state, bytes):
        return {"base64": base64.b64encode(data_state).decode("ascii")}
    return {"json": dict(data_state)}


def _decode_data_state(encoded: Mapping[str, Any] | None) -> Any:
    if encoded is None:
        return None
    if "base64" in encoded:
        return base64.b64decode(encoded["base64"])
    return encoded["json"]


def _listed(steps: Sequence[int]) -> str:
    return ("step " if len(steps) == 1 else "steps ") + ", ".join(str(s) for s in steps)
