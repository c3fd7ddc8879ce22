"""`serialize`, `serialize_file` and `deserialize`: files of tensors that are given by the addresses of their bytes."""

import operator
import sys

from tensorhold import _arguments, _core, frameworks
from tensorhold._text import kind, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

    from tensorhold.types import Path

DTYPES = {
    "bool": "BOOL",
    "float4_e2m1fn_x2": "F4",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
"""The types by the names that torch and NumPy have for them, in the reverse of their order in a file."""

SIZE_MAX = (1 << 64) - 1

RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


class TensorSpec:
    """A tensor by its type, its shape and the address of its bytes, which lie in host memory, row by row.

    `dtype` is the name that torch or NumPy has for the type. `shape` counts elements as the framework does: two values of `float4_e2m1fn_x2` are one element.
    The attributes `dtype` and `shape` are those of the file's header.

    The caller keeps the memory at `data_ptr` allocated, and does not write to it, during each `serialize` and `serialize_file`.

    Raises `SafetensorError` if the format has no such type, `TypeError` and `OverflowError` if an argument is no integer, or one that no size can be.
    """

    __slots__ = ("_data_len", "_data_ptr", "_dtype", "_kept", "_shape")

    def __init__(self, *, dtype: str, shape: "Sequence[int]", data_ptr: int, data_len: int) -> None:
        if not isinstance(dtype, str):
            raise TypeError(f"argument dtype: got {kind(dtype)}, expected a str; pass the name that torch or NumPy has for the type")
        if dtype not in DTYPES:
            raise _core.TensorError(f"argument dtype: got {quoted(dtype)}, expected one of {', '.join(DTYPES)}; name one of these")
        self._dtype = DTYPES[dtype]
        self._shape = [_size("shape", extent) for extent in _extents(shape)]
        if dtype == "float4_e2m1fn_x2" and self._shape:
            self._shape[-1] *= 2
            if self._shape[-1] > SIZE_MAX:
                raise _core.TensorError(f"argument shape: got {quoted(shape)} of pairs, expected at most {SIZE_MAX} values; check the shape")
        self._data_ptr = _size("data_ptr", data_ptr)
        self._data_len = _size("data_len", data_len)
        self._kept: Any = None

    @property
    def dtype(self) -> str:
        """As the format spells it."""
        return self._dtype

    @property
    def shape(self) -> "list[int]":
        """As the file's header has it: in values."""
        return list(self._shape)

    @property
    def data_ptr(self) -> int:
        """The address of the first byte."""
        return self._data_ptr

    @property
    def data_len(self) -> int:
        """The length in bytes."""
        return self._data_len

    def _keeping(self, data: "Any") -> "TensorSpec":
        """The same, which keeps its bytes: an array of them that exports DLPack."""
        self._kept = data
        return self

    def __repr__(self) -> str:
        return f"TensorSpec(dtype={self._dtype!r}, shape={self._shape}, data_ptr={self._data_ptr}, data_len={self._data_len})"

    def __reduce__(self) -> "NoReturn":
        raise TypeError("pickle a TensorSpec: its address means nothing in another process; pickle the tensor")


def serialize(tensor_dict: "dict[str, TensorSpec]", metadata: "dict[str, str] | None" = None) -> bytes:
    """The bytes of a safetensors file of these tensors: wide types first, names in their order.

    Raises `SafetensorError` if a tensor's length is not that of its type and shape.
    """
    return _core.serialize(_items(tensor_dict), _arguments.strings("metadata", metadata))


def serialize_file(tensor_dict: "dict[str, TensorSpec]", filename: "Path", metadata: "dict[str, str] | None" = None) -> None:
    """Writes what `serialize` gives to a file, which is there as a whole or not at all: see `tensorhold.save_file`."""
    _core.save_file(_arguments.path("filename", filename), _items(tensor_dict), _arguments.strings("metadata", metadata), False)


def deserialize(bytes: bytes) -> "list[tuple[str, dict[str, Any]]]":
    """The tensors of a safetensors file by its bytes: each a name, and a dict of `dtype`, `shape`, and `data`, which is a copy."""
    return _core.deserialize(bytes)


def _items(tensor_dict: "dict[str, TensorSpec]") -> "list[tuple[str, str, list[int], Any]]":
    if not isinstance(tensor_dict, dict):
        raise TypeError(f"argument tensor_dict: got {kind(tensor_dict)}, expected a dict from names to TensorSpec; call dict() on it")
    pairs = _arguments.named("tensor_dict", tensor_dict, "TensorSpec")
    for name, spec in pairs:
        if not isinstance(spec, TensorSpec):
            raise TypeError(f"argument tensor_dict: got {kind(spec)} for the key {quoted(name)}, expected a TensorSpec; describe the tensor by one")
    pairs.sort(key=lambda pair: (-RANKS[pair[1]._dtype], pair[0]))
    return [(name, spec._dtype, spec._shape, _bytes(name, spec)) for name, spec in pairs]


def _bytes(name: str, spec: TensorSpec) -> "Any":
    """The tensor's bytes as an array that exports DLPack."""
    if spec._kept is not None:
        return spec._kept
    if spec._data_len and not spec._data_ptr or spec._data_len > sys.maxsize:
        raise _core.TensorError(
            f"save tensor {quoted(name)}: got {spec._data_len} bytes at the address {spec._data_ptr}, expected the tensor's bytes in memory; pass their address and length"
        )
    import ctypes

    numpy = frameworks.Numpy().numpy
    if not spec._data_len:
        return numpy.empty(0, numpy.uint8)
    return numpy.frombuffer((ctypes.c_ubyte * spec._data_len).from_address(spec._data_ptr), numpy.uint8)


def _extents(shape: "Any") -> "Iterable[Any]":
    if isinstance(shape, (str, dict)) or not hasattr(shape, "__getitem__"):
        raise TypeError(f"argument shape: got {kind(shape)}, expected a sequence of integers; pass the tensor's shape")
    return shape  # type: ignore[no-any-return]


def _size(argument: str, given: "Any") -> int:
    """An integer that a size or an address can be."""
    try:
        number = operator.index(given)
    except TypeError as error:
        raise TypeError(f"argument {argument}: got {kind(given)}, expected an integer; convert it with int()") from error
    if not 0 <= number <= SIZE_MAX:
        raise OverflowError(f"argument {argument}: got {number}, expected one from 0 to {SIZE_MAX}; check how it was computed")
    return number
