"""`save_file`: which objects are tensors, and what is said of those that cannot be saved."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from support import BITS, import_for, python, raw, spec, write

import tensorhold

TORCH = [dtype for dtype in BITS if not dtype.startswith("F6")]


@pytest.mark.parametrize("dtype", TORCH)
def test_classes_derived_from_those_of_torch_are_saved_as_what_they_derive_from(dtype: str, tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    import torch

    class Derived(torch.Tensor):  # type: ignore[misc]
        pass

    class Weight(torch.nn.Parameter):  # type: ignore[misc]
        pass

    assert not Derived.__module__.startswith("torch")
    base = tensorhold.load_file(write(tmp_path / "base", {"t": spec(dtype, (4, 6))}))["t"]
    grad = base.dtype.is_floating_point or base.dtype.is_complex
    plain = {"derived": base, "weight": base, "column": base[:, :2]}
    tensors = {
        "derived": base.as_subclass(Derived),
        "weight": Weight(base, requires_grad=grad and "FN" not in dtype and base.dtype.itemsize > 1),
        "column": base[:, :2].as_subclass(Derived),
    }
    tensorhold.save_file(tensors, tmp_path / "saved")
    weights = tensorhold.load(tmp_path / "saved")
    assert {name: weights[name].to_host() for name in tensors} == {name: raw(tensor) for name, tensor in plain.items()}
    assert {weights.info(name).dtype for name in tensors} == {dtype}


def test_what_torch_does_to_elements_is_done_to_those_of_derived_classes(tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    import torch

    class Derived(torch.Tensor):  # type: ignore[misc]
        pass

    numbers = torch.tensor([1 + 2j])
    parts = {"conjugate": numbers.conj(), "negative": numbers.conj().imag, "grad": torch.ones(2).requires_grad_(), "product": torch.ones(2).requires_grad_() * 2}
    tensorhold.save_file({name: part.as_subclass(Derived) for name, part in parts.items()}, tmp_path / "saved")
    loaded = tensorhold.load_file(tmp_path / "saved")
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {name: part.tolist() for name, part in parts.items()}
    with pytest.raises(tensorhold.TensorError, match="\"m\": got one on the device meta"):
        tensorhold.save_file({"m": torch.empty(3, device="meta").as_subclass(Derived)}, tmp_path / "meta")


def of_torch() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """What is made of the module, and what is said of it."""
    return {
        "quantized": (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "torch.qint8.*dequantize"),
        "in half bytes": (
            lambda torch: torch.quantize_per_channel(torch.rand(4, 4), torch.ones(4), torch.zeros(4), 0, torch.quint4x2),
            "torch.quint4x2.*dequantize",
        ),
        "uninitialized": (lambda torch: torch.nn.UninitializedParameter(), "got UninitializedParameter, which has no shape yet"),
        "masked": (lambda torch: torch.masked.masked_tensor(torch.ones(3), torch.ones(3) > 0), "got MaskedTensor.*get_data"),
        "jagged": (
            lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
            "got a nested tensor.*to_padded_tensor",
        ),
        "storage": (lambda torch: torch.ones(3).untyped_storage(), "got UntypedStorage, expected a tensor"),
        "module": (lambda torch: torch.nn.Linear(1, 1), "got Linear, expected a tensor"),
        "size": (lambda torch: torch.Size([1]), "got Size, expected a tensor"),
        "dtype": (lambda torch: torch.float32, "got dtype, expected a tensor"),
        "packed": (lambda torch: torch.nn.utils.rnn.pack_sequence([torch.ones(3)]), "got PackedSequence, expected a tensor"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", of_torch())
def test_what_torch_has_that_is_no_dense_tensor_is_a_tensor_error(kind: str, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    make, words = of_torch()[kind]
    with pytest.raises(tensorhold.TensorError, match=f"tensor \"w\": .*{words}"):
        tensorhold.save_file({"w": make(torch)}, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_torch_is_the_cause_of_one_that_names_the_tensor(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    emptied = torch.ones(6)
    emptied.untyped_storage().resize_(0)
    with pytest.raises(tensorhold.TensorError, match="tensor \"w\": got Tensor, which does not give its bytes: RuntimeError: .*; ") as refused:
        tensorhold.save_file({"w": emptied}, tmp_path / "saved")
    assert isinstance(refused.value.__cause__, RuntimeError)


DISTRIBUTED = """
import sys
import torch, torch.distributed
import tensorhold
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
tensor = distribute_tensor(torch.arange(6.0), init_device_mesh("cpu", (1,)), [Shard(0)])
for found in (tensor, torch.nn.Parameter(tensor)):
    try:
        tensorhold.save_file({"w": found}, sys.argv[1])
        raise SystemExit("it is saved")
    except tensorhold.TensorError as error:
        assert 'tensor "w": got DTensor' in str(error) and "full_tensor()" in str(error), error
tensorhold.save_file({"w": tensor.full_tensor()}, sys.argv[1])
assert tensorhold.load(sys.argv[1])["w"].nbytes == 24
torch.distributed.destroy_process_group()
"""


def test_a_distributed_tensor_is_refused_and_its_full_tensor_saved(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available() or importlib.util.find_spec("torch.distributed.tensor") is None:
        pytest.skip(f"torch {torch.__version__} has no distributed tensors")
    python(DISTRIBUTED, str(tmp_path / "saved"))


def test_arrays_of_jax_without_bytes_are_tensor_errors(tmp_path: pathlib.Path) -> None:
    import_for("jax", "cpu")
    import jax

    def refused(tensor: Any, words: str) -> BaseException | None:
        with pytest.raises(tensorhold.TensorError, match=f"tensor \"w\": got .*, which does not give its bytes: {words}") as error:
            tensorhold.save_file({"w": tensor}, tmp_path / "saved")
        return error.value.__cause__

    deleted = jax.numpy.ones(3)
    deleted.delete()
    assert isinstance(refused(deleted, "RuntimeError: .*deleted"), RuntimeError)
    assert isinstance(refused(jax.random.key(0), "TypeError: .*key_data"), TypeError)
    traced = []

    def trace(x: Any) -> Any:
        traced.append(refused(x, "TracerArrayConversionError: "))
        return x

    jax.jit(trace)(jax.numpy.ones(2))
    assert isinstance(traced[0], jax.errors.TracerArrayConversionError)
    assert list(tmp_path.iterdir()) == []


IMPORTS = """
import sys
import tensorhold
class Found:
    pass
Found.__module__ = "torch.somewhere"
for found in (Found(), [1.0], None):
    try:
        tensorhold.save_file({"w": found}, "nowhere/saved")
        raise SystemExit("it is saved")
    except tensorhold.TensorError as error:
        assert 'tensor "w": got ' + ("None" if found is None else type(found).__name__) in str(error), error
assert not {"torch", "jax", "cupy", "numpy"} & set(sys.modules), sys.modules.keys()
"""


def test_no_framework_is_imported_to_find_out_what_an_object_is() -> None:
    python(IMPORTS)
