"""Who keeps memory: each order of closing and dropping, on any thread."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from drop_in import all_goes_back, files, place, shards, tensors  # noqa: F401
from support import Spec, raw

from tensorhold.fastsafetensors import (
    ParallelLoader,
    SafeTensorsFileLoader,
    SingleGroup,
    live_allocation_bytes,
    live_allocation_count,
)
from tensorhold.fastsafetensors.file_buffer import FilesBufferOnDevice


def loaded(place: str, files: list[str], borrowed_tensors: bool = False) -> tuple[SafeTensorsFileLoader, FilesBufferOnDevice]:
    loader = SafeTensorsFileLoader(SingleGroup(), place)
    loader.add_filenames({0: files})
    return loader, loader.copy_files_to_device(borrowed_tensors=borrowed_tensors)


def is_all_back() -> bool:
    return (live_allocation_count(), live_allocation_bytes()) == (0, 0)


def assert_valid(held: dict[str, object], data: bytes) -> None:
    """Tensors still have the end of the data."""
    for left in held.values():
        if isinstance(left, torch.Tensor):
            assert raw(left) == data[-left.numel() :]


@pytest.mark.parametrize("order", list(itertools.permutations(["buffer", "loader", "tensor", "view"])))
def test_every_order_of_dropping_gives_everything_back(order: tuple[str, ...], place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    loader, fb = loaded(place, files)
    tensor = fb.get_tensor("c.bytes")
    held: dict[str, object] = {"buffer": fb, "loader": loader, "tensor": tensor, "view": tensor[7:]}
    del fb, loader, tensor
    for name in order:
        assert not is_all_back()
        gone = held.pop(name)
        if isinstance(gone, (FilesBufferOnDevice, SafeTensorsFileLoader)):
            gone.close()
        del gone
        assert_valid(held, tensors["c.bytes"].data)
        if not {"buffer", "tensor", "view"} & set(held):
            break
    held.clear()
    assert is_all_back()


def test_a_tensor_outlives_its_buffer_and_the_last_one_gives_all_back(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    loader, fb = loaded(place, files)
    kept = {name: fb.get_tensor(name) for name in tensors}
    fb.close()
    loader.close()
    assert {name: raw(tensor) for name, tensor in kept.items()} == {name: tensor.data for name, tensor in tensors.items()}
    view = kept["a.weight"][3]
    kept.clear()
    assert not is_all_back()
    assert raw(view) == tensors["a.weight"].data[96:128]
    del view
    assert is_all_back()


def test_an_engine_that_never_closes_leaves_nothing(place: str, files: list[str]) -> None:
    loader, fb = loaded(place, files)
    tensors = [fb.get_tensor(name) for name in fb.key_to_rank_lidx]
    loader.close()
    del fb
    assert not is_all_back()
    del tensors
    assert is_all_back()


def test_tensors_in_a_cycle_go_with_the_collector(place: str, files: list[str]) -> None:
    loader, fb = loaded(place, files)
    cycle: list[object] = [fb.get_tensor("a.weight")]
    cycle.append(cycle)
    fb.close()
    del cycle
    gc.collect()
    assert is_all_back()


def test_threads_drop_tensors_as_they_like(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    loader, fb = loaded(place, files)
    start = threading.Barrier(9)
    failed: list[BaseException] = []

    def use() -> None:
        try:
            mine = {name: fb.get_tensor(name) for name in tensors}
            start.wait()
            for name, tensor in mine.items():
                assert raw(tensor[...]) == tensors[name].data
            mine.clear()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    fb.close()
    loader.close()
    for thread in threads:
        thread.join()
    assert not failed
    assert is_all_back()


def test_threads_load_at_once(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    found: list[dict[str, bytes]] = []

    def load() -> None:
        parallel = ParallelLoader(SingleGroup(), files, use_tqdm_on_load=False, device=place)
        found.append({name: raw(tensor) for name, tensor in parallel.iterate_weights()})
        parallel.close()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{name: tensor.data for name, tensor in tensors.items()}] * 4
    assert is_all_back()


def test_borrowed_tensors_do_not_keep_memory(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    loader, fb = loaded(place, files, borrowed_tensors=True)
    tensor, again = fb.get_tensor("c.bytes"), fb.get_tensor("c.bytes")
    copy = tensor.clone()
    assert raw(tensor) == tensors["c.bytes"].data
    fb.close()
    assert is_all_back()
    # They are empty, not dangling.
    assert (tensor.numel(), again.numel()) == (0, 0)
    assert raw(copy) == tensors["c.bytes"].data


def test_a_view_of_a_borrowed_tensor_stays_valid_and_keeps_it(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    loader, fb = loaded(place, files, borrowed_tensors=True)
    view = fb.get_tensor("c.bytes")[5:]
    fb.close()
    assert raw(view) == tensors["c.bytes"].data[5:]
    assert not is_all_back()
    del view
    assert is_all_back()


def test_returned_tensors_may_be_written_to(place: str, files: list[str]) -> None:
    loader, fb = loaded(place, files)
    tensor = fb.get_tensor("a.weight")
    tensor.fill_(2)
    assert torch.equal(tensor, torch.full_like(tensor, 2))
    fb.close()


def closing(fb: FilesBufferOnDevice, loader: SafeTensorsFileLoader) -> list[Callable[[], None]]:
    return [fb.close, loader.close]


@pytest.mark.parametrize("buffer_first", [True, False])
def test_buffer_and_loader_close_in_either_order(buffer_first: bool, place: str, files: list[str]) -> None:
    loader, fb = loaded(place, files)
    for close in closing(fb, loader) if buffer_first else reversed(closing(fb, loader)):
        close()
    assert is_all_back()


def test_loads_within_a_budget_leave_nothing_behind_if_no_one_asks_what_is_allocated(place: str, files: list[str]) -> None:
    made = []
    for _ in range(5):
        loader = ParallelLoader(SingleGroup(), files, use_tqdm_on_load=False, device=place, device_memory_budget=64 << 20)
        made.append(weakref.ref(loader))
        assert len(list(loader.iterate_weights())) == 9
        loader.close()
        del loader
    gc.collect()
    assert len([loader for loader in made if loader() is not None]) <= 1
