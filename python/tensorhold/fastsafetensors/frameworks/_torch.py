"""torch."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from tensorhold import _core, frameworks
from tensorhold._text import quoted
from tensorhold.fastsafetensors.frameworks import FrameworkOpBase, ProcessGroupBase, SingleProcess, TensorBase
from tensorhold.fastsafetensors.st_types import Device, DeviceType, DType

_NAMES = {
    DType.BOOL: "bool",
    DType.I8: "int8",
    DType.I16: "int16",
    DType.I32: "int32",
    DType.I64: "int64",
    DType.U8: "uint8",
    DType.U16: "uint16",
    DType.U32: "uint32",
    DType.U64: "uint64",
    DType.F16: "float16",
    DType.F32: "float32",
    DType.F64: "float64",
    DType.BF16: "bfloat16",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E8M0: "float8_e8m0fnu",
    DType.F4: "float4_e2m1fn_x2",
}
_TO_TORCH: Dict[DType, torch.dtype] = {dtype: getattr(torch, name) for dtype, name in _NAMES.items() if hasattr(torch, name)}
_FROM_TORCH: Dict[torch.dtype, DType] = {real: dtype for dtype, real in _TO_TORCH.items()}
_EXPECTED = "expected a type that fastsafetensors has; convert it"


def torch_dtype(dtype: DType) -> torch.dtype:
    """What torch calls a type."""
    found = _TO_TORCH.get(dtype)
    if found is None:
        raise ValueError(f"convert to {dtype.name}: torch {torch.__version__} has no such type; use another one")
    return found


def device_of(real: torch.device) -> Device:
    """What fastsafetensors calls a device of torch's."""
    if real.type == "cpu":
        return Device()
    return Device.from_str(str(real))


class TorchTensor(TensorBase):
    """A tensor of torch's."""

    def __init__(self, device: Device, dtype: DType, real_tensor: torch.Tensor) -> None:
        super().__init__(device, dtype)
        self.real_tensor = real_tensor

    def _like(self, real: torch.Tensor) -> "TorchTensor":
        return TorchTensor(self.device, self.dtype, real)

    def get_raw(self) -> torch.Tensor:
        return self.real_tensor

    def get_shape(self) -> List[int]:
        return list(self.real_tensor.shape)

    def get_nbytes(self) -> int:
        return int(self.real_tensor.numel()) * int(self.real_tensor.element_size())

    def copy_to_buffer(self, buf: Any) -> None:
        bytes_ = as_bytes(self.real_tensor)
        target = torch.frombuffer(buf, dtype=torch.uint8) if bytes_.numel() else bytes_
        if target.numel() != bytes_.numel():
            raise ValueError(f"copy a tensor to a buffer: got {target.numel()} bytes, expected {bytes_.numel()}; give a buffer that is as long")
        target.copy_(bytes_)

    def contiguous(self) -> "TorchTensor":
        return self._like(self.real_tensor.contiguous())

    def to(self, device: Optional[Device] = None, dtype: DType = DType.AUTO) -> "TorchTensor":
        real = self.real_tensor
        if dtype not in (DType.AUTO, self.dtype):
            real = real.to(torch_dtype(dtype))
        if device is not None and device != self.device:
            real = real.to(real_device(device))
        return wrap(real)

    def clone(self) -> "TorchTensor":
        return self._like(self.real_tensor.clone())

    def detach(self) -> "TorchTensor":
        return self._like(self.real_tensor.detach())

    def view(self, dtype: DType) -> "TorchTensor":
        return wrap(self.real_tensor.view(torch_dtype(dtype)))

    def __getitem__(self, _val: Any) -> "TorchTensor":
        return self._like(self.real_tensor[_val])

    def reshape(self, shape: Sequence[int]) -> "TorchTensor":
        return self._like(self.real_tensor.reshape(tuple(shape)))

    def data_ptr(self) -> int:
        return int(self.real_tensor.data_ptr())

    def __repr__(self) -> str:
        return f"TorchTensor(device={self.device}, dtype={self.dtype}, real_tensor={self.real_tensor!r})"


def real_device(device: Device) -> torch.device:
    """torch's device. It calls GPUs of all makers `cuda`."""
    if device.type is DeviceType.CPU:
        return torch.device("cpu")
    return torch.device("cuda", device.index)


def wrap(real: torch.Tensor) -> TorchTensor:
    """A tensor of torch's, with its type and device."""
    dtype = _FROM_TORCH.get(real.dtype)
    if dtype is None:
        raise ValueError(f"wrap a tensor: got {real.dtype}, {_EXPECTED}")
    return TorchTensor(device_of(real.device), dtype, real)


def as_bytes(real: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, row by row, in one dimension."""
    return frameworks.bytes_of_torch(real)


class TorchProcessGroup(ProcessGroupBase):
    """A group of `torch.distributed`, or of one's own with the methods of `tensorhold.groups.TorchGroup`."""

    def __init__(self, real_pg: Any) -> None:
        self.real_pg = real_pg
        self._moves: Any = None

    def size(self) -> int:
        return int(self.real_pg.size())

    def rank(self) -> int:
        return int(self.real_pg.rank())

    def moves(self) -> Any:
        if self.size() == 1:
            return None
        if self._moves is None:
            self._moves = self._opened()
        return self._moves

    def _opened(self) -> Any:
        from tensorhold.groups import TorchGroup

        if isinstance(self.real_pg, torch.distributed.ProcessGroup):
            return TorchGroup(self.real_pg)
        missing = [name for name in ("barrier", "broadcast", "scatter", "send", "recv") if not hasattr(self.real_pg, name)]
        if missing:
            raise TypeError(
                f"use a process group: got {type(self.real_pg).__name__} of {self.size()} ranks, which has no {', '.join(missing)}; "
                "use a group of torch.distributed, or give yours the methods of tensorhold.groups.TorchGroup"
            )
        return self.real_pg


class TorchOp(FrameworkOpBase):
    """torch."""

    def __init__(self) -> None:
        self._converter = frameworks.find("torch")

    def get_name(self) -> str:
        return "pytorch"

    def get_process_group(self, pg: Optional[Any]) -> ProcessGroupBase:
        return SingleProcess() if pg is None else TorchProcessGroup(pg)

    def get_device(self, device: Any, pg: ProcessGroupBase) -> Device:
        found = Device.from_str(str(device))
        if found.type is not DeviceType.CPU:
            number = found.index
            if number is None:
                number = torch.cuda.current_device() if torch.cuda.is_available() else 0
            found = Device(found.type, number)
            self._converter.prepare(f"cuda:{number}")
        return found

    def take(self, tensor: Any) -> TorchTensor:
        return wrap(self._converter.convert(tensor))

    def take_raw(self, tensor: Any) -> torch.Tensor:
        raw: torch.Tensor = self._converter.convert(tensor)
        return raw

    def take_all(self, weights: _core.Weights) -> Dict[str, Any]:
        return frameworks.hand_over(weights, self._converter)

    def wrap_tensor(self, tensor: torch.Tensor) -> TorchTensor:
        return wrap(tensor)

    def refusal(self, tensor: Any) -> Optional[str]:
        wrong = frameworks.refusal_of_torch(tensor)
        if wrong is None and tensor.dtype not in _FROM_TORCH:
            return f"got {tensor.dtype}, {_EXPECTED}"
        return wrong

    def let_go(self, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            tensor.set_(torch.empty(0, dtype=tensor.dtype, device=tensor.device))

    def move_out(self, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            tensor.set_(tensor.clone())

    def tensors_over(
        self, metadata: Any, gbuf: Any, device: Device, copy_start_offset: int, dtype: DType, owner: Any
    ) -> Dict[str, TensorBase]:
        if isinstance(gbuf, torch.Tensor) or hasattr(gbuf, "__dlpack__"):
            whole = as_bytes(gbuf if isinstance(gbuf, torch.Tensor) else torch.from_dlpack(gbuf))
        else:
            whole = torch.frombuffer(gbuf, dtype=torch.uint8)
        tensors: Dict[str, TensorBase] = {}
        for name, frame in metadata.tensors.items():
            start, end = (metadata.header_length + offset - copy_start_offset for offset in frame.data_offsets)
            if start < 0 or end > whole.numel():
                raise ValueError(
                    f"take tensor {quoted(name)} from a buffer: it lies at bytes {start} to {end}, expected 0 to {whole.numel()}; "
                    "read all of its bytes, and say where the buffer begins in the file"
                )
            part, real = whole[start:end], torch_dtype(frame.dtype)
            shape = list(frame.shape)
            if frame.dtype is DType.F4:
                shape[-1] //= 2
            # Elements are read at multiples of their size.
            if part.data_ptr() % real.itemsize or part.storage_offset() % real.itemsize:
                part = part.clone()
            wrapped = wrap(part.view(real).reshape(shape)).to(device, dtype)
            if owner is not None:
                wrapped.real_tensor.tensorhold_owner = owner
            tensors[name] = wrapped
        return tensors

    def is_equal(self, wrapped: TensorBase, real: Any) -> bool:
        found = wrapped.get_raw()
        if found.dtype != real.dtype or found.shape != real.shape:
            return False
        return bool(torch.equal(as_bytes(found.cpu()), as_bytes(real.cpu())) or torch.equal(found, real.to(found.device)))

    def randn(self, s: Tuple[int, ...], device: Device, dtype: DType) -> TorchTensor:
        return wrap(torch.randn(s, device=real_device(device)).to(torch_dtype(dtype)))

    def get_mem_used(self) -> int:
        return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0

    def support_fp8(self) -> bool:
        return DType.F8_E4M3 in _TO_TORCH
