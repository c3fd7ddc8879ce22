"""Types of elements and devices, as fastsafetensors names them."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Dict, Optional

from tensorhold._text import kind, quoted


class DType(Enum):
    """The type of a tensor's elements, by the name that the format has. `AUTO` is the type that a tensor has."""

    BOOL = "BOOL"
    I8 = "I8"
    I16 = "I16"
    I32 = "I32"
    I64 = "I64"
    U8 = "U8"
    U16 = "U16"
    U32 = "U32"
    U64 = "U64"
    F16 = "F16"
    F32 = "F32"
    F64 = "F64"
    BF16 = "BF16"
    F8_E5M2 = "F8_E5M2"
    F8_E4M3 = "F8_E4M3"
    F8_E8M0 = "F8_E8M0"
    F4 = "F4"
    AUTO = "AUTO"


_BYTES = {"BOOL": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F4": 0.5}

DTYPE_SIZES: Dict[DType, float] = {
    dtype: _BYTES.get(dtype.value) or int(re.sub(r"\D", "", dtype.value)) // 8 for dtype in DType if dtype is not DType.AUTO
}
"""The size of an element in bytes; half a byte for F4."""


class DeviceType(Enum):
    """The kind of a device."""

    CPU = "cpu"
    CUDA = "cuda"
    GPU = "gpu"


class WrongDTypeError(TypeError, KeyError):
    """An argument that is no `DType`."""

    __str__ = Exception.__str__


def check_dtype(dtype: object) -> None:
    """Refuses what is no `DType`."""
    if not isinstance(dtype, DType):
        raise WrongDTypeError(f"argument dtype: got {quoted(dtype)} of type {kind(dtype)}, expected a DType, such as DType.F16; name one")


@dataclass(frozen=True)
class Device:
    """A device: its kind and, if there are several, its number."""

    type: DeviceType = DeviceType.CPU
    index: Optional[int] = None

    def as_str(self) -> str:
        """The name, such as `cuda:0`."""
        return self.type.value if self.index is None else f"{self.type.value}:{self.index}"

    @classmethod
    def from_str(cls, s: str) -> "Device":
        """The device of a name."""
        if not isinstance(s, str):
            raise TypeError(f"argument s: got {quoted(s)} of type {kind(s)}, expected a str, such as \"cuda:0\"; name a device")
        name, colon, number = s.partition(":")
        try:
            device_type = DeviceType(name.lower())
        except ValueError:
            known = ", ".join(known.value for known in DeviceType)
            raise ValueError(f"Unknown device type: {name} (of {s!r}); expected one of {known}") from None
        if not colon:
            return cls(device_type)
        try:
            return cls(device_type, int(number))
        except ValueError:
            raise ValueError(f"Invalid index: {number} (of {s!r}); expected a whole number") from None
