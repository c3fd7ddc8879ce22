"""Packed types: the format counts their elements, frameworks the bytes that each hold several."""

from typing import Any, List, Tuple

from tensorhold.fastsafetensors.st_types import DTYPE_SIZES, DType


def elements_per_byte(dtype: DType) -> int:
    """How many elements a byte holds; 1 for types of whole bytes."""
    return max(round(1 / DTYPE_SIZES[dtype]), 1)


def native_shape(dtype: DType, shape: List[int]) -> List[int]:
    """The framework's shape: bytes in the last dimension."""
    each = elements_per_byte(dtype)
    if each == 1:
        return shape
    if not shape or shape[-1] % each:
        raise ValueError(f"shape of a tensor of {dtype.value}: got {shape}, expected a last dimension that is a multiple of {each}; pad it")
    return [*shape[:-1], shape[-1] // each]


def logical_shape(dtype: DType, native: List[int]) -> List[int]:
    """The format's shape of a tensor of the framework's."""
    each = elements_per_byte(dtype)
    if each == 1:
        return native
    if not native:
        raise ValueError(f"shape of a tensor of {dtype.value}: got a scalar, expected a dimension for the {each} elements of a byte; reshape it")
    return [*native[:-1], native[-1] * each]


def native_slices(dtype: DType, shape: List[int], slices: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """The framework's indexes: the last one counts bytes."""
    each = elements_per_byte(dtype)
    if each == 1 or not shape or len(slices) < len(shape):
        return slices
    last = slices[len(shape) - 1]

    def bytes_of(elements: int) -> int:
        if elements % each:
            raise ValueError(
                f"index a tensor of {dtype.value}: got {last!r} in the last dimension, expected multiples of {each}, the elements of a byte; take whole bytes"
            )
        return elements // each

    if isinstance(last, slice):
        if last.step not in (None, 1):
            raise ValueError(f"index a tensor of {dtype.value}: got step {last.step} in the last dimension, expected 1; take each element")
        start, stop = (shape[-1] if bound is None else min(max(bound, 0), shape[-1]) for bound in (last.start or 0, last.stop))
        last = slice(bytes_of(start), bytes_of(stop), 1)
    elif isinstance(last, int):
        last = bytes_of(last)
    return (*slices[: len(shape) - 1], last, *slices[len(shape) :])
