"""`TensorFrame`: where a tensor lies in its file, and the arithmetic of slices of it."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

from tensorhold.fastsafetensors.st_types import DType


@dataclass
class TensorFrame:
    """A tensor's type, shape and place. Slices are described, not read: each dimension has a stride, in elements of the whole tensor, and an offset, the index
    that it begins at. That of a slice of a slice is added to it, whatever the steps, as fastsafetensors does."""

    dtype: DType
    shape: List[int]
    data_offsets: List[int]
    strides: List[int]
    offsets: List[int]
    sliced: bool

    @classmethod
    def from_buffer(cls, entry: Dict[str, Any]) -> "TensorFrame":
        """The frame of an entry of a header."""
        shape = entry["shape"]
        if not isinstance(shape, list) or any(type(extent) is not int or extent < 0 for extent in shape):
            raise ValueError(f"read an entry of a header: got shape {shape!r}; shape must contain nonnegative integers; write the file again")
        strides: List[int] = []
        inner = 1
        for extent in reversed(shape):
            strides.insert(0, inner)
            inner *= extent
        return cls(DType(entry["dtype"]), shape, list(entry["data_offsets"]), strides, [0] * len(shape), False)

    def __repr__(self) -> str:
        return str({"dtype": self.dtype, "shape": self.shape, "data_offsets": self.data_offsets})

    def __getitem__(self, _val: Any) -> "TensorFrame":
        """The frame of a slice. A number keeps its dimension, with length 1; a slice without elements has no dimensions."""
        indexes: Tuple[Any, ...] = _val if isinstance(_val, tuple) else (_val,)
        if len(indexes) > len(self.shape):
            raise IndexError(f"slice a tensor: got {len(indexes)} indexes {_val!r}, expected at most {len(self.shape)} for shape {self.shape}; leave some out")
        shape, strides, offsets = list(self.shape), list(self.strides), list(self.offsets)
        for dim, index in enumerate(indexes):
            first, length, step = self._picked(dim, index)
            if length == 0:
                return TensorFrame(self.dtype, [], list(self.data_offsets), [], [], False)
            shape[dim] = length
            offsets[dim] += first
            strides[dim] *= step
        return TensorFrame(self.dtype, shape, list(self.data_offsets), strides, offsets, True)

    def _picked(self, dim: int, index: Any) -> Tuple[int, int, int]:
        """The first index of a dimension that is picked, how many are, and the step between them."""
        extent = self.shape[dim]
        if isinstance(index, slice):
            if index.step == 0:
                raise ValueError(f"slice a tensor: got step 0 in dimension {dim}, expected another; the slice step cannot be zero")
            picked = range(*index.indices(extent))
            return picked.start, len(picked), picked.step
        if isinstance(index, int):
            if not -extent <= index < extent:
                raise IndexError(f"slice a tensor: got index {index} in dimension {dim}, expected {-extent} to {extent - 1} for shape {self.shape}; name one that is there")
            return index % extent, 1, 1
        raise TypeError(f"slice a tensor: got index {index!r} in dimension {dim}, expected a whole number or a slice; use those")
