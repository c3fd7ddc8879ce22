"""`Slice`: a tensor that is not read yet; indexed, it reads a part.

An index is divided in two: what is read, a range of each dimension, and an index into that part, which the framework applies. So the result is what the
framework makes of the index, and errors that are not about ranges are the framework's, too.
"""

import operator
from collections.abc import Sequence

from tensorhold import _core
from tensorhold._text import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Union

    # How many dimensions an item of an index takes, and the item; None where only the framework knows.
    _Item = Union[tuple[int, Any], None]

ALL = slice(None)
MAX_DEPTH = 32
"""Lists that are nested deeper are left to the framework."""


class IndexTypeError(_core.TensorIndexError, TypeError):
    """An index of a type that no framework takes. Some of them raise `IndexError` for it, others `TypeError`."""


class Slice:
    """A tensor that is not read yet; indexed, it reads a part.

    Indexes are those of the framework: integers, slices, `...`, None, lists, masks, and arrays or tensors of integers, also several in a tuple. The result is
    what the framework's whole tensor gives for the index. Of a dimension that an integer or a slice indexes, only the elements from the first to the last
    are read, and so for a list of integers. Dimensions that masks, arrays and tensors index are read as a whole.
    """

    def __init__(self, opened: "_core._Open", converter: "Any", info: _core.TensorInfo) -> None:
        self._open = opened
        self._converter = converter
        self._info = info

    def get_shape(self) -> "list[int]":
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """As the format spells it."""
        return self._info.dtype

    def __getitem__(self, index: "Any") -> "Any":
        divided = self._divide(index)
        if divided is None:
            if self._info.dtype == "F4":
                got = f"an index of {type(index).__name__}, which only {self._converter.name} can interpret, into values that share bytes in pairs"
                raise self._error(got, "integers, slices, ... and None", "take others when you have unpacked the part")
            return self._converter.index(self._read([]), index)
        cuts, rest = divided
        part = self._read(cuts)
        if all(item is Ellipsis or item is ALL for item in rest):
            return part
        return self._converter.index(part, tuple(rest) if isinstance(index, tuple) else rest[0])

    def __reduce__(self) -> "Any":
        raise TypeError(
            "pickle a Slice: it reads from a checkpoint that is open in this process; pickle the safe_open, and call get_slice() in the other process, or "
            "pickle a part that was read"
        )

    def _read(self, cuts: "list[_core.Cut]") -> "Any":
        return self._converter.convert(self._open.hand_over_part(self._info.name, cuts))

    def _divide(self, index: "Any") -> "tuple[list[_core.Cut], list[Any]] | None":
        """What is read for an index, and the index into that; None where only the framework knows."""
        items = self._items(index)
        if items is None:
            return None
        cuts, rest, dim = [], [], 0
        for taken, item in items:
            # Most items take one dimension; None and booleans take none, and masks and `...` any number.
            if taken and item is not Ellipsis:
                self._check_packed(dim + taken, item)
            if taken == 1 and item is not Ellipsis:
                part = self._part(dim, item)
                if part is None:
                    return None
                start, count, item = part
                if (start, count) != (0, self._info.shape[dim]):
                    cuts.append(_core.Cut.narrow(dim, start, count))
            rest.append(item)
            dim += taken
        return cuts, rest

    def _items(self, index: "Any") -> "list[tuple[int, Any]] | None":
        """The items of an index, each with how many dimensions it takes, which are no more than there are; None where only the framework knows."""
        given = index if isinstance(index, tuple) else (index,)
        if not isinstance(index, tuple) and self._converter.name == "torch" and _is_nested(index):
            # Some versions of torch take a list of lists for a tuple.
            return None
        items = [self._item(item) for item in given]
        known = [item for item in items if item is not None]
        dims, dots = len(self._info.shape), sum(item is Ellipsis for item in given)
        missing = dims - sum(taken for taken, _ in known)
        if dots > 1 and self._converter.name != "torch" or missing < 0:
            raise self._error(f"{len(given)} indexes", f"one for each of its {dims} dimensions at most, and ... once", "see get_shape()")
        if dots > 1 or len(known) < len(items):
            return None
        return [(missing, item) if item is Ellipsis else (taken, item) for taken, item in known]

    def _item(self, item: "Any") -> "_Item":
        """How many dimensions an item takes; integers and lists of integers as Python's."""
        if item is None or item is Ellipsis or isinstance(item, bool):
            return 0, item
        if isinstance(item, slice):
            return 1, item
        dims, dtype = getattr(item, "ndim", None), str(getattr(item, "dtype", "")).rpartition(".")[2]
        if isinstance(dims, int) and dtype:
            if not self._is_known(item) or self._converter.name == "torch" and _is_of(item, "numpy") and ("float" in dtype or "complex" in dtype):
                # NumPy takes another framework's tensor of one element for a number, and torch converts arrays of floats.
                return None
            if dtype == "bool":
                return dims, item
            if dtype == "uint8" and self._converter.name == "torch":
                # For torch, these are masks, too, unless they are numbers of NumPy.
                return (dims, item) if dims else None
            if "int" in dtype and dims:
                return 1, item
        if hasattr(item, "__index__"):
            try:
                return 1, operator.index(item)
            except TypeError:
                pass
        if isinstance(item, (list, tuple)):
            return _of_sequence(item)
        if isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
            return None
        raise self._error(
            f"an index of {type(item).__name__}",
            "integers, slices, ..., None, lists, masks, and arrays of integers",
            "convert it to one of these",
            IndexTypeError,
        )

    def _is_known(self, item: "Any") -> bool:
        """Whether an array or a tensor is NumPy's or the framework's."""
        return _is_of(item, "numpy", self._converter.module, self._converter.module + "lib")

    def _check_packed(self, dims: int, item: "Any") -> None:
        """Refuses an item that takes single values where values share a byte. It takes the dimensions before `dims`."""
        if self._info.dtype == "F4" and dims == len(self._info.shape) and not (isinstance(item, slice) and item.step in (None, 1)):
            got = f"an index of {type(item).__name__} into dimension {dims - 1}, whose values share bytes in pairs"
            raise self._error(got, "a slice of step 1", "take others when you have unpacked the part")

    def _part(self, dim: int, item: "Any") -> "tuple[int, int, Any] | None":
        """Which elements of a dimension are read for an item, from where on and how many, and the item's index into them; None where only the framework
        knows."""
        length = self._info.shape[dim]
        if isinstance(item, slice):
            return self._of_slice(dim, item)
        if isinstance(item, int):
            start = item + length if item < 0 else item
            if not 0 <= start < length:
                raise self._error(f"index {item}", f"one within the {length} of dimension {dim}", "see get_shape()")
            return start, 1, 0
        numbers = _leaves(item) if isinstance(item, list) else [False]
        if not numbers:
            return 0, 0, item
        if isinstance(numbers[0], bool):
            return 0, length, item
        if min(numbers) < -length or max(numbers) >= length:
            if self._converter.name == "torch":
                # On a CUDA device, torch would find out in a kernel, after which the process cannot use the device.
                raise self._error(f"indexes from {min(numbers)} to {max(numbers)}", f"ones within the {length} of dimension {dim}", "see get_shape()")
            # NumPy accepts them where the result is empty; JAX and CuPy take an element within the dimension instead.
            return None
        wrapped = [number + length if number < 0 else number for number in numbers]
        start = min(wrapped)
        return start, max(wrapped) + 1 - start, _moved(item, length, start)

    def _of_slice(self, dim: int, item: slice) -> "tuple[int, int, Any]":
        length = self._info.shape[dim]
        if item.step is not None and operator.index(item.step) == 0:
            raise self._error("step 0", "one that is not 0", "correct it")
        start, stop, step = item.indices(length)
        if step < 0 and self._converter.name == "torch":
            raise self._error(f"step {step}", "a positive one, as torch has it", "flip() the part when you have it")
        elements = range(start, stop, step)
        if not elements:
            return min(max(start, 0), length), 0, ALL
        first, final = min(elements[0], elements[-1]), max(elements[0], elements[-1])
        return first, final + 1 - first, ALL if step == 1 or len(elements) == 1 else slice(None, None, step)

    def _error(
        self, got: str, expected: str, remedy: str, kind: "type[_core.TensorIndexError]" = _core.TensorIndexError
    ) -> _core.TensorIndexError:
        return kind(f"slice of tensor {quoted(self._info.name)}: got {got}, expected {expected}; {remedy}")


def _is_of(item: "Any", *packages: str) -> bool:
    """Whether an object's class, or one that it derives from, is of one of these packages."""
    return any(base.__module__.partition(".")[0] in packages for base in type(item).__mro__)


def _is_nested(item: "Any") -> bool:
    """Whether it is a sequence of more than numbers."""
    is_sequence = isinstance(item, Sequence) and not isinstance(item, (str, bytes))
    return is_sequence and not all(isinstance(part, int) for part in item)


def _of_sequence(item: "list[Any] | tuple[Any, ...]") -> "_Item":
    """How many dimensions a sequence takes: one if it consists of integers, and as many as it has itself if it consists of booleans."""
    if not item:
        return 1, []
    plain = _plain(item, 1)
    if plain is None:
        return None
    depth, found = plain
    kinds = {isinstance(leaf, bool) for leaf in _leaves(found)}
    if len(kinds) != 1:
        return None
    return (depth if kinds.pop() else 1), found


def _plain(item: "list[Any] | tuple[Any, ...]", depth: int) -> "tuple[int, list[Any]] | None":
    """The depth of nested lists and tuples of integers or booleans, the same everywhere, and all of it as lists of Python's; None for others."""
    found: "list[Any]" = []
    depths = set()
    for part in item:
        if isinstance(part, bool):
            found.append(part)
            depths.add(depth)
        elif isinstance(part, (list, tuple)) and depth < MAX_DEPTH:
            below = _plain(part, depth + 1)
            if below is None:
                return None
            depths.add(below[0])
            found.append(below[1])
        elif hasattr(part, "__index__") and not getattr(part, "ndim", 0) and str(getattr(part, "dtype", "int")).rpartition(".")[2] != "bool":
            try:
                found.append(operator.index(part))
            except TypeError:
                return None
            depths.add(depth)
        else:
            return None
    return (depths.pop(), found) if len(depths) == 1 else None


def _leaves(item: "list[Any]") -> "list[Any]":
    leaves: "list[Any]" = []
    for part in item:
        if isinstance(part, list):
            leaves.extend(_leaves(part))
        else:
            leaves.append(part)
    return leaves


def _moved(item: "list[Any]", length: int, start: int) -> "list[Any]":
    """The integers, counted from `start` on."""
    return [_moved(part, length, start) if isinstance(part, list) else (part + length if part < 0 else part) - start for part in item]
