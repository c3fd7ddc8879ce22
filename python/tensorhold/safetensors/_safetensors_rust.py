"""The name that safetensors has for its compiled module, which some programs import from."""

from tensorhold._alias import DROP_INS
from tensorhold._core import Error as SafetensorError
from tensorhold.safetensors._open import _safe_open_handle, safe_open
from tensorhold.safetensors._specs import TensorSpec, deserialize, serialize, serialize_file

__version__ = DROP_INS["safetensors"].version

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
