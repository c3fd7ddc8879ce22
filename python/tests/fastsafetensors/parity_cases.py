"""The calls that are made of fastsafetensors and of the drop-in: run by `test_fst_parity_calls.py`, once with each.

Arguments: `real` or `drop-in`, a folder to work in, and the files. Prints what each call returned or raised, as JSON, on the last line.
"""

from __future__ import annotations

import dataclasses
import enum
import gc
import itertools
import json
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

if sys.argv[1] == "drop-in":
    import tensorhold

    tensorhold.install_as_fastsafetensors()

import torch  # noqa: E402
from fastsafetensors import (  # noqa: E402
    AutoLoader,
    LoaderConfig,
    ParallelLoader,
    ParallelSaver,
    SafeTensorsFileLoader,
    SafeTensorsMetadata,
    SingleGroup,
    TensorFrame,
    _planner,
    common,
    config,
    expert_parallel_filter,
    fastsafe_open,
    get_device_numa_node,
    live_allocation_bytes,
    live_allocation_count,
    load_config,
    owned_expert_range,
    parallel_loader,
    saver,
    threefs_loader,
)
from fastsafetensors.frameworks import FrameworkOpBase, ProcessGroupBase, TensorBase, get_framework_op  # noqa: E402
from fastsafetensors.frameworks import _torch as torch_layer  # noqa: E402
from fastsafetensors.st_types import DTYPE_SIZES, Device, DeviceType, DType  # noqa: E402

ONE, TWO, AGAIN, MIXED, PADDED = sys.argv[3:8]
OP = get_framework_op("pytorch")
CPU = Device()


def plain(found: Any) -> Any:
    """A value as JSON has it, and as it is the same in both packages."""
    if isinstance(found, torch.Tensor):
        return ["torch", str(found.dtype), list(found.shape), bytes(found.detach().contiguous().flatten().view(torch.uint8).tolist()).hex() if found.numel() else ""]
    if isinstance(found, TensorBase):
        return [type(found).__name__, plain(found.device), plain(found.dtype), found.get_shape(), plain(found.get_raw())]
    if isinstance(found, enum.Enum):
        return str(found)
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return [type(found).__name__, {field.name: plain(getattr(found, field.name)) for field in dataclasses.fields(found) if field.init}]
    if isinstance(found, dict):
        return {str(key): plain(value) for key, value in found.items()}
    if isinstance(found, (set, frozenset)):
        return sorted(map(plain, found))
    if isinstance(found, (list, tuple, types.GeneratorType)):
        return [plain(value) for value in found]
    if found is None or isinstance(found, (bool, int, float, str)):
        return found
    return f"an object of {type(found).__name__}"


def loader(*, files: Any = None, **options: Any) -> SafeTensorsFileLoader:
    made = SafeTensorsFileLoader(None, nogds=True, **options)
    made.add_filenames({0: [ONE, TWO]} if files is None else files)
    return made


def loaded(**options: Any) -> Any:
    return loader(**options).copy_files_to_device()


def closed() -> Any:
    fb = loaded()
    fb.close()
    fb.close()
    return fb


def closed_loader() -> SafeTensorsFileLoader:
    made = loader()
    made.close()
    made.close()
    return made


def pipeline(files: Any = None, **options: Any) -> ParallelLoader:
    return ParallelLoader(None, [ONE, TWO] if files is None else files, use_tqdm_on_load=False, nogds=True, **options)


def weights(*arguments: Any, **options: Any) -> list[Any]:
    made = pipeline(*arguments, **options)
    try:
        return [(name, tensor.clone()) for name, tensor in made.iterate_weights()]
    finally:
        made.close()


def closed_pipeline() -> ParallelLoader:
    made = pipeline()
    made.close()
    made.close()
    return made


def iterated_twice() -> Any:
    made = pipeline()
    first = [name for name, _ in made.iterate_weights()]
    if getattr(made, "stop_event", None) is not None and made.stop_event.is_set():
        return "its queue is never filled again"
    return [first, [name for name, _ in made.iterate_weights()]]


def attributes(found: object, names: str) -> dict[str, Any]:
    return {name: getattr(found, name) for name in names.split()}


PIPELINE = (
    "accumulate_resident borrowed_tensors broadcast_run_bytes broadcast_run_tensors device_memory_budget hf_weights_files loader log_prefix max_batch_bytes "
    "max_concurrent_producers need_clone overlap_io print_log queue_size resident_tensor use_chunk_budget_as_allocation_size use_tqdm_on_load weight_files_batches"
)


class Of:
    """A group that has only a size and a rank."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


def grouped(size: int, **options: Any) -> Any:
    return parallel_loader.PipelineParallel(Of(size), SafeTensorsFileLoader(None, nogds=True), [ONE, TWO], use_tqdm_on_load=False, **options)


def configured(options: Any) -> Any:
    path = pathlib.Path("configuration.json")
    path.write_text(options if isinstance(options, str) else json.dumps(options))
    os.environ[config.CONFIG_ENV_VAR] = str(path)
    try:
        return load_config()
    finally:
        del os.environ[config.CONFIG_ENV_VAR]


def auto(options: Any) -> Any:
    os.environ[config.CONFIG_ENV_VAR] = "auto.json"
    pathlib.Path("auto.json").write_text(json.dumps(options))
    try:
        made = AutoLoader(None, [ONE, TWO])
        found = [made.config, [(name, tensor.clone()) for name, tensor in made.iterate_weights()]]
        made.close()
        made.close()
        return found
    finally:
        del os.environ[config.CONFIG_ENV_VAR]


def saved(tensors: Any, *, shards: int = 2, **options: Any) -> Any:
    """The files of a set, without what is random in it."""
    of_save = {name: options.pop(name) for name in ("metadata", "shard0_metadata", "header_align") if name in options}
    base = f"saved-{next(NUMBERS)}/set"
    paths = ParallelSaver(num_shards=shards, **options).save(tensors, base, **of_save)
    return [os.path.basename(path) for path in paths], [written(path) for path in paths]


def written(path: str) -> Any:
    """What is in a file, wherever it is there."""
    data = pathlib.Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    strings = header.pop("__metadata__")
    strings.pop(saver.KEY_SHARD_SET)
    found = {name: [of["dtype"], of["shape"], data[8 + length :][slice(*of["data_offsets"])].hex()] for name, of in header.items()}
    return length % 8, len(data) - length, strings, found


NUMBERS = itertools.count()
TENSORS = {
    "matrix": torch.arange(12.0).reshape(3, 4).t(),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "quantized": torch.arange(8).to(torch.float8_e4m3fn),
}


def entry(dtype: str = "U8", shape: Any = (4,), nbytes: int = 4, name: str = "w") -> saver.WriteEntry:
    return saver.WriteEntry(name, DType(dtype), list(shape), nbytes)


def planned(entries: Any, paths: Any = ("p/a", "p/b"), **options: Any) -> Any:
    return [(plan.path, [item.name for item in plan.entries], plan.offsets, plan.total_bytes) for plan in saver.plan_shards(entries, list(paths), **options)]


def validated(*numbers: Any) -> None:
    paths = [path for base in ("valid/a", "valid/b") for path in ParallelSaver(num_shards=2).save({"w": torch.ones(3)}, base)]
    return saver.validate_shard_set([SafeTensorsMetadata.from_file(paths[number], OP) for number in numbers])


def header(text: str, data: int = 8) -> SafeTensorsMetadata:
    return SafeTensorsMetadata(text, 100, 100 + data, OP)


def facts(metadata: SafeTensorsMetadata) -> Any:
    return attributes(metadata, "src metadata header_length size_bytes aligned tensors")


STATS = [_planner.FileWeightStats("f0", 80, 100, 30), _planner.FileWeightStats("f1", 0, 0, 0), _planner.FileWeightStats("f2", 60, 60, 20, 10)]


def fits(**options: Any) -> Any:
    """What the planner says for many budgets."""
    found = []
    for budget in range(0, 500, 7):
        for depth in (1, 2, 4):
            try:
                found.append(_planner.plan_file_budgets(STATS, budget, depth, **options))
            except _planner.BudgetInfeasibleError as error:
                found.append("already fully serial" in str(error) if budget else True)
        found.append([_planner.fit_queue_size(queue, STATS, budget, **options) for queue in (-1, 0, 3)])
    return found


def memory() -> Any:
    """Whether memory is counted: before a load, with a buffer, with one of its tensors, and after that."""
    gc.collect()
    found = [(OP.get_mem_used() > 0, live_allocation_count() > 0, live_allocation_bytes() > 0)]
    fb = loaded(files={0: [ONE]})
    for step in (lambda: fb.get_tensor("a"), lambda: fb.close()):
        kept = step()
        found.append((OP.get_mem_used() > 0, live_allocation_count() > 0, live_allocation_bytes() > 0))
    del kept
    gc.collect()
    return [*found, (OP.get_mem_used(), live_allocation_count(), live_allocation_bytes())]


def memory_of_an_iteration() -> Any:
    gc.collect()
    made = pipeline()
    iteration = made.iterate_weights()
    kept = [next(iteration)]
    found = [OP.get_mem_used() > 0]
    kept += iteration
    return [*found, OP.get_mem_used(), len(kept)]


def counted_after(borrowed: bool, part: Callable[[torch.Tensor], object]) -> Any:
    """How many allocations there are when a buffer has been closed, and what was taken of its tensor has not been dropped."""
    gc.collect()
    made = loader(files={0: [ONE]})
    fb = made.copy_files_to_device(borrowed_tensors=borrowed)
    kept = part(fb.get_tensor("a"))
    fb.close()
    return [live_allocation_count(), kept is not None]


def size_after_closing() -> int:
    fb = loader(files={0: [ONE]}).copy_files_to_device(borrowed_tensors=True)
    tensor = fb.get_tensor("a")
    fb.close()
    return tensor.numel()


def counted_of_yields() -> int:
    gc.collect()
    kept = list(pipeline().iterate_weights())
    return live_allocation_count() if kept else -1


def minimal(base: Any, methods: str) -> Any:
    return type("Minimal", (base,), {name: lambda self, *arguments, **options: None for name in methods.split()})


GROUP = "size rank broadcast scatter send recv"
FRAMEWORK = (
    "get_name get_device set_device alloc_tensor_memory free_tensor_memory get_empty_tensor concat_tensors copy_tensor get_dtype_size from_dlpack get_cuda_ver "
    "get_device_ptr_align as_workaround_dtype get_process_group is_equal randn support_fp8 get_mem_used"
)


def wrapped(values: Any = (1.0, 2.0), dtype: Any = torch.float32) -> Any:
    return OP.wrap_tensor(torch.tensor(values).to(dtype))


def f4(count: int = 8) -> Any:
    return OP.wrap_tensor(torch.arange(count, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))


def copied(length: int) -> str:
    buffer = bytearray(length)
    wrapped().copy_to_buffer(memoryview(buffer))
    return buffer.hex()


def mount_point(options: Any, **reader: Any) -> Any:
    sys.modules["fastsafetensor_3fs_reader"] = types.SimpleNamespace(extract_mount_point=lambda path: "/of/" + path) if reader.pop("there", True) else None  # type: ignore[assignment]
    try:
        return threefs_loader.ThreeFSLoader.process_extension_config(options, **reader)
    finally:
        del sys.modules["fastsafetensor_3fs_reader"]


def mounts(path: str) -> str:
    pathlib.Path("mounts").write_text("/dev/a / ext4 rw\nnas:/v /data/remote nfs4 rw\nb /data xfs rw\nshort\nc /with\\\\040space btrfs rw\n".replace("\\\\", "\\"))
    return common.get_fs_type(path, "mounts")


def moved(call: Callable[[Any], Any]) -> Any:
    group = OP.get_process_group(None)
    tensor = wrapped()
    return [call(group, tensor) if call.__code__.co_argcount == 2 else call(group), tensor]  # type: ignore[call-arg]


CONFIGURATIONS: dict[str, Any] = {
    "nothing": {},
    "known options": {"loader": "3fs", "queue_size": 3, "max_batch_bytes": 7, "use_pipeline": True},
    "groups": {"parallel": {"queue_size": 3, "use_tqdm_on_load": False}, "debug": {"debug_log": True, "set_numa": False}},
    "any option in a group": {"debug": {"loader": "x", "device_memory_budget": 5}},
    "unknown options": {"other": 3, "list": [1], "none": None, "parallel": {"other": 1, "base": {}}},
    "a group that is none": {"parallel": 3, "debug": None},
    "an option that is a group": {"queue_size": {"a": 1}},
    "the later of two": {"queue_size": 1, "parallel": {"queue_size": 2}},
    "the later of two, the other way": {"parallel": {"queue_size": 2}, "queue_size": 1},
    "extensions": {"base": {"copier_type": "nogds", "framework": "paddle", "debug_log": 1, "max_threads": 3}, "oss": {"bucket": "b"}},
    "an extension that is none": {"base": 3},
    "the private field": {"_extensions": {"base": {"a": 1}}},
    "two producers": {"max_concurrent_producers": 2},
    "two producers in a group": {"parallel": {"max_concurrent_producers": 2}},
    "no producers in a group": {"debug": {"max_concurrent_producers": 0}},
    "types that are others": {"queue_size": "3", "set_numa": None},
}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    # First: fastsafetensors keeps the memory of buffers that are dropped, and not closed.
    yield "memory of a buffer", memory
    yield "memory of an iteration", memory_of_an_iteration
    yield "what a tensor keeps", lambda: counted_after(False, lambda tensor: tensor)
    yield "what a view keeps", lambda: counted_after(False, lambda tensor: tensor[1:])
    yield "what a borrowed tensor keeps", lambda: counted_after(True, lambda tensor: tensor)
    yield "what a view of a borrowed tensor keeps", lambda: counted_after(True, lambda tensor: tensor[1:])
    yield "the elements of a borrowed tensor after its buffer", size_after_closing
    yield "what yielded tensors keep", counted_of_yields

    for name, options in CONFIGURATIONS.items():
        yield f"configuration of {name}", lambda options=options: LoaderConfig.from_dict(options)
        yield f"configuration file of {name}", lambda options=options: configured(options)
        yield f"extension of {name}", lambda options=options: [LoaderConfig.from_dict(options).get_extension_config(of) for of in ("base", "3fs", "oss", "a")]
        yield f"pipeline options of {name}", lambda options=options: LoaderConfig.from_dict(options).create_parallel_kwargs()
    for text in ("[]", "3", "{", "", '{"queue_size": NaN}'):
        yield f"configuration file with {text!r}", lambda text=text: configured(text)
    for options in (
        {}, {"base": {"framework": "paddle", "copier_type": "nogds"}}, {"parallel": {"use_pipeline": True, "queue_size": 1}, "base": {"max_threads": 2}},
        {"max_batch_bytes": 64, "base": {"copier_type": "nogds"}}, {"loader": "other"}, {"parallel": {"max_concurrent_producers": 3}}, {"framework": "x"},
        {"base": {"unknown": 3, "copier_type": "nogds"}}, {"device_memory_budget": 1},
    ):  # fmt: skip
        yield f"AutoLoader of {json.dumps(options)}", lambda options=options: auto(options)
    for options in ({}, {"copier_type": "nogds"}, {"copier_type": "gds", "a": 1}, {"copier_type": "fgds", "nogds": True}, {"copier_type": "x"}, {"use_fgds": True}, {"nogds": True}):
        yield f"options of the loader of {options}", lambda options=options: SafeTensorsFileLoader.process_extension_config(options, hf_weights_files=[ONE])
    for options in ({}, {"mount_point": "/m"}, {"mount_point": " "}, {"mount_point": None, "a": 1}):
        yield f"options of 3FS of {options}", lambda options=options: mount_point(options, hf_weights_files=["f"])
        yield f"options of 3FS of {options} without its reader", lambda options=options: mount_point(options, hf_weights_files=["f"], there=False)
        yield f"options of 3FS of {options} without files", lambda options=options: mount_point(options)
    yield "ThreeFSLoader", lambda: threefs_loader.ThreeFSLoader(None)
    yield "ParallelThreeFSLoader", lambda: threefs_loader.ParallelThreeFSLoader(None, [ONE])

    for text in ("cpu", "cpu:0", "CUDA:4", "gpu:1", "xpu", "xpu:0", "cpu:", "cpu:x", ":0", "", "cuda:-1", "cuda:0:1"):
        yield f"Device.from_str({text!r})", lambda text=text: Device.from_str(text)
    for device in ("cpu", "cpu:0", torch.device("cpu"), "gpu", "CPU", "xpu", "meta", "", None, Device(), 1.5):
        yield f"a loader on {device!r}", lambda device=device: SafeTensorsFileLoader(None, device, nogds=True).device
    yield "devices", lambda: [Device(), Device(DeviceType.CUDA, 3).as_str(), Device() == Device(DeviceType.CPU), len({Device(), Device()})]
    yield "sizes of types", lambda: {dtype.value: size for dtype, size in sorted(DTYPE_SIZES.items(), key=str)}
    yield "types", lambda: [dtype.value for dtype in DType]
    yield "NUMA nodes", lambda: [get_device_numa_node(None), get_device_numa_node(0) if not torch.cuda.is_available() else None]

    yield "names of files", lambda: loader().get_keys()
    yield "names of files, round robin", lambda: loader(files={0: [TWO, ONE], 1: [MIXED]}).get_keys()
    yield "names of a filter", lambda: (lambda made: [made.set_tensor_filter(lambda name: name != "a"), made.get_keys()])(loader())
    yield "shapes of files", lambda: [loader().get_shape(name) for name in "abi"]
    yield "a shape that is not there", lambda: loader().get_shape("zz")
    yield "a shape that is filtered", lambda: (lambda made: [made.set_tensor_filter(lambda name: False), made.get_shape("a")])(loader())
    yield "headers of files", lambda: {path: [facts(metadata), rank] for path, (metadata, rank) in loader().meta.items()}
    yield "frames of files", lambda: dict(loader().frames)
    yield "attributes of a loader", lambda: attributes(SafeTensorsFileLoader(None, nogds=True), "device disable_cache frames meta pg")
    yield "a loader after reset()", lambda: (lambda made: [made.reset(), made.get_keys(), dict(made.meta)])(loader())
    for files in ({}, {0: []}, {0: ["missing"]}, {3: [ONE]}, [ONE], {0: ONE}, {"a": [ONE]}, None):
        yield f"add {str(files).replace(ONE, 'ONE')}", lambda files=files: loader(files=files if files is not None else 3).get_keys()
    for files in ({}, {3: [ONE]}, {-1: [ONE]}, {0: [ONE], 1: [TWO]}, {0: [ONE, AGAIN]}, {0: [ONE, ONE]}, {0: [PADDED]}):
        yield f"load {files!r}".replace(os.path.dirname(ONE) + "/", ""), lambda files=files: dict(loaded(files=files).key_to_rank_lidx)
    for options in ({"framework": "x"}, {"framework": None}, {"bbuf_size_kb": 0}, {"max_threads": 0}, {"max_threads": 1025}, {"max_threads": -1}, {"unknown": 3}, {"set_numa": False, "debug_log": False}):
        yield f"a loader with {options}", lambda options=options: loader(**options).get_keys()
    for pg in (None, SingleGroup(), 3, object(), "group", Of(1)):
        yield f"a group of {type(pg).__name__}", lambda pg=pg: OP.get_process_group(pg)
    yield "a group of the framework layer", lambda: OP.get_process_group(OP.get_process_group(None)).size()
    yield "methods of a group of one", lambda: [
        moved(lambda group, tensor: group.broadcast(tensor, 0)), moved(lambda group, tensor: group.send(tensor, 0, 1)),
        moved(lambda group, tensor: group.recv(tensor, 0, 1)), moved(lambda group: [group.size(), group.rank()]),
    ]  # fmt: skip

    for dtype in ("F16", "BF16", "F32", "F8_E4M3", "I8", "U8", "I32", "F64"):
        for files in ([ONE, TWO], [MIXED]):
            yield f"load {len(files)} files as {dtype}", lambda dtype=dtype, files=files: (lambda fb: [(name, fb.get_tensor(name)) for name in fb.key_to_rank_lidx])(
                loader(files={0: files}).copy_files_to_device(dtype=DType(dtype))
            )
    yield "attributes of a buffer", lambda: attributes(loaded(), "auto_mem_delete borrowed_tensors key_to_rank_lidx pg")
    yield "files of a buffer", lambda: {rank: [facts(file.metadata) for file in files] for rank, files in loaded(files={0: [TWO, ONE]}).rank_loaders.items()}
    for of, fb in (("open", loaded), ("closed", closed)):
        calls: dict[str, Callable[[Any], Any]] = {
            "get_tensor": lambda fb: fb.get_tensor("a"),
            "get_tensor of a scalar": lambda fb: fb.get_tensor("s"),
            "get_tensor as another type": lambda fb: fb.get_tensor("a", dtype=DType.F16),
            "get_tensor on a device": lambda fb: fb.get_tensor("a", device=CPU),
            "get_tensor on a device by name": lambda fb: fb.get_tensor("a", device="cpu"),
            "get_tensor_wrapped": lambda fb: fb.get_tensor_wrapped("i"),
            "get_shape": lambda fb: fb.get_shape("a"),
            "get_filename": lambda fb: os.path.basename(fb.get_filename("a")),
            "get_sharded": lambda fb: fb.get_sharded("a", 1),
            "get_sharded of no dimension": lambda fb: fb.get_sharded("a", 9),
            "get_sharded_wrapped": lambda fb: fb.get_sharded_wrapped("a", -1),
            "push_tensor": lambda fb: fb.push_tensor("a", 0),
            "push_tensor to a rank that is not there": lambda fb: [fb.push_tensor("a", 3), fb.push_tensor("a", -1)],
            "get_multi_cols": lambda fb: fb.get_multi_cols(["a", "a"], 1),
            "get_multi_cols by file": lambda fb: fb.get_multi_cols(["b", "c"], 0),
            "get_multi_cols from the end": lambda fb: fb.get_multi_cols(["a"], -1),
            "get_multi_cols of nothing": lambda fb: fb.get_multi_cols([], 0),
            "get_multi_cols of a scalar": lambda fb: fb.get_multi_cols(["s"], 0),
            "get_multi_cols of others": lambda fb: fb.get_multi_cols(["a", "b"], 0),
            "as_dict": lambda fb: fb.as_dict({"a": 0, "s": -1}),
            "iter_local_tensors": lambda fb: fb.iter_local_tensors(["s", "a"]),
            "get_tensor of an unknown name": lambda fb: fb.get_tensor("zz"),
            "get_tensor of None": lambda fb: fb.get_tensor(None),
            "get_filename of an unknown name": lambda fb: fb.get_filename("zz"),
            "as_dict of an unknown name": lambda fb: fb.as_dict({"zz": 0}),
            "get_multi_cols of an unknown name": lambda fb: fb.get_multi_cols(["zz"], 0),
            "iter_local_tensors of an unknown name": lambda fb: fb.iter_local_tensors(["zz"]),
            "push_tensor of an unknown name": lambda fb: fb.push_tensor("zz", 0),
            "rank_loaders": lambda fb: list(fb.rank_loaders),
            "key_to_rank_lidx": lambda fb: dict(fb.key_to_rank_lidx),
        }
        for name, call in calls.items():
            yield f"{name} of a buffer that is {of}", lambda call=call, fb=fb: call(fb())
    yield "names of a closed loader", lambda: closed_loader().get_keys()
    yield "a shape of a closed loader", lambda: closed_loader().get_shape("a")
    yield "a load of a closed loader", lambda: dict(closed_loader().copy_files_to_device().key_to_rank_lidx)
    yield "a load of a closed loader that files are added to", lambda: (lambda made: [made.add_filenames({0: [ONE]}), made.copy_files_to_device() and None])(closed_loader())
    for files in (ONE, [ONE, TWO], [TWO, ONE], {0: [ONE]}, (ONE,), pathlib.Path(ONE), None, [], ["missing"], [ONE, AGAIN]):
        name = repr(files).replace(os.path.dirname(ONE) + "/", "")
        yield f"fastsafe_open of {name}", lambda files=files: (lambda opened: [opened.keys(), opened.metadata(), [opened.get_tensor(name) for name in opened.keys()]])(fastsafe_open(files, nogds=True))
    yield "metadata() of strings", lambda: [list(fastsafe_open([path], nogds=True).metadata().values()) for path in (ONE, TWO, AGAIN)]
    yield "fastsafe_open after its block", lambda: (lambda opened: [opened.__enter__() is opened, opened.__exit__(None, None, None), opened.keys(), opened.metadata(), opened.get_tensor("a")])(fastsafe_open(ONE, nogds=True))

    yield "all weights", weights
    for name, options in {
        "a filter": {"tensor_filter": lambda name: name in "ab"},
        "a filter of nothing": {"tensor_filter": lambda name: False},
        "a filter that fails": {"tensor_filter": lambda name: 1 // 0},
        "no queue": {"queue_size": -1},
        "a queue": {"queue_size": 2},
        "a queue that is negative": {"queue_size": -5},
        "no integer for a queue": {"queue_size": None},
        "a string for a queue": {"queue_size": "x"},
        "parts": {"max_batch_bytes": 64},
        "parts of a fraction": {"max_batch_bytes": 64.5},
        "parts of one size": {"max_batch_bytes": 64, "use_chunk_budget_as_allocation_size": True},
        "parts that are too short": {"max_batch_bytes": 10},
        "parts of nothing": {"max_batch_bytes": 0},
        "parts that are negative": {"max_batch_bytes": -1},
        "one size without parts": {"use_chunk_budget_as_allocation_size": True},
        "a rule without a budget": {"resident_tensor": lambda name: True},
        "a rule that counts nothing": {"resident_tensor": lambda name: True, "accumulate_resident": False},
        "borrowed tensors": {"borrowed_tensors": True, "accumulate_resident": False},
        "borrowed tensors that are kept": {"borrowed_tensors": True},
        "two producers": {"max_concurrent_producers": 2},
        "no bytes for broadcasts": {"broadcast_run_bytes": 0, "broadcast_run_tensors": 0},
        "negative bytes for broadcasts": {"broadcast_run_bytes": -1},
        "all files for each rank": {"all_local": True, "overlap_io": False},
        "an unknown option": {"unknown": 3},
        "an unknown framework": {"framework": "x"},
        "an unknown device": {"device": "xpu"},
        "FGDS": {"use_fgds": True},
    }.items():
        yield f"weights with {name}", lambda options=options: weights(**options)
        yield f"a pipeline with {name}", lambda options=options: attributes(pipeline(**options), PIPELINE.replace(" resident_tensor", ""))
    for budget, (keeps, options), queue in itertools.product(
        (0, -1, 1, 47, 48, 95, 96, 97, 143, 144, 145, 191, 192, 240, 1000, 1e4, 1 << 40),
        {"all": {}, "none": {"accumulate_resident": False}, "one": {"resident_tensor": lambda name: name == "s"},
         "none, borrowed": {"accumulate_resident": False, "borrowed_tensors": True}}.items(),
        (-1, 0, 3),
    ):  # fmt: skip
        yield f"a queue of {queue} for a budget of {budget} that keeps {keeps}", lambda budget=budget, options=options, queue=queue: pipeline(
            device_memory_budget=budget, queue_size=queue, **options
        ).queue_size
    for size, options in itertools.product((2, 3), ({}, {"max_batch_bytes": 64}, {"device_memory_budget": 1 << 20}, {"max_batch_bytes": 64, "use_chunk_budget_as_allocation_size": True})):
        yield f"batches of {size} ranks with {options}", lambda size=size, options=options: attributes(grouped(size, **options), "weight_files_batches need_clone log_prefix queue_size")
    for options in ({"tensor_filter": lambda name: True}, {"borrowed_tensors": True, "accumulate_resident": False}):
        yield f"{next(iter(options))} with two ranks", lambda options=options: grouped(2, **options)
    for files in ([], [ONE, ONE], [ONE, AGAIN], ["missing"], ONE, (ONE, TWO), [ONE, "missing"]):
        yield f"weights of {files!r}".replace(os.path.dirname(ONE) + "/", ""), lambda files=files: weights(files)
        yield f"parts of {files!r}".replace(os.path.dirname(ONE) + "/", ""), lambda files=files: weights(files, max_batch_bytes=64)
    yield "weights of a closed pipeline", lambda: list(closed_pipeline().iterate_weights())
    yield "weights, iterated twice", iterated_twice
    yield "a progress bar", lambda: [parallel_loader.enable_tqdm(True), parallel_loader.enable_tqdm(False), parallel_loader.enable_tqdm(True, OP)]
    yield "times", lambda: re.sub(r"\d", "0", parallel_loader.parse_time(1234.5678))

    yield "plans for budgets", fits
    for options in ({"max_batch_bytes": 25}, {"accumulate_resident": False}, {"transient_multiplier": 2}, {"group_size": 2}, {"account_for_yield_clone": True}, {"chunk_overhead": 5}):
        yield f"plans for budgets with {options}", lambda options=options: fits(**options)
    for options in ({"depth": 0}, {"transient_multiplier": 0}, {"chunk_overhead": -1}, {"group_size": 0}):
        yield f"a plan with {options}", lambda options=options: _planner.plan_file_budgets(STATS, **{"device_memory_budget": 1000, "depth": 1, **options})
        yield f"a queue with {options}", lambda options=options: _planner.fit_queue_size(1, STATS, 1000, **{key: value for key, value in options.items() if key != "depth"})
    yield "depths", lambda: [[_planner.pipeline_depth(queue), _planner.load_depth(queue), _planner.load_depth(queue, 4)] for queue in (-2, -1, 0, 1, 5)]
    yield "sizes of files", lambda: [
        _planner.collect_file_stats([(path, SafeTensorsMetadata.from_file(path, OP)) for path in (ONE, TWO, MIXED)], keep, keep)
        for keep in (None, lambda name: name in "ai", lambda name: False)
    ]
    yield "what is kept", lambda: [_planner.has_non_resident(STATS), _planner.has_non_resident(STATS[:2]), [file.resident for file in STATS]]
    for limit, gap in itertools.product((40, 47, 48, 60, 1000), (0, 4096)):
        yield f"parts of {limit} bytes with gaps of {gap}", lambda limit=limit, gap=gap: [
            _planner.plan_chunks(SafeTensorsMetadata.from_file(MIXED, OP), limit, keep, gap) for keep in (None, lambda name: name != "u")
        ]

    for name, tensors in {
        "tensors": TENSORS, "wrapped tensors": {name: OP.wrap_tensor(tensor) for name, tensor in TENSORS.items()}, "no tensors": {}, "F4": {"w": torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)},
        "a list": {"w": [1]}, "a complex tensor": {"w": torch.ones(2, dtype=torch.complex64)},
    }.items():  # fmt: skip
        yield f"save {name}", lambda tensors=tensors: saved(tensors)
        yield f"save {name} of an unknown framework", lambda tensors=tensors: saved(tensors, framework="x")
    for options in ({"metadata": {"a": "b"}, "shard0_metadata": {"c": "d"}}, {"header_align": 64}, {"header_align": 7}, {"shards": 0}, {"shards": 1}, {"shards": 9}, {"num_threads": 0}, {"num_threads": 1}, {"fsync": True},
                    {"metadata": {"a": 1}}, {"metadata": {1: "a"}}, {"metadata": {"fst.shard.index": "9"}}, {"min_free_bytes": 1 << 62}, {"metadata": {}}, {"framework": "x"}):  # fmt: skip
        yield f"save with {options}", lambda options=options: saved(TENSORS, **options)
    for found in ({}, {"a": "b"}, {"a": {}}, {1: "a"}, {saver.KEY_SHARD_INDEX: "9"}, {saver.KEY_SHARD_SET: "9"}):
        yield f"save with strings of a shard {found}", lambda found=found: saved({"w": torch.ones(2)}, shard_metadata=lambda entries: found)
    yield "what is given for strings of a shard", lambda: (lambda seen: [saved({"w": torch.ones(2)}, shard_metadata=lambda entries: seen.append(type(entries).__name__) or {}) and seen])([])
    yield "an entry", lambda: [saver.plain_entry("w", tensor).nbytes for tensor in TENSORS.values()]
    yield "an entry of F4", lambda: attributes(saver.plain_entry("w", f4().get_raw()), "name dtype shape nbytes")
    for name, entries in {
        "nothing": [], "sizes": [entry(shape=[n], nbytes=n, name=f"t{n}") for n in (10, 9, 8, 1, 2, 3)], "AUTO": [entry("AUTO")], "a negative shape": [entry(shape=[-2, -2])],
        "an odd F4": [entry("F4", [2, 3], 3)], "an F4": [entry("F4", [2, 4], 4)], "F4 of a scalar": [entry("F4", [], 0)], "a wrong size": [entry("F16", [4], 7)], "a name twice": [entry(), entry()], "a reserved name": [entry(name="__metadata__")],
    }.items():  # fmt: skip
        yield f"plan {name}", lambda entries=entries: planned(entries)
    yield "plan types", lambda: planned([entry("U8", [40], 40, "bytes"), entry("F64", [1], 8, "number")], ["p/a"])
    for paths in ([], ["p/a", "p/a"], ["p/a", "p/./a"], ["p/a"]):
        yield f"plan for {paths}", lambda paths=paths: planned([entry()], paths)
    for count in (0, -1, 1, 3):
        yield f"paths of {count} files", lambda count=count: saver.shard_paths("base", count)
    yield "write a plan that is not made here", lambda: [os.path.basename(path) for path in saver.write_shards([saver.ShardPlan("hand", [], b"\2\0\0\0\0\0\0\0{}", {}, 10)], lambda work: None)]
    for numbers in ((0, 1), (1, 0), (0, 3), (0,), (), (0, 1, 2)):
        yield f"validate {numbers}", lambda numbers=numbers: validated(*numbers)
    yield "validate a file that is no shard", lambda: saver.validate_shard_set([SafeTensorsMetadata.from_file(ONE, OP)])
    yield "no threads for a fill", lambda: saver.per_entry_fill(print, 0)
    yield "the order of a fill", lambda: (lambda seen: [saver.save_sharded([entry(shape=[n], nbytes=n, name=f"t{n}") for n in (1, 5, 3)], "order/set", num_shards=2, fill=lambda work: seen.extend(item.name for _, item in work)) and seen])([])

    for path in (ONE, TWO, AGAIN, MIXED, PADDED):
        yield f"header of {os.path.basename(path)}", lambda path=path: facts(SafeTensorsMetadata.from_file(path, OP))
        yield f"ranges of {os.path.basename(path)}", lambda path=path: [
            SafeTensorsMetadata.from_file(path, OP).select_byte_ranges(keep, gap) for keep in (lambda name: True, lambda name: name in "au", lambda name: False) for gap in (0, 8, 4096)
        ]
    for text in (
        "{}", '{"__metadata__": {}}', '{"__metadata__": {"a": "b"}, "t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        '{"b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}, "a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}',
        "{", "[]", '{"t": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}', '{"t": {"dtype": "F32", "shape": [1]}}', '{"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"t": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}', '{"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', '{"t": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}}',
        '{"t": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
        '{"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "t": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}',
    ):  # fmt: skip
        yield f"header {text}", lambda text=text: facts(header(text))
    yield "a header's entries", lambda: dict(SafeTensorsMetadata('{"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 100, 108, OP, keep_orig_dict=True).ser)
    yield "an entry with a wrong shape", lambda: TensorFrame.from_buffer({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]})
    for index in (0, -1, 5, slice(1, None), slice(None, None, -2), slice(9, 20), (1, slice(2)), (), (0, 0, 0), slice(None, None, 0), None, "a", ...):
        yield f"a frame[{index}]", lambda index=index: TensorFrame(DType.F32, [5, 6], [0, 120], [6, 1], [0, 0], False)[index]
    yield "a file that is missing", lambda: SafeTensorsMetadata.from_file("missing", OP)
    yield "a file that is short", lambda: [pathlib.Path("short").write_bytes(b"123"), SafeTensorsMetadata.from_file("short", OP)]
    yield "a folder", lambda: SafeTensorsMetadata.from_file(".", OP)

    for number, size, rank in ((256, 2, 1), (10, 3, 0), (10, 3, 2), (2, 4, 3), (0, 2, 0), (8, 0, 0), (8, -1, 0), (8, 2, 2), (8, 2, -1)):
        yield f"experts {number} of {size} for {rank}", lambda number=number, size=size, rank=rank: owned_expert_range(number, size, rank)
        yield f"a filter of experts {number} of {size} for {rank}", lambda number=number, size=size, rank=rank: [expert_parallel_filter(number, size, rank)(f"l.experts.{expert}.w") for expert in range(12)]
    yield "a filter of experts with a pattern", lambda: [expert_parallel_filter(4, 2, 1, re.compile(r"e(\d)"))(name) for name in ("e1", "e2", "x", "l.experts.0.w")]

    for name, base, methods in (("group", ProcessGroupBase, GROUP), ("framework", FrameworkOpBase, FRAMEWORK)):
        yield f"a minimal {name}", lambda base=base, methods=methods: type(minimal(base, methods)()).__name__
        for missing in methods.split():
            yield f"a {name} without {missing}", lambda base=base, methods=methods, missing=missing: type(minimal(base, " ".join(set(methods.split()) - {missing}))()).__name__
    yield "a minimal tensor", lambda: attributes(minimal(TensorBase, "get_raw")(CPU, DType.U8), "device dtype")
    for method, arguments in (("reshape", ([2],)), ("data_ptr", ()), ("clone", ()), ("get_shape", ())):
        yield f"{method} of a minimal tensor", lambda method=method, arguments=arguments: getattr(minimal(TensorBase, "")(CPU, DType.U8), method)(*arguments)
    for method, arguments in (
        ("broadcast_contiguous_run", (None, [], [], 0, CPU)), ("wrap_tensor", (3,)), ("get_runtime_lib_dirs", ()), ("get_storage_shape", (DType.F4, [4], [1])), ("get_native_shape", (DType.F4, [4])),
        ("get_native_slices", (DType.F4, [4], (slice(2),))), ("iter_buffer_views", (None, None, CPU, 0, None)), ("synchronize", (CPU,)), ("synchronize_current_stream", (CPU,)), ("get_global_rank", ()), ("get_device_name", (0,)), ("mmap_file_pinned", (ONE, 1, 0)),
    ):  # fmt: skip
        yield f"{method} of a minimal framework", lambda method=method, arguments=arguments: getattr(minimal(FrameworkOpBase, FRAMEWORK)(), method)(*arguments)
    yield "tensors of one type and device", lambda: [minimal(TensorBase, "")(CPU, DType.U8) == minimal(TensorBase, "")(CPU, DType.U8), wrapped([1.0]) == wrapped([1.0])]
    yield "the hash of a tensor", lambda: hash(wrapped())
    yield "a tensor in words", lambda: repr(wrapped())
    for name in ("pt", "torch", "pytorch", "x", None, "paddle"):
        yield f"the framework {name}", lambda name=name: get_framework_op(name=name).get_name()
    yield "the framework's one object", lambda: [get_framework_op("pt") is get_framework_op("torch"), torch_layer.get_framework_op() is OP]
    yield "facts of the framework", lambda: [OP.get_cuda_ver(), OP.get_device_ptr_align(), OP.support_fp8(), OP.get_global_rank(), [os.path.basename(path) for path in OP.get_runtime_lib_dirs()]] + ([] if torch.cuda.is_available() else [OP.get_device_name(0)])
    yield "its types", lambda: [[torch_layer.fst_dtype(real), dtype, str(real), OP.as_workaround_dtype(dtype), OP.get_dtype_size(dtype)] for dtype, real in sorted(torch_layer.dtype_convert.items(), key=str)]
    yield "a type that it has not", lambda: torch_layer.fst_dtype(torch.complex64)
    yield "a complex tensor, wrapped", lambda: OP.wrap_tensor(torch.ones(1, dtype=torch.complex64))
    yield "a list, wrapped", lambda: OP.wrap_tensor([1])
    yield "an empty tensor", lambda: [OP.get_empty_tensor([0, 3], DType.F16, CPU), OP.get_empty_tensor([2, 4], DType.F4, CPU).get_raw().shape]
    yield "joined tensors", lambda: [OP.concat_tensors([wrapped(), wrapped()], 0), OP.concat_tensors([f4(), f4()], 0), OP.concat_tensors([wrapped(dtype=torch.float8_e5m2)] * 2, 0)]
    yield "a copied tensor", lambda: (lambda tensor: [OP.copy_tensor(tensor, wrapped([8.0, 9.0])), tensor])(wrapped())
    yield "a tensor by DLPack", lambda: OP.from_dlpack(torch.ones(3), CPU, DType.F32)
    for real in (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 2.0]] * 2), torch.tensor([1, 2]), torch.tensor([1.0]), torch.ones(3), [1.0, 2.0], None):
        yield f"whether a tensor is {real}", lambda real=real: OP.is_equal(wrapped(), real)
    yield "whether no number is itself", lambda: OP.is_equal(wrapped([float("nan")]), torch.tensor([float("nan")]))
    for name, shape in itertools.product(("F4", "F32", "F8_E4M3"), ([8, 16], [16], [8, 15], [], [0, 4])):
        yield f"shapes of {name}{shape}", lambda name=name, shape=shape: [OP.get_native_shape(DType(name), shape), OP.get_storage_shape(DType(name), shape, [1] * len(shape))]
    for slices in ((slice(None), slice(4, 12, 1)), (slice(2, 6, 1),), (slice(None), slice(3, 12)), (slice(None), slice(None, None, 2)), (0, 4), (0, 3), (slice(None), slice(-4, None)), (slice(None), slice(0, 99))):
        yield f"slices {slices}", lambda slices=slices: [OP.get_native_slices(DType(name), [8, 16], slices) for name in ("F32", "F4")]
    for name, call in {
        "clone": lambda of: of.clone(), "detach": lambda of: of.detach(), "contiguous": lambda of: of.contiguous(), "view": lambda of: of.view(DType.I32), "index": lambda of: of[0],
        "reshape": lambda of: of.reshape([2, 1]), "to": lambda of: [of.to() is of, of.to(CPU) is of, of.to(dtype=DType.F16), of.to(CPU, DType.I64), of.to(Device(DeviceType.CPU, 0))], "to AUTO": lambda of: of.to(dtype=DType.AUTO) is of,
        "sizes": lambda of: [of.get_nbytes(), of.get_shape(), of.data_ptr() == of.get_raw().data_ptr()],
    }.items():  # fmt: skip
        yield f"{name} of a tensor", lambda call=call: call(wrapped())
    yield "the shape of F4", lambda: [f4().get_shape(), f4().get_nbytes()]
    yield "a scalar of F4", lambda: OP.wrap_tensor(torch.zeros((), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)).get_shape()
    for length in (8, 12, 7):
        yield f"a tensor of 8 bytes in a buffer of {length}", lambda length=length: copied(length)
    yield "a buffer of memory", lambda: (lambda buffer: [buffer.get_length(), buffer.get_base_address() != 0, OP.free_tensor_memory(buffer, CPU)])(OP.alloc_tensor_memory(128, CPU))

    for path in ("/x", "/data/a", "/data/remote/a", "/datax", "/with space/f", "relative"):
        yield f"the file system of {path}", lambda path=path: mounts(path)
    yield "the file system by no table", lambda: common.get_fs_type("/x", "no such table")
    yield "a group of one", lambda: [SingleGroup().size(), SingleGroup().rank()]
    yield "the library of GPUs", lambda: [common.resolve_runtime_lib_name(), common.resolve_runtime_lib_name(OP), common.resolve_runtime_lib_name(types.SimpleNamespace(get_cuda_ver=lambda: "hip-6"))]  # type: ignore[arg-type]
    yield "loggers", lambda: [common.init_logger("a.b").name, common.is_debug(common.init_logger("a.b"))]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return {"returned": plain(call())}
    except Exception as error:
        return {"raised": [kind.__name__ for kind in type(error).__mro__[:-2]], "text": str(error)[:300]}


def main() -> None:
    os.chdir(sys.argv[2])
    found = {}
    for name, call in cases():
        assert name not in found, name
        found[name] = outcome(call)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
