"""A drop-in for fastsafetensors 0.5.0: its names and behaviour, on tensorhold's loads.

Import it under its own name, or let `tensorhold.install_as_fastsafetensors()` make `import fastsafetensors` find it. `docs/fastsafetensors.md`
says what differs.
"""

from tensorhold._alias import DROP_INS
from tensorhold.fastsafetensors._planner import BudgetInfeasibleError
from tensorhold.fastsafetensors.allocation import live_allocation_bytes, live_allocation_count
from tensorhold.fastsafetensors.auto_loader import AutoLoader
from tensorhold.fastsafetensors.common import SafeTensorsMetadata, SingleGroup, TensorFrame, get_device_numa_node
from tensorhold.fastsafetensors.config import LoaderConfig, load_config
from tensorhold.fastsafetensors.ep_slice import expert_parallel_filter, expert_parallel_filter_from_env, owned_expert_range
from tensorhold.fastsafetensors.file_buffer import FilesBufferOnDevice
from tensorhold.fastsafetensors.loader import SafeTensorsFileLoader, fastsafe_open
from tensorhold.fastsafetensors.parallel_loader import ParallelLoader
from tensorhold.fastsafetensors.saver import ParallelSaver

__version__ = DROP_INS["fastsafetensors"].version

__all__ = [
    "AutoLoader",
    "BudgetInfeasibleError",
    "FilesBufferOnDevice",
    "LoaderConfig",
    "ParallelLoader",
    "ParallelSaver",
    "SafeTensorsFileLoader",
    "SafeTensorsMetadata",
    "SingleGroup",
    "TensorFrame",
    "__version__",
    "expert_parallel_filter",
    "expert_parallel_filter_from_env",
    "fastsafe_open",
    "get_device_numa_node",
    "live_allocation_bytes",
    "live_allocation_count",
    "load_config",
    "owned_expert_range",
]
