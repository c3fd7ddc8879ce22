"""`LoaderConfig`: the options that `AutoLoader` reads from a file."""

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
    """Options of `AutoLoader`. Other objects of a file are kept by their keys: each holds the options of the loader of that name."""

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

    # Objects whose options are those of the file itself.
    _COMMON_GROUPS = {"parallel", "debug"}
    # Options of all loaders: in the object of one loader they mean nothing.
    _COMMON_FIELDS_FOR_EXTENSION = {"framework", "debug_log", "set_numa", "disable_cache"}

    def __post_init__(self) -> None:
        check_producers(self.max_concurrent_producers)

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> "LoaderConfig":
        """The configuration of a parsed file. Options in the groups `parallel` and `debug` are options of the whole; the later of two wins. Unknown
        options are dropped."""
        if not isinstance(data, dict):
            raise ValueError(f"read a configuration: got {kind(data)}, expected an object with the options; see LoaderConfig")
        known = {option.name for option in fields(cls) if not option.name.startswith("_")}
        options: Dict[str, Any] = {}
        extensions: Dict[str, Dict[str, Any]] = {}
        for key, value in data.items():
            if not isinstance(value, dict):
                found = {key: value}
            elif key in cls._COMMON_GROUPS:
                found = value
            else:
                extensions[key] = dict(value)
                continue
            for name, option in found.items():
                if name in known:
                    options[name] = option
                else:
                    logger.debug("configuration: ignoring the unknown option %r (%r)", name, key)
        return cls(**options, _extensions=extensions)

    @classmethod
    def _from_json(cls, path: str) -> "LoaderConfig":
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    @classmethod
    def from_file(cls, path: str) -> "LoaderConfig":
        """The configuration of a JSON file."""
        return cls._from_json(path)

    def get_extension_config(self, name: str) -> Dict[str, Any]:
        """The options of the loader of that name, without those that all loaders have."""
        return {key: value for key, value in self._extensions.get(name, {}).items() if key not in self._COMMON_FIELDS_FOR_EXTENSION}

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
    path = DEFAULT_CONFIG_PATH if named is None else named
    if not os.path.isfile(path):
        return LoaderConfig()
    logger.debug("reading the configuration %s", path)
    return LoaderConfig.from_file(path)
