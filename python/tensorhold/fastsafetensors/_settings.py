"""Settings from the environment: the one place of the drop-in that reads it."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

CONFIG = "FASTSAFETENSORS_CONFIG"
"""The configuration file of `AutoLoader`."""

DEBUG = "FASTSAFETENSORS_DEBUG"
"""`true` makes pipelines print each of their steps."""

EP_SLICE = "FASTSAFETENSORS_EP_SLICE"
"""`1` turns the expert filter from the environment on."""

EP_NUM_EXPERTS = "FASTSAFETENSORS_EP_NUM_EXPERTS"
"""How many experts the model has."""

EP_SIZE = ("FASTSAFETENSORS_EP_SIZE", "WORLD_SIZE")
"""How many ranks share them; torchrun's variable is second."""

EP_RANK = ("FASTSAFETENSORS_EP_RANK", "RANK")
"""Which of these ranks this is; torchrun's variable is second."""


def config_path() -> "Optional[str]":
    """The path, which may be empty; None where the variable is not set."""
    return os.environ.get(CONFIG)


def is_debug() -> bool:
    return os.environ.get(DEBUG, "").lower() == "true"


def is_expert_slice() -> bool:
    return os.environ.get(EP_SLICE) == "1"


def number(name: str) -> "Optional[int]":
    """A variable that holds a whole number; None where it is not set."""
    value = os.environ.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"setting {name}: got {value!r}, expected a whole number; correct or unset it") from None
