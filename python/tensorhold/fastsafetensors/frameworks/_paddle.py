"""Paddle, for jobs of one process."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

try:
    import paddle
    import paddle.utils.dlpack
except ImportError as error:
    raise ImportError(f"could not import paddle: {error}; install paddlepaddle, or use framework=\"pytorch\"") from error

from tensorhold import _core
from tensorhold.fastsafetensors.allocation import held_bytes
from tensorhold.fastsafetensors.frameworks import ProcessGroupBase, TensorBase
from tensorhold.fastsafetensors.frameworks._native import DeviceBuffer, NativeOp
from tensorhold.fastsafetensors.st_types import DTYPE_SIZES, Device, DeviceType, DType

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


@dataclass
class PaddleTensor(TensorBase):
    """A tensor of Paddle's."""

    real_tensor: Any

    def _like(self, real: Any) -> "PaddleTensor":
        return PaddleTensor(self.device, self.dtype, real)

    def get_raw(self) -> Any:
        return self.real_tensor

    def get_shape(self) -> List[int]:
        return list(self.real_tensor.shape)

    def get_nbytes(self) -> int:
        return int(self.real_tensor.numel()) * int(self.real_tensor.element_size())

    def copy_to_buffer(self, buf: Any) -> None:
        data = self.real_tensor.contiguous().cpu().numpy().tobytes()
        memoryview(buf).cast("B")[: len(data)] = data

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

    def reshape(self, shape: List[int]) -> "PaddleTensor":
        return self._like(self.real_tensor.reshape(list(shape)))

    def data_ptr(self) -> int:
        return int(self.real_tensor.data_ptr())


class SingleProcess(ProcessGroupBase[PaddleTensor]):
    """A job of one: there is nothing to move."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0

    def broadcast(self, dst: PaddleTensor, rank: int) -> None:
        pass

    def scatter(self, dst: PaddleTensor, scatter_list: List[PaddleTensor], src: int) -> None:
        pass

    def send(self, t: PaddleTensor, dst_rank: int, tag: int) -> None:
        pass

    def recv(self, t: PaddleTensor, src_rank: int, tag: int) -> None:
        pass


def paddle_place(device: Device) -> Any:
    """What Paddle calls a device."""
    return paddle.CPUPlace() if device.type is DeviceType.CPU else paddle.CUDAPlace(device.index or 0)


class PaddleOp(NativeOp):
    """Paddle."""

    def __init__(self) -> None:
        self._allocated = 0

    def get_name(self) -> str:
        return "paddle"

    def get_process_group(self, pg: Optional[Any]) -> ProcessGroupBase[Any]:
        if isinstance(pg, ProcessGroupBase):
            return pg
        if pg is not None and pg.size() > 1:
            raise ValueError(
                f"use a process group: got one of {pg.size()} ranks with Paddle, expected a job of one; "
                "use framework=\"pytorch\" with torch.distributed, or read all files on each rank"
            )
        return SingleProcess()

    def get_device(self, device: Any, pg: Any) -> Device:
        found = Device.from_str(str(device))
        return found if found.type is DeviceType.CPU else Device(found.type, found.index or 0)

    def set_device(self, device: Device) -> None:
        paddle.set_device(device.as_str())

    def place(self, device: Device) -> str:
        return "cpu" if device.type is DeviceType.CPU else f"cuda:{device.index or 0}"

    def alloc_tensor_memory(self, length: int, dev: Device) -> DeviceBuffer:
        memory = paddle.empty([length], dtype="uint8").to(paddle_place(dev))
        self._allocated += length
        return DeviceBuffer(memory, int(memory.data_ptr()), length)

    def free_tensor_memory(self, gbuf: Any, dev: Device) -> None:
        self._allocated -= gbuf.get_length()
        gbuf.memory = None

    def get_empty_tensor(self, shape: List[int], dtype: DType, device: Device) -> PaddleTensor:
        return PaddleTensor(device, dtype, paddle.empty(shape, dtype=paddle_dtype(dtype)).to(paddle_place(device)))

    def concat_tensors(self, tensors: List[PaddleTensor], dim: int) -> PaddleTensor:
        return tensors[0]._like(paddle.concat([tensor.real_tensor for tensor in tensors], axis=dim))

    def copy_tensor(self, dst: PaddleTensor, src: PaddleTensor) -> None:
        paddle.assign(src.real_tensor, output=dst.real_tensor)

    def get_dtype_size(self, dtype: DType) -> float:
        return float(DTYPE_SIZES[dtype])

    def get_device_ptr_align(self) -> int:
        return 16

    def as_workaround_dtype(self, dtype: DType) -> DType:
        return DType.I8 if dtype in (DType.F8_E5M2, DType.F8_E4M3) else dtype

    def from_dlpack(self, dl_tensor: Any, device: Device, dtype: DType) -> PaddleTensor:
        return PaddleTensor(device, dtype, paddle.utils.dlpack.from_dlpack(dl_tensor))

    def get_cuda_ver(self) -> str:
        return f"cuda-{paddle.version.cuda()}" if paddle.device.is_compiled_with_cuda() else "0.0"

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

    def is_equal(self, wrapped: TensorBase, real: Any) -> bool:
        return bool(paddle.equal_all(wrapped.get_raw(), real))

    def randn(self, s: Tuple[int, ...], device: Device, dtype: DType) -> PaddleTensor:
        return self.wrap_tensor(paddle.randn(list(s))).to(device, dtype)

    def get_mem_used(self) -> int:
        return self._allocated + held_bytes()

    def support_fp8(self) -> bool:
        return hasattr(paddle, "float8_e4m3fn")
