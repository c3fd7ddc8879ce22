#!/usr/bin/env python3
"""One load by one other loader, in this fresh process: `peers.py ENTRY FOLDER` prints one line of JSON.

The device's context is made first. The clock runs from before the first open until every tensor can be used on the
device; then every tensor's digest (see digest.rs) is compared with the folder's digests.json.
"""

import glob
import json
import os
import resource
import sys
import time

PREFETCH_PATH = os.environ.get("PEERS_PREFETCH")  # where safetensors 0.9.0rc1 was installed, beside 0.8
CHUNK_WORDS = 1 << 20
MULTIPLIER = 6364136223846793005


def safetensors_load_file(files):
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file, device="cuda:0").items()}


def safetensors_prefetch(files):
    """`safe_open(...).prefetch()` of 0.9.0rc1: all files begin to load, then every tensor is taken."""
    from safetensors import safe_open

    handles = [safe_open(file, framework="pt", device="cuda:0") for file in files]
    loaders = [handle.prefetch() for handle in handles]
    return {name: tensor for loader in loaders for name, tensor in loader}


def fastsafetensors(files, nogds=False):
    """`fastsafe_open` of 0.5.0; its tensors keep their buffer alive, so no clone is needed."""
    from fastsafetensors import fastsafe_open

    opened = fastsafe_open(filenames=files, device="cuda:0", nogds=nogds)
    return {name: opened.get_tensor(name) for name in opened.keys()}


def fastsafetensors_parallel(files):
    from fastsafetensors import ParallelLoader

    loader = ParallelLoader(None, files, device="cuda:0", use_tqdm_on_load=False)
    return dict(loader.iterate_weights())


def instanttensor(files, backend=None):
    """`safe_open` of 0.2.2 with copy=True, its default, since these tensors are kept."""
    from instanttensor import Backend, safe_open

    chosen = Backend[backend] if backend else None
    with safe_open(files, framework="pt", device=0, backend=chosen) as opened:
        return dict(opened.tensors())


def runai_streamer(files):
    """`SafetensorsStreamer` of 0.16.1, as its documentation loads to a device."""
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files)
        return {name: tensor.to("cuda:0") for name, tensor in streamer.get_tensors()}


ENTRIES = {
    "safetensors-load_file": safetensors_load_file,
    "safetensors-prefetch": safetensors_prefetch,
    "fastsafetensors": fastsafetensors,
    "fastsafetensors-nogds": lambda files: fastsafetensors(files, nogds=True),
    "fastsafetensors-parallel": fastsafetensors_parallel,
    "instanttensor": instanttensor,
    "runai-streamer": runai_streamer,
}
for _backend in ["AIO", "AIO_BUFFERED", "URING", "URING_BUFFERED", "MMAP", "CUFILE"]:
    ENTRIES[f"instanttensor-{_backend}"] = lambda files, backend=_backend: instanttensor(files, backend)


def signed(value):
    """A number modulo 2^64 as torch's int64 has it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def digest(tensor, factors):
    """The digest of a tensor, on its device, as an unsigned number."""
    import torch

    data = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
    result = 0
    for start in range(0, data.numel(), CHUNK_WORDS * 8):
        chunk = data[start : start + CHUNK_WORDS * 8]
        if chunk.numel() % 8 or chunk.data_ptr() % 8:
            padded = torch.zeros(-(-chunk.numel() // 8) * 8, dtype=torch.uint8, device=chunk.device)
            padded[: chunk.numel()] = chunk
            chunk = padded
        words = chunk.view(torch.int64)
        total = int((words * factors[: words.numel()]).sum())
        result = (result * MULTIPLIER + total) % (1 << 64)
    return result


def check(folder, tensors):
    """What is wrong with the tensors, or None."""
    import torch

    with open(os.path.join(folder, "digests.json")) as file:
        expected = json.load(file)
    if set(expected) != set(tensors):
        return f"{len(tensors)} tensors, expected {len(expected)}"
    factors = torch.arange(CHUNK_WORDS, dtype=torch.int64, device="cuda:0") * 2 + 1
    for name, wanted in expected.items():
        if tensors[name].device.type != "cuda":
            return f"{name} is on {tensors[name].device}"
        if digest(tensors[name], factors) != int(wanted):
            return f"the bytes of {name} differ"
    return None


def main():
    entry, folder = sys.argv[1:]
    if entry == "safetensors-prefetch" and PREFETCH_PATH:
        sys.path.insert(0, PREFETCH_PATH)
    import torch

    load = ENTRIES[entry]
    files = sorted(glob.glob(os.path.join(folder, "*.safetensors")))
    torch.zeros(1, device="cuda:0")
    torch.cuda.synchronize()
    free_before = torch.cuda.mem_get_info()[0]
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    before = resident()
    try:
        started = time.perf_counter()
        tensors = load(files)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    except Exception as error:  # whatever it is, it is this entry's result
        print(json.dumps({"entry": entry, "error": f"{type(error).__name__}: {error}"[:300]}))
        return 1
    host_bytes = resident() - before  # mapped files count
    device_bytes = free_before - torch.cuda.mem_get_info()[0]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    detail = check(folder, tensors)
    result = {
        "entry": entry,
        "seconds": seconds,
        "gb_per_s": total / 1e9 / seconds,
        "bytes": total,
        "tensors": len(tensors),
        "ok": detail is None,
        "detail": detail,
        "host_bytes": host_bytes,
        "device_bytes": device_bytes,
    }
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # some loaders' threads do not end by themselves


if __name__ == "__main__":
    sys.exit(main())
