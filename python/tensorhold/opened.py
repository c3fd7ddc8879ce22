"""`safe_open`: a checkpoint that is open, read tensor by tensor, in parts, or as its bytes land."""

from tensorhold import _core
from tensorhold._text import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self, Unpack

    from tensorhold.frameworks import Converter
    from tensorhold.types import Device, LoadOptions, Options, Path, Paths


class safe_open:
    """An open checkpoint, whose headers have been read and checked: a folder, an index, a file, or several of these.

        >>> with tensorhold.safe_open("llama/", framework="pt", device="cuda:0") as f:
        ...     for name in f.keys():
        ...         tensor = f.get_tensor(name)

    Tensors own their memory, and stay when it is closed. A walk in the order of `keys()` reads ahead; what is asked for in another order is read by itself.
    Options are those of `tensorhold.load`, but for `progress`.
    """

    @staticmethod
    def _find(framework: str) -> "Converter":
        from tensorhold import frameworks

        return frameworks.find(framework)

    def __init__(
        self, filename: "Paths", framework: str = "pt", device: "Device" = "cpu", **options: "Unpack[LoadOptions]"
    ) -> None:
        if options.get("progress"):
            raise _core.OptionError(
                "option progress: got one for safe_open, expected none; show what you read, or use load_file()"
            )
        passed: "Options" = {**options, "progress": None}
        self._converter = self._find(framework)
        self._open = _core.open(_core.path_list("argument filename", filename), self._converter.prepare(device), **passed)
        from_capsule, plain = self._converter.plain()
        self._get = self._open.getter(from_capsule, plain, self._converter.convert)

    def keys(self) -> "list[str]":
        """The names, file by file in the order of their bytes."""
        return self._open.keys()

    def offset_keys(self) -> "list[str]":
        """The same: here, `keys` is in this order, too."""
        return self._open.keys()

    def files(self) -> "list[str]":
        """The files that were opened."""
        return self._open.files()

    def left_out(self) -> "list[_core.LeftOut]":
        """The files of the checkpoint's folder that were not opened, or of which some tensors are left out, each with the reason."""
        return self._open.left_out()

    def metadata(self, file: "Path | None" = None) -> "dict[str, str] | None":
        """The strings in a file's header, or in those of all files; None where no header has a `__metadata__`."""
        return self._open.metadata(file)

    def info(self, name: str) -> _core.TensorInfo:
        """What a tensor is when it is loaded."""
        return self._open.info(name)

    def get_shape(self, name: str) -> "list[int]":
        return list(self._open.info(name).shape)

    def get_dtype(self, name: str) -> str:
        """As the format spells it."""
        return self._open.info(name).dtype

    def get_tensor(self, name: str) -> "Any":
        """A tensor of the framework's, that owns its memory."""
        return self._get(name)

    def __getitem__(self, name: str) -> "Any":
        return self.get_tensor(name)

    def get_slice(self, name: str) -> "Slice":
        """A tensor of which parts can be read: `f.get_slice(name)[:, 8:16]`."""
        return Slice(self._open, self._converter, self._open.info(name))

    def load(self, names: "list[str] | None" = None) -> "dict[str, Any]":
        """All tensors, or those of the names, as a dict of the framework's."""
        from tensorhold import frameworks

        return frameworks.hand_over(self._open.load(names), self._converter)

    def __iter__(self) -> "Iterator[tuple[str, Any]]":
        """Gives name and tensor of each, as its bytes land. Frameworks that have read-only tensors get such, since the load holds them, too."""
        with self._open.stream() as landing:
            for name, tensor in landing:
                yield name, self._converter.convert(tensor)
            # Says if a file has changed meanwhile.
            landing.finish()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, name: object) -> bool:
        return name in self._open

    @property
    def closed(self) -> bool:
        return self._open.closed

    def close(self) -> None:
        """Closes the files. Tensors stay."""
        self._open.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        traceback: "TracebackType | None",
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "safe_open(closed)" if self.closed else f"safe_open({len(self)} tensors of {len(self.files())} files)"


class Slice:
    """A tensor that is not read yet; indexed, it reads a part.

    Indexes are integers, slices and `...`, as NumPy has them. Of slices with a step, all between the first and the last element is read, and the framework's
    own slice makes the steps.
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
        cuts, stays, steps = [], [], []
        for dim, (part, length) in enumerate(zip(self._indexes(index), self._info.shape)):
            if isinstance(part, slice):
                start, stop, step = part.indices(length)
                if step < 0:
                    raise self._error(f"step {step}", "a positive one", "turn the part round when you have it")
                if step != 1 and self._info.dtype == "F4" and dim == len(self._info.shape) - 1:
                    raise self._error(f"step {step} between values that share a byte", "1", "make the steps when you have unpacked the part")
                count = max(0, stop - start)
                steps.append(slice(None, None, step))
                stays.append(dim)
            else:
                start, count = part + length if part < 0 else part, 1
                if not 0 <= start < length:
                    raise _core.TensorIndexError(
                        f"slice of tensor {quoted(self._info.name)}: got index {part}, expected one within the {length} of dimension {dim}; "
                        "see get_shape()"
                    )
            if (start, count) != (0, length):
                cuts.append(_core.Cut.narrow(dim, min(start, length), count))
        part = self._converter.convert(self._open.hand_over_part(self._info.name, cuts))
        if len(stays) != len(self._info.shape):
            # What the framework calls them: that of F4 counts pairs.
            part = part.reshape([part.shape[dim] for dim in stays])
        if any(steps_.step != 1 for steps_ in steps):
            part = part[tuple(steps)]
        return part

    def _indexes(self, index: "Any") -> "list[slice | int]":
        """An index or slice for each dimension."""
        indexes = list(index) if isinstance(index, tuple) else [index]
        dims = len(self._info.shape)
        dots = [at for at, part in enumerate(indexes) if part is Ellipsis]
        if len(dots) > 1 or len(indexes) - len(dots) > dims:
            raise _core.TensorIndexError(
                f"slice of tensor {quoted(self._info.name)}: got {len(indexes)} indexes, expected one for each of its {dims} dimensions at most, "
                "and ... once; see get_shape()"
            )
        at = dots[0] if dots else len(indexes)
        missing = dims - (len(indexes) - len(dots))
        indexes[at : at + len(dots)] = [slice(None)] * missing
        return [part if isinstance(part, slice) else self._number(part) for part in indexes]

    def _number(self, part: "Any") -> int:
        if not isinstance(part, bool) and hasattr(part, "__index__"):
            try:
                return int(part.__index__())
            except TypeError:
                pass
        raise self._error(
            f"an index of {type(part).__name__}", "integers, slices and ...", "index what get_tensor() gives by other things"
        )

    def _error(self, got: str, expected: str, remedy: str) -> _core.TensorError:
        return _core.TensorError(f"slice of tensor {quoted(self._info.name)}: got {got}, expected {expected}; {remedy}")
