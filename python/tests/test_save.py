"""`save_file`: what is written is what safetensors reads, of every framework."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
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


STRIDED: dict[str, Callable[[Any], Any]] = {
    "one of a step": lambda base: base[::2][:1],
    "one of a column": lambda base: base.reshape(1, 16)[:, 3],
    "one of a block": lambda base: base.reshape(4, 4)[:1, 1:2],
    "one row of two": lambda base: base.reshape(2, 8)[::2],
    "none": lambda base: base[:0:2],
    "none of a block": lambda base: base.reshape(4, 4)[:0, ::2],
    "rows of none": lambda base: base.reshape(4, 4)[::2, :0],
    "scalar": lambda base: base[3],
    "behind others": lambda base: base[5:],
    "steps": lambda base: base[::3],
    "transposed": lambda base: base.reshape(4, 4).T,
    "last of three": lambda base: base.reshape(2, 2, 4).swapaxes(0, 2),
}
"""Parts of 16 elements, each with strides of its own."""


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64", "C64", "U8", "I8", "BOOL", "I64", "U16", "F8_E4M3", "F8_E8M0", "F4"])
def test_strides_and_no_flag_of_torch_decide_where_elements_are(dtype: str, tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    import torch

    base = tensorhold.load_file(write(tmp_path / "base", {"t": spec(dtype, (32 if dtype == "F4" else 16,))}))["t"]
    numbers = torch.arange(16)
    bytes_of = [raw(base[n : n + 1]) for n in range(16)]
    cases = dict(STRIDED)
    if dtype == "F4":
        # A scalar of torch's holds two elements of the format's.
        del cases["scalar"]
    parts = {name: part(base) for name, part in cases.items()}
    expected = {name: b"".join(bytes_of[n] for n in part(numbers).flatten().tolist()) for name, part in cases.items()}
    parts |= {
        "expanded": base[:1].expand(3),
        "odd strides": base.as_strided((1, 1, 2), (9, 5, 1), 4),
        "parameter": torch.nn.Parameter(base[::2][:1], requires_grad=False),
    }
    expected |= {"expanded": 3 * bytes_of[0], "odd strides": bytes_of[4] + bytes_of[5], "parameter": bytes_of[0]}
    tensorhold.save_file(parts, tmp_path / "saved")
    weights = tensorhold.load(tmp_path / "saved")
    assert {name: weights[name].to_host() for name in weights} == expected
    loaded = tensorhold.load_file(tmp_path / "saved")
    assert all(loaded[name].shape == part.shape and loaded[name].dtype == part.dtype for name, part in parts.items())


def test_parts_of_complex_numbers_of_torch_are_saved(tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    import torch

    numbers = torch.tensor([1 + 2j, 3 + 4j])
    parts = {"real": numbers.real, "imag": numbers.imag, "one": numbers[:1].real, "negated": numbers[:1].conj().imag}
    tensorhold.save_file(parts, tmp_path / "saved")
    loaded = tensorhold.load_file(tmp_path / "saved")
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"real": [1, 3], "imag": [2, 4], "one": [1], "negated": [-2]}


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "u1", "i1", "?", "i8", "u2", "f2", ">f4", ">i8", ">c8", "bfloat16", "float8_e4m3fn"])
def test_strides_and_no_flag_of_numpy_decide_where_elements_are(dtype: str, tmp_path: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    import numpy

    kind = numpy.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype)) if "float" in dtype else numpy.dtype(dtype)
    base = numpy.arange(16).astype(kind)
    parts = {name: part(base) for name, part in STRIDED.items()}
    parts |= {
        "backwards": base[::-1],
        "one backwards": base[::-1][:1],
        "broadcast": numpy.broadcast_to(base[:1], (3,)),
        "none broadcast": numpy.broadcast_to(base, (0, 16)),
        "odd strides": numpy.lib.stride_tricks.as_strided(base, (1, 2), (5, base.itemsize)),
        "columns first": numpy.asfortranarray(base.reshape(2, 8)),
    }
    if numpy_takes_flags():
        parts["read-only"] = base.copy()
        parts["read-only"].flags.writeable = False
    tensorhold.save_file(parts, tmp_path / "saved")
    weights = tensorhold.load(tmp_path / "saved")
    little = kind.newbyteorder("<")
    assert {name: weights[name].to_host() for name in weights} == {name: part.astype(little).tobytes() for name, part in parts.items()}
    assert all(weights[name].shape == part.shape for name, part in parts.items())


def test_tensors_that_share_memory_are_each_written_in_full(tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    import torch

    base = torch.arange(6.0)
    tensorhold.save_file({"one": base, "same": base, "part": base[2:4]}, tmp_path / "saved")
    loaded = tensorhold.load_file(tmp_path / "saved")
    assert torch.equal(loaded["one"], base) and torch.equal(loaded["same"], base) and torch.equal(loaded["part"], base[2:4])
    assert (tmp_path / "saved").stat().st_size > 14 * 4


def test_what_cannot_be_saved_is_an_error_and_leaves_no_file(tmp_path: pathlib.Path) -> None:
    numpy = pytest.importorskip("numpy")
    target = tmp_path / "saved.safetensors"
    right = numpy.zeros(3, dtype=numpy.float32)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"a": right, "b": [1.0, 2.0]}, "\"b\": got list, expected a tensor of torch"),
        ({"a": right, "b": numpy.array(["text"])}, "tensor \"b\": got str128, expected a type of the format"),
        ({"a": right, "b": numpy.array([None])}, "tensor \"b\": got an array of objects"),
        ({"a": right, "b": numpy.array([(1, 2.0)], dtype="i4,f4")}, "tensor \"b\": got void64, expected a type of the format"),
        ({"a": right, "b": numpy.ma.array([1.0, 2.0], mask=[0, 1])}, "tensor \"b\": got an array with masked elements.*filled"),
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

    with pytest.raises(tensorhold.TensorError, match='"s": got one of torch.sparse_coo.*to_dense'):
        tensorhold.save_file({"s": torch.eye(3).to_sparse()}, tmp_path / "saved.safetensors")
    with pytest.raises(tensorhold.TensorError, match='"m": got one on the device meta'):
        tensorhold.save_file({"m": torch.empty(3, device="meta")}, tmp_path / "saved.safetensors")
    with pytest.raises(tensorhold.TensorError, match='"n": got a nested tensor'):
        tensorhold.save_file({"n": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, tmp_path / "saved.safetensors")
    with pytest.raises(tensorhold.TensorError, match="tensor \"c\": got torch.complex128, expected a type of the format"):
        tensorhold.save_file({"c": torch.zeros(3, dtype=torch.complex128)}, tmp_path / "saved.safetensors")


def test_elements_of_less_than_a_byte_are_refused_where_each_takes_one(tmp_path: pathlib.Path) -> None:
    numpy, ml_dtypes = pytest.importorskip("numpy"), pytest.importorskip("ml_dtypes")
    for dtype in ("float4_e2m1fn", "float6_e2m3fn"):
        with pytest.raises(tensorhold.TensorError, match=f'"f": got an array of {dtype}, whose elements take a byte each'):
            tensorhold.save_file({"f": numpy.ones(8, getattr(ml_dtypes, dtype))}, tmp_path / "saved")
    with pytest.raises(tensorhold.TensorError, match="\"i\": got int4, expected a type of the format"):
        tensorhold.save_file({"i": numpy.ones(8, ml_dtypes.int4)}, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metadata": {"steps": 100}}, ["metadata", "int", '"steps"', "str()"]),
        ({"metadata": {"steps": None}}, ["metadata", "None", '"steps"']),
        ({"metadata": {"steps": b"100"}}, ["metadata", "bytes", '"steps"']),
        ({"metadata": {"config": {"steps": "100"}}}, ["metadata", "dict", '"config"', "json.dumps()"]),
        ({"metadata": {7: "seven"}}, ["metadata", "key 7", "int"]),
        ({"metadata": [("a", "b")]}, ["metadata", "list", "dict()"]),
        ({"metadata": "text"}, ["metadata", "str", "dict"]),
        ({"tensors": [("a", None)]}, ["tensors", "list", "dict()"]),
        ({"tensors": None}, ["tensors", "None"]),
        ({"tensors": {7: None}}, ["tensors", "key 7", "int"]),
        ({"filename": None}, ["filename", "None", "a path"]),
        ({"filename": 3}, ["filename", "int", "a path"]),
        ({"filename": {"a": None}}, ["filename", "dict", "a path"]),
        ({"synced": "no"}, ["synced", "str", "True or False"]),
    ],
)
def test_an_argument_of_another_type_is_named_with_its_key(arguments: dict[str, Any], words: list[str], tmp_path: pathlib.Path) -> None:
    given: dict[str, Any] = {"tensors": {}, "filename": tmp_path / "saved", **arguments}
    with pytest.raises(TypeError) as refused:
        tensorhold.save_file(**given)
    assert all(word in str(refused.value) for word in ["argument", *words, "; "]), refused.value
    assert list(tmp_path.iterdir()) == []


def test_an_open_file_is_not_taken_for_a_path(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "saved", "wb") as file, pytest.raises(TypeError, match="argument filename: got an open file, expected a path.*name of the file"):
        tensorhold.save_file({}, file)  # type: ignore[arg-type]
    tensorhold.save_file({}, file.name)
    tensorhold.save_file({}, os.fsencode(file.name))  # type: ignore[arg-type]
    assert len(tensorhold.load(tmp_path / "saved")) == 0
    with pytest.raises(tensorhold.OptionError, match="argument filename: got .*no file name can be"):
        tensorhold.save_file({}, file.name + "\ud800")


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
