"""The loaders of 3FS, which tensorhold does not have: by their signatures, for what imports them."""

from typing import Any, Dict, Mapping, Optional, Sequence

from tensorhold.fastsafetensors.loader import BaseSafeTensorsFileLoader
from tensorhold.fastsafetensors.parallel_loader import PipelineParallel


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
        return dict(ext_config)


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
