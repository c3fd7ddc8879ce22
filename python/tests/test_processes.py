"""Signals, forks, threads and ends of processes."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import Spec, assert_all_back, free_bytes, import_for, python, raw, write_sparse

import tensorhold


def test_importing_takes_no_framework_and_at_most_30_ms() -> None:
    script = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import tensorhold
print(time.perf_counter() - start)
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert not new & {"torch", "numpy", "jax", "cupy", "tqdm", "typing_extensions"}, new
"""
    # The best of some: others are working on the machine, too.
    assert min(float(python(script).stdout) for _ in range(5)) <= 0.030


CTRL_C = """
import signal, sys, tensorhold
file, device, how = sys.argv[1:]
pool = tensorhold.Pool(device)
if device != "cpu":
    # What a first load makes and keeps.
    tensorhold.load(file, device, select=["t0"])
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.03)
try:
    if how == "load":
        tensorhold.load(file, device, pool=pool, threads=1)
    elif how == "stream":
        for name, tensor in tensorhold.stream(file, device, pool=pool, threads=1, in_file_order=True):
            pass
    elif how == "finish":
        tensorhold.stream(file, device, pool=pool, threads=1).finish()
    elif how == "batches":
        for weights in tensorhold._core.batches(file, device, pool=pool, threads=1, max_batch_bytes=1 << 40):
            pass
    else:
        tensorhold.load(file, device, pool=pool, threads=1, progress=lambda progress: None)
except KeyboardInterrupt as error:
    name = tensor = None
    del error
    pool.trim()
    stats = pool.stats()
    assert (stats.live_bytes, stats.reserved_bytes) == (0, 0), stats
    assert len(tensorhold.load(file, device, pool=pool, select=["t0"])) == 1
else:
    sys.exit("the load went on")
"""


@pytest.mark.parametrize("how", ["load", "stream", "finish", "batches", "with a callback"])
def test_ctrl_c_stops_a_load_and_frees_everything(tmp_path: pathlib.Path, device: str, how: str) -> None:
    python(CTRL_C, str(write_sparse(tmp_path / "t.safetensors", 300, 16 << 20)), device, how)


def test_a_process_killed_during_a_load_leaves_nothing_behind(tmp_path: pathlib.Path, device: str) -> None:
    file = write_sparse(tmp_path / "t.safetensors", 20, 4 << 20)
    script = """
import signal, sys, tensorhold
def begun(progress):
    if progress.done_bytes:
        print("begun", flush=True)
        signal.pause()
tensorhold.load(sys.argv[1], sys.argv[2], progress=begun)
"""
    if device.startswith("cuda"):
        import_for("torch", device)
        free_bytes(device)
    before, files, shared = free_bytes(device), sorted(tmp_path.iterdir()), sorted(os.listdir("/dev/shm"))
    child = subprocess.Popen([sys.executable, "-c", script, str(file), device], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert sorted(tmp_path.iterdir()) == files and sorted(os.listdir("/dev/shm")) == shared
    # The driver takes a dead process's context apart in its own time.
    deadline = time.monotonic() + 30
    while before is not None and (free := free_bytes(device)) is not None and free < before:
        assert time.monotonic() < deadline, f"{free} bytes are free, and {before} were"
    assert len(tensorhold.load(file, device)) == 20


FORK = """
import os, sys, tensorhold
file, device = sys.argv[1:]
def child(use):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            use()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
def refuses(use):
    try:
        use()
    except tensorhold.ForkError as error:
        assert "spawn" in str(error) and isinstance(error, RuntimeError)
    else:
        raise AssertionError("it was not refused")
# Before anything was loaded: as in a process of its own.
child(lambda: tensorhold.load(file, "cpu").close())
child(lambda: tensorhold.load(file, device)["matrix"].to_host())
pool = tensorhold.Pool(device)
weights = tensorhold.load(file, device, pool=pool)
tensor, capsule = weights["matrix"], weights["matrix"].__dlpack__()
stream = tensorhold.stream(file, device)
data = tensor.to_host()
opened = tensorhold.safe_open(file, "np") if device == "cpu" else None
def in_child():
    global tensor, capsule, weights
    refuses(weights.close)
    refuses(pool.stats)
    refuses(pool.trim)
    refuses(lambda: next(stream))
    refuses(stream.finish)
    refuses(lambda: tensorhold.load(file, device, pool=pool))
    if device.startswith("cuda"):
        refuses(tensor.to_host)
    else:
        assert tensor.to_host() == data and weights["matrix"].to_host() == data
    if device == "cpu":
        refuses(lambda: opened.get_tensor("matrix"))
        assert len(tensorhold.load_file(file, framework="np")) == 5
    else:
        refuses(lambda: tensorhold.load(file, device))
    assert tensorhold.load(file, "cpu")["matrix"].to_host() == data
    # Drops do nothing there.
    del tensor, capsule, weights
child(in_child)
assert weights["matrix"].to_host() == data
stream.close()
del tensor, capsule
assert weights.close().held == []
pool.trim()
assert pool.stats().reserved_bytes == 0
"""


def test_a_forked_child_may_load_and_read_and_is_refused_what_would_hang(checkpoint: pathlib.Path, device: str) -> None:
    import_for("numpy", "cpu")
    python(FORK, str(checkpoint), device)


def test_many_threads_load_at_once(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str) -> None:
    pool = tensorhold.Pool(device)
    barrier = threading.Barrier(8)

    def load(_: int) -> None:
        barrier.wait()
        for _ in range(5):
            loaded = tensorhold.load_file(checkpoint, device, framework, pool=pool)
            assert all(raw(loaded[name]) == few[name].data for name in few)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(load, range(8)))
    assert_all_back(pool)


def test_one_open_checkpoint_serves_many_threads(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str) -> None:
    with tensorhold.safe_open(checkpoint, framework, device) as f, ThreadPoolExecutor(8) as threads:
        for name, tensor in threads.map(lambda name: (name, f.get_tensor(name)), list(few) * 20):
            assert raw(tensor) == few[name].data


def test_weights_may_be_closed_while_others_use_them(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    for _ in range(20):
        weights = tensorhold.load(checkpoint, device)
        barrier = threading.Barrier(5)

        def use(number: int) -> None:
            barrier.wait()
            if number == 0:
                weights.close()
                return
            try:
                for name in few:
                    assert weights[name].to_host() == few[name].data
            except tensorhold.ClosedError:
                pass

        with ThreadPoolExecutor(5) as threads:
            list(threads.map(use, range(5)))
        assert weights.closed


def test_other_threads_run_while_one_loads(tmp_path: pathlib.Path) -> None:
    file = write_sparse(tmp_path / "t.safetensors", 100, 4 << 20)
    begun, seen = threading.Event(), threading.Event()
    waited: list[bool] = []

    def watch() -> None:
        begun.wait()
        seen.set()

    def wait(progress: tensorhold.Progress) -> None:
        begun.set()
        waited.append(seen.wait(60))

    other = threading.Thread(target=watch)
    other.start()
    tensorhold.load(file, progress=wait)
    other.join()
    assert waited and all(waited)
