"""Types of arguments, for type checkers. `tensorhold.api` says what the options mean."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Optional, Protocol, TypedDict, Union

from tensorhold._core import Cut, Pool, Progress, TensorInfo


class Spelled(Protocol):
    """Something by what its `str` is: a `torch.device`, a `torch.dtype`."""

    def __str__(self) -> str: ...


Path = Union[str, "os.PathLike[str]"]
"""A folder, an index or a file."""

Paths = Union[Path, Iterable[Path]]
"""One checkpoint, or the files of one."""

Device = Union[str, int, Spelled]
"""`cpu`, `pinned`, `cuda`, `cuda:N`, or N."""

DType = Union[str, Spelled]
"""As the format, torch, NumPy or JAX spell it."""

Select = Union[Callable[[TensorInfo], bool], Iterable[str]]
DTypes = Union[DType, Callable[[TensorInfo], Optional[DType]]]
Cuts = Union[Mapping[str, Union[Cut, Sequence[Cut]]], Callable[[TensorInfo], Union[Cut, Sequence[Cut], None]]]
Tell = Callable[[Progress], Optional[bool]]


class _WithoutBackend(TypedDict, total=False):
    variant: Optional[str]
    select: Optional[Select]
    dtype: Optional[DTypes]
    cuts: Optional[Cuts]
    memory_budget: Optional[int]
    threads: Optional[int]
    staging_bytes: Optional[int]
    pool: Optional[Pool]
    parts: Optional[bool]
    count_conversions: Optional[bool]


class _Common(_WithoutBackend, total=False):
    backend: Optional[str]


class Options(_Common, total=False):
    """The options of the compiled module."""

    progress: Optional[Tell]


class LoadOptions(_Common, total=False):
    """The options of `load`, `load_file`, `safe_open` and `stream`."""

    progress: Union[bool, Tell, None]


class OtherOptions(_WithoutBackend, total=False):
    """The options of functions of safetensors, whose `backend` is an argument."""

    progress: Union[bool, Tell, None]
