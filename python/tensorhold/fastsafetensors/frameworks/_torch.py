"""torch: its tensors and operations."""

import os
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import torch
import torch.distributed as distributed

from tensorhold import _core, frameworks
from tensorhold._text import quoted
from tensorhold.fastsafetensors.allocation import held_bytes
from tensorhold.fastsafetensors.common import SingleGroup
from tensorhold.fastsafetensors.frameworks import ProcessGroupBase, TensorBase
from tensorhold.fastsafetensors.frameworks import get_framework_op as _framework_of
from tensorhold.fastsafetensors.frameworks._native import DeviceBuffer, NativeOp
from tensorhold.fastsafetensors.frameworks._packed import elements_per_byte, logical_shape, native_shape, native_slices
from tensorhold.fastsafetensors.frameworks._torch_group import TorchProcessGroup
from tensorhold.fastsafetensors.st_types import DTYPE_SIZES, Device, DeviceType, DType, WrongDTypeError, check_dtype

__all__ = [
    "TorchOp",
    "TorchProcessGroup",
    "TorchTensor",
    "dtype_convert",
    "fst_dtype",
    "get_framework_op",
    "need_workaround_dtypes",
]


_NAMES = {
    DType.BOOL: "bool",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.I16: "int16",
    DType.I32: "int32",
    DType.I64: "int64",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.F32: "float32",
    DType.F64: "float64",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E8M0: "float8_e8m0fnu",
    DType.F4: "float4_e2m1fn_x2",
    DType.U16: "uint16",
    DType.U32: "uint32",
    DType.U64: "uint64",
}

dtype_convert: Dict[DType, Any] = {dtype: getattr(torch, name) for dtype, name in _NAMES.items() if hasattr(torch, name)}
"""The types that this torch has."""

need_workaround_dtypes: Dict[DType, DType] = {DType.F8_E5M2: DType.I8, DType.F8_E4M3: DType.I8, DType.F8_E8M0: DType.U8, DType.F4: DType.U8}
"""Types that DLPack has no name for, and those of their size that stand for them."""

_FROM_TORCH: Dict[torch.dtype, DType] = {real: dtype for dtype, real in dtype_convert.items()}


def fst_dtype(dtype: torch.dtype) -> DType:
    """The type of fastsafetensors for one of torch."""
    found = _FROM_TORCH.get(dtype)
    if found is None:
        raise ValueError(f"wrap a tensor: {refused_dtype(dtype)}")
    return found


def refused_dtype(dtype: Any) -> Optional[str]:
    """Why a type of torch is none of fastsafetensors; None if it is one."""
    return None if dtype in _FROM_TORCH else f"got {dtype}, expected a type that fastsafetensors has; convert it"


def torch_dtype(dtype: DType) -> torch.dtype:
    """The type of torch for one of fastsafetensors."""
    found: Optional[torch.dtype] = dtype_convert.get(dtype)
    if found is None:
        raise ValueError(f"convert to {dtype.name}: torch {torch.__version__} has no such type; use another one")
    return found


def real_device(device: Device) -> torch.device:
    """torch's device. It calls GPUs of all makers `cuda`."""
    if device.type is DeviceType.CPU:
        return torch.device("cpu")
    return torch.device("cuda", device.index)


@dataclass
class TorchTensor(TensorBase):
    """A tensor of torch's."""

    real_tensor: torch.Tensor

    def _like(self, real: torch.Tensor) -> "TorchTensor":
        return TorchTensor(self.device, self.dtype, real)

    def get_raw(self) -> torch.Tensor:
        return self.real_tensor

    def get_shape(self) -> List[int]:
        return logical_shape(self.dtype, list(self.real_tensor.shape))

    def get_nbytes(self) -> int:
        return int(self.real_tensor.nbytes)

    def copy_to_buffer(self, buf: Any) -> None:
        bytes_ = frameworks.bytes_of_torch(self.real_tensor)
        if not bytes_.numel():
            return
        target = torch.frombuffer(buf, dtype=torch.uint8)
        if target.numel() < bytes_.numel():
            raise ValueError(f"copy a tensor to a buffer: got {target.numel()} bytes, expected at least {bytes_.numel()}; give a longer buffer")
        target[: bytes_.numel()].copy_(bytes_)

    def contiguous(self) -> "TorchTensor":
        return self._like(self.real_tensor.contiguous())

    def to(self, device: Optional[Device] = None, dtype: DType = DType.AUTO) -> "TorchTensor":
        check_dtype(dtype)
        is_there = device is None or device == self.device
        if is_there and dtype in (DType.AUTO, self.dtype):
            return self
        dtype = self.dtype if dtype is DType.AUTO else dtype
        if device is None or is_there:
            return TorchTensor(self.device, dtype, self.real_tensor.to(torch_dtype(dtype)))
        return TorchTensor(device, dtype, self.real_tensor.to(real_device(device), torch_dtype(dtype)))

    def clone(self) -> "TorchTensor":
        return self._like(self.real_tensor.clone())

    def detach(self) -> "TorchTensor":
        return self._like(self.real_tensor.detach())

    def view(self, dtype: DType) -> "TorchTensor":
        return TorchTensor(self.device, dtype, self.real_tensor.view(torch_dtype(dtype)))

    def __getitem__(self, _val: Any) -> "TorchTensor":
        return self._like(self.real_tensor[_val])

    def reshape(self, shape: List[int]) -> "TorchTensor":
        return self._like(self.real_tensor.reshape(tuple(shape)))

    def data_ptr(self) -> int:
        return int(self.real_tensor.data_ptr())


def wrap(real: torch.Tensor) -> TorchTensor:
    """A tensor of torch's, with its type and device."""
    place = Device() if real.device.type == "cpu" else Device.from_str(str(real.device))
    return TorchTensor(place, fst_dtype(real.dtype), real)


class TorchOp(NativeOp):
    """torch."""

    def __init__(self) -> None:
        self._converter = frameworks.find("torch")
        self._allocated = 0

    def __getstate__(self) -> Dict[str, Any]:
        # The converter holds modules, which do not pickle.
        return {name: value for name, value in self.__dict__.items() if name != "_converter"}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._converter = frameworks.find("torch")

    def get_name(self) -> str:
        return "pytorch"

    # Devices and groups

    def get_device(self, device: Any, pg: Any) -> Device:
        try:
            found = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise type(error)(f"argument device: got {quoted(device)}, expected \"cpu\" or \"cuda:N\", or a torch.device; name one") from error
        try:
            return Device(DeviceType(found.type), found.index)
        except ValueError:
            known = ", ".join(known.value for known in (DeviceType.CPU, DeviceType.CUDA))
            raise ValueError(f"Unknown device type: {found.type} (of {quoted(device)}); expected one of {known}") from None

    def set_device(self, device: Device) -> None:
        if device.type is not DeviceType.CPU:
            torch.cuda.set_device(real_device(device))

    def place(self, device: Device) -> str:
        if device.type is DeviceType.CPU:
            return "cpu"
        return str(self._converter.prepare("cuda" if device.index is None else f"cuda:{device.index}"))

    def get_process_group(self, pg: Optional[Any]) -> ProcessGroupBase[Any]:
        if isinstance(pg, ProcessGroupBase):
            return pg
        if pg is None or isinstance(pg, SingleGroup) and pg.size() == 1:
            return TorchProcessGroup(None)
        if isinstance(pg, int) and pg == getattr(getattr(distributed, "GroupMember", None), "NON_GROUP_MEMBER", None):
            raise ValueError(f"argument pg: got {pg!r}, which torch.distributed.new_group() returns to processes outside the group; load on its members only")
        if not callable(getattr(pg, "size", None)) or not callable(getattr(pg, "rank", None)):
            raise TypeError(
                f"argument pg: got {quoted(pg)} of type {type(pg).__name__}, expected a group of torch.distributed, an object with the methods of "
                "tensorhold.groups.TorchGroup, SingleGroup() or None; name one"
            )
        return TorchProcessGroup(pg)

    def get_global_rank(self) -> int:
        return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0

    def synchronize(self, device: Device) -> None:
        if device.type is not DeviceType.CPU and torch.cuda.is_available():
            torch.cuda.synchronize()

    def synchronize_current_stream(self, device: Device) -> None:
        if device.type is not DeviceType.CPU:
            torch.cuda.current_stream(real_device(device)).synchronize()

    def get_device_name(self, index: int) -> str:
        return torch.cuda.get_device_name(index) if 0 <= index < torch.cuda.device_count() else ""

    def get_cuda_ver(self) -> str:
        if not torch.cuda.is_available():
            return "0.0"
        hip = getattr(torch.version, "hip", None)
        return f"hip-{hip}" if hip else f"cuda-{torch.version.cuda}"

    def get_runtime_lib_dirs(self) -> List[str]:
        return [os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "lib")]

    # Memory

    def alloc_tensor_memory(self, length: int, dev: Device) -> DeviceBuffer:
        memory = torch.empty(length, dtype=torch.uint8, device=real_device(dev))
        self._allocated += length
        return DeviceBuffer(memory, memory.data_ptr(), length)

    def free_tensor_memory(self, gbuf: Any, dev: Device) -> None:
        self._allocated -= gbuf.get_length()
        gbuf.memory = None

    def get_mem_used(self) -> int:
        return self._allocated + held_bytes()

    def mmap_file_pinned(self, filename: str, length: int, offset: int) -> TorchTensor:
        return wrap(torch.from_file(filename, size=offset + length, dtype=torch.uint8)[offset:].pin_memory())

    # Types

    def support_fp8(self) -> bool:
        return DType.F8_E4M3 in dtype_convert

    def get_dtype_size(self, dtype: DType) -> float:
        return float(DTYPE_SIZES[dtype])

    def get_device_ptr_align(self) -> int:
        return 16

    def as_workaround_dtype(self, dtype: DType) -> DType:
        return need_workaround_dtypes.get(dtype, dtype)

    def get_storage_shape(self, dtype: DType, shape: List[int], strides: List[int]) -> Tuple[List[int], List[int]]:
        if elements_per_byte(dtype) == 1:
            return shape, strides
        count = 1
        for extent in native_shape(dtype, shape):
            count *= extent
        return [count], [1]

    def get_native_shape(self, dtype: DType, st_shape: List[int]) -> List[int]:
        return native_shape(dtype, st_shape)

    def get_native_slices(self, dtype: DType, st_shape: List[int], slices: Tuple[Any, ...]) -> Tuple[Any, ...]:
        return native_slices(dtype, st_shape, slices)

    # Tensors

    def wrap_tensor(self, tensor: torch.Tensor) -> TorchTensor:
        if isinstance(tensor, TensorBase):
            raise WrongDTypeError(f"argument tensor: got {type(tensor).__name__}, which is wrapped already, expected a tensor of torch; take get_raw()")
        return wrap(tensor)

    def get_empty_tensor(self, shape: List[int], dtype: DType, device: Device) -> TorchTensor:
        return TorchTensor(device, dtype, torch.empty(native_shape(dtype, shape), dtype=torch_dtype(dtype), device=real_device(device)))

    def randn(self, s: Tuple[int, ...], device: Device, dtype: DType) -> TorchTensor:
        return TorchTensor(device, dtype, torch.randn(s, device=real_device(device)).to(torch_dtype(dtype)))

    def from_dlpack(self, dl_tensor: Any, device: Device, dtype: DType) -> TorchTensor:
        return TorchTensor(device, dtype, torch.utils.dlpack.from_dlpack(dl_tensor))

    def concat_tensors(self, tensors: List[TorchTensor], dim: int) -> TorchTensor:
        first = tensors[0]
        if any(tensor.dtype is not first.dtype for tensor in tensors):
            # torch chooses the type that holds the elements of all.
            return wrap(torch.cat([tensor.real_tensor for tensor in tensors], dim))
        if first.dtype not in need_workaround_dtypes:
            return TorchTensor(first.device, first.dtype, torch.cat([tensor.real_tensor for tensor in tensors], dim))
        # torch joins these types as bytes only.
        joined = torch.cat([tensor.real_tensor.view(torch.uint8) for tensor in tensors], dim)
        return TorchTensor(first.device, first.dtype, joined.view(torch_dtype(first.dtype)))

    def copy_tensor(self, dst: TorchTensor, src: TorchTensor) -> None:
        dst.real_tensor.copy_(src.real_tensor)

    def is_equal(self, wrapped: TorchTensor, real: Any) -> bool:
        if not isinstance(real, torch.Tensor):
            raise TypeError(f"compare a tensor: got {type(real).__name__}, expected a tensor of torch; convert it")
        found = wrapped.real_tensor
        if wrapped.dtype is DType.F4 and real.dtype == found.dtype:
            # torch compares no elements of this type.
            found, real = found.view(torch.uint8), real.view(torch.uint8)
        return bool(torch.all(found.eq(real)))

    def iter_buffer_views(
        self, metadata: Any, gbuf: Any, device: Device, copy_start_offset: int, names: Optional[Set[str]], owner: Any = None
    ) -> Iterator[Tuple[str, TorchTensor]]:
        if isinstance(gbuf, torch.Tensor) or hasattr(gbuf, "__dlpack__"):
            whole = frameworks.bytes_of_torch(gbuf if isinstance(gbuf, torch.Tensor) else torch.from_dlpack(gbuf))
        else:
            whole = torch.frombuffer(gbuf, dtype=torch.uint8)
        for name, frame in metadata.tensors.items():
            if names is not None and name not in names:
                continue
            start, end = (metadata.header_length + offset - copy_start_offset for offset in frame.data_offsets)
            if start == end:
                yield name, self.get_empty_tensor(frame.shape, frame.dtype, device)
                continue
            if start < 0 or end > whole.numel():
                raise ValueError(
                    f"take tensor {quoted(name)} from a buffer: it lies at bytes {start} to {end}, outside the loader buffer of {whole.numel()}; "
                    "read all of its bytes, and say where the buffer begins in the file"
                )
            part, real = whole[start:end], torch_dtype(frame.dtype)
            # Elements are read at multiples of their size.
            if part.data_ptr() % real.itemsize or part.storage_offset() % real.itemsize:
                part = part.clone()
            wrapped = wrap(part.view(real).reshape(native_shape(frame.dtype, frame.shape))).to(device)
            if owner is not None:
                wrapped.real_tensor.tensorhold_owner = owner
            yield name, wrapped

    # Tensors of tensorhold

    def take(self, tensor: Any) -> TorchTensor:
        return wrap(self._converter.convert(tensor))

    def take_raw(self, tensor: Any) -> torch.Tensor:
        raw: torch.Tensor = self._converter.convert(tensor)
        return raw

    def take_all(self, weights: _core.Weights) -> Dict[str, Any]:
        return frameworks.hand_over(weights, self._converter)

    def refusal(self, tensor: Any) -> Optional[str]:
        return frameworks.refusal_of_torch(tensor) or refused_dtype(tensor.dtype)

    def let_go(self, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            tensor.set_(torch.empty(0, dtype=tensor.dtype, device=tensor.device))

    def move_out(self, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            tensor.set_(tensor.clone())


def get_framework_op() -> NativeOp:
    """The operations of torch: always the same object."""
    return _framework_of("pytorch")
