"""Sharded sets of files, written and read again."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from drop_in import all_goes_back, place, shards  # noqa: F401
from support import raw

from tensorhold import _core
from tensorhold.fastsafetensors import ParallelSaver, SafeTensorsMetadata, fastsafe_open, saver
from tensorhold.fastsafetensors.frameworks import get_framework_op
from tensorhold.fastsafetensors.saver import ShardSetError, WriteEntry
from tensorhold.fastsafetensors.st_types import DType


def some(place: str = "cpu") -> dict[str, torch.Tensor]:
    tensors = {
        "matrix": torch.arange(600, dtype=torch.float32).reshape(20, 30),
        "transposed": torch.arange(12, dtype=torch.int64).reshape(3, 4).t(),
        "part": torch.arange(100, dtype=torch.float16)[7:50],
        "half": torch.linspace(-1, 1, 77, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "mask": torch.tensor([True, False, True]),
        "quantized": torch.arange(16, dtype=torch.uint8).view(torch.float8_e4m3fn),
    }
    return {name: tensor.to(place) for name, tensor in tensors.items()}


def headers(paths: list[str]) -> list[SafeTensorsMetadata]:
    return [SafeTensorsMetadata.from_file(path, get_framework_op("pytorch")) for path in paths]


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_what_is_saved_is_loaded_again(place: str, shards: int, tmp_path: pathlib.Path) -> None:
    tensors = some(place)
    paths = ParallelSaver(num_shards=shards, num_threads=3).save(tensors, str(tmp_path / "set"), metadata={"format": "pt"})
    assert paths == [str(tmp_path / f"set-{n + 1:05}-of-{shards:05}.safetensors") for n in range(shards)]
    assert sorted(map(str, tmp_path.iterdir())) == paths
    with fastsafe_open(paths, device=place) as opened:
        assert set(opened.keys()) == set(tensors)
        for name, tensor in tensors.items():
            loaded = opened.get_tensor(name)
            assert (loaded.dtype, loaded.shape, raw(loaded)) == (tensor.dtype, tensor.shape, raw(tensor)), name
            del loaded
        assert all(strings["format"] == "pt" for strings in opened.metadata().values())


def test_safetensors_reads_what_is_saved(tmp_path: pathlib.Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = some()
    found = {}
    for path in ParallelSaver(num_shards=2, fsync=True).save(tensors, str(tmp_path / "set")):
        found.update(safetensors.load_file(path))
    assert set(found) == set(tensors)
    assert all(raw(found[name]) == raw(tensor) for name, tensor in tensors.items())


def test_shards_are_of_about_the_same_size_and_marked_as_a_set(tmp_path: pathlib.Path) -> None:
    tensors = {f"t{n}": torch.zeros(100 + n) for n in range(40)}
    paths = ParallelSaver(num_shards=4).save(tensors, str(tmp_path / "set"), shard0_metadata={"first": "yes"})
    metas = headers(paths)
    sizes = [meta.size_bytes for meta in metas]
    assert max(sizes) < 1.2 * min(sizes)
    assert [meta.metadata[saver.KEY_SHARD_INDEX] for meta in metas] == ["0", "1", "2", "3"]
    assert {meta.metadata[saver.KEY_SHARD_COUNT] for meta in metas} == {"4"}
    assert len({meta.metadata[saver.KEY_SHARD_SET] for meta in metas}) == 1
    assert ["first" in meta.metadata for meta in metas] == [True, False, False, False]
    saver.validate_shard_set(metas)


def test_sets_that_are_not_whole_are_found_out(tmp_path: pathlib.Path) -> None:
    one = headers(ParallelSaver(num_shards=2).save(some(), str(tmp_path / "one")))
    other = headers(ParallelSaver(num_shards=2).save(some(), str(tmp_path / "other")))
    for metas, text in (
        ([one[0], other[1]], "separately"),
        ([one[0]], "expected 0 of 1"),
        ([one[1], one[0]], "expected 0 of 2"),
        ([one[0], one[0]], "expected 1 of 2"),
        ([], "no shards"),
    ):
        with pytest.raises(ShardSetError, match=text):
            saver.validate_shard_set(metas)
    assert issubclass(ShardSetError, ValueError)


def test_headers_end_where_they_are_asked_to(tmp_path: pathlib.Path) -> None:
    for align in (8, 64, 4096):
        plans = saver.plan_shards([WriteEntry("t", DType.F32, [3], 12)], [str(tmp_path / "t")], header_align=align)
        assert (len(plans[0].header) - 8) % align == 0
        assert plans[0].offsets == {"t": (len(plans[0].header), len(plans[0].header) + 12)}
        assert plans[0].total_bytes == len(plans[0].header) + 12


def test_plans_say_what_goes_where() -> None:
    entries = [WriteEntry("a", DType.F32, [2], 8), WriteEntry("b", DType.F32, [4], 16), WriteEntry("c", DType.U8, [4], 4)]
    asked = []

    def strings(part: Sequence[WriteEntry]) -> dict[str, str]:
        asked.append([entry.name for entry in part])
        return {"count": str(len(part))}

    plans = saver.plan_shards(entries, ["p", "q"], metadata={"m": "1"}, shard0_metadata={"s": "0"}, shard_metadata=strings)
    assert [(plan.path, [entry.name for entry in plan.entries]) for plan in plans] == [("p", ["b"]), ("q", ["a", "c"])]
    assert asked == [["b"], ["a", "c"]]
    found = [json.loads(plan.header[8:])["__metadata__"] for plan in plans]
    assert [(strings["m"], strings.get("s"), strings["count"]) for strings in found] == [("1", "0", "1"), ("1", None, "2")]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (WriteEntry("t", DType.AUTO, [2], 8), "AUTO"),
        (WriteEntry("t", DType.F32, [-2], 8), "nonnegative"),
        (WriteEntry("t", DType.F4, [3], 2), "even"),
        (WriteEntry("t", DType.F32, [2], 9), "9 bytes"),
        (WriteEntry("__metadata__", DType.F32, [2], 8), "reserved"),
        (WriteEntry(1, DType.F32, [2], 8), "strings"),  # type: ignore[arg-type]
    ],
)
def test_entries_that_cannot_be_written_are_value_errors(entry: WriteEntry, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        saver.plan_shards([entry], ["p"])


def test_options_that_cannot_be_followed_are_value_errors(tmp_path: pathlib.Path) -> None:
    entry = WriteEntry("t", DType.F32, [2], 8)
    for options, text in (
        ({"header_align": 0}, "header_align"),
        ({"header_align": 12}, "header_align"),
        ({"metadata": {"a": 1}}, "strings"),
        ({"metadata": {saver.KEY_SHARD_SET: "x"}}, "reserved"),
        ({"shard_metadata": lambda part: {1: "x"}}, "strings"),
    ):
        with pytest.raises(ValueError, match=text):
            saver.plan_shards([entry], ["p"], **options)
    for paths in ([], ["p", "p"]):
        with pytest.raises(ValueError, match="paths"):
            saver.plan_shards([entry], paths)
    with pytest.raises(ValueError, match="duplicate"):
        saver.plan_shards([entry, entry], ["p"])
    for make in (lambda: ParallelSaver(num_shards=0), lambda: saver.shard_paths("p", 0)):
        with pytest.raises(ValueError, match="num_shards"):
            make()
    others: list[Callable[[], Any]] = [lambda: ParallelSaver(num_threads=0), lambda: saver.tensor_fill(0), lambda: saver.per_entry_fill(print, 0)]
    for make in others:
        with pytest.raises(ValueError, match="num_threads"):
            make()
    with pytest.raises(ValueError, match="plan_shards"):
        saver.write_shards([saver.ShardPlan("p", [entry], b"")], lambda targets: None)


def test_an_empty_set_and_empty_strings_are_written(tmp_path: pathlib.Path) -> None:
    paths = ParallelSaver(num_shards=2).save({}, str(tmp_path / "none"), metadata={})
    assert [meta.tensors for meta in headers(paths)] == [{}, {}]
    saver.validate_shard_set(headers(paths))


def test_a_fill_of_ones_own_is_given_memory_and_entries(tmp_path: pathlib.Path) -> None:
    entries = [WriteEntry(f"t{n}", DType.U8, [n], n) for n in (5, 0, 300)]
    threads = set()

    def fill(view: memoryview, entry: WriteEntry) -> None:
        threads.add(threading.current_thread().name)
        view[:] = bytes([entry.nbytes % 251]) * entry.nbytes

    paths = saver.save_sharded(entries, str(tmp_path / "own"), num_shards=2, fill=saver.per_entry_fill(fill, 2))
    with fastsafe_open(paths) as opened:
        assert {name: raw(opened.get_tensor(name)) for name in opened.keys()} == {
            entry.name: bytes([entry.nbytes % 251]) * entry.nbytes for entry in entries
        }
    assert threads and threading.current_thread().name not in threads


def test_a_failure_leaves_no_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "set-00001-of-00001.safetensors").write_bytes(b"older")

    def fail(view: memoryview, entry: WriteEntry) -> None:
        raise RuntimeError("no bytes")

    with pytest.raises(RuntimeError, match="no bytes"):
        ParallelSaver(num_shards=2, fill=saver.per_entry_fill(fail)).save(some(), str(tmp_path / "set"))
    with pytest.raises(OSError, match="not enough space"):
        ParallelSaver(num_shards=2, min_free_bytes=1 << 62).save(some(), str(tmp_path / "set"))
    with pytest.raises(ValueError, match="no source"):
        saver.save_sharded([WriteEntry("t", DType.U8, [1], 1)], str(tmp_path / "set"), num_shards=1)
    with pytest.raises(ValueError, match="its source has 8 bytes"):
        entry = WriteEntry("t", DType.F32, [3], 12, torch.zeros(2))
        saver.save_sharded([entry], str(tmp_path / "set"), num_shards=1)
    assert os.listdir(tmp_path) == ["set-00001-of-00001.safetensors"]
    assert (tmp_path / "set-00001-of-00001.safetensors").read_bytes() == b"older"


def test_folders_that_are_missing_are_made(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="AUTO"):
        saver.save_sharded([WriteEntry("t", DType.AUTO, [1], 1)], str(tmp_path / "new" / "set"), num_shards=1)
    assert os.listdir(tmp_path) == []
    paths = ParallelSaver(num_shards=1).save(some(), str(tmp_path / "new" / "folder" / "set"))
    assert paths == [str(tmp_path / "new" / "folder" / "set-00001-of-00001.safetensors")]


def test_a_fill_is_given_the_largest_tensors_first(tmp_path: pathlib.Path) -> None:
    sizes: list[int] = []
    entries = [WriteEntry(f"t{n}", DType.U8, [n], n) for n in (3, 9, 0, 5, 7)]
    saver.save_sharded(entries, str(tmp_path / "set"), num_shards=2, fill=lambda work: sizes.extend(entry.nbytes for _, entry in work))
    assert sizes == [9, 7, 5, 3, 0]


@pytest.mark.parametrize("num_shards", [1, 2])
def test_tensors_that_are_wrapped_already_need_no_framework(num_shards: int, tmp_path: pathlib.Path) -> None:
    op = get_framework_op("pytorch")
    tensors = {name: op.wrap_tensor(tensor) for name, tensor in some().items()}
    parallel = ParallelSaver(num_shards=num_shards, framework="unknown")
    with fastsafe_open(parallel.save(tensors, str(tmp_path / "set"))) as opened:
        assert all(raw(opened.get_tensor(name)) == raw(tensor.get_raw()) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match="Unknown framework name"):
        parallel.save(some(), str(tmp_path / "other"))


def test_a_tensor_with_only_what_a_save_calls_is_saved_without_a_framework(tmp_path: pathlib.Path) -> None:
    script = """
import sys
from tensorhold.fastsafetensors import ParallelSaver
from tensorhold.fastsafetensors.frameworks import TensorBase
from tensorhold.fastsafetensors.st_types import Device, DType

class Text(TensorBase):
    def get_shape(self): return [5]
    def get_nbytes(self): return 5
    def copy_to_buffer(self, buf): buf[:] = b"hello"

paths = ParallelSaver(num_shards=2).save({"w": Text(Device(), DType.U8)}, sys.argv[1])
with open(paths[0], "rb") as file:
    assert file.read().endswith(b"hello")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "set")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_entries_of_f4_have_the_formats_shape() -> None:
    packed = getattr(torch, "float4_e2m1fn_x2", None)
    if packed is None:
        pytest.skip(f"torch {torch.__version__} has no float4_e2m1fn_x2")
    entry = saver.plain_entry("t", torch.zeros(2, 3, dtype=torch.uint8).view(packed))
    assert (entry.dtype, entry.shape, entry.nbytes) == (DType.F4, [2, 6], 6)


def test_entries_and_paths_of_iterators_are_all_planned() -> None:
    entries = [WriteEntry(name, DType.U8, [4], 4) for name in "abc"]
    plans = saver.plan_shards(iter(entries), iter(saver.shard_paths("model", 2)))  # type: ignore[arg-type]
    assert sorted(entry.name for plan in plans for entry in plan.entries) == ["a", "b", "c"]
    assert [plan.path for plan in plans] == saver.shard_paths("model", 2)


def test_strides_and_no_flag_decide_where_elements_are(place: str, tmp_path: pathlib.Path) -> None:
    base = torch.arange(8.0).to(place)
    tensors = {
        "one": base[::2][:1],
        "column": torch.ones(1, 2, dtype=torch.uint8).to(place)[:, 0],
        "half": base.to(torch.bfloat16).reshape(1, 8)[:, 3],
        "negated": torch.tensor([1 + 2j, 3 + 4j]).to(place).conj().imag,
        "none": base.reshape(2, 4)[:0, ::2],
    }
    paths = ParallelSaver(num_shards=1).save(tensors, str(tmp_path / "set"))
    with fastsafe_open(paths, device=place) as opened:
        assert {name: opened.get_tensor(name).tolist() for name in tensors} == {
            "one": [0.0], "column": [1], "half": [3.0], "negated": [-2.0, -4.0], "none": []
        }  # fmt: skip


def test_what_is_not_a_regular_file_stays_and_a_file_keeps_its_mode(tmp_path: pathlib.Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.ones(4)}
    first, second = map(pathlib.Path, saver.shard_paths(str(tmp_path / "set"), 2))
    first.write_text("before")
    first.chmod(0o640)
    os.mkfifo(second)
    with pytest.raises(OSError, match="a FIFO"):
        ParallelSaver(num_shards=2).save(tensors, str(tmp_path / "set"))
    assert second.is_fifo() and first.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    second.unlink()
    ParallelSaver(num_shards=2).save(tensors, str(tmp_path / "set"))
    assert first.stat().st_mode & 0o777 == 0o640


MANY = """
import resource, sys
from tensorhold.fastsafetensors import saver
from tensorhold.fastsafetensors.st_types import DType
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
def fill(targets):
    for view, entry in targets:
        view[:] = entry.name.encode()
entries = [saver.WriteEntry(f"{n:04}", DType.U8, [4], 4) for n in range(300)]
assert len(saver.save_sharded(entries, sys.argv[1], num_shards=300, fill=fill)) == 300
"""


def test_many_files_need_few_descriptors(tmp_path: pathlib.Path) -> None:
    if sys.version_info < (3, 13):
        pytest.skip("Python before 3.13 keeps a descriptor open for each mapped file")
    subprocess.run([sys.executable, "-c", MANY, str(tmp_path / "set")], check=True)
    assert len(list(tmp_path.iterdir())) == 300


def test_what_is_no_dict_or_path_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match="argument tensors: got list, expected a dict"):
        ParallelSaver().save([("a", torch.ones(1))], str(tmp_path / "set"))  # type: ignore[arg-type]
    with open(tmp_path / "open", "wb") as file, pytest.raises(TypeError, match="argument base: got an open file"):
        ParallelSaver().save({"a": torch.ones(1)}, file)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "torch.sparse_coo.*to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested tensor.*to_padded_tensor"),
    "meta": (lambda: torch.empty(3, device="meta"), "device meta"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "torch.qint8.*dequantize"),
    "a list": (lambda: [1.0], "got list, expected a tensor of torch"),
    "an array of another framework": (lambda: pytest.importorskip("numpy").ones(3), "got ndarray, expected a tensor of torch"),
    "a storage": (lambda: torch.ones(3).untyped_storage(), "got UntypedStorage, expected a tensor of torch"),
    "a type of the format alone": (lambda: torch.ones(3, dtype=torch.complex64), "torch.complex64, expected a type that fastsafetensors has"),
    "nothing": (lambda: None, "no source"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_saved_is_a_tensor_error_with_the_tensors_name(kind: str, tmp_path: pathlib.Path) -> None:
    make, text = WRONG[kind]
    with pytest.raises(_core.TensorError, match=f"tensor \"wrong\": .*{text}"):
        ParallelSaver(num_shards=1).save({"right": torch.ones(2), "wrong": make()}, str(tmp_path / "set"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_torch_while_bytes_are_copied_names_the_tensor(tmp_path: pathlib.Path) -> None:
    emptied = torch.ones(6)
    emptied.untyped_storage().resize_(0)
    with pytest.raises(_core.TensorError, match="tensor \"emptied\": got Tensor, which does not give its bytes: RuntimeError: ") as refused:
        ParallelSaver(num_shards=1).save({"emptied": emptied}, str(tmp_path / "set"))
    assert isinstance(refused.value.__cause__, RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_a_class_derived_from_parameter_is_saved(tmp_path: pathlib.Path) -> None:
    class Derived(torch.nn.Parameter):  # type: ignore[misc]
        pass

    paths = ParallelSaver(num_shards=1).save({"w": Derived(torch.ones(3))}, str(tmp_path / "set"))
    with fastsafe_open(paths) as opened:
        assert opened.get_tensor("w").tolist() == [1, 1, 1]


def test_arguments_of_another_type_or_range_are_named(tmp_path: pathlib.Path) -> None:
    tensors, base = {"a": torch.ones(1)}, str(tmp_path / "set")
    for number in (-1, 1 << 64):
        with pytest.raises(ValueError, match=f"min_free_bytes must be from 0 to .*: got {number}"):
            ParallelSaver(min_free_bytes=number)
    with pytest.raises(ValueError, match="min_free_bytes must be from 0"):
        saver.save_sharded([], base, num_shards=1, min_free_bytes=-1)
    with pytest.raises(TypeError, match="argument min_free_bytes: got float, expected a number of bytes"):
        ParallelSaver(min_free_bytes=1.5)  # type: ignore[arg-type]
    for argument in ("metadata", "shard0_metadata"):
        with pytest.raises(TypeError, match=f"argument {argument}: got list, expected a dict"):
            ParallelSaver(num_shards=1).save(tensors, base, **{argument: [1]})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument shard_metadata: got list, expected a dict"):
        ParallelSaver(num_shards=1, shard_metadata=lambda part: [1]).save(tensors, base)  # type: ignore[arg-type, return-value]
    assert list(tmp_path.iterdir()) == []
