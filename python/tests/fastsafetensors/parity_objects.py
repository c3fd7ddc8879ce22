"""Calls about saves, headers, experts, and the framework layer."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pathlib
import pickle
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

from parity_base import AGAIN, CPU, MIXED, ONE, OP, PADDED, TWO, attributes, facts, wrapped  # isort: skip

import torch
from fastsafetensors import (
    ParallelSaver,
    SafeTensorsMetadata,
    SingleGroup,
    TensorFrame,
    common,
    expert_parallel_filter,
    owned_expert_range,
    saver,
)
from fastsafetensors.frameworks import FrameworkOpBase, ProcessGroupBase, TensorBase, get_framework_op
from fastsafetensors.frameworks import _torch as torch_layer
from fastsafetensors.st_types import Device, DeviceType, DType


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


def minimal(base: Any, methods: str) -> Any:
    return type("Minimal", (base,), {name: lambda self, *arguments, **options: None for name in methods.split()})


GROUP = "size rank broadcast scatter send recv"
FRAMEWORK = (
    "get_name get_device set_device alloc_tensor_memory free_tensor_memory get_empty_tensor concat_tensors copy_tensor get_dtype_size from_dlpack get_cuda_ver "
    "get_device_ptr_align as_workaround_dtype get_process_group is_equal randn support_fp8 get_mem_used"
)


def f4(count: int = 8) -> Any:
    return OP.wrap_tensor(torch.arange(count, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))


def copied(length: int) -> str:
    buffer = bytearray(length)
    wrapped().copy_to_buffer(memoryview(buffer))
    return buffer.hex()


def mounts(path: str) -> str:
    pathlib.Path("mounts").write_text("/dev/a / ext4 rw\nnas:/v /data/remote nfs4 rw\nb /data xfs rw\nshort\nc /with\\\\040space btrfs rw\n".replace("\\\\", "\\"))
    return common.get_fs_type(path, "mounts")


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
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
    yield "what is given for strings of a shard", (
        lambda: (lambda seen: [saved({"w": torch.ones(2)}, shard_metadata=lambda entries: seen.append(type(entries).__name__) or {}) and seen])([])
    )
    yield "an entry", lambda: [saver.plain_entry("w", tensor).nbytes for tensor in TENSORS.values()]
    yield "an entry of F4", lambda: attributes(saver.plain_entry("w", f4().get_raw()), "name dtype shape nbytes")
    for name, entries in {
        "nothing": [], "sizes": [entry(shape=[n], nbytes=n, name=f"t{n}") for n in (10, 9, 8, 1, 2, 3)], "AUTO": [entry("AUTO")], "a negative shape": [entry(shape=[-2, -2])],
        "an odd F4": [entry("F4", [2, 3], 3)], "an F4": [entry("F4", [2, 4], 4)], "F4 of a scalar": [entry("F4", [], 0)], "a wrong size": [entry("F16", [4], 7)], "a name twice": [entry(), entry()], "a reserved name": [entry(name="__metadata__")],
    }.items():  # fmt: skip
        yield f"plan {name}", lambda entries=entries: planned(entries)
    yield "plan types", lambda: planned([entry("U8", [40], 40, "bytes"), entry("F64", [1], 8, "number")], ["p/a"])
    for paths in ([], ["p/a", "p/a"], ["p/a", "p/./a"], ["a", "./a"], ["p/a"]):
        yield f"plan for {paths}", lambda paths=paths: planned([entry()], paths)
    for count in (0, -1, 1, 3):
        yield f"paths of {count} files", lambda count=count: saver.shard_paths("base", count)
    yield "write a plan that is not made here", (
        lambda: [os.path.basename(path) for path in saver.write_shards([saver.ShardPlan("hand", [], b"\2\0\0\0\0\0\0\0{}", {}, 10)], lambda work: None)]
    )
    for numbers in ((0, 1), (1, 0), (0, 3), (0,), (), (0, 1, 2)):
        yield f"validate {numbers}", lambda numbers=numbers: validated(*numbers)
    yield "validate a file that is no shard", lambda: saver.validate_shard_set([SafeTensorsMetadata.from_file(ONE, OP)])
    yield "no threads for a fill", lambda: saver.per_entry_fill(print, 0)
    yield "the order of a fill", (
        lambda: (lambda seen: [saver.save_sharded([entry(shape=[n], nbytes=n, name=f"t{n}") for n in (1, 5, 3)], "order/set", num_shards=2, fill=lambda work: seen.extend(item.name for _, item in work)) and seen])([])
    )

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
    yield "a plan for bytes", lambda: saver.plan_shards([entry()], [b"p/a"])[0].path == b"p/a"  # type: ignore[list-item, comparison-overlap]
    yield "names of a set", lambda: [saver.shard_paths(base, 2) for base in ("./x/m", "x//m", "x/../m", "x/", "")]
    yield "a save for a framework that is missing", lambda: saved(TENSORS, framework="paddle")
    yield "a switch by its truth", lambda: saved(TENSORS, fsync=1)
    for made in (OP, SafeTensorsMetadata.from_file(ONE, OP), saver.plain_entry("w", torch.ones(2)), saver.plan_shards([entry()], ["p/a"])[0], wrapped(), SingleGroup(), OP.get_process_group(None), ParallelSaver(), Device()):
        yield f"a pickled {type(made).__name__}", lambda made=made: [type(copied).__name__ for copied in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), copy.copy(made))]
    yield "a wrapped tensor, wrapped again", lambda: OP.wrap_tensor(wrapped())
    yield "a folder", lambda: SafeTensorsMetadata.from_file(".", OP)

    for number, size, rank in ((256, 2, 1), (10, 3, 0), (10, 3, 2), (2, 4, 3), (0, 2, 0), (8, 0, 0), (8, -1, 0), (8, 2, 2), (8, 2, -1)):
        yield f"experts {number} of {size} for {rank}", lambda number=number, size=size, rank=rank: owned_expert_range(number, size, rank)
        yield f"a filter of experts {number} of {size} for {rank}", (
            lambda number=number, size=size, rank=rank: [expert_parallel_filter(number, size, rank)(f"l.experts.{expert}.w") for expert in range(12)]
        )
    yield "a filter of experts with a pattern", lambda: [expert_parallel_filter(4, 2, 1, re.compile(r"e(\d)"))(name) for name in ("e1", "e2", "x", "l.experts.0.w")]

    for name, base, methods in (("group", ProcessGroupBase, GROUP), ("framework", FrameworkOpBase, FRAMEWORK)):
        yield f"a minimal {name}", lambda base=base, methods=methods: type(minimal(base, methods)()).__name__
        for missing in methods.split():
            yield f"a {name} without {missing}", (
                lambda base=base, methods=methods, missing=missing: type(minimal(base, " ".join(set(methods.split()) - {missing}))()).__name__
            )
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
    yield "facts of the framework", (
        lambda: [OP.get_cuda_ver(), OP.get_device_ptr_align(), OP.support_fp8(), OP.get_global_rank(), [os.path.basename(path) for path in OP.get_runtime_lib_dirs()]] + ([] if torch.cuda.is_available() else [OP.get_device_name(0)])
    )
    yield "its types", (
        lambda: [[torch_layer.fst_dtype(real), dtype, str(real), OP.as_workaround_dtype(dtype), OP.get_dtype_size(dtype)] for dtype, real in sorted(torch_layer.dtype_convert.items(), key=str)]
    )
    yield "a type that it has not", lambda: torch_layer.fst_dtype(torch.complex64)
    yield "a complex tensor, wrapped", lambda: OP.wrap_tensor(torch.ones(1, dtype=torch.complex64))
    yield "a list, wrapped", lambda: OP.wrap_tensor([1])
    yield "an empty tensor", lambda: [OP.get_empty_tensor([0, 3], DType.F16, CPU), OP.get_empty_tensor([2, 4], DType.F4, CPU).get_raw().shape]
    yield "joined tensors", (
        lambda: [OP.concat_tensors([wrapped(), wrapped()], 0), OP.concat_tensors([f4(), f4()], 0), OP.concat_tensors([wrapped(dtype=torch.float8_e5m2)] * 2, 0)]
    )
    yield "a copied tensor", lambda: (lambda tensor: [OP.copy_tensor(tensor, wrapped([8.0, 9.0])), tensor])(wrapped())
    yield "a tensor by DLPack", lambda: OP.from_dlpack(torch.ones(3), CPU, DType.F32)
    for real in (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 2.0]] * 2), torch.tensor([1, 2]), torch.tensor([1.0]), torch.ones(3), [1.0, 2.0], None):
        yield f"whether a tensor is {real}", lambda real=real: OP.is_equal(wrapped(), real)
    yield "whether no number is itself", lambda: OP.is_equal(wrapped([float("nan")]), torch.tensor([float("nan")]))
    for name, shape in itertools.product(("F4", "F32", "F8_E4M3"), ([8, 16], [16], [8, 15], [], [0, 4])):
        yield f"shapes of {name}{shape}", (
            lambda name=name, shape=shape: [OP.get_native_shape(DType(name), shape), OP.get_storage_shape(DType(name), shape, [1] * len(shape))]
        )
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
    yield "a buffer of memory", (
        lambda: (lambda buffer: [buffer.get_length(), buffer.get_base_address() != 0, OP.free_tensor_memory(buffer, CPU)])(OP.alloc_tensor_memory(128, CPU))
    )

    for path in ("/x", "/data/a", "/data/remote/a", "/datax", "/with space/f", "relative"):
        yield f"the file system of {path}", lambda path=path: mounts(path)
    yield "the file system by no table", lambda: common.get_fs_type("/x", "no such table")
    yield "a group of one", lambda: [SingleGroup().size(), SingleGroup().rank()]
    yield "the library of GPUs", (
        lambda: [common.resolve_runtime_lib_name(), common.resolve_runtime_lib_name(OP), common.resolve_runtime_lib_name(types.SimpleNamespace(get_cuda_ver=lambda: "hip-6"))]  # type: ignore[arg-type]
    )
    yield "loggers", lambda: [common.init_logger("a.b").name, common.is_debug(common.init_logger("a.b"))]
