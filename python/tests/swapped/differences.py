"""What differs from safetensors on purpose. The tests fail for a difference that is not listed here, and for one that is listed and does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

MISSING_MODULES = {
    "tensorflow": "tensorhold does not make tensors of TensorFlow",
    "paddle": "tensorhold does not make tensors of Paddle",
    "mlx": "tensorhold does not make arrays of MLX, which runs on macOS",
}
"""Submodules that `tensorhold.safetensors` does not have."""

NATIVE = ("tensorhold",)
BOTH = ("tensorhold", "tensorhold.safetensors")

# Indexes that NumPy takes, and safetensors for NumPy refuses or takes for others.
OF_NUMPY = [
    "10:", "10:10", ":20", "20:30", "-2:", ":-2", "-20:", "::-1", ":, :20", ":, 5:", "None", "None, 1", "1, None", ":, None", "..., None", "True", "False",
    "True, 1", "[0]", "[0, 2, 2]", "[-1, 1]", "[[0, 1], [2, 3]]", "[True] * 10", ":, [1, 3]", "[0, 1], [2, 3]", "2:5, [0, 1]", "1, [0, 1]", "([0, 1],)",
    "(0, 1),", "a tensor of integers", "a tensor of booleans", "a mask of all", "an array of integers", "an array of booleans", "an array, 1", "a range", "an array of True, 0:2",
]  # fmt: skip

# Indexes that NumPy refuses with an IndexError of its own.
NOT_OF_NUMPY = ["[10]", "[True] * 3", "[None]", "['a']", "[1.5]", "a mask that is too short", "a tensor of floats"]


class Difference(NamedTuple):
    reason: str
    calls: tuple[str, ...]
    """Names of calls, or patterns of them."""
    packages: tuple[str, ...] = BOTH


DIFFERENCES = [
    Difference("keys() are in the order of the file, in which reading ahead is fast", ("the order of keys",)),
    Difference(
        "more types are loaded: F8_E8M0 and F4 from bytes, slices of F4, and all that ml_dtypes has, for NumPy",
        (
            "torch.load of F4", "torch.load of one F4", "torch.load of *F8_E8M0", "slices for torch of *F4", "numpy.load of *BF16",
            "numpy.load of *F8_*", "numpy.load_file of *F8_*", "*for numpy of F8_*", "*for numpy of one F8_*",
        ),
    ),
    Difference(
        "a type that NumPy does not have is a SafetensorError, not an AttributeError",
        ("numpy.load_file of *F4", "safe_open for numpy of *F4", "slices for numpy of *F4", "get_tensors for numpy of *F4"),
    ),
    Difference(
        "a type of torch that the format does not have is a SafetensorError, as for NumPy, not a KeyError",
        ("torch.save* of *complex128", "torch.save* of *complex32"),
    ),
    Difference(
        "text that UTF-8 cannot hold is a SafetensorError and ValueError that names the tensor, not a UnicodeEncodeError",
        ("torch.save* of a name with half a surrogate pair", "*with metadata: half a surrogate pair", "a filename with half a surrogate pair"),
    ),
    Difference(
        "more kinds of arguments are taken: folders and several files, what gives its bytes, any mapping as metadata, bytes as a path to save to",
        (
            "a list as filename", "*.load of bytearray", "*.load of memoryview", "*with metadata: a mapping proxy", "save_file to bytes",
            "device torch.device('cpu')", "load_file to device 'cpu:0'", "load_file to device device(type='cpu')", "load_file to device device(type='cpu', index=0)",
        ),
    ),
    Difference(
        "a header that has a name twice is refused: readers differ in which of the two they take",
        (
            "*load* of a name twice", "deserialize of a name twice",
            "safe_open for * of a name twice", "slices for * of a name twice", "get_tensors for * of a name twice",
        ),
    ),
    Difference("no tensor is named as the header's strings are", ("*save* named __metadata__",)),
    Difference("a number of NumPy is saved as a scalar, not an AttributeError", ("numpy.save* of a number of NumPy",)),
    Difference("what is no regular file is a FormatError, not an OSError", ("a device as filename", "a device as filename of safe_open")),
    Difference("a file is not opened for a framework of which no tensors can be made", ("opened with framework '[mt]*'",)),
    Difference(
        "a framework that tensorhold does not have is an OptionError, not a ModuleNotFoundError",
        ("a tensor with framework *", "opened with framework 'paddle'"),
        NATIVE,
    ),
    Difference("a folder is a checkpoint; one without weights is a FormatError, not an OSError", ("a folder as filename",)),
    Difference("tensors are on the CPU or on CUDA devices: another device is a SafetensorError", ("device 'mps'", "device 'xpu:0'", "device 'npu'")),
    Difference("an open checkpoint has a length, names that `in` finds, and tensors by index", ("len", "in", "an index")),
    Difference("a range that goes back is empty, not a SystemError", ("[5:2] for numpy",)),
    Difference(
        "arrays with gaps are written row by row; safetensors writes the bytes that lie at their first element",
        ("numpy.save* of a transposed array", "numpy.save* of a column"),
    ),
    Difference("a conjugate is written as its values; safetensors writes those of the tensor that it is a conjugate of", ("torch.save* of a conjugate",)),
    Difference("a negated view is written as its values; safetensors writes those of the tensor that it is a view of", ("torch.save* of a negated view",)),
    Difference("a header is JSON, also one of no tensors with {} as metadata", ("torch.save* of no tensors with metadata: {}",)),
    Difference("a symbolic link is followed, not replaced", ("save_file to a symbolic link",)),
    Difference("a new file has the permissions that the umask leaves, not those of a temporary file", ("the permissions of a new file",)),
    Difference("tensors that are not contiguous can be looked at for shared memory", ("_find_shared_tensors of a transposed view", "_remove_duplicate_names of a transposed view")),
    Difference("the caller's metadata is not changed", ("save_model's argument metadata afterwards",)),
    Difference("without a framework, tensors are torch's", ("no framework",), NATIVE),
    Difference("without a backend, tensorhold chooses, as for any option that is None", ("backend None",), NATIVE),
    Difference(
        "of an argument that takes several types, a value of another type is an OptionError",
        ("bytes as filename of safe_open", "None as filename", "a number as filename", "an open file as filename", "framework None", "framework 3"),
        NATIVE,
    ),
    Difference(
        "a path that no file can have is a FileError, which is an OSError",
        ("a path below a file", "a name that is too long", "a name with a zero byte"),
        NATIVE,
    ),
    Difference("slices have a class of their own", ("get_slice's class",), NATIVE),
    Difference("a slice cannot be read after the checkpoint is closed", ("a slice for * after the end of with",), NATIVE),
    Difference(
        "slices for NumPy take what NumPy takes, and raise what NumPy raises",
        (
            *(f"[{index}] for numpy" for index in [*OF_NUMPY, *NOT_OF_NUMPY]), "scalar[None] for numpy", "empty[...] for numpy", "empty[:] for numpy",
            "empty[0:0] for numpy", "empty[:, 1] for numpy", "empty[:, 1:2] for numpy", "empty[[]] for numpy", "none[:] for numpy", "none[[]] for numpy",
            "a[1, [0, 2]] for numpy",
        ),
        NATIVE,
    ),
]  # fmt: skip


def wanted(package: str, calls: Iterable[str]) -> dict[str, str]:
    """The calls that differ on purpose in a package, each with the reason."""
    found = {}
    for difference in DIFFERENCES:
        if package in difference.packages:
            for pattern in difference.calls:
                matching = [call for call in calls if call == pattern or fnmatchcase(call, pattern)]
                assert matching, f"no call is named {pattern!r}"
                found.update(dict.fromkeys(matching, difference.reason))
    return found
