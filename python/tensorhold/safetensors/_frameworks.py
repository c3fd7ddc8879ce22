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


class JaxAsArrays(frameworks.Jax):
    """JAX takes tensors in host memory as it takes arrays of NumPy: onto its default device, and without 64-bit types as 32-bit ones, with a warning."""

    def convert(self, tensor: "Tensor | _Handover") -> "Any":
        import numpy

        if tensor.dtype in self.WIDE and not self.jax.config.jax_enable_x64:
            return self.jax.numpy.array(numpy.from_dlpack(tensor))
        device = tensor.device
        array = super().convert(tensor)
        if device == "cpu" and self.jax.default_backend() != "cpu":
            return self.jax.numpy.array(numpy.asarray(array))
        return array


_made: "list[JaxAsArrays]" = []


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
        _made.append(JaxAsArrays())
    return _made[0]
