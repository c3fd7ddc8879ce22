"""Headers, groups of one, and places of devices."""

import errno
import json
import logging
import os
import pathlib
import re
import stat
from collections import OrderedDict
from ctypes import string_at
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set, Tuple

from tensorhold import _core
from tensorhold._text import quoted
from tensorhold.fastsafetensors._frames import TensorFrame
from tensorhold.fastsafetensors._planner import join, selected
from tensorhold.fastsafetensors.st_types import DTYPE_SIZES, Device, DType

if TYPE_CHECKING:
    from tensorhold.fastsafetensors.frameworks import FrameworkOpBase, TensorBase

__all__ = [
    "HeaderTooSmall",
    "SafeTensorsMetadata",
    "SingleGroup",
    "TensorFrame",
    "get_device_numa_node",
    "get_fs_type",
    "init_logger",
    "is_debug",
    "is_gpu_found",
    "resolve_runtime_lib_name",
    "set_debug",
]

HEADER_LIMIT = 100_000_000
"""The format's limit on a header, in bytes."""


START_BYTES = 64 << 10
"""What is looked at of a file that may be something else, in bytes."""


class HeaderTooSmall(_core.FormatError):
    """A file, or a buffer, is too short for a header."""


def init_logger(name: str) -> logging.Logger:
    """The logger of a module."""
    return logging.getLogger(name)


def set_debug() -> None:
    """Shows messages of all levels on the standard error output."""
    logging.basicConfig(format="[%(levelname)s] %(message)s", level=logging.DEBUG, force=True)


def is_debug(logger: logging.Logger) -> bool:
    """Whether a logger passes debug messages on."""
    return logger.isEnabledFor(logging.DEBUG)


def is_gpu_found() -> bool:
    """Whether there is a CUDA device."""
    return _core.cuda_count() > 0


def get_device_numa_node(device: Optional[int]) -> Optional[int]:
    """The NUMA node that a CUDA device is near, by its number; None where that is not known."""
    if device is None or not 0 <= device < _core.cuda_count():
        return None
    try:
        import torch

        found = torch.cuda.get_device_properties(device)
        address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
        with open(f"/sys/bus/pci/devices/{address}/numa_node") as file:
            node = int(file.read())
    except (ImportError, AttributeError, RuntimeError, OSError, ValueError):
        return None
    return node if node >= 0 else None


def get_fs_type(path: str, mounts_file: str = "/proc/mounts") -> str:
    """The type of the file system that a path is on, by a table of mounts; empty where that is not known."""
    place = pathlib.PurePath(os.path.realpath(path))
    found, depth = "", 0
    try:
        with open(mounts_file) as mounts:
            for fields in map(str.split, mounts):
                if len(fields) < 3:
                    continue
                # The table writes special characters as octal numbers.
                point = pathlib.PurePath(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1]))
                if len(point.parts) > depth and place.is_relative_to(point):
                    found, depth = fields[2], len(point.parts)
    except OSError:
        return ""
    return found


def resolve_runtime_lib_name(framework: Optional["FrameworkOpBase[Any, Any]"] = None) -> str:
    """The runtime library of the GPUs that a framework is built for; empty if there are none."""
    platform = "" if framework is None else framework.get_cuda_ver().partition("-")[0]
    return {"cuda": "libcudart.so", "hip": "libamdhip64.so"}.get(platform, "")


class SingleGroup:
    """The group of a job of one process."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


class SafeTensorsMetadata:
    """A file's header: the frames of its tensors by name, in the order of their bytes, and its strings."""

    def __init__(
        self,
        string: str,
        header_length: int,
        size_bytes: int,
        framework: "FrameworkOpBase[Any, Any]",
        src: str = "",
        keep_orig_dict: bool = False,
    ) -> None:
        """Of the header's JSON, which ends `header_length` bytes from the start of a file of `size_bytes`."""
        self.src = src
        self.framework = framework
        self.header_length = header_length
        self.size_bytes = size_bytes
        entries = self._parsed(string)
        self.metadata: Any = entries.pop("__metadata__", "")
        if keep_orig_dict:
            self.ser = entries
        self.tensors: Dict[str, TensorFrame] = {}
        self.aligned = header_length % framework.get_device_ptr_align() == 0
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: self._place(*item)):
            frame = TensorFrame.from_buffer(entry)
            self._check(name, frame, end)
            end = frame.data_offsets[1]
            self.tensors[name] = frame
        if header_length + end > size_bytes:
            raise self._wrong(f"MetadataIncompleteBuffer: got {size_bytes} bytes, expected {header_length + end}; the file was cut off")

    def _wrong(self, problem: str) -> _core.FormatError:
        return _core.FormatError(f"read header of {self.src!r}: {problem}")

    def _parsed(self, string: str) -> "OrderedDict[str, Any]":
        def once(pairs: List[Tuple[str, Any]]) -> "OrderedDict[str, Any]":
            found = OrderedDict(pairs)
            if len(found) != len(pairs):
                raise self._wrong("a name comes twice; write the file again")
            return found

        try:
            entries = json.loads(string, object_pairs_hook=once)
        except (json.JSONDecodeError, RecursionError) as error:
            raise self._wrong(f"it is not JSON: {error}; write the file again") from error
        if not isinstance(entries, OrderedDict):
            raise self._wrong(f"got {type(entries).__name__}, expected an object; write the file again")
        return entries

    def _place(self, name: str, entry: Any) -> Tuple[int, int]:
        try:
            start, end = (int(offset) for offset in entry["data_offsets"])
            extents = [int(extent) for extent in entry["shape"]]
            DType(entry["dtype"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._wrong(f"tensor {quoted(name)}: {error!r}; expected dtype, shape and data_offsets as the format has them") from error
        if min(extents, default=0) < 0:
            raise self._wrong(f"tensor {quoted(name)}: got shape {extents}, expected no negative number; write the file again")
        return start, end

    def _check(self, name: str, frame: TensorFrame, expected_start: int) -> None:
        start, end = frame.data_offsets
        if start != expected_start or end < start:
            raise self._wrong(f"InvalidOffset of tensor {quoted(name)}: got {start} to {end}, expected a start of {expected_start}; write the file again")
        elements = 1
        for extent in frame.shape:
            elements *= extent
        if end - start != elements * DTYPE_SIZES[frame.dtype]:
            raise self._wrong(
                f"TensorInvalidInfo of tensor {quoted(name)}: got {end - start} bytes, expected {elements * DTYPE_SIZES[frame.dtype]} "
                f"for {frame.dtype.value}{frame.shape}; write the file again"
            )

    @classmethod
    def from_buffer(cls, buf: int, buffer_len: int, filename: str, framework: "FrameworkOpBase[Any, Any]") -> "SafeTensorsMetadata":
        """Of the bytes of a file, at an address in host memory."""
        length = cls._header_bytes(lambda count: string_at(buf, min(buffer_len, count)), buffer_len, filename)
        return cls(cls._text(string_at(buf + 8, length), filename), 8 + length, buffer_len, framework, filename)

    @classmethod
    def from_fd(
        cls, fd: int, filename: str, framework: "FrameworkOpBase[Any, Any]", keep_orig_dict: bool = False
    ) -> "SafeTensorsMetadata":
        """Of an open file."""
        size = os.fstat(fd).st_size
        length = cls._header_bytes(lambda count: os.pread(fd, count, 0), size, filename)
        header = b""
        while len(header) < length:
            read = os.pread(fd, length - len(header), 8 + len(header))
            if not read:
                raise _core.FormatError(f"read header of {filename!r}: got {len(header)} bytes, expected {length}; the file was cut off meanwhile")
            header += read
        return cls(cls._text(header, filename), 8 + length, size, framework, filename, keep_orig_dict)

    @classmethod
    def from_file(cls, filename: str, framework: "FrameworkOpBase[Any, Any]") -> "SafeTensorsMetadata":
        """Of a file."""
        # A FIFO would wait for a writer, and a device has no end.
        fd = os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, "expected a safetensors file, got a folder; name the files in it", filename)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _core.FormatError(f"open {filename!r}: it is not a regular file, expected a safetensors file; name one")
            return cls.from_fd(fd, filename, framework)
        finally:
            os.close(fd)

    @staticmethod
    def _text(header: bytes, filename: str) -> str:
        try:
            return header.decode()
        except UnicodeDecodeError as error:
            raise _core.FormatError(f"read header of {filename!r}: it is not UTF-8: {error}; fetch or write the file again") from error

    @staticmethod
    def _header_bytes(start: Callable[[int], bytes], size: int, filename: str) -> int:
        """The length of the header's JSON. `start` reads a file's first bytes: of one that has no such length, enough to tell what it is."""

        def wrong(word: str, problem: str) -> str:
            return f"read header of {filename!r}: {word}: {_core.foreign_format(start(START_BYTES), size) or problem}"

        first = start(8)
        if len(first) < 8:
            raise HeaderTooSmall(wrong("HeaderTooSmall", f"got {size} bytes, expected at least 8; name a safetensors file"))
        length = int.from_bytes(first, "little")
        if length > HEADER_LIMIT:
            raise _core.FormatError(wrong("HeaderTooLarge", f"got {length} bytes, expected at most {HEADER_LIMIT}; name a safetensors file"))
        if length > size - 8:
            raise _core.FormatError(wrong("InvalidHeaderLength", f"got {length} bytes, and the file has {size}; it was cut off"))
        return length

    def get_tensors(
        self,
        gbuf: Any,
        device: Device,
        copy_start_offset: int,
        dtype: DType = DType.AUTO,
        owner: Any = None,
    ) -> "Dict[str, TensorBase]":
        """Tensors over bytes that the caller has read: `gbuf`, an object with a buffer or `__dlpack__`, holds the file from `copy_start_offset` on.
        They share its memory and keep it, and `owner`."""
        return self._get_tensors(gbuf, device, copy_start_offset, dtype, owner=owner)

    def _get_tensors(
        self,
        gbuf: Any,
        device: Device,
        copy_start_offset: int,
        dtype: DType = DType.AUTO,
        names: Optional[Set[str]] = None,
        owner: Any = None,
    ) -> "Dict[str, TensorBase]":
        """The same for some of the tensors: the buffer need not hold the others."""
        views = self.framework.iter_buffer_views(self, gbuf, device, copy_start_offset, names, owner=owner)
        if views is None:
            raise NotImplementedError(
                f"take tensors from a buffer: {self.framework.get_name()} has no views of buffers; load the file, or use framework=\"pytorch\""
            )
        if dtype is DType.AUTO:
            return dict(views)
        tensors = {name: view.to(dtype=dtype) for name, view in views}
        for name in tensors:
            self.tensors[name].dtype = dtype
        return tensors

    def select_byte_ranges(self, keep_tensor: Callable[[str], bool], merge_gap: int = 4096) -> List[Tuple[int, int]]:
        """Where in the file the tensors lie that the rule keeps: ranges in ascending order. Ranges that lie no more than `merge_gap` bytes apart are one."""
        ranges: List[Tuple[int, int]] = []
        for _, frame in selected(self, keep_tensor):
            start, end = (self.header_length + offset for offset in frame.data_offsets)
            join(ranges, start, end, merge_gap)
        return ranges

    def __repr__(self) -> str:
        return str({"__metadata__": self.metadata, "tensors": self.tensors})
