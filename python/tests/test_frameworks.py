"""Each dtype in each framework: as its own, by a view, or an error that says which view to take."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest
import support
from support import BITS, Spec, import_for, raw, spec, write

import tensorhold
from tensorhold import frameworks

# The type by its name in the framework; None where it has none. torch's F4 has two values in an element.
TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2", "F6_E2M3": None, "F6_E3M2": None,
}  # fmt: skip
NUMPY = {**TORCH, "F4": None}
JAX = {**TORCH, "F4": None}
CUPY = {name: None if name.startswith("F8") or name in ("BF16", "F4") else dtype for name, dtype in TORCH.items()}
NAMES = {"torch": TORCH, "numpy": NUMPY, "jax": JAX, "cupy": CUPY}


def expected_name(framework: str, dtype: str) -> str | None:
    """What the framework calls a type, as it is installed here."""
    name = NAMES[framework][dtype]
    if framework == "torch" and name is not None and not hasattr(__import__("torch"), name):
        return None
    if framework == "numpy" and dtype in frameworks.Numpy.VIEWED and importlib.util.find_spec("ml_dtypes") is None:
        return None
    return name


def one(tmp_path: pathlib.Path, dtype: str) -> tuple[pathlib.Path, Spec]:
    tensor = spec(dtype, (2, 8))
    return write(tmp_path / "one.safetensors", {"t": tensor}), tensor


def test_each_dtype_is_the_frameworks_own_or_an_error_that_says_which_view(
    tmp_path: pathlib.Path, framework: str, device: str
) -> None:
    for dtype in BITS:
        file, tensor = one(tmp_path, dtype)
        expected = expected_name(framework, dtype)
        needs_x64 = framework == "jax" and dtype in ("I64", "U64", "F64")
        if expected is None or needs_x64:
            with pytest.raises(tensorhold.TensorError, match=rf"\"t\" to {framework}.*{dtype}.*tensor\.view\('U"):
                tensorhold.load_file(file, device, framework)
            with pytest.raises(tensorhold.TensorError, match=r"tensor\.view\('U"):
                tensorhold.load(file, device)["t"].to(framework)
            # A view that every framework has.
            viewed = tensorhold.load(file, device)["t"].view("U8").to(framework)
            assert raw(viewed) == tensor.data, dtype
            continue
        loads = tensorhold.load_file(file, device, framework)["t"], tensorhold.load(file, device)["t"].to(framework)
        for loaded in loads:
            assert str(loaded.dtype).split(".")[-1] == expected
            assert tuple(loaded.shape) == ((2, 4) if dtype == "F4" else (2, 8))
            assert raw(loaded) == tensor.data, dtype


def test_scalars_of_viewed_types_stay_scalars(tmp_path: pathlib.Path, framework: str, device: str) -> None:
    file = write(tmp_path / "s.safetensors", {"t": spec("F8_E4M3", ())})
    if expected_name(framework, "F8_E4M3") is None:
        pytest.skip(f"{framework} has no such type")
    assert tuple(tensorhold.load_file(file, device, framework)["t"].shape) == ()


def test_numpy_without_ml_dtypes_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_for("numpy", "cpu")
    file, tensor = one(tmp_path, "BF16")
    monkeypatch.setattr(frameworks.find("numpy"), "ml_dtypes", None)
    with pytest.raises(tensorhold.TensorError, match=r"view\('U16'\).*ml_dtypes"):
        tensorhold.load_file(file, framework="np")
    assert raw(tensorhold.load(file)["t"].view("U16").numpy()) == tensor.data


def test_wide_types_are_jaxs_when_it_has_them_enabled(tmp_path: pathlib.Path) -> None:
    import_for("jax", "cpu")
    import jax

    file, tensor = one(tmp_path, "I64")
    jax.config.update("jax_enable_x64", True)
    try:
        loaded = tensorhold.load_file(file, framework="jax")["t"]
        assert str(loaded.dtype) == "int64" and raw(loaded) == tensor.data
    finally:
        jax.config.update("jax_enable_x64", False)


def test_every_alias_names_its_framework() -> None:
    for alias, kind in frameworks.CONVERTERS.items():
        assert kind.module in ("torch", "numpy", "jax", "cupy") and alias
    with pytest.raises(tensorhold.OptionError, match='"tensorflow", expected one of pt, torch'):
        frameworks.find("tensorflow")


def test_a_framework_that_is_not_installed_is_an_import_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(frameworks.Converter):
        name = module = "no_such_framework"

        def start(self) -> None:
            __import__("no_such_framework")

    monkeypatch.setitem(frameworks.CONVERTERS, "absent", Absent)
    with pytest.raises(ImportError, match="import no_such_framework.*install it") as caught:
        tensorhold.load_file("/nowhere", framework="absent")
    assert isinstance(caught.value, tensorhold.FrameworkError)


def test_torch_without_cuda_says_so_before_anything_is_loaded() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch finds a CUDA device here")
    for device in ("cuda", "cuda:0", "pinned", torch.device("cuda:0"), 0):
        # A torch for CUDA lacks the device; another torch is what lacks.
        kind = tensorhold.DeviceError if torch.version.cuda or torch.version.hip else tensorhold.FrameworkError
        with pytest.raises(kind, match="cuda|CUDA"):
            tensorhold.load_file("/nowhere/at/all.safetensors", device)


def test_a_framework_is_not_given_memory_that_it_cannot_use(checkpoint: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    with pytest.raises(tensorhold.FrameworkError, match="host memory"):
        tensorhold.load_file(checkpoint, "cuda:0", "np")


def test_what_load_file_gives_may_be_written_to(checkpoint: pathlib.Path, framework: str, device: str) -> None:
    if framework == "jax":
        pytest.skip("arrays of JAX are never written to")
    if framework == "numpy" and not support.numpy_takes_flags():
        pytest.skip("NumPy before 2.1 takes all as read-only")
    loaded = tensorhold.load_file(checkpoint, device, framework)
    loaded["matrix"][0, 0] = 42.0
    assert float(loaded["matrix"][0, 0]) == 42.0


def test_numpy_is_told_that_weights_share_their_tensors(checkpoint: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    weights = tensorhold.load(checkpoint)
    array = weights["matrix"].numpy()
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1.0
    assert all(not array.flags.writeable for array in weights.to("np").values() if array.size)


def test_many_tensors_leave_garbage_collection_as_it_was(tmp_path: pathlib.Path) -> None:
    import gc

    import_for("numpy", "cpu")
    file = write(tmp_path / "many.safetensors", {f"t{n}": spec("U8", (3,), n) for n in range(600)})
    assert gc.isenabled()
    assert len(tensorhold.load_file(file, framework="np")) == 600 and gc.isenabled()
    gc.disable()
    try:
        tensorhold.load_file(file, framework="np")
        assert not gc.isenabled()
    finally:
        gc.enable()
