"""What callers write, for the type checker: `test_stubs.py` checks this file, and does not run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import assert_type

import tensorhold
import tensorhold.numpy
import tensorhold.torch
from tensorhold import Cut, Pool, TensorInfo

loaded = tensorhold.load_file("llama/", device="cuda:0", framework="pt", memory_budget=1 << 30, progress=True)
assert_type(loaded, "dict[str, Any]")
assert_type(tensorhold.torch.load_file(Path("a.safetensors"), "cuda:1", dtype="BF16"), "dict[str, Any]")
assert_type(tensorhold.numpy.load_file(["a.safetensors", "b.safetensors"]), "dict[str, Any]")


def wanted(info: TensorInfo) -> bool:
    return info.dtype == "F32" and info.shape[0] > 2 and info.nbytes < 1 << 30


def cut(info: TensorInfo) -> Cut | None:
    return Cut.shard(1, 0, 8) if info.name.endswith("o_proj.weight") else None


def tell(progress: tensorhold.Progress) -> bool:
    return progress.done_bytes < progress.total_bytes


pool = Pool("cuda:0", limit_bytes=1 << 34, parts=None, name="weights")
with tensorhold.load("llama/", 0, select=wanted, cuts=cut, progress=tell, pool=pool, backend="auto", threads=4) as weights:
    assert_type(weights, tensorhold.Weights)
    assert_type(weights["a"], tensorhold.Tensor)
    names: list[str] = weights.keys()
    assert_type(weights.get("a"), "tensorhold.Tensor | None")
    assert_type({**weights}, "dict[str, tensorhold.Tensor]")
    assert_type(weights.report().times, "dict[str, Any]")
    assert_type(weights["a"].shape, "tuple[int, ...]")
    closed = weights.close()
    assert_type([(held.name, held.bytes) for held in closed.held], "list[tuple[str, int]]")
assert_type(pool.stats().live_bytes, int)

for name, tensor in tensorhold.stream("llama/", select=["a", "b"], in_file_order=True):
    assert_type(name, str)
    assert_type(tensor.to_host(), bytes)

with tensorhold.safe_open("llama/", framework="np", cuts={"a": [Cut.narrow(0, 1, 2)]}) as f:
    assert_type(f, tensorhold.safe_open)
    assert_type(f.metadata(), "dict[str, str] | None")
    assert_type(f.get_slice("a").get_shape(), "list[int]")
    assert_type(f.get_tensors(), "dict[str, Any]")

tensorhold.save_file(loaded, Path("saved.safetensors"), {"format": "pt"}, synced=True)

try:
    tensorhold.load("llama/")
except tensorhold.FileError as error:
    assert_type(error.path, "str | None")

# What is wrong is seen: the comments are needed, or the check says that they are not.
tensorhold.load("llama/", threads="two")  # type: ignore[arg-type]
tensorhold.load("llama/", dytpe="F16")  # type: ignore[call-arg]
tensorhold.load(3.5)  # type: ignore[arg-type]
weights["a"].name = "b"  # type: ignore[misc]
