"""Paddle, for jobs of one process."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

try:
    import paddle
    import paddle.utils.dlpack
except ImportError as error:
    raise ImportError(f"could not import paddle: {error}; install paddlepaddle, or use framework=\"pytorch\"") from error

from tensorhold import _core
from tensorhold.fastsafetensors.frameworks import FrameworkOpBase, ProcessGroupBase, SingleProcess, TensorBase
from tensorhold.fastsafetensors.st_types import Device, DeviceType, DType

_NAMES = {
    DType.BOOL: "bool",
    DType.I8: "int8",
    DType.I16: "int16",
    DType.I32: "int32",
    DType.I64: "int64",
    DType.U8: "uint8",
    DType.F16: "float16",
    DType.F32: "float32",
    DType.F64: "float64",
    DType.BF16: "bfloat16",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E4M3: "float8_e4m3fn",
}
# Those that it takes by DLPack; others go over as bytes.
_PLAIN = [DType.BOOL, DType.I8, DType.I16, DType.I32, DType.I64, DType.U8, DType.F16, DType.F32, DType.F64, DType.BF16]


def paddle_dtype(dtype: DType) -> Any:
    """What Paddle calls a type."""
    found = getattr(paddle, _NAMES.get(dtype, ""), None)
    if found is None:
        raise ValueError(f"convert to {dtype.name}: Paddle has no such type; use another one, or framework=\"pytorch\"")
    return found


class PaddleTensor(TensorBase):
    """A tensor of Paddle's."""

    def __init__(self, device: Device, dtype: DType, real_tensor: Any) -> None:
        super().__init__(device, dtype)
        self.real_tensor = real_tensor

    def _like(self, real: Any) -> "PaddleTensor":
        return PaddleTensor(self.device, self.dtype, real)

    def get_raw(self) -> Any:
        return self.real_tensor

    def get_shape(self) -> List[int]:
        return list(self.real_tensor.shape)

    def get_nbytes(self) -> int:
        return int(self.real_tensor.numel()) * int(self.real_tensor.element_size())

    def copy_to_buffer(self, buf: Any) -> None:
        memoryview(buf).cast("B")[:] = self.real_tensor.contiguous().cpu().numpy().tobytes()

    def contiguous(self) -> "PaddleTensor":
        return self._like(self.real_tensor.contiguous())

    def to(self, device: Optional[Device] = None, dtype: DType = DType.AUTO) -> "PaddleTensor":
        real = self.real_tensor
        if dtype not in (DType.AUTO, self.dtype):
            real = real.astype(paddle_dtype(dtype))
        else:
            dtype = self.dtype
        if device is not None and device != self.device:
            real = real.cpu() if device.type is DeviceType.CPU else real.cuda(device.index or 0)
        return PaddleTensor(device or self.device, dtype, real)

    def clone(self) -> "PaddleTensor":
        return self._like(self.real_tensor.clone())

    def detach(self) -> "PaddleTensor":
        return self._like(self.real_tensor.detach())

    def view(self, dtype: DType) -> "PaddleTensor":
        return PaddleTensor(self.device, dtype, self.real_tensor.view(paddle_dtype(dtype)))

    def __getitem__(self, _val: Any) -> "PaddleTensor":
        return self._like(self.real_tensor[_val])

    def reshape(self, shape: Sequence[int]) -> "PaddleTensor":
        return self._like(self.real_tensor.reshape(list(shape)))

    def data_ptr(self) -> int:
        return int(self.real_tensor.data_ptr())

    def __repr__(self) -> str:
        return f"PaddleTensor(device={self.device}, dtype={self.dtype}, real_tensor={self.real_tensor!r})"


class PaddleOp(FrameworkOpBase):
    """Paddle."""

    def get_name(self) -> str:
        return "paddle"

    def get_process_group(self, pg: Optional[Any]) -> ProcessGroupBase:
        if pg is not None and pg.size() > 1:
            raise ValueError(
                f"use a process group: got one of {pg.size()} ranks with Paddle, expected a job of one; "
                "use framework=\"pytorch\" with torch.distributed, or read all files on each rank"
            )
        return SingleProcess()

    def get_device(self, device: Any, pg: ProcessGroupBase) -> Device:
        found = Device.from_str(str(device))
        return found if found.type is DeviceType.CPU else Device(found.type, found.index or 0)

    def take(self, tensor: Any) -> PaddleTensor:
        device, dtype = Device.from_str(tensor.device), DType(tensor.dtype)
        if dtype in _PLAIN:
            return PaddleTensor(device, dtype, paddle.utils.dlpack.from_dlpack(tensor.__dlpack__()))
        real = paddle_dtype(dtype)
        return PaddleTensor(device, dtype, paddle.utils.dlpack.from_dlpack(tensor.view("U8").__dlpack__()).view(real))

    def take_all(self, weights: _core.Weights) -> Dict[str, Any]:
        tensors = {name: self.take(weights.tensor(name)).get_raw() for name in weights.keys()}
        weights.close()
        return tensors

    def wrap_tensor(self, tensor: Any) -> PaddleTensor:
        by_real = {str(paddle_dtype(dtype)): dtype for dtype in _NAMES if hasattr(paddle, _NAMES[dtype])}
        device = Device() if tensor.place.is_cpu_place() else Device(DeviceType.GPU, tensor.place.gpu_device_id())
        return PaddleTensor(device, by_real[str(tensor.dtype)], tensor)

    def refusal(self, tensor: Any) -> Optional[str]:
        if not isinstance(tensor, paddle.Tensor):
            return f"got {type(tensor).__name__}, expected a tensor of Paddle; convert it"
        if str(tensor.dtype) not in [str(paddle_dtype(dtype)) for dtype in _NAMES if hasattr(paddle, _NAMES[dtype])]:
            return f"got {tensor.dtype}, expected a type that fastsafetensors has; convert it"
        return None

    def let_go(self, tensor: Any) -> None:
        tensor._clear()

    def move_out(self, tensor: Any) -> None:
        tensor.get_tensor()._share_data_with(tensor.clone().get_tensor())

    def tensors_over(
        self, metadata: Any, gbuf: Any, device: Device, copy_start_offset: int, dtype: DType, owner: Any
    ) -> Dict[str, TensorBase]:
        raise NotImplementedError("take tensors from a buffer: Paddle has none of these; load the file, or use framework=\"pytorch\"")

    def is_equal(self, wrapped: TensorBase, real: Any) -> bool:
        return bool(paddle.equal_all(wrapped.get_raw(), real))

    def randn(self, s: Tuple[int, ...], device: Device, dtype: DType) -> PaddleTensor:
        return self.wrap_tensor(paddle.randn(list(s))).to(device, dtype)

    def get_mem_used(self) -> int:
        return int(paddle.device.cuda.memory_allocated()) if paddle.device.is_compiled_with_cuda() else 0

    def support_fp8(self) -> bool:
        return hasattr(paddle, "float8_e4m3fn")
