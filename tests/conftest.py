"""Eight CPU devices for every test, and strictness that users do not pay for."""

import os
from collections.abc import Iterator

# Read when jax starts its backends, so they are set before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = {
    "xla_force_host_platform_device_count": "8",
    # How hard LLVM works on each kernel: the compiled HLO, which tests look at, stays the same.
    "xla_backend_optimization_level": "0",
    # Fewer and simpler modules for LLVM: programs of tests compile in half the time.
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}
for _name, _value in _FLAGS.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_name}={_value}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.hlo_checks import every_program_understood  # noqa: E402

# An accidental broadcast between ranks is a bug in a sharding rule more often than an intention.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def programs_are_understood() -> Iterator[None]:
    """The HLO reader knows every construct in every program that a test compiles and looks at."""
    with every_program_understood():
        yield


@pytest.fixture(scope="session", autouse=True)
def own_compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads what an earlier run compiled, or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOSHARD_CACHE_DIR", str(tmp_path_factory.mktemp("compile-cache")))
        yield
