"""Tensors, groups and operations of a framework: the abstract classes, and the frameworks by their names."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Generic, Iterator, List, Optional, Set, Tuple, TypeVar

from tensorhold import _core
from tensorhold._text import quoted
from tensorhold.fastsafetensors.st_types import Device, DType

if TYPE_CHECKING:
    from tensorhold.fastsafetensors.common import SafeTensorsMetadata
    from tensorhold.fastsafetensors.frameworks._native import NativeOp

__all__ = ["FrameworkOpBase", "K", "ProcessGroupBase", "T", "TensorBase", "get_framework_op"]


@dataclass
class TensorBase:
    """A framework's tensor, with its type and device as fastsafetensors names them. A subclass need only have the methods that are called."""

    device: Device
    dtype: DType

    @abstractmethod
    def get_raw(self) -> Any:
        """The framework's tensor."""

    @abstractmethod
    def get_shape(self) -> List[int]:
        """The shape as the format has it, which counts each element of a packed type."""

    @abstractmethod
    def get_nbytes(self) -> int:
        """The size in bytes."""

    @abstractmethod
    def copy_to_buffer(self, buf: memoryview) -> None:
        """Writes the bytes, in row-major order, to the start of a buffer."""

    @abstractmethod
    def contiguous(self) -> "TensorBase":
        """The tensor with its elements in row-major order."""

    @abstractmethod
    def to(self, device: Optional[Device] = None, dtype: DType = DType.AUTO) -> "TensorBase":
        """The tensor on another device, or as another type; itself if it is there already."""

    @abstractmethod
    def clone(self) -> "TensorBase":
        """A copy."""

    @abstractmethod
    def detach(self) -> "TensorBase":
        """The tensor without its graph."""

    @abstractmethod
    def view(self, dtype: DType) -> "TensorBase":
        """The same bytes as another type."""

    @abstractmethod
    def __getitem__(self, _val: Any) -> "TensorBase": ...

    def reshape(self, shape: List[int]) -> "TensorBase":
        """The same elements in another shape, which is the framework's."""
        raise _missing(self, "reshape")

    def data_ptr(self) -> int:
        """The address of the first element."""
        raise _missing(self, "data_ptr")


def _missing(found: object, method: str) -> NotImplementedError:
    return NotImplementedError(f"{type(found).__name__}.{method}: the class does not define it; define it in the class")


T = TypeVar("T", bound=TensorBase)


class ProcessGroupBase(ABC, Generic[T]):
    """The ranks that share a load. Ranks are those within the group."""

    @abstractmethod
    def size(self) -> int:
        """How many ranks there are."""

    @abstractmethod
    def rank(self) -> int:
        """The rank of this process."""

    @abstractmethod
    def broadcast(self, dst: T, rank: int) -> None:
        """Fills `dst` on every rank with that of one rank."""

    @abstractmethod
    def scatter(self, dst: T, scatter_list: List[T], src: int) -> None:
        """Fills `dst` on every rank with the tensor that rank `src` has for it; other ranks have an empty list."""

    @abstractmethod
    def send(self, t: T, dst_rank: int, tag: int) -> None:
        """Sends a tensor to a rank."""

    @abstractmethod
    def recv(self, t: T, src_rank: int, tag: int) -> None:
        """Fills a tensor with the one that a rank sends."""


K = TypeVar("K", bound=ProcessGroupBase[Any])


class FrameworkOpBase(ABC, Generic[T, K]):
    """The operations of a framework."""

    def broadcast_contiguous_run(
        self, pg: K, source_tensors: List[T], frames: List[Any], src_rank: int, device: Device
    ) -> Optional[List[T]]:
        """Several tensors that lie one after the other, broadcast at once; None if they are to be broadcast one by one."""
        return None

    @abstractmethod
    def get_name(self) -> str:
        """The framework's name."""

    @abstractmethod
    def get_device(self, device: str, pg: K) -> Device:
        """The device of a name."""

    @abstractmethod
    def set_device(self, device: Device) -> None:
        """Makes a device the framework's current one."""

    @abstractmethod
    def alloc_tensor_memory(self, length: int, dev: Device) -> Any:
        """A buffer of `length` bytes, with `get_base_address()` and `get_length()`. `get_mem_used()` counts it until it is freed."""

    @abstractmethod
    def free_tensor_memory(self, gbuf: Any, dev: Device) -> None:
        """Frees a buffer of `alloc_tensor_memory`."""

    @abstractmethod
    def get_empty_tensor(self, shape: List[int], dtype: DType, device: Device) -> T:
        """A tensor of a shape of the format, with any elements."""

    @abstractmethod
    def concat_tensors(self, tensors: List[T], dim: int) -> T:
        """Tensors joined along a dimension."""

    @abstractmethod
    def copy_tensor(self, dst: T, src: T) -> None:
        """Copies the elements of a tensor into another."""

    def wrap_tensor(self, tensor: Any) -> T:
        """A tensor of the framework's with its type and device, sharing its memory."""
        raise _missing(self, "wrap_tensor")

    @abstractmethod
    def get_dtype_size(self, dtype: DType) -> float:
        """The size of an element of the format in bytes: a half for F4."""

    @abstractmethod
    def from_dlpack(self, dl_tensor: Any, device: Device, dtype: DType) -> T:
        """A tensor over the memory of a DLPack capsule, or of an object that gives one."""

    @abstractmethod
    def get_cuda_ver(self) -> str:
        """The platform of GPUs and its version, as in `cuda-12.8` or `hip-6.4`; `0.0` without a GPU."""

    def get_runtime_lib_dirs(self) -> List[str]:
        """Folders of libraries that the framework brings along."""
        return []

    @abstractmethod
    def get_device_ptr_align(self) -> int:
        """What an address is a multiple of, for every type to be read there."""

    @abstractmethod
    def as_workaround_dtype(self, dtype: DType) -> DType:
        """The type of the same size that stands for a type in DLPack."""

    def get_storage_shape(self, dtype: DType, shape: List[int], strides: List[int]) -> Tuple[List[int], List[int]]:
        """Shape and strides, in elements of `as_workaround_dtype`, of a tensor of the format."""
        return shape, strides

    def get_native_shape(self, dtype: DType, st_shape: List[int]) -> List[int]:
        """The framework's shape of a tensor of the format."""
        return st_shape

    def get_native_slices(self, dtype: DType, st_shape: List[int], slices: Tuple[Any, ...]) -> Tuple[Any, ...]:
        """The framework's indexes for those of a tensor of the format."""
        return slices

    def iter_buffer_views(
        self,
        metadata: "SafeTensorsMetadata",
        gbuf: Any,
        device: Device,
        copy_start_offset: int,
        names: Optional[Set[str]],
        owner: Any = None,
    ) -> Optional[Iterator[Tuple[str, T]]]:
        """Tensors over a buffer that holds a file from an offset on, by name; None if the framework has no such views."""
        return None

    def synchronize(self, device: Device) -> None:
        """Waits for what was enqueued on a device."""

    def synchronize_current_stream(self, device: Device) -> None:
        """Waits for what was enqueued on the current stream of a device."""
        self.synchronize(device)

    def get_global_rank(self) -> int:
        """The rank of this process among all; 0 in a job of one."""
        return 0

    def get_device_name(self, index: int) -> str:
        """The name of a GPU; empty if there is no such GPU."""
        return ""

    def mmap_file_pinned(self, filename: str, length: int, offset: int) -> TensorBase:
        """A part of a file as bytes in pinned memory."""
        raise _missing(self, "mmap_file_pinned")

    @abstractmethod
    def get_process_group(self, pg: Optional[Any]) -> ProcessGroupBase[Any]:
        """The group that an object of the framework's stands for; a job of one for None. A group that was made here is itself."""

    @abstractmethod
    def is_equal(self, wrapped: T, real: Any) -> bool:
        """Whether a tensor has the elements of one of the framework's."""

    @abstractmethod
    def randn(self, s: Tuple[int, ...], device: Device, dtype: DType) -> T:
        """A tensor of random elements."""

    @abstractmethod
    def support_fp8(self) -> bool:
        """Whether the framework has floats of 8 bits."""

    @abstractmethod
    def get_mem_used(self) -> int:
        """Bytes of host and device memory that loads hold: loaded files with the tensors that were taken from them, batches that are in flight, and
        buffers of `alloc_tensor_memory`. A tensor that an iteration has yielded is its consumer's."""


_made: "Dict[str, NativeOp]" = {}


def get_framework_op(name: str) -> "NativeOp":
    """The framework of a name: `pytorch`, `torch` or `pt`; or `paddle`. Imports it."""
    known = "pytorch" if name in ("pytorch", "torch", "pt") else name
    if known not in _made:
        if known == "pytorch":
            try:
                from tensorhold.fastsafetensors.frameworks._torch import TorchOp
            except ModuleNotFoundError as error:
                raise _core.FrameworkError(f"could not import torch: {error}; install torch") from error
            _made[known] = TorchOp()
        elif known == "paddle":
            from tensorhold.fastsafetensors.frameworks._paddle import PaddleOp

            _made[known] = PaddleOp()
        else:
            raise _core.OptionError(f"option framework: got {quoted(name)}, expected pytorch, torch, pt or paddle. Unknown framework name; use one of these")
    return _made[known]
