"""`safetensors.flax`, and the package in its place."""

from __future__ import annotations

import importlib
import pathlib
import sys
from typing import Any

import pytest

import tensorhold

sys.path.insert(0, str(pathlib.Path(__file__).parent))

jax = pytest.importorskip("jax")
numpy = pytest.importorskip("numpy")

from side_by_side import Raised, outcome, package, real, same  # noqa: E402
from support import BITS, spec, write  # noqa: E402

# Types for which the real one looks in the module of NumPy, where they are not: those that JAX has, and one that it lacks.
MORE = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
LACKING = {"F4"}


def loads() -> dict[str, Any]:
    return {
        "load_file": lambda module, root, path: module.load_file(path),
        "load_file, pread": lambda module, root, path: module.load_file(path, backend="pread"),
        "load": lambda module, root, path: module.load(path.read_bytes()),
        "get_tensor": lambda module, root, path: root.safe_open(path, framework="flax").get_tensor("t"),
        "get_tensor, jax": lambda module, root, path: root.safe_open(path, framework="jax").get_tensor("t"),
        "get_slice": lambda module, root, path: root.safe_open(path, framework="flax").get_slice("t")[1:, ::2],
        "[0, 1]": lambda module, root, path: root.safe_open(path, framework="flax").get_slice("t")[[0, 1]],
        "safe_open": lambda module, root, path: module.safe_open(path, "flax").get_slice("t").get_shape(),
        # The real one refuses CUDA devices for JAX; tensorhold opens them where there are any.
        **({} if tensorhold.cuda_count() else {"device": lambda module, root, path: root.safe_open(path, framework="flax", device="cuda")}),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("x64", [False, True])
def test_arrays_are_loaded_as_there(x64: bool, tmp_path: pathlib.Path) -> None:
    theirs, ours = real(), package("tensorhold.safetensors")
    modules = {of.name: importlib.import_module(f"{of.name}.flax") for of in (theirs, ours)}
    differing = set()
    with jax.enable_x64(x64):
        for dtype in BITS:
            path = write(tmp_path / f"{dtype}.safetensors", {"t": spec(dtype, (4, 6)), "none": spec(dtype, (0, 2))})
            for name, call in loads().items():
                found = [outcome(lambda p, f, o: call(modules[p.name], p.root, f), of, path, path) for of in (theirs, ours)]
                if not same(*found, theirs, ours):
                    differing.add(dtype)
                    assert isinstance(found[0], Raised) and (dtype in MORE | LACKING or dtype == "BF16" and name == "load"), (dtype, name, found)
    assert differing == MORE | LACKING | {"BF16"}


def test_arrays_are_saved_as_there(tmp_path: pathlib.Path) -> None:
    real()
    jnp = jax.numpy
    tensors = {"b": jnp.ones((2, 3)), "a": jnp.arange(3, dtype=jnp.int8), "h": jnp.ones(2, jnp.bfloat16), "s": jnp.float16(2), "n": jnp.zeros((0, 2))}
    theirs, ours = (importlib.import_module(f"{name}.flax") for name in ("safetensors", "tensorhold"))
    for metadata in (None, {}, {"format": "flax"}):
        expected = theirs.save(dict(tensors), metadata)
        assert ours.save(tensors, metadata) == expected
        ours.save_file(tensors, tmp_path / "a.safetensors", metadata)
        assert (tmp_path / "a.safetensors").read_bytes() == expected
    # The real one puts arrays of NumPy into the caller's dict.
    assert isinstance(tensors["b"], jax.Array)
