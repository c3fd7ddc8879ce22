"""Tensors of tensorhold as those of torch, NumPy, JAX and CuPy, by DLPack.

A framework takes most types as they are. Where DLPack or the framework has no name for a type, the bytes go over as integers of the same size, and the
framework's own view makes the type of them; where the framework has no such type either, the error says which view to take.
"""

import gc
import sys

from tensorhold._core import DeviceError, Error, FrameworkError, OptionError, Tensor, TensorError, cuda_count, device_name
from tensorhold._text import SHOWN, kind, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tensorhold._core import Weights, _Handover
    from tensorhold.types import Device


class Converter:
    """How one framework takes tensors."""

    name = ""
    module = ""

    def __init__(self) -> None:
        try:
            self.start()
        except ImportError as error:
            raise FrameworkError(
                f"import {self.module}: {error}; install it, or load tensors of another framework, or of none by tensorhold.load()"
            ) from error

    def start(self) -> None:
        """Imports the framework."""
        raise NotImplementedError

    def prepare(self, device: "Device | None") -> "Device":
        """The device by its full name, if the framework can use it; the CPU for None. Asked before anything is loaded."""
        return device_name(device)

    def plain(self) -> "tuple[Callable[[Any], Any] | None, list[str]]":
        """What makes a tensor of a capsule, and the types for which it does all there is to do."""
        return None, []

    def convert(self, tensor: "Tensor | _Handover") -> "Any":
        """A tensor of the framework's, of any type that it has."""
        raise NotImplementedError

    def index(self, tensor: "Any", index: "Any") -> "Any":
        """The part of a tensor of the framework's at an index."""
        return tensor[index]

    def lacks(self, tensor: "Tensor | _Handover", view: str) -> TensorError:
        """The error for a type that the framework does not have."""
        return TensorError(
            f"convert tensor {quoted(tensor.name)} to {self.name}: got {tensor.dtype}, expected a type that {self.name} has; "
            f"take tensor.view({view!r}), as from tensorhold.load(), or convert it on its way with dtype="
        )


class Torch(Converter):
    name = "torch"
    module = "torch"

    SAME = ["BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "C64"]
    # The type by its name in torch, and the integers that it is viewed from; two 4-bit floats are one element there.
    VIEWED = {
        "F8_E4M3": ("float8_e4m3fn", "U8"),
        "F8_E5M2": ("float8_e5m2", "U8"),
        "F8_E4M3FNUZ": ("float8_e4m3fnuz", "U8"),
        "F8_E5M2FNUZ": ("float8_e5m2fnuz", "U8"),
        "F8_E8M0": ("float8_e8m0fnu", "U8"),
        "F4": ("float4_e2m1fn_x2", "U8"),
        "U16": ("uint16", "I16"),
        "U32": ("uint32", "I32"),
        "U64": ("uint64", "I64"),
    }

    def start(self) -> None:
        import torch
        import torch.utils.dlpack

        self.torch = torch
        # What from_dlpack() does with a capsule, without the way there.
        self.from_capsule = getattr(torch._C, "_from_dlpack", torch.utils.dlpack.from_dlpack)

    def prepare(self, device: "Device | None") -> "Device":
        if str(device) == "cuda" and self.torch.cuda.is_available():
            return f"cuda:{self.torch.cuda.current_device()}"
        device = device_name(device)
        if device == "cpu":
            return device
        if not self.torch.cuda.is_available():
            if self.torch.version.cuda or getattr(self.torch.version, "hip", None):
                raise no_device(device, f"torch {self.torch.__version__} finds no CUDA device")
            raise FrameworkError(
                f"load to device {device!r} for torch: torch {self.torch.__version__} was built without CUDA; "
                "install a torch for CUDA, or load to the device \"cpu\""
            )
        if device.startswith("cuda:") and int(device[5:]) >= self.torch.cuda.device_count():
            raise DeviceError(
                f"load to device {device!r} for torch: torch finds {self.torch.cuda.device_count()}; name one of these"
            )
        return device

    def plain(self) -> "tuple[Callable[[Any], Any] | None, list[str]]":
        return self.from_capsule, self.SAME

    def convert(self, tensor: "Tensor | _Handover") -> "Any":
        if tensor.dtype in self.SAME:
            return self.from_capsule(tensor.__dlpack__())
        name, integers = self.VIEWED.get(tensor.dtype, ("", "U8"))
        dtype = getattr(self.torch, name, None)
        if dtype is None:
            raise self.lacks(tensor, integers)
        return self.from_capsule(tensor.view(integers).__dlpack__()).view(dtype)


class Numpy(Converter):
    name = "numpy"
    module = "numpy"

    SAME = ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64", "C64"]
    # By ml_dtypes, where that is installed.
    VIEWED = {
        "BF16": ("bfloat16", "U16"),
        "F8_E4M3": ("float8_e4m3fn", "U8"),
        "F8_E5M2": ("float8_e5m2", "U8"),
        "F8_E4M3FNUZ": ("float8_e4m3fnuz", "U8"),
        "F8_E5M2FNUZ": ("float8_e5m2fnuz", "U8"),
        "F8_E8M0": ("float8_e8m0fnu", "U8"),
    }

    def start(self) -> None:
        import numpy

        self.numpy = numpy
        try:
            import ml_dtypes
        except ImportError:
            ml_dtypes = None
        self.ml_dtypes = ml_dtypes

    def prepare(self, device: "Device | None") -> "Device":
        device = device_name(device)
        if device.startswith("cuda"):
            raise FrameworkError(
                f"load to device {device!r} for numpy: its arrays are in host memory; load to \"cpu\" or \"pinned\", or for cupy"
            )
        return device

    def convert(self, tensor: "Tensor | _Handover") -> "Any":
        if tensor.dtype in self.SAME:
            return self.numpy.from_dlpack(tensor)
        name, integers = self.VIEWED.get(tensor.dtype, ("", "U8"))
        dtype = getattr(self.ml_dtypes, name, None)
        if dtype is None:
            error = self.lacks(tensor, integers)
            if name and self.ml_dtypes is None:
                error.args = (f"{error.args[0]}; with the package ml_dtypes there is such a type",)
            raise error
        return self.numpy.from_dlpack(tensor.view(integers)).view(dtype)

    def index(self, tensor: "Any", index: "Any") -> "Any":
        # A single element, which NumPy gives as a scalar, is an array without dimensions, as a scalar of a file is.
        return self.numpy.asarray(tensor[index])


class Jax(Converter):
    name = "jax"
    module = "jax"

    SAME = ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "F16", "BF16", "F32", "C64"]
    WIDE = ["U64", "I64", "F64"]
    VIEWED = {
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
    }

    def start(self) -> None:
        import jax
        import jax.dlpack

        self.jax = jax

    def prepare(self, device: "Device | None") -> "Device":
        device = device_name(device)
        if device.startswith("cuda:"):
            try:
                count = len(self.jax.devices("cuda"))
            except RuntimeError as error:
                if cuda_count() == 0:
                    raise no_device(device, f"jax finds no CUDA device: {error}") from error
                raise FrameworkError(
                    f"load to device {device!r} for jax: {error}; install a jax for CUDA, or load to the device \"cpu\""
                ) from error
            if int(device[5:]) >= count:
                raise DeviceError(f"load to device {device!r} for jax: jax finds {count}; name one of these")
        return device

    def convert(self, tensor: "Tensor | _Handover") -> "Any":
        if tensor.dtype in self.SAME:
            return self.jax.dlpack.from_dlpack(tensor)
        if tensor.dtype in self.WIDE:
            if not self.jax.config.jax_enable_x64:
                raise TensorError(
                    f"convert tensor {quoted(tensor.name)} to jax: got {tensor.dtype}, and jax has no 64-bit types unless they are enabled; "
                    "set jax_enable_x64, or take tensor.view('U32')"
                )
            return self.jax.dlpack.from_dlpack(tensor)
        dtype = getattr(self.jax.numpy, self.VIEWED.get(tensor.dtype, ""), None)
        if dtype is None:
            raise self.lacks(tensor, "U8")
        return self.jax.dlpack.from_dlpack(tensor.view("U8")).view(dtype)


class Cupy(Converter):
    name = "cupy"
    module = "cupy"

    SAME = ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64", "C64"]

    def start(self) -> None:
        import cupy

        self.cupy = cupy

    def prepare(self, device: "Device | None") -> "Device":
        device = device_name(device)
        if not device.startswith("cuda:"):
            raise FrameworkError(f"load to device {device!r} for cupy: its arrays are in CUDA memory; load to \"cuda:0\", or for numpy")
        return device

    def convert(self, tensor: "Tensor | _Handover") -> "Any":
        if tensor.dtype not in self.SAME:
            raise self.lacks(tensor, "U16" if tensor.dtype == "BF16" else "U8")
        return self.cupy.from_dlpack(tensor)


def no_device(device: "Device", why: str) -> DeviceError:
    """The error for a CUDA device that a framework does not find, and could use."""
    return DeviceError(
        f"load to device {device!r}: {why}; check nvidia-smi and CUDA_VISIBLE_DEVICES, or load to the device \"cpu\""
    )


CONVERTERS = {
    **dict.fromkeys(["pt", "torch", "pytorch"], Torch),
    **dict.fromkeys(["np", "numpy"], Numpy),
    **dict.fromkeys(["jax", "flax"], Jax),
    **dict.fromkeys(["cp", "cupy"], Cupy),
}

_made: "dict[type[Converter], Converter]" = {}


def find(framework: str) -> Converter:
    """The converter of a framework, by any of its names. Imports the framework."""
    kind = CONVERTERS.get(framework) if isinstance(framework, str) else None
    if kind is None:
        raise OptionError(f"option framework: got {quoted(framework)}, expected one of {', '.join(CONVERTERS)}; name one of these")
    converter = _made.get(kind)
    if converter is None:
        converter = _made[kind] = kind()
    return converter


def convert(tensor: "Tensor", framework: str) -> "Any":
    """A tensor as the framework's, sharing its memory."""
    converter = find(framework)
    converter.prepare(tensor.device)
    return converter.convert(tensor)


def convert_all(weights: "Weights", framework: str) -> "dict[str, Any]":
    """All tensors as the framework's, sharing their memory with the weights."""
    converter = find(framework)
    converter.prepare(weights.device)
    from_capsule, plain = converter.plain()
    with _NoCollection(len(weights)):
        return weights._each(from_capsule, plain, converter.convert, False)


def hand_over(weights: "Weights", converter: Converter) -> "dict[str, Any]":
    """All tensors as the framework's, which owns their memory from now on."""
    from_capsule, plain = converter.plain()
    with _NoCollection(len(weights)):
        return weights._each(from_capsule, plain, converter.convert, True)


class exporting:
    """A block in which a framework gives the bytes of a tensor: what it raises there becomes a `TensorError` that names the tensor, with the framework's own as
    its cause. Errors of tensorhold, and a lack of memory, stay as they are."""

    def __init__(self, name: str, tensor: "Any") -> None:
        self.name = name
        self.tensor = tensor

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: "type[BaseException] | None", error: "BaseException | None", trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, (Error, MemoryError)):
            return
        reason = str(error).strip().partition("\n")[0][:SHOWN]
        raise TensorError(
            f"save tensor {quoted(self.name)}: got {type(self.tensor).__name__}, which does not give its bytes: {type(error).__name__}: {reason}; "
            "expected a dense tensor with memory of its own; convert it to one"
        ) from error


def item(name: str, tensor: "Any") -> "tuple[str, str, list[int], Any]":
    """What is written of a tensor: its name, type and shape, and its bytes in host memory."""
    if isinstance(tensor, Tensor):
        return name, tensor.dtype, list(tensor.shape), tensor
    with exporting(name, tensor):
        if _is_of("torch", "Tensor", tensor):
            return _item_of_torch(name, tensor)
        return _item_of_array(name, tensor.get() if _is_of("cupy", "ndarray", tensor) else tensor)


def _is_of(module: str, kind: str, found: object) -> bool:
    """Whether an object is of a framework's class or of one derived from it, wherever that is defined. A framework that nobody has imported has no objects."""
    of = getattr(sys.modules.get(module), kind, None)
    return isinstance(of, type) and isinstance(found, of)


def _item_of_torch(name: str, tensor: "Any") -> "tuple[str, str, list[int], Any]":
    wrong = refusal_of_torch(tensor)
    if wrong:
        raise TensorError(f"save tensor {quoted(name)}: {wrong}")
    shape = list(tensor.shape)
    if str(tensor.dtype) == "torch.float4_e2m1fn_x2":
        if not shape:
            raise TensorError(f"save tensor {quoted(name)}: got a scalar that holds two elements of 4 bits, expected a dimension for them; reshape(1)")
        shape[-1] *= 2
    return name, str(tensor.dtype), shape, bytes_of_torch(tensor.detach().cpu())


def refusal_of_torch(tensor: "Any") -> "str | None":
    """Why an object is no tensor of torch whose bytes can be saved, and what helps; None if it is one."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return f"got {type(tensor).__name__}, expected a tensor of torch; convert it"
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        return f"got {type(tensor).__name__}, which has no shape yet, expected a tensor with elements; call its module once, or materialize()"
    if callable(getattr(tensor, "full_tensor", None)):
        return f"got {type(tensor).__name__}, whose elements are spread over ranks, expected a tensor of one process; save full_tensor(), or to_local() of each rank"
    if _is_of("torch.masked", "MaskedTensor", tensor):
        return "got MaskedTensor, whose mask the format does not have, expected a tensor without one; save get_data(), or to_tensor() with a value for what is masked"
    if tensor.is_nested:
        return "got a nested tensor, expected one with a shape; save its parts, or to_padded_tensor()"
    if tensor.layout is not torch.strided:
        return f"got one of {tensor.layout}, expected a dense one; save its parts, or to_dense()"
    if tensor.is_quantized:
        return f"got a quantized tensor of {tensor.dtype}, expected a type of the format; save int_repr() and its scales, or dequantize()"
    if tensor.is_meta:
        return "got one on the device meta, which has no bytes, expected one that has; load it first"
    return None


def bytes_of_torch(tensor: "Any") -> "Any":
    """The bytes of a dense tensor of torch, row by row, in one dimension: of the tensor itself where they lie one after the other, else a copy."""
    import torch

    # What torch would do to the elements when they are used is done to the bytes.
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # For torch, one element is contiguous with any stride. Views and other libraries want a stride of 1.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _item_of_array(name: str, array: "Any") -> "tuple[str, str, list[int], Any]":
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise TensorError(
            f"save tensor {quoted(name)}: got {kind(array)}, expected a tensor of torch, numpy, jax, cupy or tensorhold; convert it"
        )
    import numpy

    if isinstance(array, numpy.ma.MaskedArray) and numpy.ma.is_masked(array):
        raise TensorError(f"save tensor {quoted(name)}: got an array with masked elements, which the format does not have; take filled() or data")
    shape = list(array.shape)
    dense = numpy.ascontiguousarray(array)
    if dense.dtype.hasobject:
        raise TensorError(f"save tensor {quoted(name)}: got an array of objects, expected one of a type of the format; convert it")
    if dense.dtype.name.startswith(("float4_", "float6_")):
        raise TensorError(
            f"save tensor {quoted(name)}: got an array of {dense.dtype.name}, whose elements take a byte each, expected packed elements; convert it to a wider type"
        )
    if dense.dtype.byteorder == ">" or dense.dtype.byteorder == "=" and sys.byteorder == "big":
        dense = dense.astype(dense.dtype.newbyteorder("<"))
    return name, dense.dtype.name, shape, dense.reshape(-1).view(numpy.uint8)


class _NoCollection:
    """No garbage collection while many tensors are made: each pass would look at all of them, and find that they are in use."""

    def __init__(self, tensors: int) -> None:
        self.pauses = tensors > 500 and gc.isenabled()

    def __enter__(self) -> None:
        if self.pauses:
            gc.disable()

    def __exit__(self, *error: object) -> None:
        if self.pauses:
            gc.enable()
