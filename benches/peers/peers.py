#!/usr/bin/env python3
"""One load by one other loader: `peers.py ENTRY FOLDER [DEVICE]` prints one line of JSON.

The loader is imported and the device's context made first. The clock runs from before the first open until every tensor
can be used on the device; then every tensor's digest (see digest.rs) is compared with the folder's digests.json.
"""

import functools
import glob
import json
import os
import resource
import sys
import time

import torch

PREFETCH_PATH = os.environ.get("PEERS_PREFETCH")  # where safetensors 0.9.0rc1 was installed, beside 0.8
CHUNK_BYTES = 8 << 20
SMALL_BYTES = 256 << 10
BATCH = 512
MULTIPLIER = 6364136223846793005

# Each of these imports its loader, and returns the function that loads files.


def safetensors_load_file(device):
    """`load_file` of 0.8. On the CPU it maps the files, so that the tensors' pages have to be touched as well."""
    from safetensors.torch import load_file

    def load(files):
        tensors = {name: tensor for file in files for name, tensor in load_file(file, device=str(device)).items()}
        if device.type == "cpu":
            for tensor in tensors.values():
                tensor.reshape(-1).view(torch.uint8)[::4096].sum()
        return tensors

    return load


def safetensors_prefetch(device):
    """`safe_open(...).prefetch()` of 0.9.0rc1: all files begin to load, then every tensor is taken."""
    if PREFETCH_PATH:
        sys.path.insert(0, PREFETCH_PATH)
    from safetensors import safe_open

    def load(files):
        handles = [safe_open(file, framework="pt", device=str(device)) for file in files]
        loaders = [handle.prefetch() for handle in handles]
        return {name: tensor for loader in loaders for name, tensor in loader}

    return load


def fastsafetensors(device, nogds=False):
    """`fastsafe_open` of 0.5.0; its tensors keep their buffer alive, so no clone is needed."""
    from fastsafetensors import fastsafe_open

    def load(files):
        opened = fastsafe_open(filenames=files, device=str(device), nogds=nogds)
        return {name: opened.get_tensor(name) for name in opened.keys()}

    return load


def fastsafetensors_parallel(device):
    from fastsafetensors import ParallelLoader

    def load(files):
        loader = ParallelLoader(None, files, device=str(device), use_tqdm_on_load=False)
        return dict(loader.iterate_weights())

    return load


def instanttensor(device, backend=None):
    """`safe_open` of 0.2.2 with copy=True, its default, since these tensors are kept."""
    from instanttensor import Backend, safe_open

    chosen = Backend[backend] if backend else None

    def load(files):
        with safe_open(files, framework="pt", device=device.index, backend=chosen) as opened:
            return dict(opened.tensors())

    return load


def runai_streamer(device):
    """`SafetensorsStreamer` of 0.16.1, as its documentation loads to a device."""
    from runai_model_streamer import SafetensorsStreamer

    def load(files):
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files)
            return {name: tensor.to(device) for name, tensor in streamer.get_tensors()}

    return load


ENTRIES = {
    "safetensors-load_file": safetensors_load_file,
    "safetensors-prefetch": safetensors_prefetch,
    "fastsafetensors": fastsafetensors,
    "fastsafetensors-nogds": functools.partial(fastsafetensors, nogds=True),
    "fastsafetensors-parallel": fastsafetensors_parallel,
    "instanttensor": instanttensor,
    "runai-streamer": runai_streamer,
}
for _backend in ["AIO", "AIO_BUFFERED", "URING", "URING_BUFFERED", "MMAP", "CUFILE"]:
    ENTRIES[f"instanttensor-{_backend}"] = functools.partial(instanttensor, backend=_backend)
ON_CPU = ["safetensors-load_file"]


@functools.cache
def factors(device):
    return torch.arange(CHUNK_BYTES // 8, device=device) * 2 + 1


def digest(data):
    """The digest of a tensor's bytes, on its device."""
    result = 0
    for chunk in data.split(CHUNK_BYTES):
        words = torch.cat([chunk, chunk.new_zeros(-chunk.numel() % 8)]).view(torch.int64)
        result = result * MULTIPLIER + (words * factors(data.device)[: len(words)]).sum()
    return int(result) % (1 << 64)


def small_digests(batch):
    """The digests of many tensors of a chunk at most, which one by one take as long as several launches each."""
    lengths = torch.tensor([-(-data.numel() // 8) for data in batch], device=batch[0].device)
    padding = batch[0].new_zeros(8)
    words = torch.cat([part for data in batch for part in (data, padding[: -data.numel() % 8])]).view(torch.int64)
    ends = lengths.cumsum(0)
    starts = ends - lengths
    places = torch.arange(len(words), device=words.device) - starts.repeat_interleave(lengths, output_size=len(words))
    running = torch.cat([lengths.new_zeros(1), (words * (places * 2 + 1)).cumsum(0)])
    return [total % (1 << 64) for total in (running[ends] - running[starts]).tolist()]


def digests(tensors):
    """Each tensor's digest as an unsigned number."""
    result, names, batch = {}, [], []
    for name, tensor in tensors.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8)
        if data.numel() > SMALL_BYTES:
            result[name] = digest(data)
            continue
        names.append(name)
        batch.append(data)
        if len(batch) == BATCH:
            result.update(zip(names, small_digests(batch)))
            names, batch = [], []
    result.update(zip(names, small_digests(batch) if batch else []))
    return result


def check(folder, tensors, device):
    """What is wrong with the tensors, or None."""
    with open(os.path.join(folder, "digests.json")) as file:
        expected = json.load(file)
    if set(expected) != set(tensors):
        return f"{len(tensors)} tensors, expected {len(expected)}"
    for name, tensor in tensors.items():
        if tensor.device != device:
            return f"{name} is on {tensor.device}"
    differing = [name for name, digest in digests(tensors).items() if digest != int(expected[name])]
    return f"the bytes of {differing[0]} differ" if differing else None


def load(entry, folder, device):
    """The result of one load in this process; whatever goes wrong is this entry's result too."""
    try:
        return timed_load(entry, folder, torch.device(device))
    except Exception as error:
        return {"entry": entry, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def timed_load(entry, folder, device):
    if device.type == "cpu" and entry not in ON_CPU:
        return {"entry": entry, "error": "loads to CUDA devices only"}
    load_files = ENTRIES[entry](device)
    files = sorted(glob.glob(os.path.join(folder, "*.safetensors")))
    torch.zeros(1, device=device)
    synchronize = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    free = lambda: torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    synchronize()
    free_before, before = free(), resident()
    started = time.perf_counter()
    tensors = load_files(files)
    synchronize()
    seconds = time.perf_counter() - started
    host_bytes = resident() - before  # mapped files count
    device_bytes = free_before - free()
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    detail = check(folder, tensors, device)
    return {
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


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    result = load(*[*sys.argv[1:], "cuda:0"][:3])
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit("error" in result)  # some loaders' threads do not end by themselves


if __name__ == "__main__":
    main()
