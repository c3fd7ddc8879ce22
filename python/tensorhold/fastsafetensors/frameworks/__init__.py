"""Tensors of a framework, and what the drop-in asks of one."""

from abc import ABC, abstractmethod
from typing import Any, Dict, List, Optional, Sequence, Tuple

from tensorhold import _core
from tensorhold._text import quoted
from tensorhold.fastsafetensors.st_types import DTYPE_SIZES, Device, DeviceType, DType

__all__ = ["FrameworkOpBase", "ProcessGroupBase", "TensorBase", "get_framework_op"]


class TensorBase(ABC):
    """A framework's tensor, with its type and device as fastsafetensors names them."""

    def __init__(self, device: Device, dtype: DType) -> None:
        self.device = device
        self.dtype = dtype

    @abstractmethod
    def get_raw(self) -> Any:
        """The framework's tensor."""

    @abstractmethod
    def get_shape(self) -> List[int]:
        """The framework's shape: that of F4 counts pairs."""

    @abstractmethod
    def get_nbytes(self) -> int:
        """The size in bytes."""

    @abstractmethod
    def copy_to_buffer(self, buf: Any) -> None:
        """Writes the bytes to a buffer that is as long."""

    @abstractmethod
    def contiguous(self) -> "TensorBase": ...
    @abstractmethod
    def to(self, device: Optional[Device] = None, dtype: DType = DType.AUTO) -> "TensorBase":
        """The tensor on another device, or as another type; this one where it is that already."""

    @abstractmethod
    def clone(self) -> "TensorBase": ...
    @abstractmethod
    def detach(self) -> "TensorBase": ...
    @abstractmethod
    def view(self, dtype: DType) -> "TensorBase":
        """The same bytes as another type."""

    @abstractmethod
    def __getitem__(self, _val: Any) -> "TensorBase": ...
    @abstractmethod
    def reshape(self, shape: Sequence[int]) -> "TensorBase": ...
    @abstractmethod
    def data_ptr(self) -> int:
        """The address of the first element."""


class ProcessGroupBase(ABC):
    """The ranks that share a load."""

    @abstractmethod
    def size(self) -> int: ...
    @abstractmethod
    def rank(self) -> int: ...
    @abstractmethod
    def moves(self) -> Any:
        """What moves bytes between the ranks, as `tensorhold.groups` has it; None for a job of one."""


class FrameworkOpBase(ABC):
    """A framework."""

    @abstractmethod
    def get_name(self) -> str: ...
    @abstractmethod
    def get_process_group(self, pg: Optional[Any]) -> ProcessGroupBase:
        """The group that an object of the framework's, or of a job of one, stands for."""

    @abstractmethod
    def get_device(self, device: Any, pg: ProcessGroupBase) -> Device:
        """The device of a name, by its number."""

    @abstractmethod
    def take(self, tensor: Any) -> TensorBase:
        """A tensor of tensorhold's as the framework's: it owns its memory."""

    def take_raw(self, tensor: Any) -> Any:
        """The same, not wrapped."""
        return self.take(tensor).get_raw()

    @abstractmethod
    def take_all(self, weights: _core.Weights) -> Dict[str, Any]:
        """The framework's tensors of weights, which they own from now on."""

    @abstractmethod
    def wrap_tensor(self, tensor: Any) -> TensorBase: ...
    @abstractmethod
    def refusal(self, tensor: Any) -> Optional[str]:
        """Why an object is no tensor of the framework's that can be saved, and what helps; None if it is one."""

    @abstractmethod
    def let_go(self, tensor: Any) -> None:
        """Empties a tensor: it gives up its memory, which views of it still keep."""

    @abstractmethod
    def move_out(self, tensor: Any) -> None:
        """Moves a tensor's bytes to memory of the framework's: it gives up that which it has, as in `let_go`."""

    @abstractmethod
    def tensors_over(
        self, metadata: Any, gbuf: Any, device: Device, copy_start_offset: int, dtype: DType, owner: Any
    ) -> Dict[str, TensorBase]:
        """Tensors over bytes that the caller has read."""

    @abstractmethod
    def is_equal(self, wrapped: TensorBase, real: Any) -> bool: ...
    @abstractmethod
    def randn(self, s: Tuple[int, ...], device: Device, dtype: DType) -> TensorBase: ...
    @abstractmethod
    def get_mem_used(self) -> int:
        """Bytes of device memory that the framework's allocator holds."""

    @abstractmethod
    def support_fp8(self) -> bool: ...
    def get_device_ptr_align(self) -> int:
        """What an address is a multiple of, for every type to be read there."""
        return 16

    def get_dtype_size(self, dtype: DType) -> float:
        """The size of an element in bytes."""
        return DTYPE_SIZES[dtype]


_made: Dict[str, FrameworkOpBase] = {}


def get_framework_op(framework_name: str) -> FrameworkOpBase:
    """The framework of a name: `pytorch`, `torch` or `pt`; or `paddle`. Imports it."""
    name = "pytorch" if framework_name in ("pytorch", "torch", "pt") else framework_name
    if name not in _made:
        if name == "pytorch":
            try:
                from tensorhold.fastsafetensors.frameworks._torch import TorchOp
            except ModuleNotFoundError as error:
                raise _core.FrameworkError(f"could not import torch: {error}; install torch") from error
            _made[name] = TorchOp()
        elif name == "paddle":
            from tensorhold.fastsafetensors.frameworks._paddle import PaddleOp

            _made[name] = PaddleOp()
        else:
            raise _core.OptionError(f"option framework: got {quoted(framework_name)}, expected pytorch, torch, pt or paddle. Unknown framework name; use one of these")
    return _made[name]


def native_name(device: Device) -> str:
    """What tensorhold calls a device."""
    if device.type is DeviceType.CPU:
        return "cpu"
    return f"cuda:{device.index or 0}"


class SingleProcess(ProcessGroupBase):
    """A job of one."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0

    def moves(self) -> None:
        return None
