"""Checkpoints for the tests, written without the libraries that are tested, and tensors read back."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

import tensorhold

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


class Spec(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def spec(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Spec:
    """A tensor with bytes of its own, that are values of any type."""
    elements = 1
    for extent in shape:
        elements *= extent
    nbytes = elements * BITS[dtype] // 8
    data = random.Random(f"{dtype}{shape}{seed}").randbytes(nbytes)
    # Booleans are 0 or 1; floats that are small and no NaN compare as they are.
    return Spec(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "BOOL" else bytes(byte & 0x3F for byte in data))


def write(path: pathlib.Path, tensors: Mapping[str, Spec], metadata: Mapping[str, str] | None = None) -> pathlib.Path:
    """A safetensors file of these tensors, in their order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    write_raw(path, json.dumps(header), b"".join(tensor.data for tensor in tensors.values()))
    return path


def write_raw(path: pathlib.Path, header: str, data: bytes = b"") -> pathlib.Path:
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_sparse(path: pathlib.Path, tensors: int, nbytes: int) -> pathlib.Path:
    """A file of large tensors of zeros, which takes no space."""
    places = {f"t{n}": {"dtype": "U8", "shape": [nbytes], "data_offsets": [n * nbytes, (n + 1) * nbytes]} for n in range(tensors)}
    write_raw(path, json.dumps(places))
    os.truncate(path, path.stat().st_size + tensors * nbytes)
    return path


def raw(tensor: Any) -> bytes:
    """The bytes of a framework's tensor, on whichever device it is."""
    kind = type(tensor).__module__.split(".")[0]
    if kind == "torch":
        import torch

        if not tensor.numel():
            return b""
        # One element may have any stride, and is contiguous for torch.
        dense = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        return bytes(dense.view(torch.uint8).numpy().tobytes())
    if kind == "cupy":
        return bytes(tensor.get().tobytes())
    import numpy

    return bytes(numpy.asarray(tensor).tobytes())


def why_not(framework: str, device: str = "cpu") -> str | None:
    """Why a framework cannot have tensors on a device."""
    try:
        importlib.import_module(framework)
        from tensorhold import frameworks

        frameworks.find(framework).prepare(device)
    except (ImportError, tensorhold.Error) as error:
        return str(error)
    return None


def import_for(framework: str, device: str) -> None:
    """Skips what the framework cannot do on the device, or without being installed."""
    reason = why_not(framework, device)
    if reason:
        pytest.skip(reason)


def numpy_takes_flags() -> bool:
    """Whether NumPy is told of what may be written to, and of copies: since 2.1."""
    import numpy

    return tuple(int(part) for part in numpy.__version__.split(".")[:2]) >= (2, 1)


def free_bytes(device: str) -> int | None:
    """Free memory of a CUDA device, by the driver; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.mem_get_info(int(device[5:]))[0])


def assert_all_back(pool: tensorhold.Pool) -> None:
    """Everything that was placed in the pool has gone back to the device."""
    pool.trim()
    stats = pool.stats()
    assert (stats.live_bytes, stats.fragments, stats.reserved_bytes, stats.lost_bytes) == (0, 0, 0, 0), stats


def python(script: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs a script in an interpreter of its own, and expects that it ends well."""
    command = [sys.executable, "-X", "faulthandler", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=pathlib.Path(__file__).parent)
    assert done.returncode == 0, f"it ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
