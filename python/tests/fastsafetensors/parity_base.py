"""What the cases of `parity_cases.py` share: the package that is tried, by the first argument, and its objects."""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from typing import Any

if sys.argv[1] == "drop-in":
    import tensorhold

    tensorhold.install_as_fastsafetensors()

import torch  # noqa: E402
from fastsafetensors import (  # noqa: E402
    ParallelLoader,
    SafeTensorsFileLoader,
    SafeTensorsMetadata,
)
from fastsafetensors.frameworks import TensorBase, get_framework_op  # noqa: E402
from fastsafetensors.st_types import Device  # noqa: E402

ONE, TWO, AGAIN, MIXED, PADDED = sys.argv[3:8]
OP = get_framework_op("pytorch")
CPU = Device()


def plain(found: Any) -> Any:
    """A value as JSON has it, and as it is the same in both packages."""
    if isinstance(found, torch.Tensor):
        return ["torch", str(found.dtype), list(found.shape), bytes(found.detach().contiguous().flatten().view(torch.uint8).tolist()).hex() if found.numel() else ""]
    if isinstance(found, TensorBase):
        return [type(found).__name__, plain(found.device), plain(found.dtype), found.get_shape(), plain(found.get_raw())]
    if isinstance(found, enum.Enum):
        return str(found)
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return [type(found).__name__, {field.name: plain(getattr(found, field.name)) for field in dataclasses.fields(found) if field.init}]
    if isinstance(found, dict):
        return {str(key): plain(value) for key, value in found.items()}
    if isinstance(found, (set, frozenset)):
        return sorted(map(plain, found))
    if isinstance(found, (list, tuple, types.GeneratorType)):
        return [plain(value) for value in found]
    if found is None or isinstance(found, (bool, int, float, str)):
        return found
    return f"an object of {type(found).__name__}"


def loader(*, files: Any = None, **options: Any) -> SafeTensorsFileLoader:
    made = SafeTensorsFileLoader(None, nogds=True, **options)
    made.add_filenames({0: [ONE, TWO]} if files is None else files)
    return made


def pipeline(files: Any = None, **options: Any) -> ParallelLoader:
    return ParallelLoader(None, [ONE, TWO] if files is None else files, use_tqdm_on_load=False, nogds=True, **options)


def weights(*arguments: Any, **options: Any) -> list[Any]:
    made = pipeline(*arguments, **options)
    try:
        return [(name, tensor.clone()) for name, tensor in made.iterate_weights()]
    finally:
        made.close()


def attributes(found: object, names: str) -> dict[str, Any]:
    return {name: getattr(found, name) for name in names.split()}


def facts(metadata: SafeTensorsMetadata) -> Any:
    return attributes(metadata, "src metadata header_length size_bytes aligned tensors")


class Of:
    """A group that has only a size and a rank."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


def wrapped(values: Any = (1.0, 2.0), dtype: Any = torch.float32) -> Any:
    return OP.wrap_tensor(torch.tensor(values).to(dtype))
