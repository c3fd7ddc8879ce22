"""The frameworks' tensors as safetensors gives them, where that differs from what `tensorhold` does."""

from tensorhold import frameworks
from tensorhold._core import FrameworkError
from tensorhold._text import quoted

OTHERS = {"tensorflow": "tensorflow", "tf": "tensorflow", "paddle": "paddle", "mlx": "mlx"}
"""The names of frameworks that safetensors has and tensorhold has not, each with the module that safetensors imports."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tensorhold._core import Tensor, _Handover


class MissingFrameworkError(FrameworkError, ModuleNotFoundError):
    """A framework of safetensors for which tensorhold makes no tensors."""


class Narrowing(frameworks.Jax):
    """JAX without 64-bit types takes 64-bit tensors as 32-bit ones, and warns, as for any array of NumPy."""

    def convert(self, tensor: "Tensor | _Handover") -> "Any":
        if tensor.dtype in self.WIDE and not self.jax.config.jax_enable_x64:
            import numpy

            return self.jax.numpy.array(numpy.from_dlpack(tensor))
        return super().convert(tensor)


_made: "list[Narrowing]" = []


def find(framework: str) -> frameworks.Converter:
    """The converter of a framework, by any of its names. Imports the framework."""
    if framework in OTHERS:
        raise MissingFrameworkError(
            f"option framework: got {quoted(framework)}, for which tensorhold makes no tensors, expected one of pt, np, flax and cupy; "
            "take tensors of one of these and convert them",
            name=OTHERS[framework],
        )
    converter = frameworks.find(framework)
    if not isinstance(converter, frameworks.Jax):
        return converter
    if not _made:
        _made.append(Narrowing())
    return _made[0]
