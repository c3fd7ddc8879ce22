"""What `safetensors.torch` has: functions that load and save tensors and models of torch.

`tensorhold.torch` has the same names. Functions that load take the options of `tensorhold.load`, as well. Functions that save refuse tensors that share memory,
or that are not contiguous, as safetensors does; `tensorhold.save_file` writes them.
"""

from collections import defaultdict

import torch

from tensorhold import frameworks
from tensorhold._core import TensorError
from tensorhold._text import quoted
from tensorhold.safetensors import _open
from tensorhold.safetensors._open import safe_open
from tensorhold.safetensors._specs import TensorSpec, deserialize, serialize, serialize_file

__all__ = [
    "TensorSpec",
    "deserialize",
    "load",
    "load_file",
    "load_model",
    "safe_open",
    "save",
    "save_file",
    "save_model",
    "serialize",
    "serialize_file",
    "storage_ptr",
    "storage_size",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Unpack

    from tensorhold.types import Device, OtherOptions, Path, Paths

    StateDict = dict[str, torch.Tensor]

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
    "C64": "complex64",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
}

_TYPES: "dict[str, torch.dtype]" = {dtype: getattr(torch, name) for dtype, name in _NAMES.items() if hasattr(torch, name)}
"""The types that this torch has, by the format's names."""

_SIZE: "dict[torch.dtype, int]" = {dtype: dtype.itemsize for dtype in _TYPES.values()}
"""The bytes of an element."""

_float8_e4m3fn = _TYPES.get("F8_E4M3")
_float8_e4m3fnuz = _TYPES.get("F8_E4M3FNUZ")
_float8_e5m2 = _TYPES.get("F8_E5M2")
_float8_e5m2fnuz = _TYPES.get("F8_E5M2FNUZ")
_float8_e8m0 = _TYPES.get("F8_E8M0")
_float4_e2m1_x2 = _TYPES.get("F4")


def load_file(
    filename: "Paths", device: "Device | None" = "cpu", *, backend: str = "mmap", **options: "Unpack[OtherOptions]"
) -> "StateDict":
    """Loads a checkpoint into a dict of tensors, which own their memory.

    `device` is one of torch's; None is the CPU. `backend` is one of `tensorhold.load`, or of safetensors (`mmap`, `pread`): then tensorhold chooses.
    """
    return _open.load_file(filename, "pt", device, backend, options)


def load(data: bytes) -> "StateDict":
    """The tensors of a safetensors file by its bytes, in host memory."""
    return _view2torch(deserialize(data))


def save_file(tensors: "StateDict", filename: "Path", metadata: "dict[str, str] | None" = None) -> None:
    """Writes a safetensors file, which is there as a whole or not at all.

    Raises `ValueError` for a tensor that is sparse or not contiguous, and `RuntimeError` for tensors that share memory: see `save_model`.
    """
    serialize_file(_flatten_as_ptr(tensors, []), filename, metadata)


def save(tensors: "StateDict", metadata: "dict[str, str] | None" = None) -> bytes:
    """The bytes that `save_file` writes."""
    return serialize(_flatten_as_ptr(tensors, []), metadata)


def save_model(
    model: torch.nn.Module, filename: "Path", metadata: "dict[str, str] | None" = None, force_contiguous: bool = True
) -> None:
    """Writes the tensors of a model: those that share memory once, under one name.

    The file's strings have the other names, as keys, each with the name that was kept. With `force_contiguous`, tensors that are not contiguous are copied.

    Raises `RuntimeError` where none of the tensors that share memory covers all of it.
    """
    state_dict = model.state_dict()
    for kept, others in _remove_duplicate_names(state_dict).items():
        metadata = {**dict.fromkeys(others, kept), **(metadata or {})}
        for name in others:
            del state_dict[name]
    if force_contiguous:
        state_dict = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    try:
        save_file(state_dict, filename, metadata)
    except ValueError as error:
        if force_contiguous:
            raise
        raise TensorError(f"{error} Or use save_model(..., force_contiguous=True), which copies such tensors.") from error


def load_model(
    model: torch.nn.Module,
    filename: "Paths",
    strict: bool = True,
    device: "Device | None" = "cpu",
    *,
    backend: str = "mmap",
    **options: "Unpack[OtherOptions]",
) -> "tuple[set[str], list[str]]":
    """Loads a checkpoint into a model, and gives the names that the checkpoint lacks, and those that the model lacks.

    Of tensors that share memory in the model, the checkpoint has one. With `strict`, raises `RuntimeError` where a name is missing or unexpected.
    """
    loaded = load_file(filename, device, backend=backend, **options)
    duplicates = _remove_duplicate_names(model.state_dict(), preferred_names=list(loaded))
    lacking, unexpected = model.load_state_dict(loaded, strict=False)
    missing = set(lacking)
    for name in (name for others in duplicates.values() for name in others):
        # The tensor is there under the name that was kept. Two of them in the file are two tensors, of which the model can hold one.
        if name in missing:
            missing.remove(name)
        else:
            unexpected.append(name)
    if strict and (missing or unexpected):
        error = f"Error(s) in loading state_dict for {type(model).__name__}:"
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                error += f"\n    {what} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in sorted(names))
        raise RuntimeError(error)
    return missing, unexpected


def storage_ptr(tensor: torch.Tensor) -> int:
    """The address of the memory that a tensor is in; 0 where it has none."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except NotImplementedError:
        return 0


def storage_size(tensor: torch.Tensor) -> int:
    """The length of the memory that a tensor is in, in bytes."""
    return int(tensor.untyped_storage().nbytes())


def _end_ptr(tensor: torch.Tensor) -> int:
    """The address behind the last element."""
    start = int(tensor.data_ptr())
    if not tensor.nelement():
        return start
    last = sum(int((extent - 1) * stride) for extent, stride in zip(tensor.shape, tensor.stride()))
    return start + (last + 1) * _SIZE[tensor.dtype]


def _is_complete(tensor: torch.Tensor) -> bool:
    """Whether a tensor covers all of the memory that it is in."""
    starts_there, nbytes = tensor.data_ptr() == storage_ptr(tensor), tensor.nelement() * _SIZE[tensor.dtype]
    return bool(starts_there and nbytes == storage_size(tensor))


def _find_shared_tensors(state_dict: "StateDict") -> "list[set[str]]":
    """The names in groups, of which each has tensors that overlap. Tensors without memory are in none."""
    in_memory: dict[tuple[torch.device, int, int], set[str]] = {}
    for name, tensor in state_dict.items():
        if tensor.device.type == "meta" or not storage_ptr(tensor) or not storage_size(tensor):
            continue
        # Addresses are those of a device.
        in_memory.setdefault((tensor.device, storage_ptr(tensor), storage_size(tensor)), set()).add(name)
    return _filter_shared_not_shared(list(in_memory.values()), state_dict)


def _filter_shared_not_shared(tensors: "list[set[str]]", state_dict: "StateDict") -> "list[set[str]]":
    """Divides groups of tensors in the same memory into those that overlap, in the order of their addresses."""
    groups: list[set[str]] = []
    for names in tensors:
        if len(names) == 1:
            groups.append(names)
            continue
        end = 0
        for start, stop, name in sorted((state_dict[name].data_ptr(), _end_ptr(state_dict[name]), name) for name in names):
            if start < end:
                groups[-1].add(name)
            else:
                groups.append({name})
            # Of the tensor before alone, as in safetensors: a longer one before that counts no more.
            end = stop
    return groups


def _remove_duplicate_names(
    state_dict: "StateDict", *, preferred_names: "Iterable[str] | None" = None, discard_names: "Iterable[str] | None" = None
) -> "dict[str, list[str]]":
    """Of each group of tensors that share memory, the name to keep, and the others.

    One that covers all of the memory is kept: by preference one of `preferred_names`, else one that is not in `discard_names`, else any; the first of these.

    Raises `RuntimeError` if none of them covers it.
    """
    preferred, discarded = set(preferred_names or ()), set(discard_names or ())
    removed: dict[str, list[str]] = defaultdict(list)
    for names in _find_shared_tensors(state_dict):
        complete = {name for name in names if _is_complete(state_dict[name])}
        if not complete:
            shown = ", ".join(quoted(name) for name in sorted(names))
            raise RuntimeError(
                f"choose names to save or load: got {shown}, none of which covers all of the memory that it is in, expected one that does; "
                "save a clone() of each"
            )
        kept = min(complete & preferred or complete - discarded or complete)
        for name in sorted(names - {kept}):
            removed[kept].append(name)
    return removed


def _evaluate_tensors_for_save(tensors: "StateDict") -> None:
    """Raises `ValueError` for what is no dict of dense tensors, `RuntimeError` for tensors that share memory."""
    if not isinstance(tensors, dict):
        raise TensorError(f"Expected a dict of [str, torch.Tensor] but received {type(tensors)}")
    sparse = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TensorError(f"Key `{name}` is invalid, expected torch.Tensor but received {type(tensor)}")
        if tensor.layout is not torch.strided:
            sparse.append(name)
    if sparse:
        raise TensorError(
            f"You are trying to save a sparse tensors: `{sparse}` which this library does not support. You can make it a dense tensor before saving"
            " with `.to_dense()` but be aware this might make a much larger file than needed."
        )
    for name, tensor in tensors.items():
        wrong = None if tensor.is_meta else frameworks.refusal_of_torch(tensor)
        if wrong:
            raise TensorError(f"save tensor {quoted(name)}: {wrong}")
    shared = [names for names in _find_shared_tensors(tensors) if len(names) > 1]
    if shared:
        raise RuntimeError(
            f"save tensors: Some tensors share memory: {shared}. They would be written several times, and loaded as tensors that do not share it; "
            "save one of each group, as save_model() does, or use tensorhold.save_file()"
        )


def _flatten_as_ptr(tensors: "StateDict", keep_alive_buffer: "list[Any]") -> "dict[str, TensorSpec]":
    """What `serialize` takes. The specs keep the bytes; `keep_alive_buffer` gets them, too."""
    _evaluate_tensors_for_save(tensors)
    specs = {}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise TensorError(
                f"You are trying to save a non contiguous tensor: `{name}`, expected one whose elements lie row by row; call `.contiguous()` on it."
            )
        data = frameworks.bytes_of_torch(tensor.detach().cpu())
        keep_alive_buffer.append((data, tensor))
        spec = TensorSpec(dtype=str(tensor.dtype).partition(".")[2], shape=tensor.shape, data_ptr=data.data_ptr(), data_len=data.numel())
        specs[name] = spec._keeping(data)
    return specs


def _to_ndarray(tensor: torch.Tensor) -> "tuple[Any, torch.Tensor]":
    """The bytes of a contiguous tensor as an array of NumPy, and the tensor in host memory that it is a view of."""
    dense = tensor.cpu()
    return frameworks.bytes_of_torch(dense).numpy(), dense


def _getdtype(dtype_str: str) -> torch.dtype:
    return _TYPES[dtype_str]


def _view2torch(safeview: "Iterable[tuple[str, dict[str, Any]]]") -> "StateDict":
    """Tensors of what `deserialize` gives, sharing its bytes."""
    tensors = {}
    for name, found in safeview:
        dtype, shape, data = _getdtype(found["dtype"]), list(found["shape"]), found["data"]
        if found["dtype"] == "F4":
            if not shape or shape[-1] % 2:
                raise TensorError(f"load tensor {quoted(name)}: got F4 of shape {shape}, expected a last dimension of pairs; load it with tensorhold.load()")
            shape[-1] //= 2
        # An empty buffer is refused.
        flat = torch.frombuffer(data, dtype=torch.uint8).view(dtype) if len(data) else torch.empty(0, dtype=dtype, device="cpu")
        tensors[name] = flat.reshape(shape)
    return tensors
