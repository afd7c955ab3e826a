"""Two processes, each with its own rows of the batch, train as one does."""

import json
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import jax
index, count, port = map(int, sys.argv[1:])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
import numpy as np, optax
import autoshard
from tests.autoshard import cases

spec = cases.small("gpt2", num_layers=1)
program = autoshard.compile(spec.build(), "data=2,model=2", batch=spec.example_batch(8),
                            rules="zero3+redco", optimizer=optax.adam(1e-2))
whole = cases.random_batch(spec.example_batch(8))
rows = 8 // count
mine = {key: value[index * rows : (index + 1) * rows] for key, value in whole.items()}
state = program.init(0)
losses = []
for _ in range(3):
    state, metrics = program.step(state, mine)
    losses.append(float(metrics["loss"]))
losses.append(float(program.eval(state, mine)["loss"]))
print(json.dumps(losses))
"""


def run(count: int) -> list[list[float]]:
    """The losses that each of `count` processes sees, four devices in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={4 // count}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(index), str(count), str(port)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    outputs = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def test_two_processes_train_as_one_does() -> None:
    (alone,) = run(1)
    first, second = run(2)
    assert first == second == pytest.approx(alone, rel=1e-5)
    assert alone[-1] < alone[0]
