"""Networks in files: what is written is read, and what does not fit is refused with a reason."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from memory_planner.agents.network import NetworkConfig, PolicyValue
from memory_planner.agents.stored_network import StoredNetwork, load_network, save_network
from memory_planner.errors import MemoryPlannerError
from memory_planner.games.game import Observation


@pytest.fixture(scope="module")
def stored() -> StoredNetwork:
    config = NetworkConfig(width=8, layers=1, heads=2, choices=2)
    params = jax.jit(PolicyValue(config).init)(jax.random.key(0), seen(3, 2))
    return StoredNetwork(config, 3, 2, params, "untrained")


def seen(features: int, summary: int) -> Observation:
    rows = np.ones((4, features), np.float32)
    return Observation(rows, np.ones(4, bool), np.ones(summary, np.float32))


def test_what_is_written_is_read(stored: StoredNetwork, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "network.npz"
    save_network(path, stored)
    again = load_network(path)
    jax.tree.map(np.testing.assert_array_equal, again.params, stored.params)
    assert dataclasses.replace(again, params=None) == dataclasses.replace(stored, params=None)
    assert [p.name for p in tmp_path.iterdir()] == ["network.npz"]
    again.check_fits(seen(3, 2))
    with pytest.raises(MemoryPlannerError, match="3 features of a buffer and 2 of the whole, but"):
        again.check_fits(seen(4, 2))


def rewrite(path: pathlib.Path, **changes: object) -> None:
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    about = json.loads(str(arrays.pop("about"))) | changes
    np.savez(path, about=np.array(json.dumps(about)), **arrays)


def test_other_version_and_other_sizes_are_refused(
    stored: StoredNetwork, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "network.npz"
    save_network(path, stored)
    rewrite(path, format=99)
    with pytest.raises(MemoryPlannerError, match="version 99 of the format, this library reads 1"):
        load_network(path)
    rewrite(path, format=1, buffer_features=7)
    with pytest.raises(MemoryPlannerError, match=r"buffers/kernel has shape \(9, 8\).*\(21, 8\)"):
        load_network(path)


def test_damaged_absent_and_pickled_files_are_refused(
    stored: StoredNetwork, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "network.npz"
    save_network(path, stored)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(MemoryPlannerError, match=r"network.npz is no stored network"):
        load_network(path)
    np.savez(path, about=np.array({"format": 1}, dtype=object))
    with pytest.raises(MemoryPlannerError, match=r"no stored network .*allow_pickle"):
        load_network(path)
    with pytest.raises(MemoryPlannerError, match="cannot be read"):
        load_network(tmp_path / "nothing.npz")
