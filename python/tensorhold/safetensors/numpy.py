"""What `safetensors.numpy` has: functions that load and save arrays of NumPy.

`tensorhold.numpy` has the same names. Functions that load take the options of `tensorhold.load`, as well.
"""

import sys

import numpy as np

from tensorhold import frameworks
from tensorhold.safetensors import _open
from tensorhold.safetensors._open import safe_open
from tensorhold.safetensors._specs import TensorSpec, deserialize, serialize, serialize_file

__all__ = ["TensorSpec", "deserialize", "load", "load_file", "safe_open", "save", "save_file", "serialize", "serialize_file"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Unpack

    from tensorhold.types import Device, OtherOptions, Path, Paths

    Arrays = dict[str, np.ndarray[Any, Any]]


def _types() -> "dict[str, Any]":
    converter = frameworks.Numpy()
    types: dict[str, Any] = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "I64": np.int64,
        "U64": np.uint64,
        "I32": np.int32,
        "U32": np.uint32,
        "I16": np.int16,
        "U16": np.uint16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": bool,
        "C64": np.complex64,
    }
    for dtype, (name, _) in converter.VIEWED.items():
        if hasattr(converter.ml_dtypes, name):
            types[dtype] = getattr(converter.ml_dtypes, name)
    return types


_TYPES = _types()
"""The types of NumPy, and of `ml_dtypes` where that is installed, by the format's names."""


def load_file(
    filename: "Paths", device: "Device | None" = "cpu", *, backend: str = "mmap", **options: "Unpack[OtherOptions]"
) -> "Arrays":
    """Loads a checkpoint into a dict of arrays, which own their memory.

    `device` is `cpu`, or `pinned` for page-locked memory. `backend` is one of `tensorhold.load`, or of safetensors (`mmap`, `pread`): then tensorhold chooses.
    """
    return _open.load_file(filename, "np", device, backend, options)


def load(data: bytes) -> "Arrays":
    """The arrays of a safetensors file by its bytes."""
    return _view2np(deserialize(data))


def save_file(tensor_dict: "Arrays", filename: "Path", metadata: "dict[str, str] | None" = None) -> None:
    """Writes a safetensors file, which is there as a whole or not at all. Arrays are written row by row, whatever their strides."""
    serialize_file(_flatten(tensor_dict, []), filename, metadata)


def save(tensor_dict: "Arrays", metadata: "dict[str, str] | None" = None) -> bytes:
    """The bytes that `save_file` writes."""
    return serialize(_flatten(tensor_dict, []), metadata)


def _flatten(tensor_dict: "Arrays", keep_alive_buffer: "list[Any]") -> "dict[str, TensorSpec]":
    """What `serialize` takes. The specs keep the bytes; `keep_alive_buffer` gets those that are copies."""
    specs = {}
    for name, array in tensor_dict.items():
        dense = np.ascontiguousarray(array if _is_little_endian(array) else array.byteswap(inplace=False))
        if dense is not array:
            keep_alive_buffer.append(dense)
        # The type is checked before the bytes are taken.
        spec = TensorSpec(dtype=array.dtype.name, shape=array.shape, data_ptr=dense.ctypes.data, data_len=dense.nbytes)
        specs[name] = spec._keeping(dense.reshape(-1).view(np.uint8))
    return specs


def _is_little_endian(tensor: "np.ndarray[Any, Any]") -> bool:
    order = tensor.dtype.byteorder
    return order in "<|" or order == "=" and sys.byteorder == "little"


def _getdtype(dtype_str: str) -> "Any":
    return _TYPES[dtype_str]


def _view2np(safeview: "Iterable[tuple[str, dict[str, Any]]]") -> "Arrays":
    """Arrays of what `deserialize` gives, sharing its bytes."""
    return {name: np.frombuffer(found["data"], _getdtype(found["dtype"])).reshape(found["shape"]) for name, found in safeview}
