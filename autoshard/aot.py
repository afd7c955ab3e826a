"""Devices that are not here, and their compilers: the one place that reaches JAX's for them.

    name       devices                          compiler
    v5p:4x4x4  chips of a TPU slice             libtpu
    h100:8x4   8 GPUs in each of 4 hosts        the CUDA plug-in; no CUDA library is needed
    cpu:8      of this process                  the one inside jaxlib

Programs for them compile; only those of this process run.
"""

import dataclasses
import functools
import glob
import importlib.util
import io
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.extend import backend
from jax.interpreters import mlir
from jaxlib import xla_client

from autoshard.compile_messages import CompileRequest
from autoshard.compiled_program import CompiledMemory
from autoshard.errors import DeviceError, MeshError

_NAME = re.compile(r"(?:(\d+)\s*x\s+)?([a-z]\w*):(\d+(?:x\d+)*)")
_TPU = re.compile(r"v\d+[a-z]*|tpu\d+[a-z]*")
_HOST_BOUNDS = re.compile(r'chips_per_host_bounds "([\dx]+)"')

# Without these libtpu asks a metadata server which TPU it is on, says on standard error that it got
# no answer, and a second process that loads it stops at a lock file. The accelerator named here is
# that of the host, of which nothing is used.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# More arguments than this the runtime passes to a TPU as one tuple.
_TPU_MAX_SEPARATE_ARGUMENTS = 2000


@dataclasses.dataclass(frozen=True)
class _Name:
    text: str
    groups: int
    chip: str
    shape: tuple[int, ...]


def devices(topology: str) -> tuple[Any, ...]:
    """The devices of a topology, in its compiler's order.

    A device is a chip, on tpu7x half of one. Devices are in the order of their `id`: x fastest on a
    torus (the dies of a tpu7x chip before that), the devices of several slices after one another.

    Args:
      topology: a TPU slice `v5p:4x4x4`, several of them `2x v5e:16x16`, GPUs a host by hosts
        `h100:8x4`, or `cpu:8`.

    Raises:
      DeviceError: the compiler is not installed, or there are fewer CPU devices.
      MeshError: the name cannot be read, or the compiler knows no such machine.
    """
    name = _parse(topology)
    if name.chip == "cpu":
        return _cpu_devices(name)
    if name.chip in gpu_chips():
        return _gpu_devices(name)
    if _TPU.fullmatch(name.chip):
        return _tpu_devices(name)
    raise MeshError(
        f"no compiler is known for chip {name.chip!r} of {topology!r}: use a TPU such as 'v5e', "
        f"'v5p', 'v6e' or 'tpu7x', one of the GPUs {', '.join(gpu_chips())}, or 'cpu'"
    )


def _parse(topology: str) -> _Name:
    match = _NAME.fullmatch(topology.strip().lower())
    if match is None or "0" in re.split("[x:]", match[0]):
        raise MeshError(
            f"cannot read topology {topology!r}: write 'v5p:4x4x4' (a TPU slice), '2x v5e:16x16' "
            "(two of them), 'h100:8x4' (8 GPUs in each of 4 hosts) or 'cpu:8'"
        )
    shape = tuple(int(size) for size in match[3].split("x"))
    return _Name(topology, int(match[1] or 1), match[2], shape)


def _cpu_devices(name: _Name) -> tuple[Any, ...]:
    count = int(np.prod(name.shape)) * name.groups
    here = jax.devices("cpu")
    if len(here) < count:
        raise DeviceError(
            f"compiling for {name.text} needs {count} CPU devices and this process has "
            f"{len(here)}: set XLA_FLAGS=--xla_force_host_platform_device_count={count} before "
            "jax starts"
        )
    return tuple(here[:count])


def _tpu_devices(name: _Name) -> tuple[Any, ...]:
    if not _has("libtpu"):
        raise DeviceError(
            f"compiling for {name.text} needs libtpu, TPU or not: pip install 'jax[tpu]' "
            "(of the version of jax that is installed)"
        )
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        for variable, value in TPU_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
    slice_name = f"{name.chip}:{'x'.join(map(str, name.shape))}"
    options: dict[str, Any] = {"num_slices": name.groups} if name.groups > 1 else {}
    if set(name.shape) == {1}:  # a host with one chip, where libtpu expects four
        options["chips_per_host_bounds"] = (1, 1, 1)
    if name.chip == "v4":  # else each of its two cores is a device
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(slice_name, platform="tpu", **options).devices
        return tuple(sorted(found, key=lambda device: int(device.id)))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise MeshError(
            f"libtpu knows no TPU slice {name.text!r} ({reason}): {_remedy(name, reason)}"
        ) from error


def _remedy(name: _Name, reason: str) -> str:
    """What to write instead of a shape that libtpu refuses for its hosts, or of anything else."""
    bounds = _HOST_BOUNDS.search(reason)
    if bounds is None:
        return "write a chip and a shape, such as 'v5e:2x4' or 'v5p:4x4x4'"
    host = [int(size) for size in bounds[1].split("x")]
    nearest = [-(-size // unit) * unit for size, unit in zip(name.shape, host, strict=False)]
    slices = f"{name.groups}x " if name.groups > 1 else ""
    return (
        f"a host holds {bounds[1]} chips and a slice whole hosts, so the nearest larger one is "
        f"'{slices}{name.chip}:{'x'.join(map(str, nearest))}'"
    )


@functools.cache
def gpu_chips() -> tuple[str, ...]:
    """The GPUs that there are descriptions of, by name."""
    entries = resources.files("autoshard").joinpath("gpu_targets").iterdir()
    return tuple(
        sorted(e.name.removesuffix(".txtpb") for e in entries if e.name.endswith(".txtpb"))
    )


def device_memory_bytes(topology: str) -> int | None:
    """What a GPU has, to a compiler that does not refuse programs for it; None for others."""
    match = re.search(r"device_memory_size: (\d+)", target_config(topology))
    return int(match[1]) if match else None


def _has(*modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) for module in modules)
    except ModuleNotFoundError:  # the package around it is missing, too
        return False


def target_config(topology: str) -> str:
    """The description of a GPU topology's chip that the compiler works from; empty for others."""
    chip = _parse(topology).chip
    if chip not in gpu_chips():
        return ""
    return resources.files("autoshard").joinpath("gpu_targets", f"{chip}.txtpb").read_text()


def _gpu_devices(name: _Name) -> tuple[Any, ...]:
    if not any(_has(f"jax_cuda{v}_plugin", f"jax_plugins.xla_cuda{v}") for v in (12, 13)):
        raise DeviceError(
            f"compiling for {name.text} needs JAX's CUDA plug-in, GPU or not: pip install "
            f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
        )
    if len(name.shape) > 2:
        raise MeshError(
            f"{name.text!r} has {len(name.shape)} sizes: write GPUs a host by hosts, such as "
            f"'{name.chip}:8x4', or '{name.chip}:8' for one host"
        )
    per_host, hosts = (*name.shape, 1)[:2]
    if not glob.glob("/dev/nvidia[0-9]*"):
        # Otherwise the plug-in refuses to start without the CUDA libraries, which only running
        # needs, in a process that did not set JAX_PLATFORMS.
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        description = topologies.get_topology_desc(
            "",
            platform="cuda",
            topology=f"{name.groups}x{hosts}x{per_host}",
            target_config=target_config(name.text),
        )
    except NotImplementedError as error:
        raise DeviceError(
            f"JAX's CUDA plug-in did not start in this process, which compiling for {name.text} "
            "needs: set JAX_PLATFORMS=cpu before jax starts"
        ) from error
    except Exception as error:
        raise MeshError(
            f"the CUDA plug-in cannot compile for {name.text!r} ({str(error).splitlines()[0]})"
        ) from error
    return tuple(description.devices)


def make_request(
    lowered: jax.stages.Lowered,
    topology: str,
    program_devices: tuple[Any, ...],
    compiler_options: Mapping[str, Any],
) -> CompileRequest:
    """What another process needs to compile a lowered program as `lowered.compile` would.

    Args:
      lowered: the program.
      topology: what `devices` makes the devices of.
      program_devices: the devices of its mesh, in the mesh's order.
      compiler_options: as for `lowered.compile`.

    Raises:
      MeshError: the program is for another number of devices.
    """
    module: Any = lowered.compiler_ir("stablehlo")
    partitions = module.operation.attributes["mhlo.num_partitions"].value
    if partitions != len(program_devices):
        raise MeshError(
            f"the program is partitioned for {partitions} devices and the mesh given with it has "
            f"{len(program_devices)}: give the devices of the mesh that it was lowered for"
        )
    client = program_devices[0].client
    options = backend.get_compile_options(
        num_replicas=1,
        num_partitions=len(program_devices),
        device_assignment=np.array([[device.id for device in program_devices]]),
        env_options_overrides=dict(compiler_options),
        backend=client,
    )
    arguments, results = _main_attributes(module)
    options.parameter_is_tupled_arguments = (
        client.platform == "tpu" and len(arguments) > _TPU_MAX_SEPARATE_ARGUMENTS
    )
    build = options.executable_build_options
    build.allow_spmd_sharding_propagation_to_parameters = [_is_open(a) for a in arguments]
    build.allow_spmd_sharding_propagation_to_output = [_is_open(r) for r in results]
    code = io.BytesIO()
    module.operation.write_bytecode(code)
    return CompileRequest(
        topology=topology,
        device_ids=tuple(device.id for device in program_devices),
        module=code.getvalue(),
        options=options.SerializeAsString(),
    )


def _main_attributes(module: Any) -> tuple[list[Any], list[Any]]:
    """The attributes of each argument and of each result of a module's entry function."""
    for operation in module.body.operations:
        attributes = operation.operation.attributes
        if "sym_name" in attributes and attributes["sym_name"].value == "main":
            results = len(operation.type.results)
            none: list[dict[str, Any]] = [{}] * results
            has = "res_attrs" in attributes
            return list(operation.arg_attrs), list(attributes["res_attrs"]) if has else none
    raise MeshError("the lowered program has no entry function: lower it with jax.jit(f).lower")


def _is_open(attributes: Any) -> bool:
    """Whether the compiler may choose how an argument or result is sharded."""
    return "sdy.sharding" not in attributes and "mhlo.sharding" not in attributes


def compile_request(request: CompileRequest, dump: Path) -> tuple[str, CompiledMemory]:
    """Compile in this process; the scheduled HLO text, and memory of one device.

    Args:
      request: the program.
      dump: a folder for what the compiler writes about it.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's verdict.
    """
    by_id = {device.id: device for device in devices(request.topology)}
    chosen = tuple(by_id[number] for number in request.device_ids)
    options = xla_client.CompileOptions.ParseFromString(request.options)
    given = list(options.env_option_overrides)
    options.env_option_overrides = [*given, *_dump_options(dict(given), dump).items()]
    with mlir.make_ir_context():
        executable = chosen[0].client.compile(
            mlir.ir.Module.parse(request.module),
            executable_devices=xla_client.DeviceList(chosen),
            compile_options=options,
        )
    text = "\n\n".join(module.to_string() for module in executable.hlo_modules())
    return text, compiled_memory(executable.get_compiled_memory_stats())


def compile_lowered(
    lowered: jax.stages.Lowered, compiler_options: Mapping[str, Any], dump: Path
) -> tuple[str, CompiledMemory]:
    """The same of a program of this process, through JAX's own front."""
    options = {**compiler_options, **_dump_options(compiler_options, dump)}
    compiled = lowered.compile(compiler_options=options)
    return compiled.as_text() or "", compiled_memory(compiled.memory_analysis())


def _dump_options(compiler_options: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Options to dump into a folder, unless the user has the compiler dump elsewhere."""
    elsewhere = "xla_dump_to" in compiler_options or "xla_dump_to" in os.environ.get(
        "XLA_FLAGS", ""
    )
    return {} if elsewhere else {"xla_dump_to": str(folder)}


def compiled_memory(stats: Any) -> CompiledMemory:
    """From what `jax.stages.Compiled.memory_analysis` returns."""
    return CompiledMemory(
        arguments_bytes=stats.argument_size_in_bytes,
        outputs_bytes=stats.output_size_in_bytes,
        aliased_bytes=stats.alias_size_in_bytes,
        temporaries_bytes=stats.temp_size_in_bytes,
        code_bytes=stats.generated_code_size_in_bytes,
        peak_bytes=max(0, getattr(stats, "peak_memory_in_bytes", 0)),
        host_arguments_bytes=stats.host_argument_size_in_bytes,
        host_outputs_bytes=stats.host_output_size_in_bytes,
        host_aliased_bytes=stats.host_alias_size_in_bytes,
        host_temporaries_bytes=stats.host_temp_size_in_bytes,
    )
