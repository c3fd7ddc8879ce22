"""The real safetensors beside the packages that stand in for it: calls, what they give, and whether that is the same."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

VERSION = "0.8.0"

OURS = ("tensorhold", "tensorhold.safetensors")


class Package(NamedTuple):
    """A package with its submodules."""

    name: str
    root: Any
    torch: Any
    numpy: Any


Call = Callable[[Package, pathlib.Path, pathlib.Path], Any]
"""What is called: of a package, with the folder of the files that are there, and an empty folder."""


def package(name: str) -> Package:
    return Package(name, *(importlib.import_module(name + module) for module in ("", ".torch", ".numpy")))


def real() -> Package:
    """The real one; skips where it, or a framework that it is compared for, is not installed."""
    for needed in ("torch", "numpy", "ml_dtypes"):
        pytest.importorskip(needed)
    found = pytest.importorskip("safetensors")
    if found.__version__ != VERSION or found.__name__ != "safetensors":
        pytest.skip(f"safetensors {VERSION} is not installed: found {found.__name__} {found.__version__}")
    return package("safetensors")


class Raised(NamedTuple):
    error: BaseException


def outcome(call: Call, of: Package, files: pathlib.Path, out: pathlib.Path) -> Any:
    """What a call gives, as plain values, or raises."""
    try:
        return plain(call(of, files, out))
    # A panic of Rust is no Exception.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Raised(error)


def plain(value: Any) -> Any:
    """A value that compares: tensors as type, shape, device and bytes."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(plain(inner) for inner in value)
    if type(value).__module__.partition(".")[0] in ("torch", "jaxlib") and hasattr(value, "device"):
        return str(value.dtype), tuple(value.shape), str(value.device), raw(value)
    if type(value).__module__ == "numpy" and hasattr(value, "dtype"):
        return str(value.dtype), value.shape, value.flags.writeable, value.tobytes()
    return value


def raw(tensor: Any) -> bytes:
    import numpy

    if type(tensor).__module__.partition(".")[0] != "torch":
        return numpy.asarray(tensor).tobytes()
    import torch

    dense = tensor.detach().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def same(theirs: Any, ours: Any, real: Package, of: Package) -> bool:
    """Whether both give the same, or ours raises what is caught wherever theirs is."""
    if isinstance(theirs, Raised) and isinstance(ours, Raised):
        if isinstance(theirs.error, real.root.SafetensorError):
            return isinstance(ours.error, of.root.SafetensorError)
        built_in = next(kind for kind in type(theirs.error).__mro__ if kind.__module__ == "builtins")
        return isinstance(ours.error, built_in)
    if isinstance(theirs, Raised) or isinstance(ours, Raised):
        return False
    return type(theirs) is type(ours) and bool(theirs == ours)
