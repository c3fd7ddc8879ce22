"""Bad input is the right exception, with the library's message, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import struct
from typing import cast

import pytest
from support import Spec, assert_all_back, import_for, spec, write, write_raw

import tensorhold


def refuses(path: object, kind: type[Exception], *words: str, device: str, **options: object) -> None:
    """Expects a load to fail with all of the words in its message, and to give everything back."""
    pool = tensorhold.Pool(device)
    for more in ({"pool": pool}, {}):
        with pytest.raises(kind) as caught:
            tensorhold.load(path, device, **more, **options)  # type: ignore[arg-type]
        assert isinstance(caught.value, tensorhold.Error)
        for word in words:
            assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
        assert_all_back(pool)
    with pytest.raises(kind):
        tensorhold.safe_open(path, "np" if device == "cpu" else "pt", device, **options)  # type: ignore[arg-type]


def one(fields: str) -> str:
    return '{"t":{' + fields + "}}"


def two(a: str, b: str) -> str:
    return f'{{"a":{{"dtype":"U8","shape":[8],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[8],"data_offsets":{b}}}}}'


TWICE = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
HEADERS: list[tuple[str, int, list[str]]] = [
    ('{"t":{', 0, ["JSON"]),
    ("[1,2]", 0, ["header"]),
    (two("[0,8]", "[4,12]"), 12, ['"b"']),
    (two("[0,8]", "[10,18]"), 18, ['"b"']),
    (two("[8,0]", "[8,16]"), 16, ['"a"']),
    (two("[0,8]", "[8,16]"), 15, ["cut short"]),
    (two("[0,8]", "[8,16]"), 17, ["1"]),
    (two("[0,8]", "[18446744073709551608,18446744073709551616]"), 16, ["header"]),
    (two("[0,8]", "[18446744073709551600,18446744073709551608]"), 16, ['"b"']),
    (one('"dtype":"F32","shape":[3],"data_offsets":[0,8]'), 8, ['"t"', "12", "8"]),
    (one('"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]'), 8, ['"t"', "overflow"]),
    (one('"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,8]'), 8, ['"t"', "overflow"]),
    (one('"dtype":"F4","shape":[3],"data_offsets":[0,2]'), 2, ['"t"']),
    (one('"dtype":"F99","shape":[1],"data_offsets":[0,1]'), 1, ["F99"]),
    (one('"dtype":"U8","shape":[-1],"data_offsets":[0,1]'), 1, ["header"]),
    (f'{{"t":{{{TWICE}}},"t":{{{TWICE}}}}}', 1, ['"t"', "twice"]),
    (one(f'{TWICE},"shape":[1]'), 1, ['"shape"', "twice"]),
    ('{"__metadata__":{"k":"1","k":"2"}}', 0, ['"k"', "twice"]),
    ('{"__metadata__":{},"__metadata__":{}}', 0, ["__metadata__", "twice"]),
]


@pytest.mark.parametrize("case", range(len(HEADERS)))
def test_a_damaged_header(tmp_path: pathlib.Path, device: str, case: int) -> None:
    header, data, words = HEADERS[case]
    file = write_raw(tmp_path / "bad.safetensors", header, bytes(data))
    refuses(file, ValueError, "bad.safetensors", *words, device=device)


FILES: list[tuple[str, bytes, list[str]]] = [
    ("empty", b"", ["HeaderTooSmall", "0 bytes"]),
    ("too short for a header", b"\x01\x02\x03\x04\x05", ["HeaderTooSmall", "5 bytes"]),
    ("something else", b"PK\x03\x04 this is a zip archive, not a checkpoint", ["header"]),
    ("a header longer than the file", struct.pack("<Q", 1_000_000) + b"{}", ["1000000", "10"]),
    ("invalid UTF-8", b"\x04\0\0\0\0\0\0\0{\xff\xfe}", ["UTF-8"]),
    ("a header of all the numbers that there are", b"\xff" * 8, ["18446744073709551615"]),
]


@pytest.mark.parametrize("case", FILES, ids=[name for name, _, _ in FILES])
def test_a_file_that_is_no_checkpoint(tmp_path: pathlib.Path, device: str, case: tuple[str, bytes, list[str]]) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(case[1])
    refuses(file, tensorhold.FormatError, "bad.safetensors", *case[2], device=device)


def test_a_header_longer_than_100_mb(tmp_path: pathlib.Path, device: str) -> None:
    file = tmp_path / "huge.safetensors"
    file.write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(file, 200_000_000)
    refuses(file, ValueError, "100000001", "100000000", device=device)


def test_a_missing_file(tmp_path: pathlib.Path, device: str) -> None:
    refuses("/nowhere/model.safetensors", FileNotFoundError, "/nowhere/model.safetensors", "no such file", "check the path", device=device)
    there = write(tmp_path / "t.safetensors", {"t": spec("U8", (9,))})
    refuses([there, "/nowhere/x.safetensors"], FileNotFoundError, "/nowhere/x.safetensors", device=device)
    with pytest.raises(tensorhold.MissingFileError) as caught:
        tensorhold.load("/nowhere/x.safetensors", device)
    assert (caught.value.errno, caught.value.path, caught.value.operation) == (2, "/nowhere/x.safetensors", "open")


def test_a_folder_without_a_checkpoint(tmp_path: pathlib.Path, device: str) -> None:
    refuses(tmp_path, ValueError, "safetensors", device=device)
    with pytest.raises(tensorhold.OptionError, match="no files"):
        tensorhold.load([], device)


def test_a_file_that_may_not_be_read(tmp_path: pathlib.Path, device: str) -> None:
    file = write(tmp_path / "t.safetensors", {"t": spec("U8", (9,))})
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user reads every file")
    refuses(file, PermissionError, "permission denied", "give this user permission", device=device)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: pathlib.Path, device: str) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    refuses(tmp_path / "pipe.safetensors", ValueError, "not a regular file", device=device)


def test_a_dangling_link(tmp_path: pathlib.Path, device: str) -> None:
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    refuses(tmp_path / "model.safetensors", tensorhold.Error, "model.safetensors", "link", device=device)


def test_names_that_two_files_share(tmp_path: pathlib.Path, device: str) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", {"same": spec("U8", (4,))})
    refuses(tmp_path, ValueError, '"same"', "a.safetensors", "b.safetensors", device=device)


INDEXES: list[tuple[str, list[str]]] = [
    ('{"weight_map":{"x":"a.safetensors","z":"c.safetensors"}}', ["c.safetensors", '"z"']),
    ('{"weight_map":{"x":"b.safetensors","y":"b.safetensors"}}', ['"x"', "b.safetensors"]),
    ('{"weight_map":{"x":"a.safetensors","y":"b.safetensors","lost":"b.safetensors"}}', ['"lost"', "b.safetensors"]),
    ('{"weight_map":{"x":"../a.safetensors"}}', ["../a.safetensors"]),
    ('{"weight_map":{"x":"a.safetensors","y":"b.safetensors","\\u0078":"a.safetensors"}}', ['"x"', "twice"]),
    ('{"weight_map":{},"weight_map":{}}', ["weight_map", "duplicate"]),
    ("{", ["model.safetensors.index.json"]),
]


@pytest.mark.parametrize("case", range(len(INDEXES)))
def test_an_index_that_does_not_fit(tmp_path: pathlib.Path, device: str, case: int) -> None:
    text, words = INDEXES[case]
    write(tmp_path / "a.safetensors", {"x": spec("U8", (4,))})
    write(tmp_path / "b.safetensors", {"y": spec("U8", (4,))})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refuses(tmp_path, tensorhold.Error, *words, device=device)


def test_a_long_index_that_does_not_belong_to_the_files_near_it(tmp_path: pathlib.Path, device: str) -> None:
    tensors = {f"model.part.{n}": spec("U8", (9,), n) for n in range(6000)}
    write(tmp_path / "model.safetensors", tensors)
    index = json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")})
    (tmp_path / "model.safetensors.index.json").write_text(index.replace('part.4321"', 'part.none"'))
    refuses(tmp_path, ValueError, "model.part.none", "in no file", device=device)


def cut_short(file: pathlib.Path) -> None:
    os.truncate(file, 6_000_000)


def grown(file: pathlib.Path) -> None:
    os.truncate(file, 20_000_000)


def written_to(file: pathlib.Path) -> None:
    os.utime(file, (0, 0))


def replaced(file: pathlib.Path) -> None:
    other = file.with_suffix(".other")
    other.write_bytes(file.read_bytes())
    other.rename(file)


def removed(file: pathlib.Path) -> None:
    file.unlink()


CHANGES = [(cut_short, "cut short"), (grown, "size"), (written_to, "written to"), (replaced, "another file"), (removed, "removed")]


@pytest.mark.parametrize("change,word", CHANGES)
def test_a_file_that_changes_while_it_is_loaded(tmp_path: pathlib.Path, device: str, pool: tensorhold.Pool, change: object, word: str) -> None:
    file = write(tmp_path / "t.safetensors", {"a": spec("U8", (10_000_000,)), "b": spec("U8", (5,))})

    def meddle(progress: tensorhold.Progress) -> None:
        if progress.done_bytes == 0:
            change(file)  # type: ignore[operator]

    with pytest.raises(tensorhold.FileChangedError, match=word) as caught:
        tensorhold.load(file, device, pool=pool, progress=meddle)
    assert isinstance(caught.value, OSError) and caught.value.path == str(file)
    assert_all_back(pool)


@pytest.mark.parametrize("change,word", CHANGES)
def test_a_file_that_changes_after_it_was_opened(tmp_path: pathlib.Path, device: str, change: object, word: str) -> None:
    file = write(tmp_path / "t.safetensors", {"a": spec("U8", (10_000_000,)), "b": spec("U8", (5,))})
    with tensorhold.safe_open(file, "np" if device == "cpu" else "pt", device) as f:
        change(file)  # type: ignore[operator]
        with pytest.raises(tensorhold.FileChangedError, match=word):
            f.get_tensor("a")
        with pytest.raises(tensorhold.FileChangedError):
            list(f)


def test_memory_that_cannot_be_had(tmp_path: pathlib.Path, device: str) -> None:
    nbytes = 1 << 42
    file = write_raw(tmp_path / "vast.safetensors", one(f'"dtype":"U8","shape":[{nbytes}],"data_offsets":[0,{nbytes}]'))
    os.truncate(file, file.stat().st_size + nbytes)
    # In parts, the addresses could be had, and the memory behind them is what is refused.
    pool = tensorhold.Pool(device, parts=False)
    with pytest.raises(MemoryError, match="4.0 TiB.*load less at once"):
        tensorhold.load(file, device, pool=pool)
    assert_all_back(pool)


def test_a_pool_whose_limit_is_too_small(checkpoint: pathlib.Path, device: str) -> None:
    pool = tensorhold.Pool(device, limit_bytes=8192, name="tight")
    with pytest.raises(MemoryError, match='on pool "tight".*limit of 8.0 KiB; raise the limit'):
        tensorhold.load(checkpoint, device, pool=pool)
    assert_all_back(pool)


def test_a_pool_of_another_device(checkpoint: pathlib.Path, device: str) -> None:
    if device == "cpu":
        pytest.skip("there is no other device than the CPU")
    with pytest.raises(tensorhold.OptionError, match="pool"):
        tensorhold.load(checkpoint, device, pool=tensorhold.Pool("cpu"))


def test_an_unknown_tensor_with_the_nearest_name(checkpoint: pathlib.Path, device: str) -> None:
    weights = tensorhold.load(checkpoint, device)
    message = "find tensor \"matrx\": no such tensor among 5; did you mean \"matrix\"?"
    opened = tensorhold.safe_open(checkpoint, "np" if device == "cpu" else "pt", device)
    for ask in (weights.__getitem__, weights.tensor, weights.info, opened.get_tensor, opened.get_slice, opened.get_shape):
        with pytest.raises(KeyError) as caught:
            ask("matrx")
        assert str(caught.value) == message and isinstance(caught.value, tensorhold.MissingTensorError)
    pool = tensorhold.Pool(device)
    for load in (tensorhold.load, tensorhold.stream):
        with pytest.raises(tensorhold.MissingTensorError, match='"matrx".*2 of the selected are missing'):
            load(checkpoint, device, select=["matrix", "matrx", "other"], pool=pool)
        assert_all_back(pool)
    with pytest.raises(tensorhold.Error, match="matrx"):
        tensorhold.load(checkpoint, device, cuts={"matrx": tensorhold.Cut.narrow(0, 0, 1)})


@pytest.mark.parametrize("named", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999", "CPU", "", -1, 1.5, True, None.__class__])
def test_a_wrong_device(checkpoint: pathlib.Path, named: object) -> None:
    import_for("numpy", "cpu")
    path, any_device = str(checkpoint), cast(str, named)
    for load in (
        lambda: tensorhold.load(path, any_device),
        lambda: tensorhold.load_file(path, any_device, "np"),
        lambda: tensorhold.safe_open(path, "np", any_device),
        lambda: tensorhold.stream(path, any_device),
        lambda: tensorhold.Pool(any_device),
    ):
        with pytest.raises(tensorhold.OptionError, match="option device: got .*expected \"cpu\", \"pinned\", \"cuda\" or \"cuda:N\""):
            load()


def test_a_device_that_is_not_there(checkpoint: pathlib.Path) -> None:
    with pytest.raises(tensorhold.DeviceError, match="cuda:977") as caught:
        tensorhold.load(checkpoint, "cuda:977")
    assert isinstance(caught.value, RuntimeError) and caught.value.operation


@pytest.mark.parametrize(
    "options,kind,words",
    [
        ({"dtype": "F99"}, tensorhold.OptionError, "option dtype: got 'F99'|F99"),
        ({"dtype": "I32"}, tensorhold.Error, "dtype"),
        ({"backend": "tape"}, tensorhold.OptionError, "option backend: got \"tape\""),
        ({"threads": 0}, tensorhold.OptionError, "threads"),
        ({"threads": "two"}, TypeError, "option threads: got \"two\" \\(str\\), expected a whole number"),
        ({"staging_bytes": -1}, tensorhold.OptionError, "option staging_bytes: got -1, expected 131072 to"),
        ({"threads": -1}, tensorhold.OptionError, "option threads: got -1, expected 1 to 1024"),
        ({"memory_budget": 1 << 64}, tensorhold.OptionError, "option memory_budget: got 18446744073709551616, expected 0 to"),
        ({"select": "matrix"}, tensorhold.OptionError, "put the name in a list"),
        ({"select": 3}, TypeError, "option select: got 3 \\(int\\), expected a rule or a collection"),
        ({"cuts": 3}, tensorhold.OptionError, "option cuts"),
        ({"cuts": {"matrix": tensorhold.Cut.narrow(0, 2, 2)}}, tensorhold.TensorError, "at most the 3 of dimension 0"),
        ({"cuts": {"matrix": tensorhold.Cut.shard(0, 0, 2)}}, tensorhold.TensorError, "a number that divides them"),
        ({"pool": "mine"}, TypeError, "option pool: got \"mine\" \\(str\\), expected a tensorhold.Pool"),
        ({"dytpe": "F16"}, TypeError, "there is no option \"dytpe\"; there are select, dtype"),
        ({"dytpe": None}, TypeError, "there is no option"),
    ],
)
def test_an_option_that_cannot_be_followed(checkpoint: pathlib.Path, options: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        tensorhold.load(checkpoint, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("paths", [3, None, [3], b"\0", b"", b"model.safetensors", [b"model.safetensors"], [["model.safetensors"]]])
def test_paths_that_are_none(paths: object) -> None:
    with pytest.raises(tensorhold.OptionError, match="option paths: got (3 .int.|None|bytes|an object of type list), expected"):
        tensorhold.load(paths)  # type: ignore[arg-type]


def test_exceptions_are_pickled_whole(tmp_path: pathlib.Path) -> None:
    with pytest.raises(tensorhold.Error) as caught:
        tensorhold.load(tmp_path / "none.safetensors")
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is tensorhold.MissingFileError and str(error) == str(caught.value)


def test_each_exception_is_the_built_in_one_that_callers_catch() -> None:
    below = {
        "FileError": OSError, "MissingFileError": FileNotFoundError, "AccessError": PermissionError, "FileChangedError": OSError,
        "FormatError": ValueError, "OptionError": ValueError, "TensorError": ValueError, "TensorIndexError": IndexError,
        "MissingTensorError": KeyError, "ClosedError": ValueError, "OutOfMemoryError": MemoryError, "DeviceError": RuntimeError,
        "CancelledError": RuntimeError, "ForkError": RuntimeError, "FrameworkError": ImportError,
    }  # fmt: skip
    for name, built_in in below.items():
        kind = getattr(tensorhold, name)
        assert issubclass(kind, tensorhold.Error) and issubclass(kind, built_in) and kind.__module__ == "tensorhold" and kind.__doc__
        assert str(kind("said")) == "said"


def test_a_name_with_control_characters_is_quoted(tmp_path: pathlib.Path) -> None:
    header = '{"t\\u001b[31m":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    file = write_raw(tmp_path / "x.safetensors", header, bytes(3))
    with pytest.raises(tensorhold.FormatError) as caught:
        tensorhold.load(file)
    assert "\x1b" not in str(caught.value)


def test_the_same_file_loads_after_each_failure(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    pool = tensorhold.Pool(device)
    for options in ({"backend": "tape"}, {"select": ["none"]}, {"memory_budget": 5}, {"progress": lambda p: False}):
        with pytest.raises(tensorhold.Error):
            tensorhold.load(checkpoint, device, pool=pool, **options)
        with tensorhold.load(checkpoint, device, pool=pool) as weights:
            assert weights["large"].to_host() == few["large"].data
    assert_all_back(pool)
