"""A drop-in for safetensors 0.8.0.

Import it under its own name, or let `tensorhold.install_as_safetensors()` make `import safetensors` find it. `docs/safetensors.md` lists what differs.
"""

from tensorhold.safetensors._safetensors_rust import *  # noqa: F403
from tensorhold.safetensors._safetensors_rust import __all__ as __all__
