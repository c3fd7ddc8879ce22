"""`safe_open`, and the loads of whole files, with the arguments, the results and the exceptions that safetensors has."""

import errno
import os

from tensorhold import _core, api, frameworks, opened
from tensorhold._text import kind
from tensorhold.safetensors import _frameworks
from tensorhold.safetensors._slices import PySafeSlice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, NoReturn

    from typing_extensions import Unpack

    from tensorhold.types import Device, OtherOptions, Paths


NO_FILE = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""What the system says of paths that no file can have."""


class safe_open(opened.safe_open):
    """An open checkpoint, whose headers have been read and checked: that of `tensorhold`, with the arguments of safetensors.

    Slices can be read after it is closed, and keep the files open.
    """

    _find = staticmethod(_frameworks.find)

    def __init__(
        self,
        filename: "Paths",
        framework: str,
        device: "Device | None" = "cpu",
        *,
        backend: str = "mmap",
        **options: "Unpack[OtherOptions]",
    ) -> None:
        _check(filename, framework, backend)
        with _missing(filename):
            super().__init__(filename, framework, device, backend=backend, **options)

    def get_slice(self, name: str) -> PySafeSlice:
        """A tensor of which parts can be read: `f.get_slice(name)[:, 8:16]`."""
        return PySafeSlice(self._open, self._converter, self._open.info(name))

    def close(self) -> None:
        """Closes the files, once no slice can read from them. Tensors stay."""
        self._open = self._get = _CLOSED


class _safe_open_handle(safe_open):
    """The same, of an open file by its `name`."""

    def __init__(
        self,
        f: "Any",
        framework: str,
        device: "Device | None" = "cpu",
        *,
        backend: str = "mmap",
        **options: "Unpack[OtherOptions]",
    ) -> None:
        # What has no descriptor, such as a file in memory, has no name that could be opened.
        f.fileno  # noqa: B018
        super().__init__(f.name, framework, device, backend=backend, **options)

    def _reopened_as(self) -> "type[safe_open]":
        # By its name: the file itself cannot be pickled.
        return safe_open


class _Closed:
    """What is asked after a close."""

    closed = True

    def close(self) -> None:
        pass

    def __call__(self, name: str) -> "NoReturn":
        raise self._error()

    def __getattr__(self, name: str) -> "NoReturn":
        raise self._error()

    def __len__(self) -> int:
        raise self._error()

    def __contains__(self, key: object) -> bool:
        raise self._error()

    def _error(self) -> _core.ClosedError:
        return _core.ClosedError("File is closed: the checkpoint cannot be read any more; open it again")


_CLOSED: "Any" = _Closed()


def load_file(
    filename: "Paths", framework: str, device: "Device | None", backend: str, options: "OtherOptions"
) -> "dict[str, Any]":
    """All tensors of a checkpoint, as the framework's."""
    _check(filename, framework, backend)
    converter = _frameworks.find(framework)
    with _missing(filename):
        weights = api.load(filename, converter.prepare(device), backend=backend, **options)
    return frameworks.hand_over(weights, converter)


def _check(filename: "Paths", framework: str, backend: str) -> None:
    """Raises `TypeError` for arguments of types for which safetensors does."""
    if filename is None or isinstance(filename, (bytes, bytearray, int, float)) or hasattr(filename, "read"):
        raise TypeError(f"argument filename: got {kind(filename)}, expected a path, a str or an os.PathLike; name the file")
    for argument, given in (("framework", framework), ("backend", backend)):
        if not isinstance(given, str):
            raise TypeError(f"argument {argument}: got {kind(given)}, expected a str; pass its name")


class _missing:
    """A block in which a file that is not there is reported with the text that safetensors has for it."""

    def __init__(self, filename: "Paths") -> None:
        self.filename = filename

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, of: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        if not isinstance(error, _core.FileError) or not isinstance(self.filename, (str, os.PathLike)):
            return
        path = os.fsdecode(self.filename)
        if isinstance(error, _core.MissingFileError) or error.errno in NO_FILE or "\0" in path:
            told = _core.MissingFileError(f"No such file or directory: {path}")
            told.path, told.operation, told.errno = error.path, error.operation, error.errno
            raise told from error
