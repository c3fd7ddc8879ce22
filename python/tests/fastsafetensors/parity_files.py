"""Calls about files that are loaded as a whole."""

from __future__ import annotations

import gc
import os
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import Any

from parity_base import AGAIN, CPU, MIXED, ONE, OP, PADDED, TWO, Of, attributes, facts, loader, pipeline, wrapped  # isort: skip

import torch
from fastsafetensors import (
    SafeTensorsFileLoader,
    SingleGroup,
    fastsafe_open,
    get_device_numa_node,
    live_allocation_bytes,
    live_allocation_count,
)
from fastsafetensors.st_types import DTYPE_SIZES, Device, DeviceType, DType


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


def joined_after_closing() -> Any:
    fb = loader(files={0: [ONE]}).copy_files_to_device(borrowed_tensors=True)
    joined = fb.get_multi_cols(["a", "a"], 0).get_raw()
    fb.close()
    return joined


def counted_of_yields() -> int:
    gc.collect()
    kept = list(pipeline().iterate_weights())
    return live_allocation_count() if kept else -1


def moved(call: Callable[[Any], Any]) -> Any:
    group = OP.get_process_group(None)
    tensor = wrapped()
    return [call(group, tensor) if call.__code__.co_argcount == 2 else call(group), tensor]  # type: ignore[call-arg]


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

    for text in ("cpu", "cpu:0", "CUDA:4", "gpu:1", "xpu", "xpu:0", "cpu:", "cpu:x", ":0", "", "cuda:-1", "cuda:0:1"):
        yield f"Device.from_str({text!r})", lambda text=text: Device.from_str(text)
    yield "a device of None", lambda: Device.from_str(None)  # type: ignore[arg-type]
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
    for options in ({"framework": "x"}, {"framework": None}, {"bbuf_size_kb": 0}, {"max_threads": 0}, {"max_threads": 1025}, {"max_threads": -1}, {"unknown": 3}, {"threads": 2}, {"set_numa": False, "debug_log": False}):
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
    yield "a load as no type", lambda: loader().copy_files_to_device(dtype=torch.float16)  # type: ignore[arg-type]
    yield "a load in blocks of nothing", lambda: loader().copy_files_to_device(max_copy_block_size=0)
    yield "joined tensors of a borrowed buffer that is closed", joined_after_closing
    yield "tensors of two types, joined", lambda: loader(files={0: [MIXED]}).copy_files_to_device().get_multi_cols(["b", "a"], 0).get_raw()
    yield "add a folder", lambda: loader(files={0: ["."]}).get_keys()
    yield "fastsafe_open of a folder", lambda: fastsafe_open(".", nogds=True).keys()
    yield "metadata() by path objects", lambda: fastsafe_open([pathlib.Path(ONE)], nogds=True).metadata()[pathlib.Path(ONE)]  # type: ignore[index]
    yield "attributes of a buffer", lambda: attributes(loaded(), "auto_mem_delete borrowed_tensors key_to_rank_lidx pg")
    yield "files of a buffer", lambda: {rank: [facts(file.metadata) for file in files] for rank, files in loaded(files={0: [TWO, ONE]}).rank_loaders.items()}
    for of, fb in (("open", loaded), ("closed", closed)):
        calls: dict[str, Callable[[Any], Any]] = {
            "get_tensor": lambda fb: fb.get_tensor("a"),
            "get_tensor of a scalar": lambda fb: fb.get_tensor("s"),
            "get_tensor as another type": lambda fb: fb.get_tensor("a", dtype=DType.F16),
            **{f"get_tensor as {dtype!r}": lambda fb, dtype=dtype: fb.get_tensor("a", dtype=dtype) for dtype in (torch.float16, None, "F16")},
            "get_multi_cols of two types": lambda fb: fb.get_multi_cols(["a", "i"], 5),
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
    yield "a load of a closed loader that files are added to", (
        lambda: (lambda made: [made.add_filenames({0: [ONE]}), made.copy_files_to_device() and None])(closed_loader())
    )
    for files in (ONE, [ONE, TWO], [TWO, ONE], {0: [ONE]}, (ONE,), pathlib.Path(ONE), None, [], ["missing"], [ONE, AGAIN]):
        name = repr(files).replace(os.path.dirname(ONE) + "/", "")
        yield f"fastsafe_open of {name}", (
            lambda files=files: (lambda opened: [opened.keys(), opened.metadata(), [opened.get_tensor(name) for name in opened.keys()]])(fastsafe_open(files, nogds=True))
        )
    yield "metadata() of strings", lambda: [list(fastsafe_open([path], nogds=True).metadata().values()) for path in (ONE, TWO, AGAIN)]
    yield "fastsafe_open after its block", (
        lambda: (lambda opened: [opened.__enter__() is opened, opened.__exit__(None, None, None), opened.keys(), opened.metadata(), opened.get_tensor("a")])(fastsafe_open(ONE, nogds=True))
    )
