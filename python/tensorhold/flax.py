"""`tensorhold.safetensors.flax` under a shorter name: the same module."""

import sys

from tensorhold.safetensors import flax as _same
from tensorhold.safetensors.flax import *  # noqa: F403

sys.modules[__name__] = _same
