"""What callers do with the drop-in's objects beyond calling them: subclass, pickle, copy, and give wrong or unusual arguments."""

from __future__ import annotations

import copy
import pathlib
import pickle
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from drop_in import all_goes_back  # noqa: E402, F401
from support import spec, write  # noqa: E402

from tensorhold.fastsafetensors import (  # noqa: E402
    ParallelLoader,
    ParallelSaver,
    SafeTensorsFileLoader,
    SafeTensorsMetadata,
    SingleGroup,
    fastsafe_open,
    saver,
)
from tensorhold.fastsafetensors.frameworks import get_framework_op  # noqa: E402
from tensorhold.fastsafetensors.parallel_loader import PipelineParallel  # noqa: E402
from tensorhold.fastsafetensors.st_types import Device, DType  # noqa: E402

OP = get_framework_op("pytorch")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(write(tmp_path / "1.safetensors", {"a": spec("F32", (4,)), "b": spec("F16", (4,)), "c": spec("F32", (4,))}))


def loader(path: str, **options: Any) -> SafeTensorsFileLoader:
    made = SafeTensorsFileLoader(None, "cpu", **options)
    made.add_filenames({0: [path]})
    return made


def test_a_joined_tensor_outlives_a_borrowed_buffer(path: str) -> None:
    buffer = loader(path).copy_files_to_device(borrowed_tensors=True)
    joined, mixed = (buffer.get_multi_cols(names, 0).get_raw() for names in (["a", "c"], ["a", "b"]))
    converted, single = buffer.get_tensor("a", dtype=DType.F16), buffer.get_multi_cols(["a"], 0).get_raw()
    before = joined.clone()
    buffer.close()
    assert torch.equal(joined, before) and mixed.shape == (8,) and converted.shape == (4,)
    assert single.numel() == 0


def test_tensors_of_several_types_join_in_the_type_that_torch_chooses(path: str) -> None:
    buffer = loader(path).copy_files_to_device()
    for names in (["a", "b"], ["b", "a"]):
        found = buffer.get_multi_cols(names, 0)
        assert found.dtype is DType.F32 and torch.equal(found.get_raw(), torch.cat([buffer.get_tensor(name) for name in names]))


def test_public_objects_pickle_and_copy(path: str) -> None:
    entry = saver.plain_entry("w", torch.ones(3))
    plan = saver.plan_shards([entry], [path + ".out"])[0]
    objects = [OP, SafeTensorsMetadata.from_file(path, OP), OP.wrap_tensor(torch.ones(2)), OP.get_process_group(None), SingleGroup(), ParallelSaver(), plan]
    for found in objects:
        for copied in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found)):
            assert type(copied) is type(found)
    assert pickle.loads(pickle.dumps(OP)).wrap_tensor(torch.ones(2)).get_shape() == [2]
    again = pickle.loads(pickle.dumps(plan))
    assert (again.header, again.offsets) == (plan.header, plan.offsets)
    with pytest.raises(ValueError, match="plan_shards"):
        saver.write_shards([again], saver.tensor_fill())
    assert saver.write_shards([copy.deepcopy(plan)], saver.tensor_fill()) == [plan.path]


def test_unknown_options_that_share_a_private_name_are_ignored(path: str) -> None:
    assert loader(path, threads=2, pool=1, backend=2).get_keys() == ["a", "b", "c"]
    made = ParallelLoader(None, [path], use_tqdm_on_load=False, threads=2)
    assert len(list(made.iterate_weights())) == 3


def test_switches_and_rules_are_taken_by_their_truth(path: str, tmp_path: pathlib.Path) -> None:
    base = str(tmp_path / "m")
    assert saver.save_sharded([saver.plain_entry("w", torch.ones(3))], base, num_shards=1, fsync=1) == [base + "-00001-of-00001.safetensors"]  # type: ignore[arg-type]
    rule: Any = re.compile("[ab]").match
    options: Any = {"tensor_filter": rule, "max_batch_bytes": 64, "use_chunk_budget_as_allocation_size": 1, "accumulate_resident": 0}
    assert {name for name, _ in ParallelLoader(None, [path], use_tqdm_on_load=False, **options).iterate_weights()} == {"a", "b"}


class Recording(SafeTensorsFileLoader):
    calls = 0

    def copy_files_to_device(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return super().copy_files_to_device(*arguments, **options)


class Refusing(SafeTensorsFileLoader):
    def copy_files_to_device(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("gds")


@pytest.mark.parametrize("options", [{}, {"max_batch_bytes": 16}, {"device_memory_budget": 1 << 20}, {"borrowed_tensors": True, "accumulate_resident": False}])
def test_a_pipeline_loads_through_the_methods_of_a_subclass(path: str, options: Any) -> None:
    with pytest.raises(RuntimeError, match="gds"):
        list(PipelineParallel(None, Refusing(None, "cpu"), [path], use_tqdm_on_load=False, **options).iterate_weights())
    made = Recording(None, "cpu")
    pipeline = PipelineParallel(None, made, [path], use_tqdm_on_load=False, **options)
    found = {name: tensor.clone() for name, tensor in pipeline.iterate_weights()}
    assert made.calls == len(pipeline.weight_files_batches)
    buffer = loader(path).copy_files_to_device()
    assert set(found) == {"a", "b", "c"} and all(torch.equal(tensor, buffer.get_tensor(name)) for name, tensor in found.items())


def test_a_folder_in_the_place_of_a_file_is_a_directory_error(tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path)
    for call in (lambda: SafeTensorsFileLoader(None).add_filenames({0: [folder]}), lambda: fastsafe_open(folder), lambda: SafeTensorsMetadata.from_file(folder, OP)):
        with pytest.raises(IsADirectoryError):
            call()


def test_an_index_in_the_place_of_a_file_is_a_format_error(path: str, tmp_path: pathlib.Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"metadata": {}, "weight_map": {"a": "1.safetensors"}}')
    with pytest.raises(ValueError, match="index"):
        SafeTensorsFileLoader(None).add_filenames({0: [str(index)]})


def test_files_keep_the_objects_that_named_them(path: str) -> None:
    paths: list[Any] = [pathlib.Path(path), path.encode(), path]
    for given in paths:
        opened = fastsafe_open([given])
        assert list(opened.metadata()) == [given]
        assert list(loader(given).meta) == [given]


def test_a_pipeline_of_no_files_gives_nothing() -> None:
    assert list(ParallelLoader(None, [], device_memory_budget=100, use_tqdm_on_load=False).iterate_weights()) == []


def test_a_long_queue_loads(path: str) -> None:
    assert len(list(ParallelLoader(None, [path], queue_size=10**30, use_tqdm_on_load=False).iterate_weights())) == 3


def test_a_framework_that_is_missing_is_an_import_error(tmp_path: pathlib.Path) -> None:
    try:
        import paddle  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="paddle"):
            ParallelSaver(framework="paddle").save({"w": torch.ones(2)}, str(tmp_path / "m"))
    else:
        pytest.skip("paddle is installed")


@pytest.mark.parametrize("dtype", [torch.float16, None, "F16"])
def test_an_argument_that_is_no_dtype_is_named(path: str, dtype: Any) -> None:
    made = loader(path)
    buffer = made.copy_files_to_device()
    for call in (lambda: buffer.get_tensor("a", dtype=dtype), lambda: made.copy_files_to_device(dtype=dtype), lambda: OP.wrap_tensor(torch.ones(2)).to(dtype=dtype)):
        with pytest.raises(KeyError, match="argument dtype") as error:
            call()
        assert isinstance(error.value, TypeError)


def test_arguments_of_a_wrong_type_are_type_errors(path: str) -> None:
    for budget in ("x", "1000", [1]):
        with pytest.raises(TypeError, match="device_memory_budget"):
            ParallelLoader(None, [path], device_memory_budget=budget)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument s"):
        Device.from_str(None)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="wrapped already"):
        OP.wrap_tensor(OP.wrap_tensor(torch.ones(2)))
    with pytest.raises(ValueError, match="max_copy_block_size must be positive"):
        loader(path).copy_files_to_device(max_copy_block_size=0)


def test_plans_take_paths_of_bytes_and_refuse_one_file_twice() -> None:
    entries = [saver.plain_entry("w", torch.ones(3))]
    assert saver.plan_shards(entries, [b"a"])[0].path == b"a"  # type: ignore[list-item, comparison-overlap]
    with pytest.raises(ValueError, match="unique"):
        saver.plan_shards(entries, ["a", "./a"])


def test_paths_of_a_set_keep_the_spelling_of_their_base() -> None:
    assert saver.shard_paths("./x//m", 1) == ["./x//m-00001-of-00001.safetensors"]
