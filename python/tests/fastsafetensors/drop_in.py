"""Fixtures of these tests: where the drop-in is tested, on the CPU and on a CUDA device where there is one, and what it is tested with."""

from __future__ import annotations

import gc
import os
import pathlib
from collections.abc import Iterator

import pytest

import tensorhold

torch = pytest.importorskip("torch")

from support import Spec, spec, write  # noqa: E402

from tensorhold.fastsafetensors import live_allocation_bytes, live_allocation_count  # noqa: E402


def places() -> list[object]:
    named = os.environ.get("TENSORHOLD_TEST_DEVICE")
    has_cuda = tensorhold.cuda_count() > 0 and torch.cuda.is_available()
    if named == "pinned":
        return [pytest.param("pinned", marks=pytest.mark.skip(reason="fastsafetensors has no pinned device"))]
    if named:
        return [named]
    return ["cpu", "cuda:0" if has_cuda else pytest.param("cuda:0", marks=pytest.mark.skip(reason="there is no CUDA device"))]


@pytest.fixture(params=places())
def place(request: pytest.FixtureRequest) -> str:
    """A device by fastsafetensors' name."""
    return str(request.param)


@pytest.fixture
def shards() -> list[dict[str, Spec]]:
    """The tensors of three files."""
    return [
        {"a.weight": spec("F32", (12, 8)), "a.scalar": spec("F32", ()), "a.norm": spec("BF16", (64,))},
        {"b.weight": spec("F16", (8, 4, 6)), "b.empty": spec("F32", (0, 4)), "b.ids": spec("I64", (7,))},
        {"c.weight": spec("F32", (12, 4)), "c.bytes": spec("U8", (100_003,)), "c.mask": spec("BOOL", (9,))},
    ]


@pytest.fixture
def files(tmp_path: pathlib.Path, shards: list[dict[str, Spec]]) -> list[str]:
    return [str(write(tmp_path / f"model-{n}.safetensors", tensors, {"part": str(n)})) for n, tensors in enumerate(shards)]


@pytest.fixture
def tensors(shards: list[dict[str, Spec]]) -> dict[str, Spec]:
    """All of them."""
    return {name: tensor for shard in shards for name, tensor in shard.items()}


@pytest.fixture(autouse=True)
def all_goes_back() -> Iterator[None]:
    """Each test gives back all memory of the drop-in."""
    yield
    gc.collect()
    assert (live_allocation_count(), live_allocation_bytes()) == (0, 0)
