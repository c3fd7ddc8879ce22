"""`safe_open`: a checkpoint that is open, read tensor by tensor, in parts, or as its bytes land."""

import os

from tensorhold import _core, _pickle
from tensorhold.slices import Slice

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

    It can be copied and pickled while it is open. A copy opens the checkpoint again with the same arguments, also where it is unpickled, as in a worker of a
    DataLoader.
    """

    @staticmethod
    def _find(framework: str) -> "Converter":
        """How tensors are made the framework's; imports the framework."""
        from tensorhold import frameworks

        return frameworks.find(framework)

    def __init__(
        self, filename: "Paths", framework: str = "pt", device: "Device | None" = "cpu", **options: "Unpack[LoadOptions]"
    ) -> None:
        if options.get("progress"):
            raise _core.OptionError(
                "option progress: got one for safe_open, expected none; show what you read, or use load_file()"
            )
        passed: "Options" = {**options, "progress": None}
        self._converter = self._find(framework)
        paths = [os.fspath(path) for path in _core.path_list("argument filename", filename)]
        device = self._converter.prepare(device)
        self._open = _core.open(paths, device, **passed)
        # As they mean the same in another working directory.
        paths = [path if os.path.isabs(path) else os.path.join(os.getcwd(), path) for path in paths]
        self._arguments = paths, framework, device, {name: value for name, value in options.items() if value is not None}
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

    def get_tensors(self) -> "dict[str, Any]":
        """All tensors, as a dict of the framework's: the same as `load()`."""
        return self.load()

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

    def __reduce__(self) -> "tuple[Any, ...]":
        if self.closed:
            raise _core.ClosedError("pickle safe_open: the checkpoint has been closed; open it again")
        _pickle.check_options(self._arguments[-1])
        return _pickle.reopen, (self._reopened_as(), *self._arguments)

    def __copy__(self) -> "safe_open":
        """Opens the checkpoint again, with the same arguments."""
        if self.closed:
            raise _core.ClosedError("copy safe_open: the checkpoint has been closed; open it again")
        return _pickle.reopen(self._reopened_as(), *self._arguments)

    def __deepcopy__(self, memo: "dict[int, Any]") -> "safe_open":
        """The same: the checkpoint is opened again."""
        return self.__copy__()

    def _reopened_as(self) -> "type[safe_open]":
        return type(self)

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
