"""A drop-in for safetensors 0.8.0.

Import it under its own name, or let `tensorhold.install_as_safetensors()` make `import safetensors` find it. `docs/safetensors.md` lists what differs.
"""

from tensorhold._alias import DROP_INS
from tensorhold._core import Error as SafetensorError
from tensorhold.safetensors._open import _safe_open_handle, safe_open
from tensorhold.safetensors._specs import TensorSpec, deserialize, serialize, serialize_file

__version__ = DROP_INS["safetensors"].version

__all__ = ["SafetensorError", "TensorSpec", "_safe_open_handle", "deserialize", "safe_open", "serialize", "serialize_file"]
