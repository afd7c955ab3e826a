"""The checkpoint directory: whose it is, and the moving of steps that are in the way.

A marker file, written before anything else, makes a directory ours. Without it a directory that
holds anything at all is somebody's work, and is left as it is.
"""

import json

import orbax.checkpoint as ocp
from etils import epath

from autoshard.errors import CheckpointError

MARKER = "autoshard_checkpoint.json"
FORMAT = 1
SET_ASIDE = "set_aside"
# In the name of a step's folder until Orbax has written it all.
_UNFINISHED = ".orbax-checkpoint-tmp"


def claim(directory: epath.Path) -> None:
    """Makes `directory` ours, or checks that it is; writes nothing into anybody else's."""
    if ocp.multihost.is_primary_host(0):
        try:
            _claim_as_primary(directory)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint directory {directory} cannot be written to "
                f"({type(error).__name__}: {error.strerror or error}). Choose another one, or "
                f"change its permissions."
            ) from error
    ocp.multihost.sync_global_processes("autoshard_claim_directory")


def _claim_as_primary(directory: epath.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / (MARKER + ".tmp")
    found = sorted(p.name for p in directory.iterdir() if p.name != temporary.name)
    if not found:
        temporary.write_text(json.dumps({"autoshard_checkpoint_format": FORMAT}) + "\n")
        temporary.replace(directory / MARKER)  # Complete or absent, as everything here.
        return
    if MARKER not in found:
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise CheckpointError(
            f"The checkpoint directory {directory} is not autoshard's: it holds {shown} and no "
            f"{MARKER}. Nothing was changed there. Name an empty or new directory, such as "
            f"{directory / 'checkpoints'}."
        )
    _check_marker(directory / MARKER)
    # Orbax can do this too, but in the background, and by its own idea of what is unfinished.
    for leftover in directory.glob(f"*{_UNFINISHED}*"):
        leftover.rmtree()
    temporary.write_text("")  # Better to meet a read-only directory now than after an hour.
    temporary.unlink()


def _check_marker(marker: epath.Path) -> None:
    try:
        version = int(json.loads(marker.read_text())["autoshard_checkpoint_format"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{marker} cannot be read as autoshard's marker. If the folders beside it are your "
            f'checkpoints, write {{"autoshard_checkpoint_format": {FORMAT}}} into it; if not, name '
            f"another directory."
        ) from error
    if version > FORMAT:
        raise CheckpointError(
            f"{marker.parent} was written by a newer autoshard (format {version}; this one knows "
            f"format {FORMAT}). Update autoshard, or name another directory."
        )


def move_aside(directory: epath.Path, step: int) -> None:
    """Moves the folder of `step` below `set_aside/`, under a name that is still free."""
    aside = directory / SET_ASIDE
    aside.mkdir(exist_ok=True)
    target, n = aside / str(step), 0
    while target.exists():
        n += 1
        target = aside / f"{step}.{n}"
    (directory / str(step)).rename(target)
