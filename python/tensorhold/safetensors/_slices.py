"""Slices of tensors of NumPy and JAX, with the indexes that safetensors takes for them: integers, slices that go forward, and `...`."""

import operator

from tensorhold._core import TensorError, TensorIndexError
from tensorhold._text import kind
from tensorhold.slices import Slice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Union

    Index = Union[int, "Range"]


class Range:
    """A slice with bounds that are not negative. What is None is the dimension's end."""

    def __init__(self, start: "int | None", stop: "int | None", step: int) -> None:
        self.start = start
        self.stop = stop
        self.step = step

    def __str__(self) -> str:
        ends = ("" if end is None else str(end) for end in (self.start, self.stop))
        return ":".join(ends) + (f":{self.step}" if self.step != 1 else "")


class PySafeSlice(Slice):
    """A tensor that is not read yet; indexed, it reads a part.

    Tensors of torch take the indexes that torch takes. Others take one integer, slice or `...` for each dimension, within its bounds.
    """

    def __getitem__(self, index: "Any") -> "Any":
        if self._converter.name == "torch":
            return super().__getitem__(index)
        shape = self.get_shape()
        found = indexes(index, shape)
        check(found, shape)
        return super().__getitem__(tuple(slice(one.start, one.stop, one.step) if isinstance(one, Range) else one for one in found))


def indexes(index: "Any", shape: "list[int]") -> "list[Index]":
    """The indexes of the first dimensions; integers count from the start.

    Raises `TensorError` for what is no index of these kinds, `OverflowError` for a slice with a negative bound.
    """
    if isinstance(index, list):
        if index:
            raise TensorError("Non empty lists are not implemented")
        return [Range(0, 0, 1)]
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = sum(part is Ellipsis for part in parts)
    if dots > 1:
        raise TensorError(f"slice: got {dots} times ..., expected it once; write : for the other dimensions")
    found: list[Index] = []
    for part in parts:
        if part is Ellipsis:
            found += [Range(None, None, 1) for _ in range(len(shape) - len(parts) + 1)]
        elif isinstance(part, slice):
            found.append(_range(part))
        else:
            found.append(_integer(part, len(found), shape))
    return found


def check(found: "list[Index]", shape: "list[int]") -> None:
    """Raises `TensorIndexError` for indexes past the end of a dimension, or of more dimensions than there are."""
    where = f"Error during slicing [{', '.join(map(str, found))}] with shape {shape}"
    if len(found) > len(shape):
        raise TensorIndexError(f"{where}: got {len(found)} indexes, expected one for each of the {len(shape)} dimensions at most")
    for dim in reversed(range(len(found))):
        one, length = found[dim], shape[dim]
        if isinstance(one, Range):
            start, stop = one.start or 0, length if one.stop is None else one.stop
        else:
            start, stop = one, one + 1
        if start >= length or stop > length:
            asked = start if start >= length else stop - 1
            raise TensorIndexError(f"{where}: index {asked} out of bounds for tensor dimension #{dim} of size {length}")


def _range(part: slice) -> Range:
    step = 1 if part.step is None else _number("step", part.step, -(1 << 63), (1 << 63) - 1)
    if step < 1:
        raise TensorError(f"slice: got step {step}, expected a positive one; reverse the part after it is read")
    start, stop = (None if end is None else _number("bound", end, 0, (1 << 64) - 1) for end in (part.start, part.stop))
    return Range(start, stop, step)


def _number(what: str, given: "Any", least: int, most: int) -> int:
    try:
        number = operator.index(given)
    except TypeError as error:
        raise TypeError(f"slice: got a {what} of type {kind(given)}, expected an integer; convert it with int()") from error
    if not least <= number <= most:
        raise OverflowError(f"slice: got {what} {number}, expected one from {least} to {most}; count from the start, see get_shape()")
    return number


def _integer(part: "Any", dim: int, shape: "list[int]") -> int:
    try:
        index = operator.index(part)
    except TypeError:
        index = None
    if index is None or not -(1 << 31) <= index < 1 << 31:
        raise TensorError(f"slice: got {kind(part)} at position {dim}, expected an integer of 32 bits, a slice or ...; index what get_tensor() gives")
    length = shape[dim] if dim < len(shape) else 0
    if index < -length:
        raise TensorIndexError(f"Invalid index {index} for dimension {dim} of size {length}")
    return index + length if index < 0 else index
