"""Loads safetensors checkpoints at the speed of the bus, into tensors that own their memory.

    >>> import tensorhold
    >>> weights = tensorhold.load_file("llama/", device="cuda:0")  # a dict of torch tensors

`load` gives tensors of no framework, which every one takes by DLPack; `safe_open` reads tensor by tensor, `stream` gives each as its bytes land.
Names are those of `safetensors` where it has them. No framework is imported before it is asked for.
"""

from collections.abc import Mapping

from tensorhold._core import (
    AccessError,
    CancelledError,
    Choice,
    Closed,
    ClosedError,
    Cut,
    DeviceError,
    Error,
    FileChangedError,
    FileError,
    ForkError,
    FormatError,
    FrameworkError,
    GroupError,
    Held,
    LeftOut,
    MissingFileError,
    MissingTensorError,
    OptionError,
    OutOfMemoryError,
    Pool,
    Progress,
    Report,
    Stats,
    Stream,
    Tensor,
    TensorError,
    TensorIndexError,
    TensorInfo,
    Weights,
    __version__,
    cuda_count,
    inspect,
)
from tensorhold.api import install_as_fastsafetensors, install_as_safetensors, load, load_file, save_file, stream
from tensorhold.opened import safe_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tensorhold.safetensors import TensorSpec, _safe_open_handle, deserialize, serialize, serialize_file

_OF_SAFETENSORS = ("TensorSpec", "_safe_open_handle", "deserialize", "serialize", "serialize_file")
"""Names that are imported from `tensorhold.safetensors` when they are first used: few programs need them."""


def __getattr__(name: str) -> "Any":
    if name not in _OF_SAFETENSORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tensorhold import safetensors

    return globals().setdefault(name, getattr(safetensors, name))


def __dir__() -> "list[str]":
    return sorted({*globals(), *_OF_SAFETENSORS})


Mapping.register(Weights)
Mapping.register(Report)

SafetensorError = Error
"""The name that `safetensors` has for what goes wrong."""

__all__ = [
    "AccessError",
    "CancelledError",
    "Choice",
    "Closed",
    "ClosedError",
    "Cut",
    "DeviceError",
    "Error",
    "FileChangedError",
    "FileError",
    "ForkError",
    "FormatError",
    "FrameworkError",
    "GroupError",
    "Held",
    "LeftOut",
    "MissingFileError",
    "MissingTensorError",
    "OptionError",
    "OutOfMemoryError",
    "Pool",
    "Progress",
    "Report",
    "SafetensorError",
    "Stats",
    "Stream",
    "Tensor",
    "TensorError",
    "TensorIndexError",
    "TensorInfo",
    "TensorSpec",
    "Weights",
    "__version__",
    "_safe_open_handle",
    "cuda_count",
    "deserialize",
    "inspect",
    "install_as_fastsafetensors",
    "install_as_safetensors",
    "load",
    "load_file",
    "safe_open",
    "save_file",
    "serialize",
    "serialize_file",
    "stream",
]
