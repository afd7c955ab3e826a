"""A trained network in a file: arrays and their names, no pickle.

The file is NumPy's .npz. It says which version it has, what the network's sizes are and how many
features it reads, so that one that does not fit a game is refused with a reason.
"""

import dataclasses
import importlib.resources
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from memory_planner.agents.network import NetworkConfig, PolicyValue
from memory_planner.errors import MemoryPlannerError
from memory_planner.games.game import Observation

FORMAT = 1
_ABOUT = "about"
_REMEDY = "train another: python -m experiments.malloc_train --out=FOLDER"


@dataclasses.dataclass(frozen=True)
class StoredNetwork:
    """A network of `network.PolicyValue`.

    Attributes:
      config: its sizes.
      buffer_features: F of the observations that it reads.
      summary_features: G of them.
      params: its parameters, float32.
      history: how it was trained, for people.
    """

    config: NetworkConfig
    buffer_features: int
    summary_features: int
    params: Any
    history: str

    def check_fits(self, observation: Observation) -> None:
        """Checks that the network reads such observations.

        Raises:
          MemoryPlannerError: they have other features.
        """
        wanted = (self.buffer_features, self.summary_features)
        given = (observation.buffers.shape[-1], observation.summary.shape[-1])
        if wanted != given:
            raise MemoryPlannerError(
                f"The network reads {wanted[0]} features of a buffer and {wanted[1]} of the whole, "
                f"but the game shows {given[0]} and {given[1]}: it was trained for another game or "
                f"version; {_REMEDY}."
            )


def save_network(path: pathlib.Path, network: StoredNetwork) -> None:
    """Writes the file, complete or not at all."""
    about = {
        "format": FORMAT,
        "config": dataclasses.asdict(network.config),
        "buffer_features": network.buffer_features,
        "summary_features": network.summary_features,
        "history": network.history,
    }
    arrays: dict[str, np.ndarray] = traverse_util.flatten_dict(
        jax.device_get(network.params), sep="/"
    )
    content = io.BytesIO()
    arrays[_ABOUT] = np.array(json.dumps(about))
    np.savez_compressed(content, allow_pickle=False, **arrays)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.getvalue())
    partial.replace(path)


def load_network(path: pathlib.Path) -> StoredNetwork:
    """Reads the file.

    Raises:
      MemoryPlannerError: it is none, of another version, or its arrays do not fit its sizes.
    """
    try:
        return _parse(path.name, path.read_bytes())
    except OSError as error:
        raise MemoryPlannerError(f"{path} cannot be read ({error.strerror}).") from error


def order_network() -> StoredNetwork:
    """The network for the order game that is shipped with the library."""
    file = importlib.resources.files("memory_planner") / "data" / "order_network.npz"
    return _parse(file.name, file.read_bytes())


def _parse(name: str, content: bytes) -> StoredNetwork:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        about = json.loads(str(arrays.pop(_ABOUT)))
        version = about["format"]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise MemoryPlannerError(f"{name} is no stored network ({error}); {_REMEDY}.") from error
    if version != FORMAT:
        raise MemoryPlannerError(
            f"{name} has version {version} of the format, this library reads {FORMAT}; {_REMEDY}."
        )
    network = StoredNetwork(
        config=NetworkConfig(**about["config"]),
        buffer_features=about["buffer_features"],
        summary_features=about["summary_features"],
        params=traverse_util.unflatten_dict(arrays, sep="/"),
        history=about["history"],
    )
    _check_arrays(name, network, arrays)
    return network


def _check_arrays(name: str, network: StoredNetwork, arrays: Mapping[str, np.ndarray]) -> None:
    """The arrays are those of a network of these sizes."""
    one = np.zeros(1, np.float32)
    observation = Observation(
        buffers=np.zeros((1, network.buffer_features), np.float32),
        mask=one > 0,
        summary=np.zeros(network.summary_features, np.float32),
    )
    tree = jax.eval_shape(PolicyValue(network.config).init, jax.random.key(0), observation)
    wanted = {k: v.shape for k, v in traverse_util.flatten_dict(tree, sep="/").items()}
    given = {k: v.shape for k, v in arrays.items()}
    for key in sorted(wanted.keys() | given.keys()):
        if wanted.get(key) != given.get(key):
            raise MemoryPlannerError(
                f"{name} does not fit its own sizes: {key} has shape {given.get(key)}, a network "
                f"of {network.config} needs {wanted.get(key)}; {_REMEDY}."
            )
