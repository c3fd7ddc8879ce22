"""`SafeTensorsFileLoader` and `fastsafe_open`: files by rank, loaded as a whole."""

import logging
import os
from collections import OrderedDict
from types import TracebackType
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

from tensorhold import _core
from tensorhold._text import quoted
from tensorhold.fastsafetensors._headers import Infos, files_by_rank, files_of, read_headers
from tensorhold.fastsafetensors.allocation import FILES, device_pool
from tensorhold.fastsafetensors.common import SafeTensorsMetadata, TensorFrame
from tensorhold.fastsafetensors.file_buffer import FilesBufferOnDevice
from tensorhold.fastsafetensors.frameworks import TensorBase, get_framework_op
from tensorhold.fastsafetensors.frameworks._native import moves_of
from tensorhold.fastsafetensors.st_types import Device, DType, check_dtype
from tensorhold.fastsafetensors.tensor_factory import LazyTensorFactory

logger = logging.getLogger(__name__)

MAX_THREADS = 1024

_LOADED = (DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E5M2)
"""Types that a load converts floats to, on the way."""


class BaseSafeTensorsFileLoader:
    """Loads files by rank onto a device. tensorhold chooses by itself how it reads: `copier_type` and the options of copiers change nothing of what is
    loaded."""

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
        self.device: Device = device if isinstance(device, Device) else self.framework.get_device(device, self.pg)
        self.disable_cache = disable_cache
        self._place = self.framework.place(self.device)
        self._threads: Optional[int] = None
        self._tensor_filter: Optional[Callable[[str], bool]] = None
        # The rank of each file, and its tensors.
        self._files: "OrderedDict[str, int]" = OrderedDict()
        # Paths that were given as other objects than strings.
        self._given: Dict[str, Any] = {}
        self._infos: "OrderedDict[str, Infos]" = OrderedDict()
        self._by_name: Optional[Dict[str, _core.TensorInfo]] = None
        self._metadata: Dict[str, SafeTensorsMetadata] = {}
        self.init_numa(set_numa)

    @classmethod
    def process_extension_config(cls, ext_config: Mapping[str, Any], **kwargs: Any) -> Dict[str, Any]:
        """The options of the constructor, from the loader's object in a configuration."""
        return dict(ext_config)

    @property
    def meta(self) -> Dict[str, Tuple[SafeTensorsMetadata, int]]:
        """The header and the rank of each file. Headers are read when they are asked for."""
        return {self._given.get(path, path): (self._metadata_of(path), rank) for path, rank in self._files.items()}

    @property
    def frames(self) -> Dict[str, TensorFrame]:
        """The frames of all tensors by name."""
        return {name: frame for path in self._files for name, frame in self._metadata_of(path).tensors.items()}

    def _metadata_of(self, path: str) -> SafeTensorsMetadata:
        found = self._metadata.get(path)
        if found is None:
            found = self._metadata[path] = SafeTensorsMetadata.from_file(path, self.framework)
        return found

    def _names(self) -> Dict[str, _core.TensorInfo]:
        """All tensors by name; of a name in several files, the last."""
        if self._by_name is None:
            self._by_name = {info.name: info for infos in self._infos.values() for info in infos}
        return self._by_name

    def init_numa(self, set_numa: bool = True) -> None:
        """Does nothing: staging memory is placed near the device anyway."""
        logger.debug("set_numa=%s: staging memory is placed near the device, without binding threads", set_numa)

    def reset(self) -> None:
        """Forgets the files. Headers are read again when they are added again."""
        self._files.clear()
        self._given.clear()
        self._infos.clear()
        self._metadata.clear()
        self._by_name = None

    def close(self) -> None:
        """Forgets the files. What was loaded stays."""
        self.reset()

    def set_tensor_filter(self, keep_tensor: Optional[Callable[[str], bool]]) -> None:
        """Loads only the tensors whose names the rule keeps. Not in a group, whose ranks need the same tensors."""
        if keep_tensor is not None and self.pg.size() > 1:
            raise ValueError(
                f"set a tensor filter: it is for single-process groups, got one of {self.pg.size()} ranks; give each rank a group of its own, such as SingleGroup()"
            )
        self._tensor_filter = keep_tensor

    def add_filenames(self, filenames: Mapping[int, Sequence[str]]) -> None:
        """Adds files, by the rank that reads them; the same on every rank. Reads the headers of all."""
        added, given = files_by_rank("filenames", filenames)
        self._infos.update(read_headers(list(added)))
        self._files.update(added)
        self._given.update(given)
        self._by_name = None
        for path in added:
            self._metadata.pop(path, None)

    def get_keys(self) -> List[str]:
        """The names of the tensors of a load."""
        keep = self._tensor_filter
        return [name for name in self._names() if keep is None or keep(name)]

    def get_shape(self, tensor_name: str) -> List[int]:
        """The shape in the header; of several files with the tensor, in the last."""
        if self._tensor_filter is not None and not self._tensor_filter(tensor_name):
            raise ValueError(f"get the shape of tensor {quoted(tensor_name)}: it is filtered out; change the filter, or ask for another")
        return list(self._names()[tensor_name].shape)

    def copy_files_to_device(
        self,
        dtype: DType = DType.AUTO,
        use_buf_register: bool = True,
        max_copy_block_size: int = 16 * 1024 * 1024 * 1024,
        allow_inflight: bool = False,
        borrowed_tensors: bool = False,
    ) -> FilesBufferOnDevice:
        """Loads this rank's files, and gives the tensors of all ranks. When it returns, all bytes are there: nothing is in flight."""
        check_dtype(dtype)
        if max_copy_block_size <= 0:
            raise ValueError(f"max_copy_block_size must be positive: got {max_copy_block_size}; leave it out")
        size = self.pg.size()
        if borrowed_tensors and size != 1:
            raise ValueError(f"borrowed_tensors requires a single-process loader group: got one of {size} ranks; leave it out, or give each rank SingleGroup()")
        files = sorted(self._files.items())
        for _, rank in files:
            if not 0 <= rank < size:
                raise KeyError(rank)
        keep = self._tensor_filter
        # Types that a load does not convert to or from are converted as tensors are asked for.
        name = dtype.value if dtype in _LOADED else None
        headers = self._infos if name is None else read_headers([path for path, _ in files], name)
        factories: Dict[int, List[LazyTensorFactory]] = {rank: [] for rank in range(size)}
        order: List[Tuple[_core.TensorInfo, int]] = []
        for path, rank in files:
            wanted = OrderedDict((info.name, info) for info in headers[path] if keep is None or keep(info.name))
            order += [(info, rank) for info in wanted.values()]
            factories[rank].append(LazyTensorFactory(path, wanted, rank, self._metadata_of))
        buffer = FilesBufferOnDevice(factories, self.pg, self.framework, borrowed_tensors=borrowed_tensors)
        options: Dict[str, Any] = {"dtype": name, "threads": self._threads}
        if keep is not None:
            options["select"] = lambda info: bool(keep(info.name))
        local = [path for path, rank in files if rank == self.pg.rank()]
        moves = moves_of(self.pg, self.framework, self.device)
        buffer._serve(_core.share(moves, device_pool(self._place, FILES), order, local, **options), dtype)
        return buffer


_OWN_STEPS = (BaseSafeTensorsFileLoader.add_filenames, BaseSafeTensorsFileLoader.copy_files_to_device)


def has_own_steps(loader: BaseSafeTensorsFileLoader) -> bool:
    """Whether a loader adds and copies files by methods of a caller's."""
    found = (loader.add_filenames, loader.copy_files_to_device)
    return any(getattr(method, "__func__", None) is not own for method, own in zip(found, _OWN_STEPS))


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
        if bbuf_size_kb <= 0 or not 0 < max_threads <= MAX_THREADS:
            raise ValueError(
                f"options bbuf_size_kb and max_threads: got {bbuf_size_kb} and {max_threads}, expected both to be positive, and at most {MAX_THREADS} threads; "
                "leave them out"
            )
        if debug_log:
            logging.getLogger("tensorhold").setLevel(logging.DEBUG)
        if use_fgds:
            logger.info("use_fgds: files are read without FGDS, which tensorhold does not use")
        copier = "nogds" if nogds else "fgds" if use_fgds else "gds"
        place = get_framework_op(framework)
        super().__init__(pg, place.get_device(device, pg), copier, set_numa, disable_cache, framework, **kwargs)
        # The default stands for as many as the machine is good for.
        self._threads = None if max_threads == 16 else max_threads

    @classmethod
    def process_extension_config(cls, ext_config: Mapping[str, Any], **kwargs: Any) -> Dict[str, Any]:
        """The options of the constructor: `nogds` and `use_fgds` stand for `copier_type`."""
        options = dict(ext_config)
        copier = options.pop("copier_type", "gds")
        if copier == "fgds":
            return {**options, "nogds": False, "use_fgds": True}
        return {"use_fgds": False, **options, "nogds": copier != "gds"}


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
            files_of("filenames", filenames)
            size, files = self.loader.pg.size(), list(filenames)
            filenames = {rank: files[rank::size] for rank in range(size)}
        self.loader.add_filenames(filenames)
        self.fb = self.loader.copy_files_to_device(max_copy_block_size=max_copy_block_size)

    def metadata(self) -> Dict[str, Dict[str, str]]:
        """The strings in each file's header, by its path; `""` for a file whose header has none."""
        return {path: metadata.metadata for path, (metadata, _) in self.loader.meta.items()}

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
