"""The loaders of 3FS, which tensorhold does not have: by their signatures, for what imports them."""

import importlib
import logging
from typing import Any, Dict, Mapping, Optional, Sequence

from tensorhold.fastsafetensors.loader import BaseSafeTensorsFileLoader
from tensorhold.fastsafetensors.parallel_loader import PipelineParallel

logger = logging.getLogger(__name__)


def _refused(mount_point: str) -> ImportError:
    return ImportError(
        f"load from 3FS at {mount_point!r}: tensorhold reads no 3FS by its own interface; read the mounted files with loader=\"base\", or use fastsafetensors itself"
    )


class ThreeFSLoader(BaseSafeTensorsFileLoader):
    """Always an `ImportError`: there is no reader of 3FS."""

    def __init__(
        self,
        pg: Optional[Any],
        device: Any = "cpu",
        mount_point: str = "/mnt/3fs",
        debug_log: bool = False,
        disable_cache: bool = True,
        framework: str = "pytorch",
        set_numa: bool = True,
        **kwargs: Any,
    ) -> None:
        raise _refused(mount_point)

    @classmethod
    def process_extension_config(cls, ext_config: Mapping[str, Any], **kwargs: Any) -> Dict[str, Any]:
        """The options of the constructor. A mount point that is not named is that of the first file, if the reader of 3FS is installed."""
        options = dict(ext_config)
        files = kwargs.get("hf_weights_files")
        if files and not str(options.get("mount_point") or "").strip():
            try:
                reader: Any = importlib.import_module("fastsafetensor_3fs_reader")
            except ImportError:
                logger.debug("fastsafetensor_3fs_reader is not installed: the mount point is the default")
            else:
                options["mount_point"] = reader.extract_mount_point(files[0])
        return options


class ParallelThreeFSLoader(PipelineParallel):
    """Always an `ImportError`: there is no reader of 3FS."""

    def __init__(
        self,
        pg: Optional[Any],
        hf_weights_files: Sequence[str],
        max_concurrent_producers: int = 1,
        queue_size: int = 0,
        use_tqdm_on_load: bool = True,
        device: Any = "cpu",
        debug_log: bool = False,
        framework: str = "pytorch",
        **kwargs: Any,
    ) -> None:
        raise _refused(str(kwargs.get("mount_point", "/mnt/3fs")))
