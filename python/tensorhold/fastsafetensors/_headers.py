"""Headers of files, and files by rank."""

import errno
import os
import stat
from collections import OrderedDict
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from tensorhold import _arguments, _core
from tensorhold._text import kind, quoted
from tensorhold.fastsafetensors.common import HeaderTooSmall

Infos = List[_core.TensorInfo]


def check_lengths(paths: Sequence[str]) -> None:
    """Refuses folders, and files that are too short for a header, with fastsafetensors' word for it."""
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            continue  # Opening the file reports it.
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "expected a safetensors file, got a folder; name the files in it", path)
        size = found.st_size
        if size < 8 and stat.S_ISREG(found.st_mode):
            raise HeaderTooSmall(f"read header of {path!r}: HeaderTooSmall: got {size} bytes, expected at least 8; name a safetensors file")


def files_of(argument: str, found: Any) -> List[str]:
    """The paths of a list, of the argument that messages name."""
    if isinstance(found, (str, bytes, os.PathLike)):
        raise TypeError(f"argument {argument}: got {quoted(found)}, expected a list of paths; put the path in a list")
    try:
        paths = list(found)
    except TypeError as error:
        raise TypeError(f"argument {argument}: got {kind(found)}, expected a list of paths, each a str or an os.PathLike; name files") from error
    return [_arguments.path(argument, path) for path in paths]


def files_by_rank(argument: str, found: Any) -> "Tuple[OrderedDict[str, int], Dict[str, Any]]":
    """The rank of each file of a dict from ranks to lists of paths: the first file of each rank, then the second, and so on. And the objects that paths
    were given as."""
    if not callable(getattr(found, "items", None)):
        raise TypeError(f"argument {argument}: got {kind(found)}, expected a dict from ranks to lists of paths; name the rank, as in {{0: [path]}}")
    by_rank: List[Tuple[int, List[str]]] = []
    given: Dict[str, Any] = {}
    for rank, paths in found.items():
        if isinstance(rank, bool) or not hasattr(rank, "__index__"):
            raise TypeError(f"argument {argument}: got the key {quoted(rank)} of type {kind(rank)}, expected a rank, an int; name the rank")
        of_rank = f"{argument}, files of rank {rank}"
        if not isinstance(paths, (str, bytes, os.PathLike)) and hasattr(paths, "__iter__"):
            paths = list(paths)
        texts = files_of(of_rank, paths)
        given.update(zip(texts, paths))
        by_rank.append((int(rank), texts))
    longest = max((len(paths) for _, paths in by_rank), default=0)
    files = OrderedDict((paths[number], rank) for number in range(longest) for rank, paths in by_rank if number < len(paths))
    return files, given


def read_headers(paths: Sequence[str], dtype: Optional[str] = None) -> "OrderedDict[str, Infos]":
    """The tensors of each file, in the order of their bytes."""
    found: "OrderedDict[str, Infos]" = OrderedDict((path, []) for path in paths)
    check_lengths(paths)
    for infos in _headers_of(list(found), dtype):
        for info in infos:
            if info.file not in found:
                raise _core.FormatError(f"read headers: got an index that names {info.file!r}, expected safetensors files; name the files themselves")
            found[info.file].append(info)
    return found


def _headers_of(paths: List[str], dtype: Optional[str]) -> Iterator[Infos]:
    if not paths:
        return
    try:
        yield _core.inspect(paths, "cpu", dtype=dtype)[0]
    except _core.FormatError:
        if len(paths) == 1:
            raise
        # Files that are no set together may still be files, each by itself.
        for path in paths:
            yield _core.inspect([path], "cpu", dtype=dtype)[0]


def runs_of(paths: Sequence[str], headers: Mapping[str, Infos]) -> List[List[Tuple[int, str]]]:
    """Files by their numbers, divided into runs: within a run, every tensor is in one file only."""
    runs: List[List[Tuple[int, str]]] = []
    names: Set[str] = set()
    for number, path in enumerate(paths):
        own = {info.name for info in headers[path]}
        if not runs or not names.isdisjoint(own) or any(path == other for _, other in runs[-1]):
            runs.append([])
            names = set()
        runs[-1].append((number, path))
        names |= own
    return runs
