"""A drop-in for safetensors 0.8.0.

Import it under its own name, or let `tensorhold.install_as_safetensors()` make `import safetensors` find it. `docs/safetensors.md` lists what differs.
"""

from tensorhold.safetensors._safetensors_rust import (
    SafetensorError,
    TensorSpec,
    __version__,
    _safe_open_handle,
    deserialize,
    safe_open,
    serialize,
    serialize_file,
)

__all__ = [
    "SafetensorError",
    "TensorSpec",
    "__version__",
    "_safe_open_handle",
    "deserialize",
    "safe_open",
    "serialize",
    "serialize_file",
]
