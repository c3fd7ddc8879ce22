"""Who keeps memory alive: every order of letting go, from several threads, in reference cycles, and under the garbage collector."""

from __future__ import annotations

import gc
import itertools
import pathlib
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import Spec, assert_all_back, free_bytes, python, raw, spec, write

import tensorhold

LARGE = 1_200_000


def parts(checkpoint: pathlib.Path, device: str, pool: tensorhold.Pool, framework: str) -> dict[str, Any]:
    """All that can hold the tensor `large`."""
    weights = tensorhold.load(checkpoint, device, pool=pool)
    tensor = weights["large"]
    taken = tensor.to(framework)
    return {"weights": weights, "tensor": tensor, "narrowed": tensor.narrow(0, 10, 20), "taken": taken, "view": taken[5:7]}


def let_go(part: Any) -> None:
    if isinstance(part, tensorhold.Weights):
        part.close()


def test_every_order_of_letting_go_keeps_bytes_to_the_last_and_gives_all_back(
    checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str
) -> None:
    if framework == "jax":
        pytest.skip("a part of an array of JAX is a copy")
    data = few["large"].data
    before: int | None = None
    pool = tensorhold.Pool(device)
    for number, order in enumerate(itertools.permutations(["weights", "tensor", "narrowed", "taken", "view"])):
        held = parts(checkpoint, device, pool, framework)
        for name in order:
            let_go(held.pop(name))
            if "taken" in held:
                assert raw(held["taken"]) == data
            if "view" in held:
                assert raw(held["view"]) == data[20_000:28_000]
            if "narrowed" in held:
                assert held["narrowed"].to_host() == data[40_000:120_000]
            if held and "weights" not in held:
                assert pool.stats().live_bytes == LARGE
        assert_all_back(pool)
        if number == 4:
            before = free_bytes(device)
    assert free_bytes(device) == before


def test_a_dict_keeps_only_what_is_left_in_it(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str) -> None:
    pool = tensorhold.Pool(device)
    loaded = tensorhold.load_file(checkpoint, device, framework, pool=pool)
    gc.collect()
    pool.trim()
    assert pool.stats().live_bytes == sum(len(tensor.data) for tensor in few.values())
    del loaded["large"], loaded["ids"]
    gc.collect()
    pool.trim()
    assert pool.stats().live_bytes == len(few["matrix"].data) + len(few["scalar"].data)
    assert raw(loaded["matrix"]) == few["matrix"].data
    loaded.clear()
    gc.collect()
    assert_all_back(pool)


def test_closing_says_what_is_held_by_its_name(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str) -> None:
    weights = tensorhold.load(checkpoint, device)
    held = weights["matrix"].to(framework)
    narrowed = weights["ids"].narrow(0, 1, 2)
    closed = weights.close()
    assert {(one.name, one.bytes) for one in closed.held} == {("matrix", 60), ("ids", 28)}
    assert closed.released_bytes == LARGE + 4 and closed.pinned_bytes >= 88
    assert raw(held) == few["matrix"].data and narrowed.to_host() == few["ids"].data[4:12]


def test_closed_weights_are_used_no_more(checkpoint: pathlib.Path, device: str) -> None:
    with tensorhold.load(checkpoint, device) as weights:
        assert not weights.closed
    assert weights.closed and repr(weights) == "Weights(closed)"
    uses: list[Callable[[], object]] = [
        weights.close, weights.keys, weights.report, weights.metadata, weights.infos, weights.files, weights.pool_stats,
        weights.__enter__, lambda: weights["matrix"], lambda: len(weights), lambda: list(weights), lambda: "matrix" in weights,
        lambda: weights.to("np"), lambda: weights.info("matrix"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(tensorhold.ClosedError, match="have been closed"):
            use()
    with weights_closed_inside(checkpoint, device):
        pass


def weights_closed_inside(checkpoint: pathlib.Path, device: str) -> Any:
    """Leaving the block of weights that were closed in it is fine."""
    weights = tensorhold.load(checkpoint, device)

    class Inside:
        def __enter__(self) -> None:
            weights.__enter__()
            weights.close()

        def __exit__(self, *error: object) -> None:
            weights.__exit__(None, None, None)

    return Inside()


def test_drops_on_many_threads_give_everything_back(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str) -> None:
    pool = tensorhold.Pool(device)
    names = [name for name in few if few[name].data]
    for _ in range(10):
        weights = tensorhold.load(checkpoint, device, pool=pool)
        boxes = [[weights[name].to(framework)] for name in names for _ in range(4)]
        tensors = [[weights[name]] for name in names]
        barrier = threading.Barrier(8)

        def drop(mine: list[list[Any]]) -> None:
            barrier.wait()
            for box in mine:
                box.clear()

        with ThreadPoolExecutor(8) as threads:
            everything = boxes + tensors + [[weights]]
            del weights
            list(threads.map(drop, [everything[n::8] for n in range(8)]))
        gc.collect()
        assert_all_back(pool)


def test_what_is_in_reference_cycles_goes_with_the_garbage(checkpoint: pathlib.Path, device: str, framework: str) -> None:
    class Node:
        pass

    pool = tensorhold.Pool(device)
    for _ in range(3):
        node = Node()
        node.weights = tensorhold.load(checkpoint, device, pool=pool)  # type: ignore[attr-defined]
        node.taken = node.weights["large"].to(framework)  # type: ignore[attr-defined]
        node.itself = node  # type: ignore[attr-defined]
        del node
    gc.collect()
    assert_all_back(pool)


def test_tensors_outlive_the_pool_object_and_the_open_file(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str) -> None:
    pool = tensorhold.Pool(device)
    with tensorhold.safe_open(checkpoint, framework, device, pool=pool) as f:
        read, part = f.get_tensor("matrix"), f.get_slice("matrix")[1:]
        streamed = dict(iter(f))["matrix"]
        assert raw(f["matrix"]) == raw(dict(f)["matrix"]) == few["matrix"].data
    del pool, f
    checkpoint.unlink()
    gc.collect()
    assert raw(read) == raw(streamed) == few["matrix"].data and raw(part) == few["matrix"].data[20:]


@pytest.mark.parametrize("how", ["of its own", "in a pool"])
def test_a_tensors_memory_goes_to_the_device_though_its_neighbours_live(tmp_path: pathlib.Path, torch_device: str, how: str) -> None:
    if torch_device == "pinned":
        with pytest.raises(tensorhold.OptionError, match="in parts"):
            tensorhold.Pool(torch_device, parts=True)
        assert not tensorhold.Pool(torch_device, parts=None).parts
        return
    pool = tensorhold.Pool(torch_device, parts=True) if how == "in a pool" else None
    data = spec("U8", (64 << 20,))
    file = write(tmp_path / "big.safetensors", dict.fromkeys("abc", data))
    loaded = tensorhold.load_file(file, torch_device, pool=pool)
    before = free_bytes(torch_device) or -resident_bytes()
    del loaded["b"]
    gc.collect()
    # A pool of the load's own gives back what was dropped within 10 ms.
    for _ in range(100):
        if pool:
            pool.trim()
        after = free_bytes(torch_device) or -resident_bytes()
        if after - before >= 60 << 20:
            break
        threading.Event().wait(0.01)
    assert after - before >= 60 << 20
    assert raw(loaded["a"]) == raw(loaded["c"]) == data.data


def resident_bytes() -> int:
    """Memory of this process that is in use, by the system."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("keeps", ["a global", "an atexit function", "a cycle", "a thread", "a stream under way"])
def test_the_interpreter_may_end_while_tensors_are_kept(checkpoint: pathlib.Path, device: str, keeps: str) -> None:
    script = f"""
import atexit, sys, threading, tensorhold
file, device = sys.argv[1:]
weights = tensorhold.load(file, device)
tensor = weights["large"]
kept = [tensor, tensor.__dlpack__()]
try:
    kept += [tensor.to("torch"), tensor.to("np") if device == "cpu" else None]
except tensorhold.FrameworkError:
    pass
keeps = {keeps!r}
if keeps == "an atexit function":
    atexit.register(lambda kept=kept: print(len(kept[0].to_host())))
    del kept, tensor, weights
elif keeps == "a cycle":
    kept.append(kept)
    del kept, tensor, weights
elif keeps == "a thread":
    threading.Thread(target=lambda kept=kept: threading.Event().wait(), daemon=True).start()
elif keeps == "a stream under way":
    stream = tensorhold.stream(file, device, progress=lambda progress: None)
    next(stream)
"""
    done = python(script, str(checkpoint), device)
    assert done.stderr == ""


COLLECTED = """
import faulthandler, gc, sys, tensorhold
faulthandler.dump_traceback_later(60, exit=True)

class Cycle:
    def __init__(self, weights):
        self.itself, self.weights = self, weights

    def __del__(self):
        self.weights.close()

def missing(weights):
    try:
        weights.info("missing")
    except KeyError:
        pass

for ask in (missing, tensorhold.Weights.keys, tensorhold.Weights.infos, tensorhold.Weights.files, tensorhold.Weights.metadata):
    weights = tensorhold.load(sys.argv[1])
    gc.disable()
    gc.set_threshold(1)
    Cycle(weights)
    gc.enable()
    try:
        ask(weights)
    except tensorhold.ClosedError:
        pass
    gc.set_threshold(700)
    gc.collect()
    assert weights.closed
"""


def test_weights_may_be_closed_by_what_is_collected_while_they_are_asked(checkpoint: pathlib.Path) -> None:
    python(COLLECTED, str(checkpoint))
