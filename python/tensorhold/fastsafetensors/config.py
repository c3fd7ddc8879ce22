"""`LoaderConfig`: what `AutoLoader` reads from a file."""

import json
import logging
import os
from dataclasses import dataclass, field, fields
from typing import Any, Dict, Optional

from tensorhold._text import kind
from tensorhold.fastsafetensors import _settings

logger = logging.getLogger(__name__)

CONFIG_ENV_VAR = _settings.CONFIG
"""The variable that names the file."""

DEFAULT_CONFIG_PATH = "fastsafetensors.json"
"""The file, in the working directory, that is read if none is named."""


@dataclass
class LoaderConfig:
    """Options of `AutoLoader`. What a file says besides is kept by its key, for the loader of that name."""

    loader: str = "base"
    framework: str = "pytorch"
    debug_log: bool = False
    set_numa: bool = True
    disable_cache: bool = True
    use_pipeline: bool = False
    max_concurrent_producers: int = 1
    queue_size: int = 0
    use_tqdm_on_load: bool = True
    max_batch_bytes: Optional[int] = None
    use_chunk_budget_as_allocation_size: bool = False
    device_memory_budget: Optional[int] = None
    _extensions: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_producers(self.max_concurrent_producers)

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> "LoaderConfig":
        """What a parsed file says."""
        if not isinstance(data, dict):
            raise ValueError(f"read a configuration: got {kind(data)}, expected an object with the options; see LoaderConfig")
        known = {option.name for option in fields(cls)} - {"_extensions"}
        options = {key: value for key, value in data.items() if key in known}
        rest = {key: value for key, value in data.items() if key not in known}
        return cls(**options, _extensions=rest)

    @classmethod
    def from_file(cls, path: str) -> "LoaderConfig":
        """What a JSON file says."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    def get_extension_config(self, name: str) -> Dict[str, Any]:
        """What the file says for the loader of that name."""
        found = self._extensions.get(name, {})
        return dict(found) if isinstance(found, dict) else {}

    def create_parallel_kwargs(self) -> Dict[str, Any]:
        """The options of `PipelineParallel`. Without `use_pipeline` nothing is read ahead."""
        options: Dict[str, Any] = {
            "queue_size": self.queue_size if self.use_pipeline else -1,
            "max_batch_bytes": self.max_batch_bytes,
            "use_chunk_budget_as_allocation_size": self.use_chunk_budget_as_allocation_size,
            "device_memory_budget": self.device_memory_budget,
        }
        if self.use_pipeline:
            options["max_concurrent_producers"] = self.max_concurrent_producers
            options["use_tqdm_on_load"] = self.use_tqdm_on_load
        return options


def check_producers(count: int) -> None:
    """Refuses more than one producer."""
    if count != 1:
        raise ValueError(f"max_concurrent_producers must be 1: got {count}; ranks take batches in one order. Files are read by many threads anyway")


def load_config() -> LoaderConfig:
    """The configuration of the file that `FASTSAFETENSORS_CONFIG` names, or of `fastsafetensors.json` if there is one, or the defaults."""
    named = _settings.config_path()
    if named is not None and not os.path.isfile(named):
        raise FileNotFoundError(f"read the configuration that {CONFIG_ENV_VAR} names: there is no file {named!r}; correct or unset the variable")
    path = named or DEFAULT_CONFIG_PATH
    if not os.path.isfile(path):
        return LoaderConfig()
    logger.debug("reading the configuration %s", path)
    return LoaderConfig.from_file(path)
