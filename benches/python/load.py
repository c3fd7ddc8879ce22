#!/usr/bin/env python3
"""Loads from Python beside the Rust figure and other loaders: seconds from the call to a dict of torch tensors, and the most device memory on the way.

    benches/python/load.py --folder /fast/disk/python --program target/gpu/bench-peers --shapes llama,many-small --rounds 5

Each load has a process of its own, in which torch, the loader and the device's context are there before the clock starts; loaders take turns, in an order that is
shuffled for each round, after the files have been read into the page cache. Every tensor's digest is checked afterwards (`benches/peers`, whose
loaders, shapes and digests these are). Device memory is what the driver says of the whole device, asked every few milliseconds while each loader loads once
more: no one else may use it. Asking slows loads down, so these are not timed.
Without a GPU: `--device cpu`. Each load is one line of JSON on the standard output; the table of medians comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import threading
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peers"))
sys.dont_write_bytecode = True

RUST = "tensorhold (Rust)"
OURS = ["load_file", "load_file-whole", "walk", "drop-in", "drop-in-parallel"]
PEERS = ["safetensors-load_file", "safetensors-prefetch", "fastsafetensors", "fastsafetensors-nogds", "fastsafetensors-parallel", "instanttensor",
         "instanttensor-URING_BUFFERED", "instanttensor-MMAP", "runai-streamer"]  # fmt: skip


def ours(entry: str) -> Any:
    """The package's loads, as `peers.py` has those of others."""

    def loader(device: Any) -> Any:
        import tensorhold

        def load_file(files: list[str]) -> dict[str, Any]:
            parts = False if entry == "load_file-whole" else None
            return tensorhold.load_file(os.path.dirname(files[0]), device, parts=parts)

        def walk(files: list[str]) -> dict[str, Any]:
            with tensorhold.safe_open(files, framework="pt", device=device) as f:
                return {name: f.get_tensor(name) for name in f.keys()}

        def drop_in(files: list[str]) -> dict[str, Any]:
            opened = fastsafetensors.fastsafe_open(files, device=str(device))
            return {name: opened.get_tensor(name) for name in opened.keys()}

        def drop_in_parallel(files: list[str]) -> dict[str, Any]:
            loader = fastsafetensors.ParallelLoader(None, files, device=str(device), use_tqdm_on_load=False)
            return dict(loader.iterate_weights())

        tensorhold.cuda_count()
        if entry.startswith("drop-in"):
            from tensorhold import fastsafetensors
        return {"walk": walk, "drop-in": drop_in, "drop-in-parallel": drop_in_parallel}.get(entry, load_file)

    return loader


def child(entry: str, folder: str, device: str) -> None:
    """One load in this process."""
    import peers

    for name in OURS:
        peers.ENTRIES[name] = ours(name)
        peers.ON_CPU.append(name)
    print(json.dumps(peers.load(entry, folder, device)), flush=True)
    os._exit(0)  # some loaders' threads do not end by themselves


class Watch:
    """The device's memory in use, asked again and again while a load runs."""

    def __init__(self, device: str) -> None:
        self.used: list[int] = []
        self.smi: subprocess.Popen[str] | None = None
        if device.startswith("cuda"):
            query = ["nvidia-smi", f"--id={device[5:]}", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop-ms=5"]
            self.smi = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        assert self.smi is not None and self.smi.stdout is not None
        for line in self.smi.stdout:
            self.used.append(int(line) << 20)

    def end(self) -> int | None:
        if self.smi is None:
            return None
        self.smi.kill()
        self.smi.wait()
        return max(self.used, default=None)


def run(entry: str, folder: str, device: str, program: str | None) -> dict[str, Any]:
    if entry == RUST:
        command = [str(program), "load", "tensorhold", folder, device]
    else:
        command = [sys.executable, str(HERE / "load.py"), "--child", entry, folder, device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = done.stdout.strip().splitlines()
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {"error": done.stderr.strip()[-300:]}
    return {**result, "entry": entry}


def most_used_bytes(entry: str, folder: str, device: str, program: str | None) -> int | None:
    watch = Watch(device)
    run(entry, folder, device, program)
    return watch.end()


def context_bytes(device: str) -> int | None:
    """What a process with torch and a context takes of the device: the least that a load leaves beside its tensors."""
    watch = Watch(device)
    script = f"import torch; torch.zeros(1, device={device!r}); torch.cuda.synchronize(); import time; time.sleep(0.5)"
    if device.startswith("cuda"):
        subprocess.run([sys.executable, "-c", script], check=True)
    return watch.end()


def import_seconds() -> float:
    script = "import time; start = time.perf_counter(); import tensorhold; print(time.perf_counter() - start)"
    times = [float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout) for _ in range(11)]
    return statistics.median(times)


def measure(shape: str, entries: list[str], arguments: argparse.Namespace) -> None:
    folder = str(pathlib.Path(arguments.folder) / shape)
    if not os.path.exists(os.path.join(folder, "digests.json")):
        subprocess.run([arguments.program, "write", shape, folder, str(arguments.scale)], check=True)
    for file in pathlib.Path(folder).glob("*.safetensors"):
        file.read_bytes()
    context = context_bytes(arguments.device)
    results: dict[str, list[dict[str, Any]]] = {entry: [] for entry in entries}
    for _ in range(arguments.rounds):
        for entry in random.sample(entries, len(entries)):
            result = run(entry, folder, arguments.device, arguments.program)
            results[entry].append(result)
            print(json.dumps({"shape": shape, **result}), flush=True)
    most: dict[str, int | None] = {}
    for entry in entries:
        most[entry] = most_used_bytes(entry, folder, arguments.device, arguments.program) if entry != RUST else None
        print(json.dumps({"shape": shape, "entry": entry, "most_used_bytes": most[entry], "context_bytes": context}), flush=True)
    rust = median(results.get(RUST, []), "seconds")
    print(f"\n{shape}: medians of {arguments.rounds} rounds\n\n| loader | seconds | GB/s | tensors a second | of Rust's time | memory of the tensors' |")
    print("|---|---|---|---|---|---|")
    for entry, all_of_it in results.items():
        good = [result for result in all_of_it if result.get("ok")]
        if not good:
            print(f"| {entry} | {all_of_it[0].get('error') or all_of_it[0].get('detail')} | | | | |")
            continue
        seconds, nbytes, tensors = median(good, "seconds"), good[0]["bytes"], good[0]["tensors"]
        used = most[entry]
        memory = f"{(used - context) / nbytes:.3f}" if used is not None and context is not None else ""
        of_rust = f"{seconds / rust:.3f}" if rust else ""
        print(f"| {entry} | {seconds:.4f} | {nbytes / 1e9 / seconds:.2f} | {tensors / seconds:,.0f} | {of_rust} | {memory} |")


def median(results: list[dict[str, Any]], key: str) -> float:
    values = [result[key] for result in results if key in result]
    return statistics.median(values) if values else 0.0


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where checkpoints are, or are written to")
    parser.add_argument("--program", help="what `cargo bench --bench peers --no-run`, or scripts/gpu-build, built")
    parser.add_argument("--shapes", default="llama,many-small")
    parser.add_argument("--scale", type=float, default=1.0, help="of the checkpoints that are written")
    parser.add_argument("--entries", help="loaders by their names, instead of all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda:0")
    arguments = parser.parse_args()
    there = [*([RUST] if arguments.program else []), *OURS, *PEERS]
    entries = arguments.entries.split(",") if arguments.entries else there
    print(f"import tensorhold: {import_seconds() * 1e3:.1f} ms")
    for shape in arguments.shapes.split(","):
        measure(shape, entries, arguments)


if __name__ == "__main__":
    main()
