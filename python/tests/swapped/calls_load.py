"""Calls that read: whole files, single tensors, headers, and what is no file of tensors."""

from __future__ import annotations

import json
import importlib.util
import os
import pathlib
import struct
from typing import Any

import torch

from side_by_side import Call, Package
from support import BITS, spec, write, write_raw


def header(**tensors: tuple[Any, Any, Any]) -> str:
    return json.dumps({name: dict(zip(("dtype", "shape", "data_offsets"), found)) for name, found in tensors.items()})


F32 = ("F32", [1], [0, 4])

HOSTILE = {
    "no bytes": b"",
    "seven bytes": b"1234567",
    "a header without an end": struct.pack("<Q", 100) + b"{}",
    "a header of 2 to the 63": struct.pack("<Q", 1 << 63) + b"{}",
    "no header": struct.pack("<Q", 0),
    "no JSON": "nonsense",
    "an array": "[]",
    "no UTF-8": struct.pack("<Q", 2) + b"\xff\xfe",
    "two values": "{}{}",
    "a missing shape": '{"a": {"dtype": "F32", "data_offsets": [0, 4]}}',
    "an unknown type": header(a=("F33", [1], [0, 4])),
    "a type that is a number": header(a=(32, [1], [0, 4])),
    "a negative extent": header(a=("F32", [-1], [0, 4])),
    "a fraction as extent": header(a=("F32", [1.5], [0, 4])),
    "offsets that go back": header(a=("F32", [1], [4, 0])),
    "a gap": header(a=F32, b=("F32", [1], [8, 12])),
    "tensors that overlap": header(a=F32, b=("F32", [1], [2, 6])),
    "bytes behind the last tensor": (header(a=F32), 5),
    "too few bytes": (header(a=F32), 3),
    "bytes that are not those of the shape": (header(a=("F32", [2], [0, 4])), 4),
    "a shape that overflows": header(a=("F32", [1 << 62, 1 << 62], [0, 4])),
    "half a byte": (header(a=("F4", [3], [0, 2])), 2),
    "metadata that is a number": '{"__metadata__": 1}',
    "metadata with a number": '{"__metadata__": {"a": 1}}',
    "metadata with a list": '{"__metadata__": {"a": []}}',
    "a tensor that is a number": '{"a": 1}',
    "a name twice": ('{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', 1),
    "a tensor that is null": '{"a": null}',
}  # fmt: skip

TYPES = list(BITS)


def make(files: pathlib.Path) -> None:
    """The files that the calls read."""
    for dtype in TYPES:
        write(files / f"{dtype}.safetensors", {"t": spec(dtype, (3, 4)), "none": spec(dtype, (0, 4))})
        write(files / f"{dtype}.scalar.safetensors", {"t": spec(dtype, (2,) if dtype.startswith("F6") or dtype == "F4" else ())})
    # The real one gives tensors that begin at the same byte in random order: those of no bytes are not side by side.
    few = {name: spec(dtype, shape) for name, dtype, shape in (
        ("b", "F32", (10, 5)), ("empty", "F32", (0, 4)), ("a", "I16", (2, 3, 4)), ("scalar", "F64", ()), ("long name", "U8", (7,)), ("none", "F32", (0,)),
    )}  # fmt: skip
    write(files / "few.safetensors", few, {"format": "pt", "ключ": "значение"})
    write(files / "plain.safetensors", {"a": spec("F32", (2, 2))})
    write_raw(files / "empty strings.safetensors", '{"__metadata__": {}}')
    write_raw(files / "null strings.safetensors", '{"__metadata__": null}')
    write_raw(files / "nothing.safetensors", "{}")
    write_raw(files / "spaces.safetensors", "{}" + " " * 14)
    for name, found in HOSTILE.items():
        path = files / f"{name}.safetensors"
        if isinstance(found, bytes):
            path.write_bytes(found)
        else:
            text, nbytes = found if isinstance(found, tuple) else (found, 0)
            write_raw(path, text, bytes(nbytes))
    (files / "folder").mkdir()


def opened(p: Package, path: pathlib.Path, framework: str = "pt", **options: Any) -> Any:
    return p.root.safe_open(path, framework, **options)


CALLS: dict[str, Call] = {}


def of_files(name: str, file: str) -> None:
    """The ways to read all of a file."""

    def data(files: pathlib.Path) -> bytes:
        return (files / f"{file}.safetensors").read_bytes()

    def each(p: Package, files: pathlib.Path, framework: str) -> Any:
        with opened(p, files / f"{file}.safetensors", framework) as f:
            return f.metadata(), {key: f.get_tensor(key) for key in f.keys()}

    def sliced(p: Package, files: pathlib.Path, framework: str) -> Any:
        with opened(p, files / f"{file}.safetensors", framework) as f:
            slices = {key: f.get_slice(key) for key in f.offset_keys()}
            return [(key, found.get_shape(), found.get_dtype(), found[()]) for key, found in slices.items()]

    CALLS.update({
        f"torch.load_file of {name}": lambda p, files, out: p.torch.load_file(files / f"{file}.safetensors"),
        f"numpy.load_file of {name}": lambda p, files, out: p.numpy.load_file(files / f"{file}.safetensors"),
        f"torch.load of {name}": lambda p, files, out: p.torch.load(data(files)),
        f"numpy.load of {name}": lambda p, files, out: p.numpy.load(data(files)),
        f"deserialize of {name}": lambda p, files, out: sorted((key, found) for key, found in p.root.deserialize(data(files))),
        f"safe_open for torch of {name}": lambda p, files, out: each(p, files, "pt"),
        f"safe_open for numpy of {name}": lambda p, files, out: each(p, files, "np"),
        f"slices for torch of {name}": lambda p, files, out: sliced(p, files, "pt"),
        f"slices for numpy of {name}": lambda p, files, out: sliced(p, files, "np"),
        f"get_tensors for torch of {name}": lambda p, files, out: opened(p, files / f"{file}.safetensors").get_tensors(),
        f"get_tensors for numpy of {name}": lambda p, files, out: opened(p, files / f"{file}.safetensors", "np").get_tensors(),
    })  # fmt: skip


for dtype in TYPES:
    of_files(dtype, dtype)
    of_files(f"one {dtype}", f"{dtype}.scalar")
for file in ("few", "plain", "empty strings", "null strings", "nothing", "spaces", *HOSTILE):
    of_files(file, file)


def few(framework: str = "pt", **options: Any) -> Any:
    return lambda p, files: opened(p, files / "few.safetensors", framework, **options)


def after_close(p: Package, files: pathlib.Path) -> Any:
    with opened(p, files / "few.safetensors") as f:
        pass
    return f


def handle(p: Package, files: pathlib.Path, mode: str = "rb", **options: Any) -> Any:
    with open(files / "few.safetensors", mode) as file, p.root._safe_open_handle(file, framework="np", **options) as f:
        return f.metadata(), sorted(f.keys()), f.get_tensors(), f.get_slice("b")[2:4]


def slice_after_close(p: Package, files: pathlib.Path, framework: str) -> Any:
    with opened(p, files / "few.safetensors", framework) as f:
        found = f.get_slice("b")
    return found.get_shape(), found.get_dtype(), found[2:3], found[:, 1]


class InMemory:
    name = "few.safetensors"


class WithoutName:
    def fileno(self) -> int:
        return 0


NOT_INSTALLED = [name for name, module in (("tf", "tensorflow"), ("tensorflow", "tensorflow"), ("mlx", "mlx"), ("paddle", "paddle"))
                 if importlib.util.find_spec(module) is None]  # fmt: skip

CALLS.update({
    "the order of keys": lambda p, f, o: few()(p, f).keys(),
    "keys": lambda p, f, o: sorted(few()(p, f).keys()),
    "offset_keys": lambda p, f, o: few()(p, f).offset_keys(),
    "metadata": lambda p, f, o: few()(p, f).metadata(),
    "a str as filename": lambda p, f, o: p.torch.load_file(str(f / "plain.safetensors")),
    "bytes as filename": lambda p, f, o: p.torch.load_file(os.fsencode(f / "plain.safetensors")),
    "bytes as filename of safe_open": lambda p, f, o: p.root.safe_open(os.fsencode(f / "plain.safetensors"), "pt"),
    "None as filename": lambda p, f, o: p.root.safe_open(None, "pt"),
    "a number as filename": lambda p, f, o: p.root.safe_open(3, "pt"),
    "an open file as filename": lambda p, f, o: p.root.safe_open(open(f / "plain.safetensors", "rb"), "pt"),
    "a list as filename": lambda p, f, o: p.torch.load_file([f / "plain.safetensors"]),
    "a folder as filename": lambda p, f, o: p.root.safe_open(f / "folder", "pt"),
    "a path without a file": lambda p, f, o: p.root.safe_open(f / "missing.safetensors", "pt"),
    "load_file of a path without a file": lambda p, f, o: p.torch.load_file(f / "missing.safetensors"),
    "numpy.load_file of a path without a file": lambda p, f, o: p.numpy.load_file(f / "missing.safetensors"),
    "a name that is too long": lambda p, f, o: p.root.safe_open("x" * 300, "pt"),
    "load_file of a name that is too long": lambda p, f, o: p.torch.load_file("x" * 300),
    "a path that is too long": lambda p, f, o: p.numpy.load_file("x/" * 3000),
    "a name with a zero byte": lambda p, f, o: p.root.safe_open("a\0b", "pt"),
    "load_file of a name with a zero byte": lambda p, f, o: p.numpy.load_file("a\0b"),
    "a name of no text": lambda p, f, o: p.torch.load_file(""),
    "a filename with half a surrogate pair": lambda p, f, o: p.torch.load_file("\ud800"),
    "links in a loop": lambda p, f, o: (o / "a").symlink_to("a") or p.torch.load_file(o / "a"),
    "a device as filename": lambda p, f, o: p.torch.load_file("/dev/null"),
    "a device as filename of safe_open": lambda p, f, o: p.root.safe_open("/dev/null", "np"),
    **{f"opened with framework {name!r}": lambda p, f, o, name=name: list(p.root.safe_open(f / "plain.safetensors", name).keys())
       for name in NOT_INSTALLED},
    **{f"a tensor with framework {name!r}": lambda p, f, o, name=name: p.root.safe_open(f / "plain.safetensors", name).get_tensor("a")
       for name in NOT_INSTALLED},
    "a path below a file": lambda p, f, o: p.root.safe_open(f / "plain.safetensors" / "below", "pt"),
    "framework by position": lambda p, f, o: p.root.safe_open(f / "plain.safetensors", "np").get_tensors(),
    "no framework": lambda p, f, o: p.root.safe_open(f / "plain.safetensors").get_tensors(),
    **{f"framework {name!r}": lambda p, f, o, name=name: p.root.safe_open(f / "plain.safetensors", framework=name).get_tensors()
       for name in ("pt", "torch", "pytorch", "np", "numpy", "PT", "xx", "", None, 3)},
    **{f"device {device!r}": lambda p, f, o, device=device: p.root.safe_open(f / "plain.safetensors", "pt", device).get_tensors()
       for device in ("cpu", None, "meta", "nonsense", "", "cuda:x", "cuda:-1", "cuda:0:1", -1, 1.5, b"cpu", ["cpu"])},
    **{f"load_file to device {device!r}": lambda p, f, o, device=device: p.torch.load_file(f / "plain.safetensors", device)
       for device in ("cpu", None, "nonsense", "cuda:x", 1.5, "cpu:0", "cpu:1", torch.device("cpu"), torch.device("cpu:0"))},
    "load_file to device= by name": lambda p, f, o: p.torch.load_file(f / "plain.safetensors", device="cpu"),
    **{f"device {device!r}": lambda p, f, o, device=device: p.root.safe_open(f / "few.safetensors", "pt", device).get_tensor("b")
       for device in ["mps", "xpu:0", "npu", *(["cuda", "cuda:0", 0, "cuda:99"] if torch.version.cuda else [])]},
    "device 'cuda' for numpy": lambda p, f, o: p.root.safe_open(f / "plain.safetensors", "np", device="cuda").get_tensors(),
    "device torch.device('cpu')": lambda p, f, o: p.root.safe_open(f / "plain.safetensors", "pt", p.torch.torch.device("cpu")).get_tensors(),
    **{f"backend {name!r}": lambda p, f, o, name=name: p.root.safe_open(f / "plain.safetensors", "pt", backend=name).get_tensors()
       for name in ("mmap", "pread", "nonsense", "", None, 3)},
    **{f"torch.load_file with backend {name!r}": lambda p, f, o, name=name: p.torch.load_file(f / "plain.safetensors", backend=name)
       for name in ("mmap", "pread", "nonsense", None)},
    **{f"numpy.load_file with backend {name!r}": lambda p, f, o, name=name: p.numpy.load_file(f / "plain.safetensors", backend=name)
       for name in ("mmap", "pread", "nonsense", None)},
    "backend by position": lambda p, f, o: p.root.safe_open(f / "plain.safetensors", "pt", "cpu", "mmap"),
    "an unknown argument of safe_open": lambda p, f, o: p.root.safe_open(f / "plain.safetensors", "pt", nonsense=1),
    "an unknown argument of load_file": lambda p, f, o: p.torch.load_file(f / "plain.safetensors", nonsense=1),
    "no argument of safe_open": lambda p, f, o: p.root.safe_open(),
    "get_tensor of no name": lambda p, f, o: few()(p, f).get_tensor("missing"),
    "get_tensor of None": lambda p, f, o: few()(p, f).get_tensor(None),
    "get_tensor of a number": lambda p, f, o: few()(p, f).get_tensor(1),
    "get_tensor without a name": lambda p, f, o: few()(p, f).get_tensor(),
    "get_tensor by name=": lambda p, f, o: few()(p, f).get_tensor(name="b"),
    "get_slice of no name": lambda p, f, o: few()(p, f).get_slice("missing"),
    "get_slice of None": lambda p, f, o: few()(p, f).get_slice(None),
    "get_slice by name=": lambda p, f, o: few()(p, f).get_slice(name="b")[0],
    "get_slice's class": lambda p, f, o: type(few()(p, f).get_slice("b")).__name__,
    "keys after the end of with": lambda p, f, o: after_close(p, f).keys(),
    "offset_keys after the end of with": lambda p, f, o: after_close(p, f).offset_keys(),
    "metadata after the end of with": lambda p, f, o: after_close(p, f).metadata(),
    "get_tensor after the end of with": lambda p, f, o: after_close(p, f).get_tensor("b"),
    "get_tensors after the end of with": lambda p, f, o: after_close(p, f).get_tensors(),
    "get_slice after the end of with": lambda p, f, o: after_close(p, f).get_slice("b"),
    "a slice for torch after the end of with": lambda p, f, o: slice_after_close(p, f, "pt"),
    "a slice for numpy after the end of with": lambda p, f, o: slice_after_close(p, f, "np"),
    "a second with": lambda p, f, o: after_close(p, f).__enter__().__exit__(None, None, None),
    "__exit__ without arguments": lambda p, f, o: few()(p, f).__exit__(),
    "with gives the object itself": lambda p, f, o: (lambda found: found.__enter__() is found)(few()(p, f)),
    "an open one is hashable": lambda p, f, o: len({few()(p, f), few()(p, f)}),
    "len": lambda p, f, o: len(few()(p, f)),
    "in": lambda p, f, o: "b" in few()(p, f),
    "an index": lambda p, f, o: few()(p, f)["b"],
    "a handle of bytes": lambda p, f, o: handle(p, f),
    "a handle of text": lambda p, f, o: handle(p, f, "r", device="cpu"),
    "a handle with a backend": lambda p, f, o: handle(p, f, backend="pread"),
    "a handle of a path": lambda p, f, o: p.root._safe_open_handle(str(f / "few.safetensors"), framework="np"),
    "a handle without a descriptor": lambda p, f, o: p.root._safe_open_handle(InMemory(), framework="np"),
    "a handle without a name": lambda p, f, o: p.root._safe_open_handle(WithoutName(), framework="np"),
    "a handle without a framework": lambda p, f, o: p.root._safe_open_handle(open(f / "few.safetensors", "rb")),
    **{f"{module}.load of {kind.__name__}": lambda p, f, o, kind=kind, module=module: getattr(p, module).load(kind((f / "plain.safetensors").read_bytes()))
       for kind in (bytes, bytearray, memoryview) for module in ("torch", "numpy")},
    "torch.load of a str": lambda p, f, o: p.torch.load("nonsense"),
    "torch.load of None": lambda p, f, o: p.torch.load(None),
    "torch.load of a path": lambda p, f, o: p.torch.load(f / "plain.safetensors"),
    "deserialize by bytes=": lambda p, f, o: p.root.deserialize(bytes=(f / "plain.safetensors").read_bytes()),
    "the tensors of load can be written to": lambda p, f, o: p.torch.load((f / "plain.safetensors").read_bytes())["a"].zero_(),
    "the tensors of load_file can be written to": lambda p, f, o: p.torch.load_file(f / "plain.safetensors")["a"].zero_(),
    "tensors of load_file require no gradient": lambda p, f, o: p.torch.load_file(f / "plain.safetensors")["a"].requires_grad,
})  # fmt: skip

