"""Calls that write, and those about tensors that share memory."""

from __future__ import annotations

import os
import pathlib
import re
import types
from collections import OrderedDict, UserDict
from typing import Any

import ml_dtypes
import numpy
import torch

from side_by_side import Call, Package

TORCH = ["bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64", "complex64",
         "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "complex128", "complex32"]  # fmt: skip

NUMPY = ["bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "float32", "float64", "complex64", ">i4", ">f8", "<f4",
         ">c8", "complex128", "longdouble", "S3", "U3", "object", "datetime64[s]", "i4,f4"]  # fmt: skip

ML = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float8_e4m3", "float4_e2m1fn", "int4"]

CALLS: dict[str, Call] = {}


def both(name: str, module: str, make: Any, **options: Any) -> None:
    """What is saved to a file, and to bytes."""

    def to_file(p: Package, files: pathlib.Path, out: pathlib.Path) -> Any:
        getattr(p, module).save_file(make(), out / "saved.safetensors", **options)
        return ordered((out / "saved.safetensors").read_bytes())

    CALLS[f"{module}.save_file of {name}"] = to_file
    CALLS[f"{module}.save of {name}"] = lambda p, files, out: ordered(getattr(p, module).save(make(), **options))


def ordered(data: bytes) -> bytes:
    """A file whose strings are sorted: their order is random in the real package."""
    found = re.match(rb'(.{8})\{"__metadata__":\{(("[^"]*":"[^"]*",?)*)\}', data, re.DOTALL)
    if not found:
        return data
    strings = b",".join(sorted(re.findall(rb'"[^"]*":"[^"]*"', found[2])))
    return found[1] + b'{"__metadata__":{' + strings + b"}" + data[found.end() :]


def bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = int(numpy.prod(shape)) * dtype.itemsize
    return (torch.arange(count) % 2).to(torch.uint8).view(dtype).reshape(shape)


for dtype in TORCH:
    both(f"{dtype}", "torch", lambda dtype=dtype: {"t": bits(getattr(torch, dtype), 2, 3), "empty": torch.empty((0, 2), dtype=getattr(torch, dtype))})
    both(f"a scalar of {dtype}", "torch", lambda dtype=dtype: {"t": bits(getattr(torch, dtype), 1).reshape(())})
for dtype in NUMPY:
    both(f"{dtype}", "numpy", lambda dtype=dtype: {"t": numpy.ones((2, 3)).astype(dtype) if dtype != "i4,f4" else numpy.zeros(2, dtype)})
for dtype in ML:
    both(f"{dtype} of ml_dtypes", "numpy", lambda dtype=dtype: {"t": numpy.ones((2, 3)).astype(getattr(ml_dtypes, dtype))})

base = torch.arange(24.0).reshape(4, 6)


class Derived(torch.nn.Parameter):
    pass


OF_TORCH = {
    "no tensors": lambda: {},
    "tensors in other order": lambda: {"z": torch.ones(2), "é": torch.ones(1), "a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3, dtype=torch.float16),
                                       "B": torch.ones(1, dtype=torch.bool), "u": torch.ones(1, dtype=torch.uint8), "i": torch.ones(2, dtype=torch.int64)},
    "names to escape": lambda: {'"': torch.ones(1), "\\": torch.ones(2), "\n": torch.ones(3), "\x01": torch.ones(4), "": torch.ones(5), "😀": torch.ones(6)},
    "a name with half a surrogate pair": lambda: {"\ud800": torch.ones(1)},
    "a parameter": lambda: {"p": torch.nn.Parameter(torch.ones(2))},
    "a class derived from Parameter": lambda: {"p": Derived(torch.ones(2))},
    "an OrderedDict": lambda: OrderedDict(a=torch.ones(2)),
    "a UserDict": lambda: UserDict(a=torch.ones(2)),
    "a mapping proxy": lambda: types.MappingProxyType({"a": torch.ones(2)}),
    "a list of pairs": lambda: [("a", torch.ones(2))],
    "a str": lambda: "nonsense",
    "None": lambda: None,
    "a name that is a number": lambda: {1: torch.ones(2)},
    "a name that is None": lambda: {None: torch.ones(2)},
    "a list as tensor": lambda: {"a": [1.0]},
    "an array as tensor": lambda: {"a": numpy.ones(2)},
    "None as tensor": lambda: {"a": None},
    "a dict as tensor": lambda: {"a": {"b": 1}},
    "a transposed tensor": lambda: {"a": base.t()},
    "a column": lambda: {"a": base[:, 1]},
    "an expanded tensor": lambda: {"a": torch.ones(1).expand(3)},
    "rows": lambda: {"a": base[1:3]},
    "channels last": lambda: {"a": torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)},
    "one element with a stride": lambda: {"a": torch.ones(1, 2)[:, 0]},
    "tensors that share memory": lambda: {"a": base, "b": base},
    "tensors that overlap": lambda: {"a": base[:3], "b": base[1:]},
    "a part and its whole": lambda: {"a": base, "b": base[1]},
    "parts that do not overlap": lambda: {"a": base[1:], "b": base[:1]},
    "tensors of no elements that share memory": lambda: {"a": base[:0], "b": base[:0]},
    "a sparse tensor": lambda: {"a": torch.sparse_coo_tensor(size=(2, 3))},
    "a sparse tensor of rows": lambda: {"a": torch.eye(3).to_sparse_csr(), "b": torch.ones(1)},
    "a tensor on the device meta": lambda: {"a": torch.ones(2, device="meta")},
    "a tensor that requires a gradient": lambda: {"a": torch.ones(2, requires_grad=True)},
    "a tensor with a gradient function": lambda: {"a": torch.ones(2, requires_grad=True) * 2},
    "a tensor named __metadata__": lambda: {"__metadata__": torch.ones(1)},
    "a negated view": lambda: {"a": torch._neg_view(torch.ones(2))},
    "the imaginary part of a conjugate": lambda: {"a": torch.tensor([1 + 2j]).conj().imag},
    "a conjugate": lambda: {"a": torch.tensor([1 + 2j]).conj()},
}  # fmt: skip
for name, make in OF_TORCH.items():
    both(name, "torch", make)

array = numpy.arange(24.0).reshape(4, 6)
OF_NUMPY = {
    "no tensors": lambda: {},
    "a list as array": lambda: {"a": [1.0]},
    "a tensor as array": lambda: {"a": torch.ones(2)},
    "None as array": lambda: {"a": None},
    "a list of pairs": lambda: [("a", array)],
    "None": lambda: None,
    "a mapping proxy": lambda: types.MappingProxyType({"a": array}),
    "a name that is a number": lambda: {1: array},
    "a scalar": lambda: {"a": numpy.array(3.0)},
    "a number of NumPy": lambda: {"a": numpy.float32(1)},
    "an array named __metadata__": lambda: {"__metadata__": array},
    "an empty array": lambda: {"a": numpy.zeros((0, 3), numpy.float16)},
    "arrays that share memory": lambda: {"a": array, "b": array, "c": array[1:]},
    "rows": lambda: {"a": array[1:3]},
    "a read-only array": lambda: {"a": read_only()},
    "a transposed array": lambda: {"a": array.T},
    "a column": lambda: {"a": numpy.ascontiguousarray(array)[:, 1]},
    "a masked array": lambda: {"a": numpy.ma.array([1.0, 2.0], mask=[True, False])},
}  # fmt: skip
for name, make in OF_NUMPY.items():
    both(name, "numpy", make)

METADATA = {
    "None": None, "{}": {}, "strings": {"b": "1", "a": "ü", "c": ""}, "an escaped string": {"a": '"\\\n'}, "a number as value": {"a": 1},
    "None as value": {"a": None}, "a number as key": {1: "a"}, "a list": ["a"], "a str": "a", "a mapping proxy": types.MappingProxyType({"a": "b"}),
    "half a surrogate pair": {"a": "\ud800"},
}  # fmt: skip
for name, metadata in METADATA.items():
    both(f"a tensor with metadata: {name}", "torch", lambda: {"t": torch.ones(2)}, metadata=metadata)
    both(f"an array with metadata: {name}", "numpy", lambda: {"t": array}, metadata=metadata)
both("no tensors with metadata: {}", "torch", lambda: {}, metadata={})


def read_only() -> Any:
    found = array.copy()
    found.flags.writeable = False
    return found


def written(p: Package, out: pathlib.Path, target: Any = None, make: Any = None) -> Any:
    p.torch.save_file({"t": torch.ones(2)}, out / "saved.safetensors" if target is None else target)
    return sorted(path.name for path in out.iterdir())


def linked(p: Package, out: pathlib.Path) -> Any:
    (out / "link.safetensors").symlink_to("saved.safetensors")
    written(p, out, out / "link.safetensors")
    return (out / "link.safetensors").is_symlink(), (out / "saved.safetensors").exists()


def over(p: Package, out: pathlib.Path) -> Any:
    (out / "saved.safetensors").write_bytes(b"before")
    written(p, out)
    return p.torch.load_file(out / "saved.safetensors")


def mode(p: Package, out: pathlib.Path) -> Any:
    umask = os.umask(0o022)
    try:
        written(p, out)
    finally:
        os.umask(umask)
    return oct((out / "saved.safetensors").stat().st_mode)


def spec(p: Package, **changed: Any) -> Any:
    made = p.root.TensorSpec(**{"dtype": "float32", "shape": [4, 6], "data_ptr": 4096, "data_len": 96, **changed})
    return made.dtype, made.shape, made.data_ptr, made.data_len


def serialized(p: Package, metadata: Any = None, **changed: Any) -> Any:
    data = numpy.arange(24, dtype=numpy.float32).reshape(4, 6)
    arguments = {"dtype": "float32", "shape": data.shape, "data_ptr": data.ctypes.data, "data_len": data.nbytes, **changed}
    return p.root.serialize({"t": p.root.TensorSpec(**arguments)}, metadata)


CALLS.update({
    "save_file to a str": lambda p, f, o: written(p, o, str(o / "a.safetensors")),
    "save_file to bytes": lambda p, f, o: written(p, o, os.fsencode(o / "a.safetensors")),
    "save_file to a number": lambda p, f, o: written(p, o, 3),
    "save_file to None": lambda p, f, o: p.torch.save_file({}, None),
    "save_file to a folder that is not there": lambda p, f, o: written(p, o, o / "missing" / "a"),
    "save_file to a folder": lambda p, f, o: written(p, o, o),
    "save_file leaves no other file": lambda p, f, o: written(p, o),
    "save_file over a file": lambda p, f, o: over(p, o),
    "save_file to a symbolic link": lambda p, f, o: linked(p, o),
    "the permissions of a new file": lambda p, f, o: mode(p, o),
    "save_file by names": lambda p, f, o: p.torch.save_file(tensors={"t": torch.ones(2)}, filename=o / "a", metadata=None),
    "numpy.save_file by names": lambda p, f, o: p.numpy.save_file(tensor_dict={"t": array}, filename=o / "a", metadata=None),
    "save by names": lambda p, f, o: p.torch.save(tensors={"t": torch.ones(2)}, metadata=None),
    "numpy.save by names": lambda p, f, o: p.numpy.save(tensor_dict={"t": array}, metadata=None),
    "save with metadata by position": lambda p, f, o: p.torch.save({"t": torch.ones(2)}, {"a": "b"}),
    "save without tensors": lambda p, f, o: p.torch.save(),
    "serialize": lambda p, f, o: serialized(p),
    "serialize with metadata": lambda p, f, o: serialized(p, {"a": "b"}),
    "serialize with {} as metadata": lambda p, f, o: serialized(p, {}),
    "serialize of no tensors": lambda p, f, o: p.root.serialize({}),
    "serialize by names": lambda p, f, o: p.root.serialize(tensor_dict={}, metadata=None),
    "serialize of a dict": lambda p, f, o: p.root.serialize({"t": {"dtype": "float32", "shape": [1], "data_ptr": 0, "data_len": 0}}),
    "serialize of a list": lambda p, f, o: p.root.serialize([]),
    "serialize of None": lambda p, f, o: p.root.serialize(None),
    "serialize of None as spec": lambda p, f, o: p.root.serialize({"t": None}),
    "serialize of a name that is a number": lambda p, f, o: p.root.serialize({1: p.root.TensorSpec(dtype="float32", shape=[0], data_ptr=8, data_len=0)}),
    "serialize of too few bytes": lambda p, f, o: serialized(p, data_len=92),
    "serialize of more bytes than there can be": lambda p, f, o: serialized(p, data_len=(1 << 64) - 1),
    "serialize of too large a shape": lambda p, f, o: serialized(p, shape=[4, 7]),
    "serialize of a shape that overflows": lambda p, f, o: serialized(p, shape=[1 << 62, 1 << 62]),
    "serialize of another type of that size": lambda p, f, o: serialized(p, dtype="int32"),
    "serialize of pairs": lambda p, f, o: serialized(p, dtype="float4_e2m1fn_x2", shape=[4, 24]),
    "serialize_file": lambda p, f, o: p.root.serialize_file({}, o / "a") or (o / "a").read_bytes(),
    "serialize_file by names": lambda p, f, o: p.root.serialize_file(tensor_dict={}, filename=str(o / "a"), metadata={"a": "b"}) or (o / "a").read_bytes(),
    "serialize_file to None": lambda p, f, o: p.root.serialize_file({}, None),
    "serialize_file without a name": lambda p, f, o: p.root.serialize_file({}),
    "TensorSpec": lambda p, f, o: spec(p),
    "TensorSpec by position": lambda p, f, o: p.root.TensorSpec("float32", [1], 0, 4),
    "TensorSpec without a length": lambda p, f, o: p.root.TensorSpec(dtype="float32", shape=[1], data_ptr=0),
    "TensorSpec's repr": lambda p, f, o: repr(p.root.TensorSpec(dtype="bfloat16", shape=(2, 3), data_ptr=64, data_len=12)),
    "TensorSpec is frozen": lambda p, f, o: setattr(p.root.TensorSpec(dtype="int8", shape=[1], data_ptr=8, data_len=1), "data_len", 2),
    "TensorSpec takes no other attributes": lambda p, f, o: setattr(p.root.TensorSpec(dtype="int8", shape=[1], data_ptr=8, data_len=1), "other", 2),
    "TensorSpec's shape is a copy": lambda p, f, o: (lambda made: (made.shape.append(1), made.shape))(p.root.TensorSpec(dtype="int8", shape=[1], data_ptr=8, data_len=1)),
    **{f"TensorSpec of dtype {dtype!r}": lambda p, f, o, dtype=dtype: spec(p, dtype=dtype)
       for dtype in [*TORCH, "nonsense", "F32", "float6_e2m3fn", "", None, 3, b"float32"]},
    **{f"TensorSpec of shape {shape!r}": lambda p, f, o, shape=shape: spec(p, shape=shape)
       for shape in [[], (), [0], (2, 3), range(3), [True], [1.0], ["1"], "12", b"12", None, 3, {}, {1: 2}, {1}, [-1], [1 << 63], [1 << 64], [[1]]]},
    "TensorSpec of a torch.Size": lambda p, f, o: spec(p, shape=torch.ones(2, 3).shape),
    "TensorSpec of an array as shape": lambda p, f, o: spec(p, shape=numpy.array([2, 3])),
    "TensorSpec of a generator as shape": lambda p, f, o: spec(p, shape=(extent for extent in (2, 3))),
    "TensorSpec of pairs that overflow": lambda p, f, o: spec(p, dtype="float4_e2m1fn_x2", shape=[1 << 63]),
    "TensorSpec of a scalar of pairs": lambda p, f, o: spec(p, dtype="float4_e2m1fn_x2", shape=[]),
    **{f"TensorSpec of {argument} {given!r}": lambda p, f, o, argument=argument, given=given: spec(p, **{argument: given})
       for argument in ("data_ptr", "data_len") for given in (0, True, -1, 1 << 64, (1 << 64) - 1, 1.0, "1", None, numpy.int64(8))},
})  # fmt: skip


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(3, 3)
        self.b = self.a
        self.c = torch.nn.Linear(3, 3)


class Untied(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.b = torch.nn.Linear(3, 3)


class Transposed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())


class Part(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.arange(6.0)[:3])


def model_saved(p: Package, out: pathlib.Path, kind: type[torch.nn.Module], *arguments: Any) -> Any:
    p.torch.save_model(kind(), out / "model.safetensors", *arguments)
    return ordered((out / "model.safetensors").read_bytes())


def model_loaded(p: Package, out: pathlib.Path, saved: type[torch.nn.Module], kind: type[torch.nn.Module], *arguments: Any, **options: Any) -> Any:
    p.torch.save_model(saved(), out / "model.safetensors")
    model = kind()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    missing, unexpected = p.torch.load_model(model, out / "model.safetensors", *arguments, **options)
    return sorted(missing), sorted(unexpected), type(missing), type(unexpected), dict(model.state_dict())


def kept_metadata(p: Package, out: pathlib.Path) -> Any:
    metadata = {"a": "b"}
    p.torch.save_model(Tied(), out / "model.safetensors", metadata)
    return metadata


def other_names(p: Package, out: pathlib.Path) -> Any:
    """A file whose names are those that save_model() leaves out."""
    state = Tied().state_dict()
    p.torch.save_file({name: tensor for name, tensor in state.items() if not name.startswith("a.")}, out / "model.safetensors")
    return p.torch.load_model(Tied(), out / "model.safetensors")


SHARED = {
    "a whole and a part": lambda: {"a": base, "b": base[:1]},
    "a part": lambda: {"a": base[:1]},
    "parts": lambda: {"b": base[:2], "c": base[2:]},
    "three parts, of which two overlap": lambda: {"b": base[:2], "c": base[2:], "d": base[:1]},
    "a long part, a short one in it, and one behind that": lambda: {"a": base[:4], "b": base[1:2], "c": base[3:4]},
    "the same tensor": lambda: {"b": base, "a": base, "c": base},
    "tensors of their own": lambda: {"b": torch.ones(2), "a": torch.ones(2)},
    "a view of other type": lambda: {"a": base, "b": base.view(torch.int32)},
    "a transposed view": lambda: {"a": base, "b": base.t()},
    "a column and its whole": lambda: {"a": base, "b": base[:, 1]},
    "tensors on meta": lambda: {"a": torch.ones(2, device="meta"), "b": torch.ones(2, device="meta")[:1]},
    "empty tensors": lambda: {"a": torch.empty(0), "b": base[:0], "c": base},
    "nothing": lambda: {},
}  # fmt: skip

for name, make in SHARED.items():
    CALLS[f"_find_shared_tensors of {name}"] = lambda p, f, o, make=make: p.torch._find_shared_tensors(make())
    CALLS[f"_remove_duplicate_names of {name}"] = lambda p, f, o, make=make: p.torch._remove_duplicate_names(make())

CALLS.update({
    "_remove_duplicate_names with preferred names": lambda p, f, o: p.torch._remove_duplicate_names({"a": base, "b": base, "c": base}, preferred_names=["c", "x"]),
    "_remove_duplicate_names with names to discard": lambda p, f, o: p.torch._remove_duplicate_names({"a": base, "b": base, "c": base}, discard_names=["a"]),
    "_remove_duplicate_names with all discarded": lambda p, f, o: p.torch._remove_duplicate_names({"a": base, "b": base}, discard_names=["a", "b"]),
    "_remove_duplicate_names with a preferred name that is discarded": lambda p, f, o: p.torch._remove_duplicate_names({"a": base, "b": base}, preferred_names=["b"], discard_names=["b"]),
    "_remove_duplicate_names with a preferred part": lambda p, f, o: p.torch._remove_duplicate_names({"a": base, "b": base[:1]}, preferred_names=["b"]),
    **{f"{function} of {name}": lambda p, f, o, function=function, make=make: getattr(p.torch, function)(make())
       for function in ("_is_complete", "storage_size")
       for name, make in {"a whole": lambda: base, "a part": lambda: base[:1], "meta": lambda: torch.ones(2, device="meta"), "empty": lambda: torch.empty(0),
                          "sparse": lambda: torch.eye(2).to_sparse()}.items()},
    "storage_ptr": lambda p, f, o: (p.torch.storage_ptr(base[1:]) - base.data_ptr(), p.torch.storage_ptr(torch.ones(1, device="meta"))),
    "storage_ptr of a sparse tensor": lambda p, f, o: p.torch.storage_ptr(torch.eye(2).to_sparse()),
    "_end_ptr": lambda p, f, o: [p.torch._end_ptr(found) - base.data_ptr() for found in (base, base[1], base[:0], base.view(-1)[::4])],
    "_getdtype": lambda p, f, o: (p.torch._getdtype("BF16"), p.numpy._getdtype("F16"), p.numpy._getdtype("BOOL")),
    "_getdtype of no type": lambda p, f, o: p.torch._getdtype("F33"),
    "_view2torch": lambda p, f, o: p.torch._view2torch([("a", {"dtype": "I16", "shape": [2], "data": bytearray(b"\x01\0\x02\0")})]),
    "_view2np": lambda p, f, o: p.numpy._view2np([("a", {"dtype": "I16", "shape": [2], "data": bytearray(b"\x01\0\x02\0")})]),
    "_to_ndarray": lambda p, f, o: (lambda found: (found[0], found[1] is base))(p.torch._to_ndarray(base)),
    "_flatten_as_ptr": lambda p, f, o: {name: (made.dtype, made.shape, made.data_ptr - base.data_ptr(), made.data_len)
                                        for name, made in p.torch._flatten_as_ptr({"a": base}, []).items()},
    "_flatten": lambda p, f, o: {name: (made.dtype, made.shape, made.data_ptr - array.ctypes.data, made.data_len) for name, made in p.numpy._flatten({"a": array}, []).items()},
    "_is_little_endian": lambda p, f, o: [p.numpy._is_little_endian(numpy.ones(1, dtype)) for dtype in ("<f4", ">f4", "u1", "f8")],
    "save_model of a tied model": lambda p, f, o: model_saved(p, o, Tied),
    "save_model with metadata": lambda p, f, o: model_saved(p, o, Tied, {"b.weight": "mine", "x": "y"}),
    "save_model with {} as metadata": lambda p, f, o: model_saved(p, o, Untied, {}),
    "save_model of an untied model": lambda p, f, o: model_saved(p, o, Untied),
    "save_model of a transposed parameter": lambda p, f, o: model_saved(p, o, Transposed),
    "save_model of a transposed parameter as it is": lambda p, f, o: model_saved(p, o, Transposed, None, False),
    "save_model of a part of memory": lambda p, f, o: model_saved(p, o, Part),
    "save_model's argument metadata afterwards": lambda p, f, o: kept_metadata(p, o),
    "load_model": lambda p, f, o: model_loaded(p, o, Tied, Tied),
    "load_model of an untied file into a tied model": lambda p, f, o: model_loaded(p, o, Untied, Tied),
    "load_model of an untied file into a tied model, not strict": lambda p, f, o: model_loaded(p, o, Untied, Tied, False),
    "load_model of a tied file into an untied model": lambda p, f, o: model_loaded(p, o, Tied, Untied),
    "load_model of a tied file into an untied model, not strict": lambda p, f, o: model_loaded(p, o, Tied, Untied, strict=False),
    "load_model of another model": lambda p, f, o: model_loaded(p, o, Transposed, Tied, strict=False),
    "load_model of other shapes": lambda p, f, o: model_loaded(p, o, Transposed, Part, strict=False),
    "load_model with device and backend": lambda p, f, o: model_loaded(p, o, Tied, Tied, True, "cpu", backend="pread"),
    "load_model of a file with other names": lambda p, f, o: other_names(p, o),
    "load_model of no file": lambda p, f, o: p.torch.load_model(Tied(), o / "missing"),
    "save_model's text for a transposed parameter": lambda p, f, o: "use save_model(..., force_contiguous=True)" in str(text_of(lambda: model_saved(p, o, Transposed, None, False))),
})  # fmt: skip


def text_of(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return str(error)
    return ""
