"""`tensorhold.safetensors.torch` under a shorter name: the same module."""

import sys

from tensorhold.safetensors import torch as _same
from tensorhold.safetensors.torch import *  # noqa: F403

sys.modules[__name__] = _same
