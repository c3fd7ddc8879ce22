"""Sharded sets of files: plans, and writing them by threads. A set appears when all of it has been written, or not at all."""

import mmap
import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from tensorhold import _arguments, _core
from tensorhold import frameworks as exports
from tensorhold._text import quoted
from tensorhold.fastsafetensors.frameworks import TensorBase, get_framework_op
from tensorhold.fastsafetensors.st_types import DTYPE_SIZES, DType

KEY_SHARD_INDEX = "fst.shard.index"
"""The key, in a file's strings, of its number in the set, from 0 on."""

KEY_SHARD_COUNT = "fst.shard.count"
"""The key of the number of files."""

KEY_SHARD_SET = "fst.shard.set"
"""The key of the set's name: one for each time that a set is written."""

METADATA = "__metadata__"


class ShardSetError(ValueError):
    """Files that are not one whole set."""


@dataclass
class WriteEntry:
    """A tensor to be written: what it is, and where its bytes come from."""

    name: str
    dtype: DType
    shape: List[int]
    nbytes: int
    source: Any = None


class _Planned:
    """The core's plan of a file. Copies share it; where a plan is unpickled there is none."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def __deepcopy__(self, memo: Any) -> "_Planned":
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(None), ()


@dataclass
class ShardPlan:
    """A file to be written, as `plan_shards` makes it: `offsets` says where in the file each tensor begins and ends."""

    path: str
    entries: List[WriteEntry]
    header: bytes
    offsets: Dict[str, Tuple[int, int]] = field(default_factory=dict)
    total_bytes: int = 0
    _native: Optional[_Planned] = field(default=None, init=False, repr=False, compare=False)


_MAX_BYTES = (1 << 64) - 1

FillFn = Callable[[List[Tuple[memoryview, WriteEntry]]], None]
"""Writes tensors: called once, with the memory that each goes to, the largest first."""

ShardMetadataFn = Callable[[Sequence[WriteEntry]], Mapping[str, str]]
"""The strings of a file, by its tensors."""


def validate_shard_set(metas: Sequence[Any]) -> None:
    """Checks that headers (`SafeTensorsMetadata`) are those of one whole set, in its order."""
    shards = [(meta.src, dict(meta.metadata or {})) for meta in metas]
    try:
        _core.validate_shard_set(shards)
    except _core.FormatError as error:
        raise ShardSetError(str(error)) from error


def plain_entry(name: str, tensor: Any, *, framework: str = "pytorch") -> WriteEntry:
    """A tensor of the framework's, or one that is wrapped already, under that name."""
    if tensor is not None and not isinstance(tensor, TensorBase):
        get_framework_op(framework)  # That a framework is missing says nothing of the tensor.
    with exports.exporting(name, tensor):
        wrapped = _wrapped(framework, name, tensor)
        return WriteEntry(name, wrapped.dtype, wrapped.get_shape(), wrapped.get_nbytes(), tensor)


def _wrapped(framework: str, name: str, tensor: Any) -> TensorBase:
    """The tensor, wrapped. Only what is not wrapped needs the framework."""
    if tensor is None:
        raise _core.TensorError(f"write tensor {quoted(name)}: the entry has no source; give one, or a fill that needs none")
    if isinstance(tensor, TensorBase):
        return tensor
    op = get_framework_op(framework)
    wrong = op.refusal(tensor)
    if wrong:
        raise _core.TensorError(f"save tensor {quoted(name)}: {wrong}")
    wrapped: TensorBase = op.wrap_tensor(tensor)
    return wrapped


def shard_paths(base: str, num_shards: int) -> List[str]:
    """The names of a set's files: `{base}-00001-of-0000N.safetensors` and so on."""
    if num_shards <= 0:
        raise ValueError(f"num_shards must be positive: got {num_shards}; give the number of files")
    text = _arguments.path("base", base)
    folder = text[: len(text) - len(os.path.basename(text))]
    return [folder + os.path.basename(path) for path in _core.shard_paths(text, num_shards)]


def _check(entry: WriteEntry) -> None:
    if not isinstance(entry.name, str):
        raise ValueError(f"write a tensor: got the name {quoted(entry.name)}; names are strings")
    wrong = f"write tensor {quoted(entry.name)}:"
    if entry.dtype is DType.AUTO:
        raise ValueError(f"{wrong} AUTO is no type of the format; name the type of its elements")
    if any(not isinstance(extent, int) or extent < 0 for extent in entry.shape):
        raise ValueError(f"{wrong} got shape {list(entry.shape)}, expected nonnegative whole numbers; correct the shape")
    if entry.dtype is DType.F4 and (not entry.shape or entry.shape[-1] % 2):
        raise ValueError(f"{wrong} got shape {list(entry.shape)}, expected an even last dimension for F4; pad it")
    nbytes: float = DTYPE_SIZES[entry.dtype]
    for extent in entry.shape:
        nbytes *= extent
    if entry.nbytes != nbytes:
        raise ValueError(f"{wrong} got {entry.nbytes} bytes, expected {int(nbytes)} for {entry.dtype.value}{list(entry.shape)}; correct one of them")


def _check_room(min_free_bytes: int) -> None:
    if not isinstance(min_free_bytes, int):
        raise TypeError(f"argument min_free_bytes: got {type(min_free_bytes).__name__}, expected a number of bytes, an int; convert it with int()")
    if not 0 <= min_free_bytes <= _MAX_BYTES:
        raise ValueError(f"min_free_bytes must be from 0 to {_MAX_BYTES}: got {min_free_bytes}; leave it out for 0")


def _strings(argument: str, given: Optional[Mapping[str, str]]) -> Dict[str, str]:
    if given is None:
        return {}
    if not callable(getattr(given, "items", None)):
        raise TypeError(f"argument {argument}: got {type(given).__name__}, expected a dict from strings to strings; name each")
    found = dict(given)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"write {METADATA}: got {key!r}: {value!r}; keys and values are strings")
    return found


def plan_shards(
    entries: Sequence[WriteEntry],
    paths: Sequence[str],
    *,
    metadata: Optional[Mapping[str, str]] = None,
    shard0_metadata: Optional[Mapping[str, str]] = None,
    shard_metadata: Optional[ShardMetadataFn] = None,
    header_align: int = 8,
) -> List[ShardPlan]:
    """Divides tensors among files of about the same size. `metadata` are strings of every file, `shard0_metadata` of the first, and
    `shard_metadata` gives those of a file by what is in it. The length of a header, without the 8 bytes that say it, is
    a multiple of `header_align`, itself one of 8."""
    # Looked at more than once: an iterator would be empty by then, and its tensors lost.
    entries, paths = list(entries), list(paths)
    texts = [_arguments.path("paths", path) for path in paths]
    if len(set(map(os.path.abspath, texts))) != len(texts):
        raise ValueError(f"plan files: got the paths {quoted(texts)}, expected paths to be unique; name each file once")
    by_name: Dict[str, WriteEntry] = {}
    for entry in entries:
        _check(entry)
        if entry.name in by_name or entry.name == METADATA:
            raise ValueError(f"write tensor {quoted(entry.name)}: the name is duplicate or reserved; rename the tensor")
        by_name[entry.name] = entry
    if header_align <= 0 or header_align % 8:
        raise ValueError(f"header_align must be a positive multiple of 8: got {header_align}; leave it out for 8")

    def strings_of(names: List[str]) -> Dict[str, str]:
        return _strings("shard_metadata", shard_metadata(tuple(by_name[name] for name in names)) if shard_metadata else None)

    # In a file, the largest tensors of a type are first, and types in the order of their sizes: so elements are aligned.
    ordered = sorted(entries, key=lambda entry: -entry.nbytes)
    planned = _core.plan_shards(
        [(entry.name, entry.dtype.value, list(entry.shape)) for entry in ordered],
        texts,
        metadata=_strings("metadata", metadata),
        first_metadata=_strings("shard0_metadata", shard0_metadata),
        shard_metadata=strings_of if shard_metadata else None,
        header_align=header_align,
        shard_set=uuid.uuid4().hex,
    )
    plans = []
    for path, native in zip(paths, planned):
        names = native.names
        offsets = dict(zip(names, native.ranges))
        plan = ShardPlan(path, [by_name[name] for name in names], native.header, offsets, native.total_bytes)
        plan._native = _Planned(native)
        plans.append(plan)
    return plans


def write_shards(plans: Sequence[ShardPlan], fill: FillFn, *, min_free_bytes: int = 0, fsync: bool = False) -> List[str]:
    """Writes planned files, and returns their paths. `fill` is called once, with all tensors and the memory that each goes to, the largest first; the
    files have their names when it has returned. Makes folders that are missing. There has to be room for the files and `min_free_bytes` more."""
    _check_room(min_free_bytes)
    synced = bool(fsync)
    for plan in plans:
        if plan._native is None:
            raise ValueError(f"write {plan.path!r}: the plan is not one of plan_shards(), expected what it made; plan it there")
    for plan in plans:
        os.makedirs(os.path.dirname(os.path.abspath(plan.path)), exist_ok=True)
    draft = _core._Draft([plan._native.plan for plan in plans if plan._native is not None], min_free_bytes=min_free_bytes)
    maps: List[mmap.mmap] = []
    views: List[memoryview] = []
    try:
        targets: List[Tuple[memoryview, WriteEntry]] = []
        for plan, path in zip(plans, draft.paths):
            with open(path, "r+b") as file:
                maps.append(_mapped(file.fileno(), plan.total_bytes))
            whole = memoryview(maps[-1])
            views.append(whole)
            for entry in plan.entries:
                start, end = plan.offsets[entry.name]
                views.append(whole[start:end])
                targets.append((views[-1], entry))
        targets.sort(key=lambda target: -target[1].nbytes)
        fill(targets)
        del targets
        draft.commit(synced=synced)
        return [plan.path for plan in plans]
    finally:
        draft.close()
        _unmap(views, maps)


def _mapped(descriptor: int, length: int) -> mmap.mmap:
    """A file as memory. Python before 3.13 keeps a descriptor of its own open for each mapping."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, length, trackfd=False)
    return mmap.mmap(descriptor, length)


def _unmap(views: List[memoryview], maps: List[mmap.mmap]) -> None:
    """Gives the mappings back; one that `fill` has kept a part of goes with that part."""
    for view in reversed(views):
        try:
            view.release()
        except BufferError:
            pass
    for mapped in maps:
        try:
            mapped.close()
        except BufferError:
            pass


def per_entry_fill(fn: Callable[[memoryview, WriteEntry], None], num_threads: int = 8) -> FillFn:
    """A fill that calls `fn` for each tensor, from several threads, the largest first."""
    if num_threads <= 0:
        raise ValueError(f"num_threads must be positive: got {num_threads}; leave it out for 8")

    def fill(targets: Sequence[Tuple[memoryview, WriteEntry]]) -> None:
        order = sorted(targets, key=lambda target: -target[1].nbytes)
        with ThreadPoolExecutor(num_threads, "tensorhold-save") as pool:
            futures = [pool.submit(fn, view, entry) for view, entry in order]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    return fill


def tensor_fill(num_threads: int = 8, *, framework: str = "pytorch") -> FillFn:
    """A fill that copies each entry's source, a tensor of the framework's."""

    def copy(view: memoryview, entry: WriteEntry) -> None:
        with exports.exporting(entry.name, entry.source):
            source = _wrapped(framework, entry.name, entry.source)
            if source.get_nbytes() != entry.nbytes:
                raise _core.TensorError(
                    f"write tensor {quoted(entry.name)}: its source has {source.get_nbytes()} bytes, expected {entry.nbytes}; give the tensor that was planned"
                )
            source.copy_to_buffer(view)

    return per_entry_fill(copy, num_threads)


def save_sharded(
    entries: Sequence[WriteEntry],
    base: str,
    *,
    num_shards: int = 16,
    fill: Optional[FillFn] = None,
    framework: str = "pytorch",
    min_free_bytes: int = 0,
    fsync: bool = False,
    metadata: Optional[Mapping[str, str]] = None,
    shard0_metadata: Optional[Mapping[str, str]] = None,
    shard_metadata: Optional[ShardMetadataFn] = None,
    header_align: int = 8,
) -> List[str]:
    """Plans and writes a set, and returns its paths. Without a fill, sources are copied."""
    plans = plan_shards(
        entries,
        shard_paths(base, num_shards),
        metadata=metadata,
        shard0_metadata=shard0_metadata,
        shard_metadata=shard_metadata,
        header_align=header_align,
    )
    return write_shards(plans, fill or tensor_fill(framework=framework), min_free_bytes=min_free_bytes, fsync=fsync)


class ParallelSaver:
    """Saves tensors as sets of `num_shards` files, by `num_threads` threads. `fsync` returns when they are on the disk."""

    def __init__(
        self,
        *,
        num_shards: int = 16,
        framework: str = "pytorch",
        num_threads: int = 8,
        shard_metadata: Optional[ShardMetadataFn] = None,
        fill: Optional[FillFn] = None,
        min_free_bytes: int = 0,
        fsync: bool = False,
    ) -> None:
        if num_shards <= 0:
            raise ValueError(f"num_shards must be positive: got {num_shards}; give the number of files")
        if num_threads <= 0:
            raise ValueError(f"num_threads must be positive: got {num_threads}; leave it out for 8")
        _check_room(min_free_bytes)
        self.num_shards = num_shards
        self.framework = framework
        self.num_threads = num_threads
        self.shard_metadata = shard_metadata
        self.fill = fill
        self.min_free_bytes = min_free_bytes
        self.fsync = fsync

    def save(
        self,
        tensors: Mapping[str, Any],
        base: str,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        shard0_metadata: Optional[Mapping[str, str]] = None,
        header_align: int = 8,
    ) -> List[str]:
        """Saves tensors by name, and returns the paths."""
        entries = [plain_entry(name, tensor, framework=self.framework) for name, tensor in _arguments.named("tensors", tensors, "tensors")]
        return self.save_entries(entries, base, metadata=metadata, shard0_metadata=shard0_metadata, header_align=header_align)

    def save_entries(
        self,
        entries: Sequence[WriteEntry],
        base: str,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        shard0_metadata: Optional[Mapping[str, str]] = None,
        header_align: int = 8,
    ) -> List[str]:
        """Saves entries, and returns the paths."""
        return save_sharded(
            entries,
            base,
            num_shards=self.num_shards,
            fill=self.fill or tensor_fill(self.num_threads, framework=self.framework),
            min_free_bytes=self.min_free_bytes,
            fsync=self.fsync,
            metadata=metadata,
            shard0_metadata=shard0_metadata,
            shard_metadata=self.shard_metadata,
            header_align=header_align,
        )
