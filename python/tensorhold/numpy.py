"""`tensorhold.safetensors.numpy` under a shorter name: the same module."""

import sys

from tensorhold.safetensors import numpy as _same
from tensorhold.safetensors.numpy import *  # noqa: F403

sys.modules[__name__] = _same
