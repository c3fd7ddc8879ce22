"""`save_file`: what is written is what safetensors reads, of every framework."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from support import BITS, Spec, import_for, numpy_takes_flags, raw, spec, write

import tensorhold


def test_what_a_framework_loaded_is_saved_as_it_was(
    checkpoint: pathlib.Path, few: dict[str, Spec], framework: str, device: str, tmp_path: pathlib.Path
) -> None:
    if framework == "numpy" and not numpy_takes_flags():
        pytest.skip("NumPy before 2.1 exports no arrays that are read-only")
    loaded = tensorhold.load_file(checkpoint, device, framework)
    saved = tmp_path / "saved.safetensors"
    tensorhold.save_file(loaded, saved, {"format": "pt"}, synced=True)
    weights = tensorhold.load(saved)
    assert {name: weights[name].to_host() for name in weights} == {name: tensor.data for name, tensor in few.items()}
    assert all(weights.info(name).shape == few[name].shape and weights.info(name).dtype == few[name].dtype for name in few)
    assert weights.metadata() == {"format": "pt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "saved.safetensors"]


def test_tensors_of_no_framework_are_saved_under_the_names_that_they_are_given(
    checkpoint: pathlib.Path, few: dict[str, Spec], device: str, tmp_path: pathlib.Path
) -> None:
    weights = tensorhold.load(checkpoint, device)
    tensorhold.save_file({f"new.{name}": weights[name] for name in weights}, tmp_path / "saved.safetensors")
    again = tensorhold.load(tmp_path / "saved.safetensors")
    assert {name: again[name].to_host() for name in again} == {f"new.{name}": tensor.data for name, tensor in few.items()}


def test_every_dtype_of_torch_comes_back(tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    dtypes = [dtype for dtype in BITS if not dtype.startswith("F6")]
    specs = {dtype: spec(dtype, (3, 8)) for dtype in dtypes}
    loaded = tensorhold.load_file(write(tmp_path / "all.safetensors", specs))
    tensorhold.save_file(loaded, tmp_path / "saved.safetensors")
    weights = tensorhold.load(tmp_path / "saved.safetensors")
    for dtype in dtypes:
        info = weights.info(dtype)
        assert (info.dtype, info.shape, weights[dtype].to_host()) == (dtype, (3, 8), specs[dtype].data)


def test_safetensors_reads_what_is_saved(tmp_path: pathlib.Path) -> None:
    theirs = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")
    arrays: dict[str, Any] = {
        "transposed": numpy.arange(12, dtype=numpy.float32).reshape(3, 4).T,
        "big-endian": numpy.arange(5, dtype=">i4"),
        "steps": numpy.arange(10)[::3],
        "scalar": numpy.float64(2.5).reshape(()),
    }
    tensorhold.save_file(arrays, tmp_path / "saved.safetensors")
    loaded = theirs.load_file(tmp_path / "saved.safetensors")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape and numpy.array_equal(loaded[name], array)


def test_views_of_torch_are_saved_without_their_gaps(tmp_path: pathlib.Path, torch_device: str) -> None:
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    if torch_device.startswith("cuda"):
        base = base.to(torch_device)
    views = {"transposed": base.T, "columns": base[:, 1:3], "negated": base.to(torch.complex64).conj(), "grad": base.clone().requires_grad_()}
    tensorhold.save_file(views, tmp_path / "saved.safetensors")
    loaded = tensorhold.load_file(tmp_path / "saved.safetensors")
    assert all(torch.equal(loaded[name], view.cpu()) for name, view in views.items())


def test_what_cannot_be_saved_is_an_error_and_leaves_no_file(tmp_path: pathlib.Path) -> None:
    numpy = pytest.importorskip("numpy")
    target = tmp_path / "saved.safetensors"
    right = numpy.zeros(3, dtype=numpy.float32)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"a": right, "b": [1.0, 2.0]}, "'b': got list, expected a tensor of torch"),
        ({"a": right, "b": numpy.array(["text"])}, "tensor \"b\": got str128, expected a type of the format"),
        ({"a": right, "b": numpy.array([None])}, "tensor 'b': got an array of objects"),
        ({"__metadata__": right}, "another name"),
    ]
    for tensors, words in wrong:
        with pytest.raises(tensorhold.Error, match=words):
            tensorhold.save_file(tensors, target)
    with pytest.raises(tensorhold.Error):
        tensorhold.save_file({"a": right}, tmp_path / "none" / "saved.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_sparse_tensor_and_one_without_bytes_are_refused(tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    import torch

    with pytest.raises(tensorhold.TensorError, match="'s': got one of torch.sparse_coo.*to_dense"):
        tensorhold.save_file({"s": torch.eye(3).to_sparse()}, tmp_path / "saved.safetensors")
    with pytest.raises(tensorhold.TensorError, match="'m': got one on the device meta"):
        tensorhold.save_file({"m": torch.empty(3, device="meta")}, tmp_path / "saved.safetensors")
    with pytest.raises(tensorhold.TensorError, match="tensor \"c\": got torch.complex128, expected a type of the format"):
        tensorhold.save_file({"c": torch.zeros(3, dtype=torch.complex128)}, tmp_path / "saved.safetensors")


def test_the_modules_of_frameworks_save_too(tmp_path: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    import numpy

    import tensorhold.numpy

    tensorhold.numpy.save_file({"a": numpy.ones(2, dtype=numpy.int16)}, tmp_path / "a.safetensors")
    assert raw(tensorhold.numpy.load_file(tmp_path / "a.safetensors")["a"]) == b"\x01\x00\x01\x00"


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (["a", "b\ud800"], {}, ["save tensor \"b", "its name", "lone surrogate"]),
        (["a"], {"k\udc00": "v"}, ["save metadata \"k", "its key", "lone surrogate"]),
        (["a"], {"k": "\ud800v"}, ["save metadata \"k\"", "its value", "lone surrogate"]),
    ],
)
def test_text_that_utf8_cannot_hold_is_refused_by_name(
    tensors: list[str], metadata: dict[str, str], words: list[str], tmp_path: pathlib.Path
) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(tensorhold.TensorError) as refused:
        tensorhold.save_file({name: numpy.ones(3) for name in tensors}, tmp_path / "saved.safetensors", metadata)
    assert all(word in str(refused.value) for word in words), refused.value
    assert list(tmp_path.iterdir()) == []
