"""`load_file` and `save_file` for torch, under the name that `safetensors.torch` has for them."""

from tensorhold import api
from tensorhold.api import save_file

__all__ = ["load_file", "save_file"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Unpack

    from tensorhold.types import Device, LoadOptions, Paths


def load_file(filename: "Paths", device: "Device | None" = "cpu", **options: "Unpack[LoadOptions]") -> "dict[str, Any]":
    """Loads a checkpoint into a dict of torch's tensors, which own their memory."""
    return api.load_file(filename, device, "pt", **options)
