"""Jobs of several ranks: the call sequences of engines give every rank the same bytes, over `torch.distributed` and over groups of one's own."""

from __future__ import annotations

import hashlib
import json
import pathlib
import queue
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from drop_in import all_goes_back, files, place, shards, tensors  # noqa: F401
from support import Spec, raw

import tensorhold
from tensorhold.fastsafetensors import ParallelLoader, SafeTensorsFileLoader, fastsafe_open
from tensorhold.groups import TorchGroup, check_group

TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "U8": "uint8", "BOOL": "bool"}
HERE = pathlib.Path(__file__).parent


def run_ranks(size: int, device: str, folder: pathlib.Path, files: list[str]) -> list[dict[str, Any]]:
    """What each rank found."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "rank.py"), str(rank), str(size), device, str(folder), *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(said)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_engines_get_the_same_bytes_on_every_rank(place: str, size: int, files: list[str], tensors: dict[str, Spec], tmp_path: pathlib.Path) -> None:
    if place != "cpu" and torch.cuda.device_count() < size:
        pytest.skip(f"there are {torch.cuda.device_count()} CUDA devices, for {size} ranks")
    expected = [
        [name, f"torch.{TORCH[tensor.dtype]}", list(tensor.shape), hashlib.sha256(tensor.data).hexdigest()] for name, tensor in tensors.items()
    ]
    for rank, found in enumerate(run_ranks(size, "cpu" if place == "cpu" else "cuda", tmp_path, files)):
        for given in (*found["vllm"], found["small batches"], found["budget"], found["borrowed"], found["all local"], found["sglang"]):
            assert given == expected, f"rank {rank}"
        assert found["parts"] == parts_of(rank, size)
        alone = "ValueError" if size == 1 else "RuntimeError"
        assert found["mistakes"] == ["ValueError", "IndexError", "ValueError", "TensorError", alone, "BudgetInfeasibleError", "ValueError", "ValueError"]
        assert found["left"] == [0, 0]
        for of in found.get("subgroups", []):
            assert of["pipelines"] == [expected] * 6, f"rank {rank}"
            assert of["parts"] == [parts_of(of["rank"], of["size"])] * 3, f"rank {rank}"
            assert of["moves"] == [moves_of(of["rank"], of["size"])] * 2, f"rank {rank}"
            assert "outside the group" in of["refused"]


def parts_of(rank: int, size: int) -> dict[str, list[int]]:
    """The shapes of a rank's parts."""
    heights = [len(part) for part in torch.arange(12).chunk(size)]
    widths = [len(part) for part in torch.arange(6).chunk(size)] + [0] * size
    return {"a.weight": [heights[rank], 8], "b.weight": [8, 4, widths[rank]], "a.scalar": []}


def moves_of(rank: int, size: int) -> list[Any]:
    """What a rank has of broadcast, scatter and receive."""
    return [[[float(value)] * 2] * 3 if value is not None else None for value in (size - 1, 10 + rank, 20 if rank == 1 else None)]


class ThreadGroup:
    """A rank of a job whose ranks are threads, with the methods that a group of one's own has."""

    PATIENCE = 60.0

    def __init__(self, rank: int, queues: list[list[queue.Queue[bytes]]]) -> None:
        self._rank, self._queues = rank, queues

    @classmethod
    def all(cls, size: int) -> list[ThreadGroup]:
        queues: list[list[queue.Queue[bytes]]] = [[queue.Queue() for _ in range(size)] for _ in range(size)]
        return [cls(rank, queues) for rank in range(size)]

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return len(self._queues)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size()) if rank != self._rank]

    def barrier(self) -> None:
        for other in self._others():
            self._queues[self._rank][other].put(b"")
        for other in self._others():
            self._queues[other][self._rank].get(timeout=self.PATIENCE)

    def broadcast(self, payload: Any, root: int) -> None:
        if root != self._rank:
            return self.recv(payload, root)
        for other in self._others():
            self.send(payload, other)

    def scatter(self, payloads: list[Any]) -> None:
        for other in self._others():
            self.send(payloads[other], other)

    def send(self, payload: Any, to: int) -> None:
        self._queues[self._rank][to].put(raw(torch.from_dlpack(payload)))

    def recv(self, payload: Any, source: int) -> None:
        received = self._queues[source][self._rank].get(timeout=self.PATIENCE)
        assert len(received) == payload.nbytes
        if received:
            torch.from_dlpack(payload).copy_(torch.frombuffer(bytearray(received), dtype=torch.uint8))


def in_threads(groups: list[Any], work: Any) -> list[Any]:
    """What each rank's thread returns, or raises."""
    results: list[Any] = [None] * len(groups)

    def rank(number: int) -> None:
        try:
            results[number] = work(groups[number])
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_group_of_ones_own_moves_tensors_too(place: str, size: int, files: list[str], tensors: dict[str, Spec]) -> None:
    def work(group: ThreadGroup) -> list[tuple[str, bytes]]:
        check_group(group, place)
        loader = ParallelLoader(group, files, use_tqdm_on_load=False, device=place)
        found = [(name, raw(tensor)) for name, tensor in loader.iterate_weights()]
        loader.close()
        with fastsafe_open(files, pg=group, device=place) as opened:
            assert [(name, raw(opened.get_tensor(name))) for name in opened.keys()] == sorted(found, key=lambda item: opened.keys().index(item[0]))
        return found

    expected = [(name, tensor.data) for name, tensor in tensors.items()]
    assert in_threads(ThreadGroup.all(size), work) == [expected] * size


def test_what_a_group_keeps_stays_valid(files: list[str], tensors: dict[str, Spec]) -> None:
    class Keeping(ThreadGroup):
        def send(self, payload: Any, to: int) -> None:
            kept.append(torch.from_dlpack(payload))
            super().send(payload, to)

    kept: list[torch.Tensor] = []
    queues = ThreadGroup.all(2)[0]._queues

    def work(group: ThreadGroup) -> bytes:
        with fastsafe_open(files[:1], pg=group) as opened:
            return raw(opened.get_tensor("a.weight"))

    assert in_threads([Keeping(0, queues), ThreadGroup(1, queues)], work) == [tensors["a.weight"].data] * 2
    assert raw(kept[-1]) == tensors["a.weight"].data


def test_what_a_group_raises_is_raised(files: list[str]) -> None:
    class Broken(ThreadGroup):
        def broadcast(self, payload: Any, root: int) -> None:
            raise ZeroDivisionError("the link is down")

    group = Broken(0, ThreadGroup.all(2)[0]._queues)
    with pytest.raises(ZeroDivisionError, match="the link is down"):
        fastsafe_open({0: files}, pg=group)
    loader = ParallelLoader(group, files, use_tqdm_on_load=False)
    with pytest.raises(ZeroDivisionError, match="the link is down"):
        next(loader.iterate_weights())
    loader.close()


def test_a_rank_whose_load_fails_stops_the_others_with_it(files: list[str]) -> None:
    added = threading.Barrier(2)

    def work(group: ThreadGroup) -> None:
        loader = SafeTensorsFileLoader(group)
        loader.add_filenames({0: files[:1], 1: files[1:]})
        if added.wait() == 0:
            pathlib.Path(files[2]).unlink()
        added.wait()
        loader.copy_files_to_device()

    first, second = in_threads(ThreadGroup.all(2), work)
    assert isinstance(second, FileNotFoundError)
    assert isinstance(first, tensorhold.GroupError) and "rank 1 has failed" in str(first)


def test_groups_that_break_a_promise_are_found_out() -> None:
    class Garbling(ThreadGroup):
        # The rank that finds it out leaves the other waiting.
        PATIENCE = 1.0

        def send(self, payload: Any, to: int) -> None:
            data = bytearray(raw(torch.from_dlpack(payload)))
            if len(data) > 3:
                data[3] ^= 1
            self._queues[self._rank][to].put(bytes(data))

    queues = ThreadGroup.all(2)[0]._queues
    errors = in_threads([Garbling(0, queues), Garbling(1, queues)], check_group)
    assert any(isinstance(error, tensorhold.GroupError) and "byte 3 differs" in str(error) for error in errors)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        check_group(ThreadGroup(2, queues))


def test_objects_that_are_no_groups_are_refused(files: list[str]) -> None:
    class Sized:
        def size(self) -> int:
            return 2

        def rank(self) -> int:
            return 0

    loader = SafeTensorsFileLoader(Sized())
    loader.add_filenames({0: files})
    with pytest.raises(TypeError, match="barrier, broadcast"):
        loader.copy_files_to_device()
    with pytest.raises(ValueError, match="init_process_group"):
        TorchGroup()
