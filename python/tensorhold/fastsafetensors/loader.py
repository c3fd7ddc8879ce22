"""`SafeTensorsFileLoader` and `fastsafe_open`: files by rank, loaded as a whole."""

import logging
import os
from collections import OrderedDict
from types import TracebackType
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

from tensorhold import _arguments, _core
from tensorhold._text import kind, quoted
from tensorhold.fastsafetensors.allocation import device_pool
from tensorhold.fastsafetensors.common import HeaderTooSmall
from tensorhold.fastsafetensors.file_buffer import FilesBufferOnDevice
from tensorhold.fastsafetensors.frameworks import TensorBase, get_framework_op, native_name
from tensorhold.fastsafetensors.st_types import DType
from tensorhold.fastsafetensors.tensor_factory import LazyTensorFactory

logger = logging.getLogger(__name__)

Infos = List[_core.TensorInfo]


def check_lengths(paths: Sequence[str]) -> None:
    """Refuses files that are too short for a header, with fastsafetensors' word for it."""
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError:
            continue  # What opens it says why.
        if size < 8 and os.path.isfile(path):
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


def files_by_rank(argument: str, found: Any) -> List[Tuple[int, List[str]]]:
    """The ranks of a dict, each with its paths, of the argument that messages name."""
    if not callable(getattr(found, "items", None)):
        raise TypeError(f"argument {argument}: got {kind(found)}, expected a dict from ranks to lists of paths; name the rank, as in {{0: [path]}}")
    by_rank = []
    for rank, paths in found.items():
        if isinstance(rank, bool) or not hasattr(rank, "__index__"):
            raise TypeError(f"argument {argument}: got the key {quoted(rank)} of type {kind(rank)}, expected a rank, an int; name the rank")
        by_rank.append((int(rank), files_of(f"{argument}, files of rank {rank}", paths)))
    return by_rank


def read_headers(paths: Sequence[str], dtype: Optional[str] = None) -> Tuple[Infos, Dict[str, Dict[str, str]]]:
    """The tensors of files, in the order of files and bytes, and each file's strings."""
    if not paths:
        return [], {}
    check_lengths(paths)
    return _core.inspect(list(paths), "cpu", dtype=dtype)


class BaseSafeTensorsFileLoader:
    """Loads files by rank onto a device. Where it is read from and how, tensorhold finds out by itself: `copier_type` and the options of copiers
    change nothing of what is loaded."""

    def __init__(
        self,
        pg: Optional[Any],
        device: Any,
        copier_type: str,
        set_numa: bool = True,
        disable_cache: bool = True,
        framework: str = "pytorch",
        **kwargs: Any,
    ) -> None:
        self.framework = get_framework_op(framework)
        self.pg = self.framework.get_process_group(pg)
        self.device = self.framework.get_device(device, self.pg)
        self.copier_type = copier_type
        self.disable_cache = disable_cache
        self._threads: Optional[int] = kwargs.get("threads")
        self._keep: Optional[Callable[[str], bool]] = None
        self._files: "OrderedDict[str, int]" = OrderedDict()
        self._infos: "OrderedDict[str, _core.TensorInfo]" = OrderedDict()
        self._metadata: Dict[str, Dict[str, str]] = {}
        self.init_numa(set_numa)

    @classmethod
    def process_extension_config(cls, ext_config: Mapping[str, Any], **kwargs: Any) -> Dict[str, Any]:
        """The options of the constructor, of what a configuration says for the loader."""
        return dict(ext_config)

    def init_numa(self, set_numa: bool = True) -> None:
        """For callers that ask for it: staging memory is placed near the device anyway."""
        logger.debug("set_numa=%s: staging memory is placed near the device, without binding threads", set_numa)

    def reset(self) -> None:
        """Forgets the files. Headers are read again when they are added again."""
        self._files.clear()
        self._infos.clear()
        self._metadata.clear()

    def close(self) -> None:
        """Forgets the files. What was loaded stays."""
        self.reset()

    def set_tensor_filter(self, keep_tensor: Optional[Callable[[str], bool]]) -> None:
        """Loads only the tensors whose names the rule keeps. Not in a group, whose ranks need the same tensors."""
        if keep_tensor is not None and self.pg.size() > 1:
            raise ValueError(
                f"set a tensor filter: it is for single-process groups, got one of {self.pg.size()} ranks; give each rank a group of its own, such as SingleGroup()"
            )
        self._keep = keep_tensor

    def add_filenames(self, filenames: Mapping[int, Sequence[str]]) -> None:
        """Adds files, by the rank that reads them; the same on every rank. Reads the headers of all."""
        size = self.pg.size()
        added: "OrderedDict[str, int]" = OrderedDict()
        for rank, paths in files_by_rank("filenames", filenames):
            for path in paths:
                if not 0 <= rank < size:
                    # Kept for callers that name more ranks than there are: read by one that there is.
                    logger.warning("add file %r: rank %s is not below %s; rank %s reads it", path, rank, size, rank % size)
                added[path] = rank % size
        for path in self._files:
            added.pop(path, None)
        infos, metadata = read_headers(list(added))
        for info in infos:
            there = self._infos.get(info.name)
            if there is not None:
                raise _core.FormatError(
                    f"add files: tensor {quoted(info.name)} is in {there.file!r} and in {info.file!r}, expected in one file; leave one of them out"
                )
        for info in infos:
            self._infos[info.name] = info
        self._files.update(added)
        self._metadata.update(metadata)

    def get_keys(self) -> List[str]:
        """The names of the tensors that a load gives."""
        return [name for name in self._infos if self._keep is None or self._keep(name)]

    def get_shape(self, tensor_name: str) -> List[int]:
        """The shape in the header."""
        info = self._infos[tensor_name]
        if self._keep is not None and not self._keep(tensor_name):
            raise ValueError(f"get the shape of tensor {quoted(tensor_name)}: it is filtered out; change the filter, or ask for another")
        return list(info.shape)

    def copy_files_to_device(
        self,
        dtype: DType = DType.AUTO,
        use_buf_register: bool = True,
        max_copy_block_size: int = 16 * 1024 * 1024 * 1024,
        allow_inflight: bool = False,
        borrowed_tensors: bool = False,
    ) -> FilesBufferOnDevice:
        """Loads this rank's files, and gives the tensors of all ranks. When it returns, bytes are there: nothing is in flight."""
        name = None if dtype is DType.AUTO else dtype.value
        keep = self._keep
        wanted = [info for info in self._infos.values() if keep is None or keep(info.name)]
        if name is not None and wanted:
            kept = {info.name for info in wanted}
            wanted = [info for info in read_headers(list(self._files), name)[0] if info.name in kept]
        order = [(info, self._files[info.file]) for info in wanted]
        own = self.pg.rank()
        local = [path for path, rank in self._files.items() if rank == own]
        options: Dict[str, Any] = {"dtype": name, "threads": self._threads}
        if keep is not None:
            options["select"] = lambda info: keep(info.name)
        shared = _core.share(self.pg.moves(), device_pool(native_name(self.device)), order, local, **options)
        by_file: "OrderedDict[str, OrderedDict[str, _core.TensorInfo]]" = OrderedDict((path, OrderedDict()) for path in self._files)
        for info in wanted:
            by_file[info.file][info.name] = info
        rank_loaders: Dict[int, List[LazyTensorFactory]] = {}
        for path, rank in self._files.items():
            rank_loaders.setdefault(rank, []).append(LazyTensorFactory(path, by_file[path], shared))
        return FilesBufferOnDevice(rank_loaders, self.pg, self.framework, borrowed_tensors=borrowed_tensors)


class SafeTensorsFileLoader(BaseSafeTensorsFileLoader):
    """The usual loader. `nogds` and `use_fgds` ask for ways of reading that tensorhold takes where they are there and quicker, or not at all: it
    never fails for the lack of one."""

    def __init__(
        self,
        pg: Optional[Any],
        device: Any = "cpu",
        bbuf_size_kb: int = 16 * 1024,
        max_threads: int = 16,
        nogds: bool = False,
        set_numa: bool = True,
        disable_cache: bool = True,
        debug_log: bool = False,
        framework: str = "pytorch",
        use_fgds: bool = False,
        **kwargs: Any,
    ) -> None:
        if bbuf_size_kb <= 0 or max_threads <= 0:
            raise ValueError(f"option bbuf_size_kb or max_threads: got {bbuf_size_kb} and {max_threads}, expected both to be positive; leave them out")
        if debug_log:
            logging.getLogger("tensorhold").setLevel(logging.DEBUG)
        if use_fgds:
            logger.info("use_fgds: files are read without FGDS, which tensorhold does not use")
        # The default stands for as many as the machine is good for.
        threads = None if max_threads == 16 else min(max_threads, 1024)
        copier = "nogds" if nogds else "gds"
        super().__init__(pg, device, copier, set_numa, disable_cache, framework, threads=threads, **kwargs)

    @classmethod
    def process_extension_config(cls, ext_config: Mapping[str, Any], **kwargs: Any) -> Dict[str, Any]:
        """`copier_type`, one of `gds`, `nogds` and `fgds`, becomes the options that say so."""
        options = dict(ext_config)
        copier = options.pop("copier_type", "gds")
        return {**options, "nogds": copier == "nogds", "use_fgds": copier == "fgds"}


class fastsafe_open:
    """Files as one, with the names of `safetensors.safe_open`: a context manager. Of several files, or of files by rank."""

    def __init__(
        self,
        filenames: Union[str, Sequence[str], Mapping[int, Sequence[str]]],
        framework: str = "pt",
        pg: Optional[Any] = None,
        device: Any = "cpu",
        nogds: bool = False,
        debug_log: bool = False,
        max_copy_block_size: int = 16 * 1024 * 1024 * 1024,
        use_fgds: bool = False,
    ) -> None:
        self.loader = SafeTensorsFileLoader(pg, device, nogds=nogds, debug_log=debug_log, framework=framework, use_fgds=use_fgds)
        if isinstance(filenames, (str, os.PathLike)):
            filenames = [filenames]
        if not isinstance(filenames, Mapping):
            size, files = self.loader.pg.size(), files_of("filenames", filenames)
            filenames = {rank: files[rank::size] for rank in range(size)}
        self.loader.add_filenames(filenames)
        self.fb = self.loader.copy_files_to_device(max_copy_block_size=max_copy_block_size)

    def metadata(self) -> Dict[str, Dict[str, str]]:
        """The strings in each file's header, by its path."""
        return dict(self.loader._metadata)

    def keys(self) -> List[str]:
        """The names."""
        return list(self.fb.key_to_rank_lidx)

    def get_tensor_wrapped(self, name: str) -> TensorBase:
        """A tensor, wrapped."""
        return self.fb.get_tensor_wrapped(name)

    def get_tensor(self, name: str) -> Any:
        """A tensor, which stays when the files are closed."""
        return self.fb.get_tensor(name)

    def __enter__(self) -> "fastsafe_open":
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc_value: Optional[BaseException],
        tb: Optional[TracebackType],
    ) -> None:
        self.fb.close()
        self.loader.close()
