"""What the compiled module has. `tensorhold` exports it under its own name: import from there."""

import pathlib
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from types import TracebackType
from typing import Any, TypeVar, final, overload

from typing_extensions import Buffer, Self, Unpack

from tensorhold._mapping import Names
from tensorhold.types import Device, DType, Options, Path, Paths

__all__ = [
    "AccessError",
    "CancelledError",
    "Choice",
    "Closed",
    "ClosedError",
    "Cut",
    "DeviceError",
    "Error",
    "FileChangedError",
    "FileError",
    "ForkError",
    "FormatError",
    "FrameworkError",
    "GroupError",
    "Held",
    "LeftOut",
    "MissingFileError",
    "MissingTensorError",
    "OptionError",
    "OutOfMemoryError",
    "Pool",
    "Progress",
    "Report",
    "Stats",
    "Stream",
    "Tensor",
    "TensorError",
    "TensorIndexError",
    "TensorInfo",
    "Weights",
    "_Draft",
    "_Getter",
    "_Handover",
    "_Open",
    "__version__",
    "batches",
    "check_group",
    "cuda_count",
    "deserialize",
    "device_name",
    "foreign_format",
    "go_on",
    "inspect",
    "load",
    "open",
    "path_list",
    "plan_shards",
    "relay",
    "restore",
    "save_file",
    "serialize",
    "shard_paths",
    "share",
    "stream",
    "validate_shard_set",
]

_T = TypeVar("_T")

__version__: str

class Error(Exception):
    """What can go wrong in a call of this package. A failed call leaves nothing behind."""

    operation: str | None
    path: str | None

class FileError(Error, OSError):
    """The system refused to open or to read a file."""

class MissingFileError(FileError, FileNotFoundError):
    """There is no such file."""

class AccessError(FileError, PermissionError):
    """The file may not be read."""

class FileChangedError(FileError):
    """A file is not what it was when the load began."""

class FormatError(Error, ValueError):
    """A header, an index or a folder is not as the format has it."""

class OptionError(Error, ValueError):
    """An option, a setting or an argument that cannot be followed."""

class TensorError(Error, ValueError):
    """A tensor cannot be used like that."""

class TensorIndexError(TensorError, IndexError):
    """A tensor has no such element or part."""

class MissingTensorError(Error, KeyError):
    """There is no tensor of that name."""

class ClosedError(Error, ValueError):
    """What was closed is used."""

class OutOfMemoryError(Error, MemoryError):
    """The memory or the pool's limit does not allow it."""

class DeviceError(Error, RuntimeError):
    """A device or its driver cannot do as asked."""

class CancelledError(Error, RuntimeError):
    """The load was broken off by its progress callback."""

class ForkError(Error, RuntimeError):
    """A forked child uses what belongs to its parent."""

class FrameworkError(Error, ImportError):
    """A framework is missing, or cannot use the device."""

class GroupError(Error, RuntimeError):
    """A process group, or one of its ranks, cannot do as asked."""

@final
class TensorInfo:
    """A tensor as it is on its device; in a rule, as its file has it."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """As the format spells it: `F32`, `BF16`, `F8_E4M3`, ..."""
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def file(self) -> str:
        """The file that it is from."""

@final
class Cut:
    """A part of a tensor along one dimension."""

    @staticmethod
    def narrow(dim: int, start: int, length: int) -> Cut: ...
    @staticmethod
    def shard(dim: int, rank: int, world: int) -> Cut:
        """Part `rank` of `world` parts of the same length."""
    @staticmethod
    def chunk(dim: int, rank: int, world: int) -> Cut:
        """Part `rank` of `world` parts as torch's `chunk` makes them."""

@final
class Progress:
    """How far a load is."""

    @property
    def done_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def tensors(self) -> int: ...

@final
class Tensor:
    """A tensor that keeps its own bytes alive, and nothing else's."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str:
        """`cpu`, `pinned` or `cuda:N`."""
    @property
    def file(self) -> str: ...
    @property
    def info(self) -> TensorInfo: ...
    @property
    def data_ptr(self) -> int:
        """The address of the first element in the device's memory. Keep the tensor while it is used."""
    def view(self, dtype: DType) -> Tensor:
        """The same bytes as elements of another type; the last dimension becomes longer or shorter with it."""
    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """A part that is one run of bytes, sharing them."""
    def to_host(self) -> bytes:
        """A copy of the bytes."""
    def torch(self) -> Any: ...
    def numpy(self) -> Any: ...
    def to(self, framework: str) -> Any:
        """The tensor as one of the framework's, with no copy."""
    def __len__(self) -> int: ...
    def __dlpack__(
        self,
        *,
        stream: Any | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __copy__(self) -> Tensor: ...

@final
class Held:
    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...

@final
class Closed:
    """What closing found."""

    @property
    def released_bytes(self) -> int:
        """Bytes of tensors that no one else held."""
    @property
    def held(self) -> list[Held]:
        """What others hold; its memory goes when they drop it."""
    @property
    def pinned_bytes(self) -> int:
        """Bytes of the regions that stay reserved for what is held."""
    @property
    def pending_bytes(self) -> int:
        """Bytes that no one holds and that a device may still be using."""

@final
class Choice:
    @property
    def about(self) -> str: ...
    @property
    def picked(self) -> str: ...
    @property
    def why(self) -> str: ...

@final
class LeftOut:
    """A file of a checkpoint's folder that is not loaded, or not wholly."""

    @property
    def path(self) -> str: ...
    @property
    def why(self) -> str: ...

@final
class Report(Mapping[str, Any]):
    """How a load went: sizes in bytes, times in seconds. Its values can be had by name, too: `report["bytes"]`."""

    @property
    def device(self) -> str: ...
    @property
    def tensors(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def cached_bytes(self) -> int: ...
    @property
    def direct_bytes(self) -> int: ...
    @property
    def gds_bytes(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def regions(self) -> int: ...
    @property
    def region_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def staging_bytes(self) -> int: ...
    @property
    def jobs(self) -> int: ...
    @property
    def times(self) -> dict[str, Any]:
        """`plan`, `reserve`, `fill`, `total`, and `stages`."""
    @property
    def choices(self) -> list[Choice]: ...
    @property
    def converted(self) -> list[dict[str, Any]] | None: ...
    @property
    def left_out(self) -> list[LeftOut]:
        """Files of the checkpoint's folder that were not loaded, or not wholly."""
    @property
    def gigabytes_per_second(self) -> float: ...
    def as_dict(self) -> dict[str, Any]: ...
    def keys(self) -> Names: ...  # type: ignore[override]
    def items(self) -> ItemsView[str, Any]: ...
    def values(self) -> ValuesView[Any]: ...
    def get(self, key: str, default: Any = None, /) -> Any: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __getitem__(self, key: str, /) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...

@final
class Stats:
    """A pool's numbers at one moment, in bytes but for `fragments` and `regions`."""

    @property
    def reserved_bytes(self) -> int: ...
    @property
    def live_bytes(self) -> int: ...
    @property
    def pending_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def largest_free_bytes(self) -> int: ...
    @property
    def high_water_bytes(self) -> int: ...
    @property
    def lost_bytes(self) -> int: ...
    @property
    def fragments(self) -> int: ...
    @property
    def regions(self) -> int: ...

@final
class Pool:
    """Memory of a device that several loads share, with its limit and statistics."""

    def __new__(
        cls,
        device: Device | None = None,
        *,
        limit_bytes: int | None = None,
        parts: bool | None = None,
        retain_bytes: int = 0,
        name: str | None = None,
    ) -> Self:
        """`parts`: whether a tensor's memory goes back to the device with the tensor, though its neighbours in the
        region live: None, where the device can; True, or it is an error; False, never."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def parts(self) -> bool: ...
    def stats(self) -> Stats: ...
    def trim(self) -> None:
        """Gives back what is free, and waits until that is done."""

@final
class Weights(Mapping[str, Tensor]):
    """The loaded tensors of a checkpoint, by name, file by file in the order of their bytes."""

    def keys(self) -> Names:  # type: ignore[override]
        """The names, file by file in the order of their bytes: a list, with the set operations of a dict's keys."""
    def items(self) -> ItemsView[str, Tensor]: ...
    def values(self) -> ValuesView[Tensor]: ...
    @overload
    def get(self, key: str, /) -> Tensor | None: ...
    @overload
    def get(self, key: str, default: _T, /) -> Tensor | _T: ...
    def info(self, name: str) -> TensorInfo: ...
    def infos(self) -> list[TensorInfo]: ...
    def tensor(self, name: str) -> Tensor: ...
    def files(self) -> list[str]: ...
    def _each(
        self, from_capsule: Callable[[Any], Any] | None, plain: list[str], convert: Callable[[Any], Any], hand_over: bool
    ) -> dict[str, Any]: ...
    def metadata(self, file: Path | None = None) -> dict[str, str]:
        """The strings in a file's header, or in those of all files."""
    def report(self) -> Report: ...
    def pool_stats(self) -> Stats: ...
    def to(self, framework: str) -> dict[str, Any]:
        """All tensors as the framework's, by name, with no copy."""
    @property
    def device(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> Closed:
        """Gives back every tensor that no one else holds, and says what is still held."""
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, key: str, /) -> Tensor: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class Stream:
    """A load under way: iterates over `(name, tensor)`, each as its bytes land."""

    def finish(self) -> Weights:
        """Waits for the rest, and gives all tensors."""
    def close(self) -> None:
        """Stops the load. What was given stays."""
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[str, Tensor]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class _Handover:
    """A tensor on its way to a framework that becomes its owner."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    def view(self, dtype: DType) -> _Handover: ...
    def __dlpack__(
        self,
        *,
        stream: Any | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class _Open:
    """A checkpoint that is open."""

    def keys(self) -> list[str]: ...
    def info(self, name: str) -> TensorInfo: ...
    def files(self) -> list[str]: ...
    def left_out(self) -> list[LeftOut]: ...
    def metadata(self, file: Path | None = None) -> dict[str, str] | None: ...
    def getter(
        self, from_capsule: Callable[[Any], Any] | None, plain: list[str], convert: Callable[[Any], Any]
    ) -> _Getter:
        """What reads tensors by name, as the framework's."""
    def hand_over_part(self, name: str, cuts: Cut | Iterable[Cut]) -> _Handover: ...
    def load(self, names: list[str] | None = None) -> Weights: ...
    def stream(self, in_file_order: bool = False) -> Stream: ...
    @property
    def device(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...

@final
class _Getter:
    """Reads tensors of an open checkpoint, by name, as the framework's."""

    def __call__(self, name: str) -> Any: ...

def open(paths: Paths, device: Device | None = None, **options: Unpack[Options]) -> _Open: ...
def load(paths: Paths, device: Device | None = None, **options: Unpack[Options]) -> Weights: ...
def stream(
    paths: Paths, device: Device | None = None, *, in_file_order: bool | None = False, **options: Unpack[Options]
) -> Stream: ...
def inspect(
    paths: Paths, device: Device | None = None, **options: Unpack[Options]
) -> tuple[list[TensorInfo], dict[str, dict[str, str]]]:
    """What the headers say: the tensors as they would be loaded, and the strings of each file."""

def save_file(
    path: Path,
    items: Sequence[tuple[str, DType, list[int], Any]],
    metadata: Sequence[tuple[str, str]] | None,
    synced: bool,
) -> None:
    """Writes a file of tensors, each a name, a type, a shape, and its bytes. Without `metadata` the header has no `__metadata__`."""

def serialize(
    items: Sequence[tuple[str, DType, list[int], Any]], metadata: Sequence[tuple[str, str]] | None = None
) -> bytes:
    """The bytes of the file that `save_file` writes of the same arguments."""

def deserialize(data: Buffer) -> list[tuple[str, dict[str, Any]]]:
    """The tensors of a file whose bytes are given, in the order of their bytes: `shape`, `dtype` and `data` of each, the last as a bytearray."""

def cuda_count() -> int:
    """How many CUDA devices there are; 0 without a driver."""

def restore(kind: str, state: tuple[Any, ...]) -> Any:
    """Makes an object of a class from the state that its pickle has."""

def path_list(subject: str, paths: Paths) -> list[Any]:
    """One path, or several, of the argument that messages call `subject`."""

def foreign_format(start: bytes, file_len: int) -> str | None:
    """What a file is that is no safetensors file, by its first bytes and its length, as a message says it."""

def device_name(named: Device | None) -> str:
    """The full name of a device, without a look at whether it is there."""

# What the drop-in for fastsafetensors, and process groups, are made of.

@final
class _Batches:
    """A load in batches under way. Asking for the next one says that the one before is done with."""

    @property
    def plan(self) -> dict[str, int]:
        """How the load is divided, as chosen: sizes in bytes."""
    @property
    def pool(self) -> Pool:
        """Where the batches are placed."""
    def close(self) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Weights: ...

@final
class _Shared:
    """Tensors of files that the ranks of a group have read between them."""

    def info(self, name: str) -> TensorInfo | None: ...
    def broadcast(self, name: str) -> Tensor: ...
    def shard(self, name: str, dim: int) -> Tensor: ...
    def columns(self, names: list[str], dim: int) -> Tensor: ...
    def push(self, name: str, to: int) -> Tensor | None: ...
    def close(self) -> None: ...

@final
class _Relay:
    """Tensors of all ranks in one order, each broadcast as its owner has read it."""

    def close(self) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[str, _Handover]: ...

@final
class _ShardPlan:
    """A file that is to be written: its header, and where each tensor goes."""

    @property
    def path(self) -> pathlib.Path: ...
    @property
    def names(self) -> list[str]:
        """In the order of their bytes."""
    @property
    def header(self) -> bytes:
        """With its length before it."""
    @property
    def ranges(self) -> list[tuple[int, int]]: ...
    @property
    def total_bytes(self) -> int: ...

@final
class _Draft:
    """Files of their full length, with their headers, under other names."""

    def __new__(cls, plans: list[_ShardPlan], *, min_free_bytes: int = 0) -> Self: ...
    @property
    def paths(self) -> list[pathlib.Path]:
        """Where the files are for now."""
    def commit(self, *, synced: bool = False) -> list[pathlib.Path]: ...
    def close(self) -> None: ...

def batches(
    paths: Paths,
    device: Device | None = None,
    *,
    max_batch_bytes: int | None = None,
    ahead: int = 1,
    keep: bool | Callable[[TensorInfo], bool] | None = None,
    even_regions: bool = False,
    memory_budget: int | None = None,
    **options: Any,
) -> _Batches: ...
def share(
    group: Any | None, pool: Pool, tensors: list[tuple[TensorInfo, int]], paths: list[str], **options: Any
) -> _Shared:
    """Loads this rank's files into the pool; `tensors` are those of all ranks, each with the rank that has it."""

def relay(
    group: Any | None, pool: Pool, order: list[tuple[TensorInfo, int]], batches: _Batches | None
) -> _Relay: ...
def go_on(group: Any | None, pool: Pool, is_well: bool) -> None:
    """Goes on if all is well on every rank. All ranks call it."""

def check_group(group: Any | None, device: Device | None = None) -> None:
    """Checks that a group keeps what is asked of groups, with tensors on `device`. All ranks call it."""

def plan_shards(
    tensors: list[tuple[str, str, list[int]]],
    paths: list[str],
    *,
    metadata: dict[str, str],
    first_metadata: dict[str, str],
    shard_metadata: Callable[[list[str]], dict[str, str]] | None,
    header_align: int,
    shard_set: str | None,
) -> list[_ShardPlan]: ...
def shard_paths(base: str, shards: int) -> list[pathlib.Path]: ...
def validate_shard_set(shards: list[tuple[str, dict[str, str]]]) -> None: ...
