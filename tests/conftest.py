"""Eight CPU devices for every test, and strictness that users do not pay for."""

import os

# Read when jax starts its backends, so they are set before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

import jax

# An accidental broadcast between ranks is a bug in a sharding rule more often than an intention.
jax.config.update("jax_numpy_rank_promotion", "raise")
