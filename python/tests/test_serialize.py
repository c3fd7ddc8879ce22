"""Files in memory: their bytes are those of the `safetensors` package, and hostile ones are refused as files are."""

from __future__ import annotations

import json
import pathlib
import random
import struct

import numpy
import pytest
from support import BITS, Spec, spec, write, write_raw

import tensorhold
from tensorhold import _core

# From the first to the last of a file, as the format's own package has it.
ORDER = [
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8",
    "F6_E3M2", "F6_E2M3", "F4", "BOOL",
]  # fmt: skip

Items = list[tuple[str, str, list[int], numpy.ndarray]]


def items(tensors: dict[str, Spec]) -> Items:
    return [(name, dtype, list(shape), numpy.frombuffer(data, dtype="uint8").copy()) for name, (dtype, shape, data) in tensors.items()]


def in_order(tensors: dict[str, Spec]) -> dict[str, Spec]:
    return dict(sorted(tensors.items(), key=lambda pair: (ORDER.index(pair[1].dtype), pair[0])))


TENSORS = {
    "one \"quoted\"": spec("F32", (3,)),
    "a\u00e9\U0001F980": spec("F32", (2, 2)),
    "scalar": spec("F64", ()),
    "none": spec("F16", (0, 4)),
    "\x7f\n": spec("BF16", (3,)),
    **{f"of {dtype}": spec(dtype, (4, 2)) for dtype in BITS},
    "": spec("BOOL", (3,)),
}


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"\"\u00e9\n": "\x01\U0001F980/"}])
def test_bytes_are_those_of_the_safetensors_package(metadata: dict[str, str] | None, tmp_path: pathlib.Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    names = {"BOOL": "bool", "F4": "float4_e2m1fn_x2", "C64": "complex64", "BF16": "bfloat16", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3": "float8_e4m3fn"}
    names |= {"F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"}
    names |= {f"{short}{bits}": f"{long}{bits}" for short, long in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
    names |= {f"F{bits}": f"float{bits}" for bits in (16, 32, 64)}
    for tensors in ({}, {"a": spec("F32", (2,))}, {name: tensor for name, tensor in TENSORS.items() if tensor.dtype in names}):
        if metadata == {} and not tensors:
            # The package writes no JSON then.
            continue
        theirs = {}
        arrays = items(tensors)
        for name, dtype, shape, data in arrays:
            halves = [*shape[:-1], shape[-1] // 2] if dtype == "F4" else shape
            theirs[name] = safetensors.TensorSpec(dtype=names[dtype], shape=halves, data_ptr=data.ctypes.data, data_len=data.nbytes)
        expected = safetensors.serialize(theirs, metadata=metadata)
        pairs = None if metadata is None else list(metadata.items())
        assert _core.serialize(items(in_order(tensors)), pairs) == expected
        path = tmp_path / "saved.safetensors"
        _core.save_file(path, items(in_order(tensors)), pairs, False)
        assert path.read_bytes() == expected


def test_what_is_serialized_is_deserialized(tmp_path: pathlib.Path) -> None:
    made = _core.serialize(items(TENSORS), [("k", "v")])
    assert type(made) is bytes
    found = _core.deserialize(made)
    assert {name: (tensor["dtype"], tensor["shape"], tensor["data"]) for name, tensor in found} == {
        name: (dtype, list(shape), bytearray(data)) for name, (dtype, shape, data) in TENSORS.items()
    }
    widths = [0 if tensor["dtype"] == "BOOL" else BITS[tensor["dtype"]] for _, tensor in found]
    assert widths == sorted(widths, reverse=True), "wider types come first, and booleans last"
    path = tmp_path / "model.safetensors"
    path.write_bytes(made)
    with tensorhold.safe_open(path, framework="np") as f:
        assert f.keys() == [name for name, _ in found] and f.metadata() == {"k": "v"}
    # Each has memory of its own.
    data = dict(found)["scalar"]["data"]
    data[:] = b"12345678"
    assert dict(_core.deserialize(made))["scalar"]["data"] != data
    data.clear()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data)[::1], lambda data: numpy.frombuffer(data, dtype="uint8")])
def test_bytes_of_any_kind_are_deserialized(kind) -> None:  # type: ignore[no-untyped-def]
    made = _core.serialize(items({"a": spec("U8", (3_000_000,))}))
    assert _core.deserialize(kind(made)) == [("a", {"shape": [3_000_000], "dtype": "U8", "data": bytearray(spec("U8", (3_000_000,)).data)})]


@pytest.mark.parametrize("data", [None, "text", 7, [1, 2], pathlib.Path("p")])
def test_an_argument_without_bytes_is_a_type_error(data: object) -> None:
    with pytest.raises(TypeError, match=r"argument data: got .*, expected bytes"):
        _core.deserialize(data)  # type: ignore[arg-type]


def one(begin: int, end: int, shape: int = 2) -> str:
    return f'{{"dtype":"U8","shape":[{shape}],"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ("{}", b"x", ["1 more than belong to it"]),
        (f'{{"a":{one(0, 2)}}}', b"x", ["cut short"]),
        (f'{{"a":{one(0, 2)},"a":{one(2, 4)}}}', b"1234", ['"a"', "twice"]),
        (f'{{"a":{one(0, 2)},"b":{one(3, 5)}}}', b"12345", ['"b"', "leaves a hole"]),
        (f'{{"a":{one(0, 2)},"b":{one(1, 3)}}}', b"123", ['"b"', "overlaps"]),
        (f'{{"a":{one(0, 2, 3)}}}', b"12", ['"a"', "span 2 bytes"]),
        ('{"__metadata__":{},"__metadata__":{}}', b"", ["__metadata__", "twice"]),
        ('{"a":7}', b"", ['"a"', "expected an object"]),
        ("[]", b"", ["JSON object"]),
        ('{"a":{"dtype":"F5","shape":[],"data_offsets":[0,0]}}', b"", ["unknown dtype", "F5"]),
        ('{"a":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,0]}}', b"", ['"a"', "overflows"]),
    ],
)
def test_damaged_bytes_are_refused_as_files_are(header: str, data: bytes, words: list[str], tmp_path: pathlib.Path) -> None:
    path = write_raw(tmp_path / "damaged.safetensors", header, data)
    with pytest.raises(tensorhold.FormatError) as of_file:
        tensorhold.load(path)
    with pytest.raises(tensorhold.FormatError) as of_bytes:
        _core.deserialize(path.read_bytes())
    assert of_bytes.value.path is None
    message = str(of_bytes.value)
    assert message.startswith("read the given bytes as a safetensors file: ")
    assert message.partition(": ")[2] == str(of_file.value).partition(": ")[2]
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "HeaderTooSmall"), (b"1234567", "HeaderTooSmall"), (b"\xff" * 9, "limit"), (struct.pack("<Q", 50) + b"{}", "ends after 10"),
     (struct.pack("<Q", 2) + b"\xff\xff", "UTF-8"), (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x00\x00", "gzip")],
)  # fmt: skip
def test_bytes_that_are_no_safetensors_file_are_named_for_what_they_are(data: bytes, word: str) -> None:
    with pytest.raises(tensorhold.FormatError, match=word):
        _core.deserialize(data)


def test_random_damage_is_an_error_or_a_file_and_never_a_crash() -> None:
    made = _core.serialize(items({name: TENSORS[name] for name in ("scalar", "none", "of F4")}), [("k", "v")])
    draw = random.Random(18)
    for _ in range(3000):
        damaged = bytearray(made)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            found = _core.deserialize(bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])]))
        except tensorhold.FormatError:
            continue
        assert sum(len(tensor["data"]) for _, tensor in found) == 8 + 4


def test_an_empty_metadata_is_not_the_same_as_none(tmp_path: pathlib.Path) -> None:
    array = {"a": numpy.ones(2)}
    texts = {}
    for name, metadata in {"none": None, "empty": {}, "some": {"k": "v"}}.items():
        path = tmp_path / f"{name}.safetensors"
        tensorhold.save_file(array, path, metadata)
        length = struct.unpack("<Q", path.read_bytes()[:8])[0]
        texts[name] = json.loads(path.read_bytes()[8 : 8 + length]).get("__metadata__")
        with tensorhold.safe_open(path, framework="np") as f:
            assert f.metadata() == metadata and f.metadata(path) == metadata
        assert tensorhold.load(path).metadata() == (metadata or {})
        assert tensorhold.inspect(path)[1] == {str(path): metadata or {}}
    assert texts == {"none": None, "empty": {}, "some": {"k": "v"}}


def test_metadata_of_several_files_is_none_only_if_no_file_has_it(tmp_path: pathlib.Path) -> None:
    few = {"a": spec("U8", (2,))}
    none = write(tmp_path / "1.safetensors", few)
    other = write(tmp_path / "2.safetensors", {"b": spec("U8", (2,))})
    empty = write_raw(tmp_path / "3.safetensors", '{"__metadata__":{}}')
    null = write_raw(tmp_path / "4.safetensors", '{"__metadata__":null}')
    some = write(tmp_path / "5.safetensors", {}, {"k": "v"})
    for files, expected in [([none, other], None), ([none, null], None), ([none, empty], {}), ([none, empty, some, null], {"k": "v"})]:
        with tensorhold.safe_open(files, framework="np") as f:
            assert f.metadata() == expected
            assert f.metadata(none) is None
