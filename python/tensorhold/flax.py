"""`tensorhold.safetensors.flax` under a shorter name: a module of its own with all of its names."""

from tensorhold.safetensors import flax as _same
from tensorhold.safetensors.flax import *  # noqa: F403

# With those that are not public, which programs import from safetensors, too.
globals().update({name: value for name, value in vars(_same).items() if name == "__all__" or not name.startswith("__")})
