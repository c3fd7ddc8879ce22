"""Tensors and types of torch, by the names of fastsafetensors."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import torch

from tensorhold import frameworks
from tensorhold.fastsafetensors.frameworks import TensorBase
from tensorhold.fastsafetensors.frameworks._packed import logical_shape
from tensorhold.fastsafetensors.st_types import Device, DeviceType, DType

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
