"""The DLPack protocol: capsules of both structures, arguments, and who frees what."""

from __future__ import annotations

import gc
import pathlib

import pytest
from support import Spec, assert_all_back, import_for, numpy_takes_flags, raw, spec, write

import tensorhold

CPU, CUDA = 1, 2


def kind(capsule: object) -> str:
    return repr(capsule).split('"')[1]


def test_the_structure_is_the_newest_that_the_consumer_knows(checkpoint: pathlib.Path, device: str) -> None:
    tensor = tensorhold.load(checkpoint, device)["matrix"]
    assert kind(tensor.__dlpack__()) == "dltensor"
    assert kind(tensor.__dlpack__(max_version=(0, 8))) == "dltensor"
    assert kind(tensor.__dlpack__(max_version=(1, 0))) == "dltensor_versioned"
    assert kind(tensor.__dlpack__(max_version=(7, 3))) == "dltensor_versioned"


def test_devices_have_their_numbers(checkpoint: pathlib.Path, device: str) -> None:
    tensor = tensorhold.load(checkpoint, device)["matrix"]
    expected = {"cpu": (CPU, 0), "pinned": (CPU, 0), "cuda:0": (CUDA, 0)}
    assert tensor.__dlpack_device__() == expected[device]


def test_frameworks_take_tensors_by_the_protocol_alone(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str) -> None:
    import importlib

    module = importlib.import_module("jax.dlpack" if framework == "jax" else framework)
    weights = tensorhold.load(checkpoint, device)
    for name in few:
        taken = module.from_dlpack(weights[name])
        assert tuple(taken.shape) == few[name].shape and raw(taken) == few[name].data


def test_no_bytes_are_copied(checkpoint: pathlib.Path, torch_device: str) -> None:
    tensor = tensorhold.load(checkpoint, torch_device)["matrix"]
    assert tensor.torch().data_ptr() == tensor.data_ptr
    part = tensor.narrow(0, 1, 2)
    assert part.torch().data_ptr() == tensor.data_ptr + 20


def test_a_capsule_is_consumed_once(checkpoint: pathlib.Path, torch_device: str, few: dict[str, Spec]) -> None:
    import torch

    tensor = tensorhold.load(checkpoint, torch_device)["matrix"]
    for version in (None, (1, 0)):
        capsule = tensor.__dlpack__(max_version=version)
        taken = torch.from_dlpack(capsule)
        with pytest.raises(RuntimeError):
            torch.from_dlpack(capsule)
        assert raw(taken) == few["matrix"].data


def test_a_capsule_that_no_one_consumes_gives_its_tensor_back(checkpoint: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    for version in (None, (1, 0)):
        weights = tensorhold.load(checkpoint, device, pool=pool)
        capsule = weights["large"].__dlpack__(max_version=version)
        closed = weights.close()
        assert [held.name for held in closed.held] == ["large"]
        assert pool.stats().live_bytes == 1_200_000
        del capsule
        assert_all_back(pool)


def test_a_consumed_capsule_leaves_the_tensor_to_its_consumer(checkpoint: pathlib.Path, torch_device: str) -> None:
    import torch

    pool = tensorhold.Pool(torch_device)
    weights = tensorhold.load(checkpoint, torch_device, pool=pool)
    capsule = weights["large"].__dlpack__()
    taken = torch.from_dlpack(capsule)
    weights.close()
    del capsule
    gc.collect()
    pool.trim()
    assert pool.stats().live_bytes == 1_200_000
    del taken
    assert_all_back(pool)


def test_streams_are_named_in_the_way_of_the_protocol(checkpoint: pathlib.Path, device: str) -> None:
    tensor = tensorhold.load(checkpoint, device)["matrix"]
    if device != "cuda:0":
        tensor.__dlpack__(stream=None)
        with pytest.raises(BufferError, match="no stream"):
            tensor.__dlpack__(stream=1)
        return
    for stream in (None, -1, 1, 2):
        tensor.__dlpack__(stream=stream)
    wrong: list[object] = [0, -2, "default"]
    for nonsense in wrong:
        with pytest.raises(ValueError):
            tensor.__dlpack__(stream=nonsense)


def test_a_copy_is_made_if_it_is_asked_for(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    import_for("numpy", "cpu")
    import numpy

    if not numpy_takes_flags():
        pytest.skip("NumPy before 2.1 asks for no copies")
    weights = tensorhold.load(checkpoint, device)
    tensor = weights["matrix"]
    on_host = device != "cuda:0"
    copied = numpy.from_dlpack(tensor, device="cpu", copy=True)
    assert raw(copied) == few["matrix"].data and copied.ctypes.data != tensor.data_ptr
    copied[0, 0] = 7.0
    assert tensor.to_host() == few["matrix"].data
    if on_host:
        same = numpy.from_dlpack(tensor, copy=False)
        assert same.ctypes.data == tensor.data_ptr
    else:
        assert raw(numpy.from_dlpack(tensor, device="cpu")) == few["matrix"].data
        with pytest.raises(BufferError):
            numpy.from_dlpack(tensor, device="cpu", copy=False)
        with pytest.raises(BufferError, match="clone it there"):
            tensor.__dlpack__(copy=True)


def test_another_device_is_refused(checkpoint: pathlib.Path, device: str) -> None:
    tensor = tensorhold.load(checkpoint, device)["matrix"]
    with pytest.raises(BufferError):
        tensor.__dlpack__(dl_device=(CUDA, 7))
    with pytest.raises(ValueError):
        tensor.__dlpack__(dl_device=(CUDA, -1))


def test_a_tensor_handed_over_is_gone(checkpoint: pathlib.Path) -> None:
    from tensorhold._core import open as open_checkpoint

    handover = open_checkpoint(checkpoint).hand_over_part("matrix", [])
    assert (handover.name, handover.dtype, handover.device) == ("matrix", "F32", "cpu")
    handover.__dlpack__()
    for use in (handover.__dlpack__, handover.__dlpack_device__, lambda: handover.view("U8"), lambda: handover.name):
        with pytest.raises(BufferError, match="handed over"):
            use()


def test_views_share_bytes_and_those_that_do_not_fit_are_errors(tmp_path: pathlib.Path, device: str) -> None:
    file = write(tmp_path / "v.safetensors", {"t": spec("BF16", (2, 3)), "s": spec("F32", ())})
    weights = tensorhold.load(file, device)
    tensor = weights["t"]
    view = tensor.view("U8")
    assert (view.dtype, view.shape, view.data_ptr) == ("U8", (2, 6), tensor.data_ptr)
    assert tensor.view("torch.int16").shape == (2, 3)
    with pytest.raises(tensorhold.TensorError, match="F32 for rows of 48 bits"):
        tensor.view("F32")
    with pytest.raises(tensorhold.TensorError, match="scalar"):
        weights["s"].view("U8")
    with pytest.raises(tensorhold.TensorError, match="narrow"):
        tensor.narrow(1, 0, 2)
