"""`AutoLoader`: the loader that a configuration file names."""

import logging
from typing import Any, Dict, Generator, Optional, Sequence, Tuple, Type

from tensorhold.fastsafetensors.config import LoaderConfig, load_config
from tensorhold.fastsafetensors.loader import BaseSafeTensorsFileLoader, SafeTensorsFileLoader
from tensorhold.fastsafetensors.parallel_loader import PipelineParallel
from tensorhold.fastsafetensors.threefs_loader import ThreeFSLoader

__all__ = ["AutoLoader", "SafeTensorsFileLoader", "ThreeFSLoader"]

logger = logging.getLogger(__name__)

# Names of this module, looked up at each call: a class that replaces one of them is used.
_LOADER_REGISTRY: Dict[str, str] = {"base": "SafeTensorsFileLoader", "3fs": "ThreeFSLoader"}


def _resolve_loader_class(loader_name: str) -> Type[BaseSafeTensorsFileLoader]:
    attribute = _LOADER_REGISTRY.get(loader_name)
    found: Optional[Type[BaseSafeTensorsFileLoader]] = globals().get(attribute) if attribute else None
    if found is None:
        known = ", ".join(_LOADER_REGISTRY)
        raise ValueError(f"Unknown loader type: {loader_name!r}; expected one of {known}, in the configuration's \"loader\"")
    return found


class AutoLoader:
    """A pipeline whose loader and options are those of the configuration; see `load_config`."""

    def __init__(self, pg: Optional[Any], hf_weights_files: Sequence[str], device: str = "cpu") -> None:
        self._config = load_config()
        kind = _resolve_loader_class(self._config.loader)
        options = kind.process_extension_config(
            self._config.get_extension_config(self._config.loader), hf_weights_files=hf_weights_files
        )
        self._loader = kind(
            pg,
            device=device,
            framework=self._config.framework,
            debug_log=self._config.debug_log,
            set_numa=self._config.set_numa,
            disable_cache=self._config.disable_cache,
            **options,
        )
        self._pipeline = PipelineParallel(
            pg=pg, loader=self._loader, hf_weights_files=hf_weights_files, **self._config.create_parallel_kwargs()
        )
        logger.info("loading %d files onto %s by %r", len(hf_weights_files), device, self._config)

    @property
    def config(self) -> LoaderConfig:
        """The configuration that was read."""
        return self._config

    def iterate_weights(self) -> Generator[Tuple[str, Any], None, None]:
        """See `PipelineParallel.iterate_weights`."""
        return self._pipeline.iterate_weights()

    def close(self) -> None:
        """Ends iterations that are under way. Tensors that they have yielded stay."""
        self._pipeline.close()
