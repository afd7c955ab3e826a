"""autoshard: plans, compiles and checks the parallel execution of Flax models.

compiled = autoshard.compile(model, mesh)
state = compiled.init(rng, batch)
state, metrics = compiled.step(state, batch)
print(compiled.plan.explain())
"""

from autoshard import rule_sets as rules
from autoshard.api import compile, default_optimizer
from autoshard.cache_transfer import CacheTransfer, cache_transfer
from autoshard.checkpoint import Checkpointer
from autoshard.compiled_function import CompiledFunction
from autoshard.compiled_inference import CompiledInference
from autoshard.compiled_model import CompiledModel
from autoshard.errors import (
    AutoshardError,
    BatchError,
    CheckpointError,
    DeviceError,
    LossError,
    MeshError,
    ModelError,
    NoFitError,
    PassError,
    PlanError,
    RuleError,
    UnmodelledError,
)
from autoshard.inference import InferenceShape
from autoshard.memory_mapping import map_memory
from autoshard.mesh_shape import MeshShape
from autoshard.plan import Plan
from autoshard.planned_mapping import MemoryMappingWarning
from autoshard.precision import Precision
from autoshard.rule_sets import RuleSet
from autoshard.search.options import SearchOptions
from autoshard.state import TrainState
from autoshard.topology import Topology
from memory_planner.mapper import Budget as MemoryBudget
from memory_planner.mapper import Mapped
from memory_planner.session import CannotMapError

__all__ = [
    "AutoshardError",
    "BatchError",
    "CacheTransfer",
    "CannotMapError",
    "CheckpointError",
    "Checkpointer",
    "CompiledFunction",
    "CompiledInference",
    "CompiledModel",
    "DeviceError",
    "InferenceShape",
    "LossError",
    "Mapped",
    "MemoryBudget",
    "MemoryMappingWarning",
    "MeshError",
    "MeshShape",
    "ModelError",
    "NoFitError",
    "PassError",
    "Plan",
    "PlanError",
    "Precision",
    "RuleError",
    "RuleSet",
    "SearchOptions",
    "Topology",
    "TrainState",
    "UnmodelledError",
    "cache_transfer",
    "compile",
    "default_optimizer",
    "map_memory",
    "rules",
]
