"""What `safetensors.flax` has: functions that load and save arrays of JAX.

`tensorhold.flax` has the same names. Functions that load take the options of `tensorhold.load`, as well.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from tensorhold.safetensors import _open, numpy
from tensorhold.safetensors._open import safe_open

__all__ = ["Array", "load", "load_file", "safe_open", "save", "save_file"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Unpack

    from tensorhold.types import Device, OtherOptions, Path, Paths

    Arrays = dict[str, Array]


def load_file(
    filename: "Paths", device: "Device | None" = "cpu", *, backend: str = "mmap", **options: "Unpack[OtherOptions]"
) -> "Arrays":
    """Loads a checkpoint into a dict of arrays, which own their memory.

    `device` is `cpu` or a CUDA device. `backend` is one of `tensorhold.load`, or of safetensors (`mmap`, `pread`): then tensorhold chooses.
    """
    return _open.load_file(filename, "flax", device, backend, options)


def load(data: bytes) -> "Arrays":
    """The arrays of a safetensors file by its bytes."""
    return _np2jnp(numpy.load(data))


def save_file(tensors: "Arrays", filename: "Path", metadata: "dict[str, str] | None" = None) -> None:
    """Writes a safetensors file, which is there as a whole or not at all."""
    numpy.save_file(_jnp2np(tensors), filename, metadata)


def save(tensors: "Arrays", metadata: "dict[str, str] | None" = None) -> bytes:
    """The bytes that `save_file` writes."""
    return numpy.save(_jnp2np(tensors), metadata)


def _np2jnp(numpy_dict: "dict[str, Any]") -> "Arrays":
    return {name: jnp.array(array) for name, array in numpy_dict.items()}


def _jnp2np(jnp_dict: "Arrays") -> "dict[str, Any]":
    return {name: np.asarray(array) for name, array in jnp_dict.items()}
