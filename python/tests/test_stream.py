"""Streams: tensors as their bytes land."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import Any

import pytest
from support import Spec, assert_all_back, spec, write, write_sparse

import tensorhold


def test_each_tensor_is_given_once_and_its_bytes_are_there(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    given = {name: tensor.to_host() for name, tensor in tensorhold.stream(checkpoint, device)}
    assert given == {name: tensor.data for name, tensor in few.items()}


def test_in_file_order_is_that_of_the_bytes(tmp_path: pathlib.Path, device: str) -> None:
    tensors = {f"t{n}": spec("U8", (200_000,), n) for n in range(60)}
    file = write(tmp_path / "t.safetensors", tensors)
    assert [name for name, _ in tensorhold.stream(file, device, in_file_order=True, threads=4)] == list(tensors)


def test_finish_gives_weights_of_all(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    stream = tensorhold.stream(checkpoint, device)
    next(stream)
    weights = stream.finish()
    assert list(weights) == list(few) and weights.report().tensors == 5
    for use in (stream.finish, lambda: next(stream)):
        with pytest.raises(tensorhold.ClosedError, match="begin another"):
            use()


def test_closing_stops_the_load_and_what_was_given_stays(tmp_path: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    file = write_sparse(tmp_path / "t.safetensors", 200, 4 << 20)
    with tensorhold.stream(file, device, pool=pool, threads=1, in_file_order=True) as stream:
        _, tensor = next(stream)
    pool.trim()
    assert pool.stats().live_bytes == 4 << 20 and tensor.to_host() == bytes(4 << 20)
    with pytest.raises(tensorhold.ClosedError):
        next(stream)
    stream.close()
    del tensor
    assert_all_back(pool)


def test_a_stream_that_is_dropped_gives_everything_back(tmp_path: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    file = write_sparse(tmp_path / "t.safetensors", 50, 4 << 20)
    told: list[int] = []
    for _ in range(3):
        stream = tensorhold.stream(file, device, pool=pool, progress=lambda progress: told.append(progress.done_bytes))
        next(stream)
        del stream
        assert_all_back(pool)
    assert 0 in told


def test_an_error_of_the_load_is_the_last_that_a_stream_gives(tmp_path: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    file = write(tmp_path / "t.safetensors", {"a": spec("U8", (1000,)), "b": spec("U8", (1000,))})

    def remove(progress: tensorhold.Progress) -> None:
        file.unlink(missing_ok=True)

    stream = tensorhold.stream(file, device, pool=pool, progress=remove)
    with pytest.raises(tensorhold.FileChangedError, match="removed"):
        list(stream)
    assert list(stream) == []
    assert_all_back(pool)


def test_what_a_callback_raises_comes_out_of_the_stream(checkpoint: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    def fail(progress: tensorhold.Progress) -> None:
        raise LookupError("of the callback")

    with pytest.raises(LookupError, match="of the callback"):
        list(tensorhold.stream(checkpoint, device, pool=pool, progress=fail))
    assert_all_back(pool)
    with pytest.raises(tensorhold.OptionError, match="True for a stream"):
        tensorhold.stream(checkpoint, device, progress=True)


@pytest.mark.parametrize("how", ["close", "finish"])
def test_a_callback_may_end_the_stream_that_calls_it(tmp_path: pathlib.Path, device: str, pool: tensorhold.Pool, how: str) -> None:
    file = write_sparse(tmp_path / "t.safetensors", 50, 4 << 20)
    streams: list[tensorhold.Stream] = []

    def end(progress: tensorhold.Progress) -> None:
        if streams:
            getattr(streams.pop(), how)()

    stream = tensorhold.stream(file, device, pool=pool, threads=1, progress=end)
    streams.append(stream)
    with pytest.raises(tensorhold.ClosedError):
        list(stream)
    del stream
    ended = time.monotonic() + 60
    while pool.stats().live_bytes and time.monotonic() < ended:
        pool.trim()
    assert_all_back(pool)


def test_a_callback_that_asks_its_own_stream_for_a_tensor_is_at_the_end(tmp_path: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    file = write_sparse(tmp_path / "t.safetensors", 50, 4 << 20)
    streams: list[tensorhold.Stream] = []
    found: list[object] = []

    def ask(progress: tensorhold.Progress) -> None:
        if streams:
            found.append(next(streams.pop(), None))

    stream = tensorhold.stream(file, device, pool=pool, threads=1, progress=ask)
    streams.append(stream)
    with pytest.raises(tensorhold.CancelledError):
        list(stream)
    assert found == [None]
    del stream
    assert_all_back(pool)


@pytest.mark.parametrize("how", ["close", "__next__"])
def test_a_callback_that_asks_its_own_batches_is_at_the_end(tmp_path: pathlib.Path, device: str, pool: tensorhold.Pool, how: str) -> None:
    file = write_sparse(tmp_path / "t.safetensors", 50, 4 << 20)
    made: list[Any] = []
    at_end = threading.Event()

    def ask(progress: tensorhold.Progress) -> None:
        if made and progress.done_bytes:
            batches = made.pop()
            try:
                getattr(batches, how)()
            except StopIteration:
                pass
            at_end.set()

    batches = tensorhold._core.batches(file, device, pool=pool, threads=1, max_batch_bytes=100 << 20, progress=ask)
    made.append(batches)
    try:
        for weights in batches:
            del weights
    except (tensorhold.ClosedError, tensorhold.CancelledError):
        pass
    assert at_end.wait(60)
    del batches
    # Its thread ends by itself.
    ended = time.monotonic() + 60
    while pool.stats().live_bytes and time.monotonic() < ended:
        pool.trim()
    assert_all_back(pool)
