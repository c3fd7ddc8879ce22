"""`safe_open`: single tensors, walks, slices, iteration, closing."""

from __future__ import annotations

import pathlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import Spec, assert_all_back, import_for, numpy_takes_flags, raw, spec, write

import tensorhold


def test_an_open_checkpoint_says_what_it_holds(checkpoint: pathlib.Path, few: dict[str, Spec], framework: str, device: str) -> None:
    with tensorhold.safe_open(checkpoint, framework, device) as f:
        assert f.keys() == f.offset_keys() == list(few) and len(f) == 5 and "ids" in f and "idss" not in f
        assert f.metadata() == {"format": "pt"} and f.files() == [str(checkpoint)] and f.metadata(checkpoint) == {"format": "pt"}
        assert (f.get_shape("matrix"), f.get_dtype("matrix"), f.info("matrix").nbytes) == ([3, 5], "F32", 60)
        for name, tensor in few.items():
            assert raw(f.get_tensor(name)) == tensor.data
        assert {name: raw(tensor) for name, tensor in f.load().items()} == {name: tensor.data for name, tensor in few.items()}
        assert list(f.load(["ids"])) == ["ids"]
        with pytest.raises(tensorhold.OptionError, match="none of the opened files"):
            f.metadata("/another")


def test_no_metadata_is_none_as_with_safetensors(tmp_path: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    with tensorhold.safe_open(write(tmp_path / "t.safetensors", {"t": spec("U8", (1,))}), "np") as f:
        assert f.metadata() is None


def test_nothing_is_read_after_closing_and_tensors_stay(checkpoint: pathlib.Path, few: dict[str, Spec], framework: str, device: str) -> None:
    with tensorhold.safe_open(checkpoint, framework, device) as f:
        tensor, part = f.get_tensor("matrix"), f.get_slice("matrix")
    assert f.closed and repr(f) == "safe_open(closed)"
    for use in (f.keys, f.metadata, f.files, f.load, lambda: list(f), lambda: len(f), lambda: f.get_tensor("ids"), lambda: part[0]):
        with pytest.raises(tensorhold.ClosedError, match="open it again"):
            use()
    f.close()
    assert raw(tensor) == few["matrix"].data


def test_walks_in_any_order_give_the_same_and_keep_nothing(tmp_path: pathlib.Path, device: str) -> None:
    framework = "np" if device != "cuda:0" else "pt"
    import_for("numpy" if framework == "np" else "torch", device)
    tensors = {f"layer.{n}": spec("U8", (n % 7 * 100_003,), n) for n in range(120)}
    write(tmp_path / "1.safetensors", dict(list(tensors.items())[:50]))
    write(tmp_path / "2.safetensors", dict(list(tensors.items())[50:]))
    pool = tensorhold.Pool(device)
    names = list(tensors)
    mixed = names.copy()
    random.Random(5).shuffle(mixed)
    for order in (names, names[::-1], names[::2], mixed, names[:30] + names[90:] + names[10:60] + names[:5]):
        with tensorhold.safe_open(tmp_path, framework, device, pool=pool) as f:
            for name in order:
                assert raw(f.get_tensor(name)) == tensors[name].data
        assert_all_back(pool)


def test_a_tensor_that_is_asked_for_again_is_read_again(checkpoint: pathlib.Path, few: dict[str, Spec]) -> None:
    import_for("numpy", "cpu")
    with tensorhold.safe_open(checkpoint, "np") as f:
        first = f.get_tensor("matrix")
        if numpy_takes_flags():
            first[:] = 0
        assert raw(f.get_tensor("matrix")) == few["matrix"].data


def test_iteration_gives_each_tensor_once_as_it_lands(checkpoint: pathlib.Path, few: dict[str, Spec], framework: str, device: str) -> None:
    pool = tensorhold.Pool(device)
    with tensorhold.safe_open(checkpoint, framework, device, pool=pool) as f:
        landed = list(f)
        assert sorted(name for name, _ in landed) == sorted(few)
        assert all(raw(tensor) == few[name].data for name, tensor in landed)
        del landed
        for _, tensor in f:
            break
    del tensor, f
    import gc

    gc.collect()
    assert_all_back(pool)


def test_options_hold_for_all_that_is_read(checkpoint: pathlib.Path, torch_device: str) -> None:
    import torch

    options = {"select": lambda info: info.dtype == "F32", "dtype": lambda info: "BF16", "cuts": {"matrix": tensorhold.Cut.narrow(0, 1, 2)}}
    with tensorhold.safe_open(checkpoint, "pt", torch_device, **options) as f:  # type: ignore[arg-type]
        assert "ids" not in f and f.get_shape("matrix") == [2, 5] and f.get_dtype("matrix") == "BF16"
        tensor = f.get_tensor("matrix")
        assert tensor.dtype == torch.bfloat16 and torch.equal(f.get_slice("matrix")[:, 1:3].cpu(), tensor[:, 1:3].cpu())
    with pytest.raises(tensorhold.OptionError, match="progress"):
        tensorhold.safe_open(checkpoint, "pt", torch_device, progress=True)


INDEXES = [
    0, -1, slice(None), slice(1, 3), slice(-2, None), slice(2, 1), slice(0, 99), (0, 1), (1, slice(2, 4)), (slice(1, 2), slice(3)),
    (slice(None), -1), (..., 0), (0, ...), (..., slice(1, 3)), ..., (), (1, 2, 3), (slice(None, None, 2),), (slice(1, None, 2), slice(0, 4, 3)),
    (0, slice(None), slice(None, None, 3)), (slice(5, None),), (..., 1, slice(0, 0)),
]  # fmt: skip


@pytest.mark.parametrize("index", INDEXES, ids=[str(index) for index in INDEXES])
def test_slices_are_those_of_numpy(tmp_path: pathlib.Path, framework: str, device: str, index: object) -> None:
    numpy = pytest.importorskip("numpy")
    whole = numpy.arange(3 * 4 * 5, dtype=numpy.int32).reshape(3, 4, 5)
    file = write(tmp_path / "t.safetensors", {"t": Spec("I32", (3, 4, 5), whole.tobytes())})
    with tensorhold.safe_open(file, framework, device) as f:
        part = f.get_slice("t")
        assert (part.get_shape(), part.get_dtype()) == ([3, 4, 5], "I32")
        assert tuple(part[index].shape) == whole[index].shape and raw(part[index]) == whole[index].tobytes()


@pytest.mark.parametrize(
    "index,kind,words",
    [
        (3, IndexError, "index 3, expected one within the 3 of dimension 0"),
        ((0, -6), IndexError, "index -6"),
        ((0, 0, 0), IndexError, "3 indexes"),
        ((..., ...), IndexError, "once"),
        (slice(None, None, 0), ValueError, "step"),
        ("a", ValueError, "an index of str"),
        (1.0, ValueError, "an index of float"),
    ],
)
def test_slices_that_there_are_not(tmp_path: pathlib.Path, index: object, kind: type[Exception], words: str) -> None:
    import_for("numpy", "cpu")
    file = write(tmp_path / "t.safetensors", {"t": spec("I32", (3, 5))})
    with tensorhold.safe_open(file, "np") as f, pytest.raises(kind, match=words):
        f.get_slice("t")[index]


def test_a_slice_of_packed_values_ends_at_bytes(tmp_path: pathlib.Path) -> None:
    import_for("torch", "cpu")
    file = write(tmp_path / "t.safetensors", {"t": spec("F4", (4, 6))})
    with tensorhold.safe_open(file, "pt") as f:
        whole, part = f.get_tensor("t"), f.get_slice("t")
        assert tuple(part[1:3].shape) == (2, 3)
        assert tuple(part[1].shape) == (3,) and raw(part[1]) == raw(whole[1])
        assert tuple(part[-1, 2:6].shape) == (2,) and raw(part[-1, 2:6]) == raw(whole[-1, 1:3])
        assert tuple(part[::2].shape) == (2, 3) and raw(part[::2]) == raw(whole[::2])
        for index in ((slice(None), slice(1, 2)), (0, 1), (slice(None), slice(None, None, 2))):
            with pytest.raises(tensorhold.TensorError):
                part[index]


@pytest.mark.parametrize("read", ["get_tensor", "load", "iteration", "get_slice"])
def test_a_rule_that_reads_what_it_is_asked_for_is_told_so(checkpoint: pathlib.Path, read: str) -> None:
    import_for("numpy", "cpu")
    reads: dict[str, Callable[[tensorhold.safe_open], object]] = {
        "get_tensor": lambda f: f.get_tensor("ids"),
        "load": lambda f: f.load(),
        "iteration": lambda f: list(f),
        "get_slice": lambda f: f.get_slice("large")[0],
    }
    opened: list[tensorhold.safe_open] = []

    def rule(info: tensorhold.TensorInfo) -> None:
        for f in opened:
            reads[read](f)

    with tensorhold.safe_open(checkpoint, "np", dtype=rule) as f:
        opened.append(f)
        with pytest.raises(tensorhold.OptionError, match="a rule of the checkpoint that reads from it"):
            f.get_tensor("matrix")
        opened.clear()
        assert len(f.load()) == 5


def test_a_rule_may_read_from_another_checkpoint(checkpoint: pathlib.Path, few: dict[str, Spec]) -> None:
    import_for("numpy", "cpu")
    with tensorhold.safe_open(checkpoint, "np") as other:

        def rule(info: tensorhold.TensorInfo) -> None:
            other.get_tensor(info.name)

        with tensorhold.safe_open(checkpoint, "np", dtype=rule) as f:
            assert raw(f.get_tensor("matrix")) == few["matrix"].data


def test_nothing_is_kept_of_a_batch_in_which_a_rule_raised(tmp_path: pathlib.Path) -> None:
    names = [f"t{n}" for n in range(6)]
    file = write(tmp_path / "t.safetensors", {name: spec("F32", (5,)) for name in names})
    raises: list[str] = []

    def rule(info: tensorhold.TensorInfo) -> str:
        if info.name in raises:
            raise ZeroDivisionError(info.name)
        return "F16"

    with tensorhold.safe_open(file, "np", dtype=rule) as f:
        assert f.get_tensor("t0").dtype == "float16"
        raises.append("t3")
        with pytest.raises(ZeroDivisionError, match="t3"):
            f.get_tensor("t1")
        raises.clear()
        assert [f.get_tensor(name).dtype.name for name in names] == ["float16"] * len(names)
        assert [f.get_tensor(name).dtype.name for name in reversed(names)] == ["float16"] * len(names)
        # From the second on, as the walk that failed would have gone on.
        raises.append("t5")
        f.get_tensor("t0")
        with pytest.raises(ZeroDivisionError, match="t5"):
            f.get_tensor("t1")
        raises.clear()
        assert [f.get_tensor(name).dtype.name for name in names[2:]] == ["float16"] * 4


def test_reads_beside_one_in_which_a_rule_raised_raise_too(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "t.safetensors", {name: spec("F32", (5,)) for name in "ab"})
    armed, asked, go_on = threading.Event(), threading.Event(), threading.Event()

    def rule(info: tensorhold.TensorInfo) -> str:
        if info.name == "a" and armed.is_set():
            asked.set()
            go_on.wait()
            raise ZeroDivisionError("a")
        return "F16"

    with tensorhold.safe_open(file, "np", dtype=rule) as f, ThreadPoolExecutor() as threads:
        armed.set()
        first = threads.submit(f.get_tensor, "a")
        asked.wait()
        second = threads.submit(lambda: f.get_slice("b")[1:])
        go_on.set()
        with pytest.raises(ZeroDivisionError):
            first.result()
        # It has raised, or was asked afterwards; it never gives what the rule would not have.
        assert isinstance(second.exception(), ZeroDivisionError) or second.result().dtype == "float16"
        armed.clear()
        assert f.get_tensor("a").dtype == f.get_tensor("b").dtype == "float16"


@pytest.mark.parametrize("option", ["dtype", "cuts"])
@pytest.mark.parametrize("walks", [False, True])
def test_a_rule_may_close_the_checkpoint_that_asks_it(
    checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str, option: str, walks: bool
) -> None:
    opened: list[tensorhold.safe_open] = []
    pool = tensorhold.Pool(device)

    def close(info: tensorhold.TensorInfo) -> Any:
        if opened and info.name != "matrix":
            opened.pop().close()
        return None if option == "dtype" else []

    rule: Any = {option: close}
    f = tensorhold.safe_open(checkpoint, framework, device, pool=pool, **rule)
    names = list(few) if walks else ["large"]
    opened.append(f)
    # The read that is under way goes on.
    read = []
    with pytest.raises(tensorhold.ClosedError):
        for name in names * 2:
            read.append(raw(f.get_tensor(name)))
    assert read and all(data == few[name].data for name, data in zip(names, read))
    assert f.closed
    del f
    assert_all_back(pool)


def test_names_and_options_of_any_length_are_bounded_in_errors(checkpoint: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    long = "\x1b" + "n" * 1_000_000
    closed = tensorhold.safe_open(checkpoint, "np")
    closed.close()
    calls: list[Callable[[], Any]] = [
        lambda: tensorhold.load(checkpoint, select=[long]),
        lambda: tensorhold.load(checkpoint, device=long),
        lambda: tensorhold.load(checkpoint, dtype=long),
        lambda: tensorhold.load(checkpoint, backend=long),
        lambda: closed.get_tensor(long),
    ]
    for call in calls:
        with pytest.raises(tensorhold.Error) as caught:
            call()
        assert len(str(caught.value)) < 2000 and "\x1b" not in str(caught.value)


def test_names_in_files_are_bounded_in_errors_of_slices(tmp_path: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    name = "n" * 1_000_000
    path = write(tmp_path / "long.safetensors", {name: spec("F32", (2, 3))})
    with tensorhold.safe_open(path, "np") as f:
        for index in (9, (0, 0, 0), "one"):
            with pytest.raises((tensorhold.Error, TypeError)) as caught:
                f.get_slice(name)[index]
            assert len(str(caught.value)) < 2000
