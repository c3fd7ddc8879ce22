"""Slices of open checkpoints: a part is what the framework's whole tensor gives for the index."""

from __future__ import annotations

import pathlib
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from support import Spec, import_for, raw, spec, write

import tensorhold

SHAPES = [(3, 4, 5), (7,), (2, 1, 6), (0, 3), (4, 0), ()]


def draw_index(draw: random.Random, shape: tuple[int, ...], framework: str) -> Any:
    """An index into a tensor of that shape; not all are right."""
    items: list[Any] = []
    dim = 0
    array = arrays_of(framework)
    while dim < len(shape) and draw.random() < 0.8:
        length = shape[dim]

        def number(length: int = length) -> int:
            return draw.randint(-length, length - 1) if length else 0

        def bound(length: int = length) -> int | None:
            return draw.choice([None, draw.randint(-length - 2, length + 2)])

        kind = draw.choice(["int", "slice", "slice", "list", "nested", "array", "mask", "bools", "none", "true", "dots", "all"])
        taken = 1
        if kind == "int":
            items.append(number() if draw.random() < 0.5 else array(number()))
        elif kind == "slice":
            steps = [None, 1, 2, 3] + ([] if framework == "torch" else [-1, -2])
            items.append(slice(bound(), bound(), draw.choice(steps)))
        elif kind == "list":
            items.append([number() for _ in range(draw.randint(0, 4))])
        elif kind == "nested":
            rows = [[number(), number()] for _ in range(2)]
            items.append(rows if draw.random() < 0.5 else tuple(rows))
        elif kind == "array":
            items.append(array([number(), number(), number()]))
        elif kind == "mask":
            taken = draw.randint(1, len(shape) - dim)
            items.append(array(numpy_mask(draw, shape[dim : dim + taken])))
        elif kind == "bools":
            items.append([draw.random() < 0.5 for _ in range(length)])
        elif kind == "none":
            items.append(None)
            taken = 0
        elif kind == "true":
            items.append(draw.random() < 0.7)
            taken = 0
        elif kind == "dots":
            if Ellipsis not in [item for item in items if item is Ellipsis]:
                items.append(...)
            taken = draw.randint(0, 1)
        else:
            items.append(slice(None))
        dim += taken
    return items[0] if len(items) == 1 and draw.random() < 0.5 else tuple(items)


def numpy_mask(draw: random.Random, shape: tuple[int, ...]) -> Any:
    import numpy

    elements = 1
    for extent in shape:
        elements *= extent
    return numpy.array([draw.random() < 0.4 for _ in range(elements)], dtype=bool).reshape(shape)


def arrays_of(framework: str) -> Any:
    if framework == "torch":
        import torch

        return torch.tensor
    if framework == "jax":
        import jax.numpy

        return jax.numpy.asarray
    import numpy

    return numpy.asarray


def outcome(call: Callable[[], Any]) -> Any:
    """Shape and bytes, or the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call()
    except Exception as error:
        return error
    return tuple(found.shape), str(found.dtype), raw(found)


def reference(whole: Any) -> Any:
    """The tensor whose indexing is compared with, of torch in host memory: on a CUDA device, an index out of range ends the use of the device."""
    return whole.cpu() if hasattr(whole, "is_cuda") else whole


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_index_gives_what_the_framework_gives(tmp_path: pathlib.Path, framework: str, device: str, shape: tuple[int, ...]) -> None:
    file = write(tmp_path / "t.safetensors", {"t": spec("I32", shape, 3)})
    draw = random.Random(f"{framework} {shape}")
    same = 0
    with tensorhold.safe_open(file, framework, device) as f:
        whole, part = reference(f.get_tensor("t")), f.get_slice("t")
        for _ in range(30 if framework == "jax" else 600):
            index = draw_index(draw, shape, framework)
            expected, found = outcome(lambda: whole[index]), outcome(lambda: part[index])  # noqa: B023
            if isinstance(expected, Exception):
                assert isinstance(found, Exception), (index, expected, found)
                assert framework == "jax" or isinstance(found, IndexError) >= isinstance(expected, IndexError), (index, expected, found)
            else:
                assert found == expected, index
                same += 1
    assert same > 5


INDEXES: list[Any] = [
    [0, 2, 2], [[0, 1], [1, 2]], ([[0, 1], [1, 2]],), ((0, 1), 2), [True, False, True], [], ([],), [[]], (slice(None), [3, 1]), (0, slice(None), [0, 4]),
    (None, ..., None), None, True, False, (True, 0), range(2), (range(1, 3), -1), (..., [0, 1]), ([2, 0], ..., [1, 0]), (1, [2, 3], slice(None, None, 2)),
    (slice(2, 0, -1),), [1.0], [0, slice(None)], (..., ...), {}, "a", 1.0, (0, 0, 0, 0), [9], (0, [9]), (slice(None, None, 0),), [True, 1], [True, False],
    [[True] * 4, [False] * 4, [True] * 4], ([[0], [1]], [0, 3]), (slice("a"),), b"ab", object(), [None], [[0, 1], [1]], ["a"], (-4,), (0, 4),
]  # fmt: skip


@pytest.mark.parametrize("index", INDEXES, ids=repr)
def test_indexes_of_all_kinds_give_what_the_framework_gives(tmp_path: pathlib.Path, framework: str, device: str, index: Any) -> None:
    file = write(tmp_path / "t.safetensors", {"t": spec("F32", (3, 4, 5))})
    with tensorhold.safe_open(file, framework, device) as f:
        whole, part = reference(f.get_tensor("t")), f.get_slice("t")
        expected, found = outcome(lambda: whole[index]), outcome(lambda: part[index])
    if framework == "jax" and index in ((-4,), (0, 4)):
        # jax takes an element within the tensor instead.
        assert isinstance(found, IndexError)
    elif isinstance(expected, Exception):
        assert isinstance(found, Exception)
        assert not isinstance(expected, IndexError) or isinstance(found, IndexError)
    else:
        assert found == expected


def test_an_index_of_tensors_and_arrays_gives_what_torch_gives(tmp_path: pathlib.Path, torch_device: str) -> None:
    import numpy
    import torch

    file = write(tmp_path / "t.safetensors", {"t": spec("BF16", (3, 4, 5))})
    # The values of a tensor are left to torch, which on a CUDA device finds such a one in a kernel.
    beyond = torch.tensor([5])
    indexes: list[Any] = [
        torch.tensor([2, 0]), torch.tensor(1), (torch.tensor(2), ..., 1), torch.tensor([True, False, True]), torch.tensor(True), torch.tensor([[1], [0]]),
        numpy.array([1, 2]), numpy.int64(2), numpy.array([True, False, False]), numpy.array(True), (slice(None), torch.ones(4, 5, dtype=torch.bool)),
        torch.tensor([1, 0, 1], dtype=torch.uint8), torch.tensor(1, dtype=torch.uint8), (torch.tensor([0, 2], dtype=torch.uint8).long(), 0), torch.Size([1, 2]),
        [torch.tensor(0), torch.tensor(2)], [torch.tensor([0, 2]), torch.tensor([1, 3])], numpy.uint8(1), numpy.array([1, 0, 1], dtype="uint8"),
        torch.tensor([0.0]), torch.zeros(2, 2, dtype=torch.bool), beyond, slice(torch.tensor(0), torch.tensor(2)), torch.tensor([1], dtype=torch.int32),
    ]  # fmt: skip
    with tensorhold.safe_open(file, "pt", torch_device) as f:
        whole, part = reference(f.get_tensor("t")), f.get_slice("t")
        for index in indexes:
            if torch_device.startswith("cuda") and index is beyond:
                continue
            expected, found = outcome(lambda: whole[index]), outcome(lambda: part[index])  # noqa: B023
            if isinstance(expected, Exception):
                assert isinstance(found, Exception) and isinstance(found, IndexError) >= isinstance(expected, IndexError), (index, expected, found)
            else:
                assert found == expected, index


def test_tensors_of_torch_index_arrays_as_numpy_takes_them(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("numpy")
    file = write(tmp_path / "t.safetensors", {"t": spec("I16", (3, 4, 5))})
    indexes: list[Any] = [
        (torch.tensor(True), slice(0, 2)), torch.tensor(True), torch.tensor(False), torch.tensor([True, False, True]), torch.tensor(1), (0, torch.tensor([1, 3])),
        torch.tensor([0, 1], dtype=torch.uint8), torch.tensor(1, dtype=torch.uint8), torch.tensor([0.5]), (..., torch.tensor(True)), torch.ones(3, 4, dtype=torch.bool),
    ]  # fmt: skip
    with tensorhold.safe_open(file, "np") as f:
        whole, part = f.get_tensor("t"), f.get_slice("t")
        for index in indexes:
            expected, found = outcome(lambda: np_asarray(whole[index])), outcome(lambda: part[index])  # noqa: B023
            if isinstance(expected, Exception):
                assert type(found) is type(expected), index
            else:
                assert found == expected, index


def np_asarray(value: Any) -> Any:
    import numpy

    return numpy.asarray(value)


def test_arrays_of_floats_index_tensors_as_torch_takes_them(tmp_path: pathlib.Path) -> None:
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("torch")
    file = write(tmp_path / "t.safetensors", {"t": spec("I16", (3, 4, 5))})
    with tensorhold.safe_open(file, "pt") as f:
        whole, part = f.get_tensor("t"), f.get_slice("t")
        for index in (numpy.array([1.5]), numpy.array(1.5), numpy.array([]), (0, numpy.array([1.5, 2])), numpy.array([1j])):
            assert outcome(lambda: part[index]) == outcome(lambda: whole[index]), index  # noqa: B023


@pytest.mark.parametrize("index", ["a", b"a", (0, "a"), {}, object(), 1.5], ids=repr)
def test_an_index_of_no_kind_is_caught_as_index_error_and_as_type_error(tmp_path: pathlib.Path, index: Any) -> None:
    import_for("torch", "cpu")
    file = write(tmp_path / "t.safetensors", {"t": spec("I16", (3, 4, 5))})
    with tensorhold.safe_open(file, "pt") as f:
        for kind in (IndexError, TypeError, tensorhold.TensorIndexError):
            with pytest.raises(kind, match='slice of tensor "t": got an index of'):
                f.get_slice("t")[index]


def test_a_list_of_rows_reads_no_more_than_from_the_first_to_the_last(tmp_path: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    rows, row = 1000, 4096
    file = write(tmp_path / "t.safetensors", {"t": spec("U8", (rows, row))})
    pool = tensorhold.Pool("cpu")
    with tensorhold.safe_open(file, "np", pool=pool) as f:
        part = f.get_slice("t")
        before = pool.stats().high_water_bytes
        assert part[[500, 510]].shape == (2, row)
        few = pool.stats().high_water_bytes - before
        assert few <= 12 * row
        assert part[[0, 999]].shape == (2, row)
        assert pool.stats().high_water_bytes >= rows * row


def test_parts_own_their_memory(tmp_path: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    file = write(tmp_path / "t.safetensors", {"t": Spec("U8", (2, 3), b"abcdef")})
    with tensorhold.safe_open(file, "np") as f:
        part = f.get_slice("t")
        rows, element = part[[1, 0]], part[0, 1]
    assert (rows.tobytes(), element.shape, element.tobytes()) == (b"defabc", (), b"b")


def test_packed_values_are_indexed_in_pairs(tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    import torch

    file = write(tmp_path / "t.safetensors", {"t": spec("F4", (3, 4, 6))})
    with tensorhold.safe_open(file, "pt") as f:
        whole, part = f.get_tensor("t"), f.get_slice("t")
        pairs = slice(2, 6), slice(1, 3)
        for of_values, of_pairs in [((0, 1), (0, 1)), (None, None), ((..., pairs[0]), (..., pairs[1])), ((-1, None, ...), (-1, None, ...)), ((slice(None, None, 2), 0, pairs[0]), (slice(None, None, 2), 0, pairs[1]))]:
            found = part[of_values]
            assert found.shape == whole[of_pairs].shape and raw(found.contiguous()) == raw(whole[of_pairs].contiguous())
        for index in [(..., 0), (..., [0, 1]), (..., slice(None, None, 2)), (..., torch.tensor([0])), torch.ones(3, 4, 6, dtype=torch.bool), (..., slice(1, 3)), (..., range(2)), [[0], [1], [0]]]:
            with pytest.raises(tensorhold.TensorError):
                part[index]
