"""What leaves the house: the wheel, and pins that keep the promises of pyproject.toml."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SHIPPED = ("autoshard", "memory_planner", "models", "passes")
KEPT_BACK = ("benchmarks", "docs", "experiments", "tests")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, Version]:
    """Package -> pinned version of a requirements file."""
    lines = (ROOT / name).read_text().splitlines()
    matches = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines if line[:1] not in "#-"]
    assert all(matches), f"{name} has a line that is no pin"
    return {canonicalize_name(m[1]): Version(m[2]) for m in matches if m}


def requirements(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the run-time dependencies and those of `extras`."""
    optional = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [Requirement(line) for line in lines if not line.startswith("autoshard[")]


def _installed(name: str) -> Version | None:
    try:
        return Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the tree, built in a copy and without the network."""
    if (_installed("setuptools") or Version("0")) < Version("77"):
        pytest.skip("needs the setuptools that `make test` installs")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in (*SHIPPED, *KEPT_BACK):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    options = ["--no-index", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    built = subprocess.run(
        [*command, *options, str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {*SHIPPED, f"autoshard-{PROJECT['version']}.dist-info"}


def test_wheel_holds_every_module_and_the_type_markers(wheel: zipfile.ZipFile) -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in SHIPPED
        for path in (ROOT / package).rglob("*.py")
    }
    markers = {f"{package}/py.typed" for package in SHIPPED}
    in_wheel = {name for name in wheel.namelist() if name.split("/")[0] in SHIPPED}
    missing = (modules | markers) - in_wheel
    assert not missing, "a subpackage without __init__.py is left out of the wheel"
    assert not [name for name in in_wheel if name.endswith((".pyc", "BUILD"))]


def test_wheel_names_its_licence_and_extras(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
    metadata = wheel.read(name).decode()
    assert "License-Expression: Apache-2.0" in metadata
    for extra in ("docs", "experiments", "gpu", "report", "test", "tpu"):
        assert f"Provides-Extra: {extra}\n" in metadata


@pytest.mark.parametrize(
    ("files", "extras"),
    [
        (("requirements.txt",), ("experiments", "report")),
        (("requirements.txt", "requirements-test.txt"), ("experiments", "report", "tpu", "test")),
    ],
)
def test_pins_meet_what_pyproject_asks_for(files: tuple[str, ...], extras: tuple[str, ...]) -> None:
    pinned: dict[str, Version] = {}
    for name in files:
        pinned |= pins(name)
    for requirement in requirements(*extras):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement} has no pin: run `make lock`"
        assert pinned[name] in requirement.specifier, f"{name} {pinned[name]}: run `make lock`"


def test_pins_are_closed() -> None:
    """Every dependency of a pinned package is pinned, at a version that it accepts."""
    pinned = pins("requirements.txt") | pins("requirements-test.txt")
    if any(_installed(name) != version for name, version in pinned.items()):
        pytest.skip("this is not the environment that `make test` sets up")
    for name in pinned:
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            dependency = canonicalize_name(needed.name)
            assert dependency in pinned, f"{name} needs {needed}: run `make lock`"
            assert pinned[dependency] in needed.specifier, f"{name} needs {needed}"


def test_test_pins_build_on_run_pins() -> None:
    assert "-r requirements.txt" in (ROOT / "requirements-test.txt").read_text().splitlines()
    assert not pins("requirements.txt").keys() & pins("requirements-test.txt").keys()


def test_importing_starts_no_backend() -> None:
    """`jax.distributed.initialize` must come before a backend, and after a user's imports."""
    imports = "import autoshard, memory_planner, models, passes, memory_planner.offsets"
    imports += ", autoshard.memory_mapping, memory_planner.agents.muzero"
    # JAX raises for a platform that does not exist, once something needs one.
    environment = os.environ | {"JAX_PLATFORMS": "nosuch"}
    command = [sys.executable, "-c", imports]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
