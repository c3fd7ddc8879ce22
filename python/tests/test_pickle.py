"""Pickle and copy: what describes something goes through, a tensor with its bytes, and what belongs to a process says so."""

from __future__ import annotations

import copy
import io
import os
import pathlib
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import Spec, import_for, python, raw, spec, write

import tensorhold
from tensorhold import _core

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def copies(value: Any) -> list[Any]:
    return [*(pickle.loads(pickle.dumps(value, protocol)) for protocol in PROTOCOLS), copy.copy(value), copy.deepcopy(value)]


def test_a_tensor_goes_through_with_its_bytes(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    with tensorhold.load(checkpoint, device) as weights:
        for name, tensor in weights.items():
            for made in copies(tensor):
                assert repr(made) == repr(tensor) and made.to_host() == few[name].data
                assert (made.file, made.info.nbytes, made.device) == (str(checkpoint), tensor.nbytes, device)
        tensor = weights["large"]
    # Only a shallow copy shares the memory.
    made, deep = pickle.loads(pickle.dumps(tensor)), copy.deepcopy(tensor)
    assert copy.copy(tensor).data_ptr == tensor.data_ptr and len({tensor.data_ptr, made.data_ptr, deep.data_ptr}) == 3
    del tensor
    assert made.to_host() == deep.to_host() == few["large"].data


def test_a_part_and_a_view_take_no_more_than_their_own_bytes(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    with tensorhold.load(checkpoint, device) as weights:
        part = weights["large"].narrow(0, 10, 2).view("U8")
    pickled = pickle.dumps(part)
    assert len(pickled) < part.nbytes + 1000
    made = pickle.loads(pickled)
    assert repr(made) == repr(part) and made.to_host() == few["large"].data[40_000:48_000]


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "BF16", "BOOL", "F8_E8M0", "C64"])
def test_tensors_of_all_types_go_through(tmp_path: pathlib.Path, dtype: str) -> None:
    file = write(tmp_path / "t.safetensors", {"t": spec(dtype, (2, 8)), "none": spec(dtype, (0, 8))})
    for tensor in tensorhold.load(file).values():
        for made in copies(tensor):
            assert repr(made) == repr(tensor) and made.to_host() == tensor.to_host()


def test_a_restored_tensor_is_taken_by_frameworks(checkpoint: pathlib.Path, framework: str, device: str) -> None:
    with tensorhold.load(checkpoint, device) as weights:
        made = pickle.loads(pickle.dumps(weights["matrix"]))
        assert raw(made.to(framework)) == weights["matrix"].to_host()


def test_many_tensors_are_restored_without_a_thread_for_each(tmp_path: pathlib.Path) -> None:
    tensors = {f"t{n}": spec("F32", (n % 5,), n) for n in range(2000)}
    pickled = pickle.dumps(dict(tensorhold.load(write(tmp_path / "t.safetensors", tensors))))
    pickle.loads(pickled)
    threads = len(os.listdir("/proc/self/task"))
    made = pickle.loads(pickled)
    assert len(os.listdir("/proc/self/task")) <= threads + 1
    assert {name: tensor.to_host() for name, tensor in made.items()} == {name: tensor.data for name, tensor in tensors.items()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_unpickles_tensors(checkpoint: pathlib.Path) -> None:
    script = """
import os, pickle, sys, tensorhold
tensor = tensorhold.load(sys.argv[1])["matrix"]
pickled = pickle.dumps(tensor)
kept = pickle.loads(pickled)
child = os.fork()
if not child:
    made = pickle.loads(pickle.dumps(kept))
    os._exit(0 if made.to_host() == tensor.to_host() else 1)
assert os.waitpid(child, 0)[1] == 0
assert pickle.loads(pickled).to_host() == kept.to_host()
"""
    python(script, str(checkpoint))


def test_a_tensor_of_a_device_that_is_missing_names_it(checkpoint: pathlib.Path) -> None:
    if tensorhold.cuda_count():
        pytest.skip("there is a CUDA device")
    pickled = pickle.dumps(tensorhold.load(checkpoint)["ids"])
    for device in ("cuda:7", "pinned"):
        state = "ids", "I32", (7,), "f"
        with pytest.raises(tensorhold.DeviceError, match=device):
            _core.restore("Tensor", (state, device, bytes(28)))
    assert pickle.loads(pickled).device == "cpu"


def described(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> dict[str, Any]:
    """An object of each class that describes something."""
    told: list[tensorhold.Progress] = []
    twins = tmp_path / "twins"
    twins.mkdir()
    write(twins / "model.safetensors", {"a": spec("F32", (2,))})
    write(twins / "model.fp16.safetensors", {"a": spec("F16", (2,))})
    weights = tensorhold.load(twins, dtype="F16", count_conversions=True, progress=lambda progress: told.append(progress))
    held = weights["a"]
    report = weights.report()
    pool = tensorhold.Pool("cpu")
    loaded = tensorhold.load(checkpoint, pool=pool)
    stats = pool.stats()
    closed = weights.close()
    del held, loaded
    return {
        "TensorInfo": tensorhold.inspect(checkpoint)[0][0],
        "narrow": tensorhold.Cut.narrow(0, 1, 2),
        "shard": tensorhold.Cut.shard(1, 2, 4),
        "chunk": tensorhold.Cut.chunk(2, 0, 3),
        "Progress": told[-1],
        "Report": report,
        "Stats": stats,
        "Choice": report.choices[0],
        "LeftOut": report.left_out[0],
        "Closed": closed,
        "Held": closed.held[0],
    }


def fields(value: Any) -> Any:
    """What an object says, all the way down."""
    if isinstance(value, list):
        return [fields(item) for item in value]
    if type(value).__module__ != "tensorhold":
        return value
    names = [name for name in dir(value) if not name.startswith("_") and not callable(getattr(value, name))]
    return type(value), repr(value), {name: fields(getattr(value, name)) for name in names}


def test_descriptions_go_through_as_they_are(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for kind, value in described(checkpoint, tmp_path).items():
        for made in copies(value):
            assert fields(made) == fields(value), kind
    report = tensorhold.load(checkpoint).report()
    for made in copies(report):
        assert made.as_dict() == report.as_dict() and list(made) == list(report)


def test_a_path_that_is_not_utf_8_goes_through(tmp_path: pathlib.Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    file = write(pathlib.Path(os.fsdecode(folder)) / "m.safetensors", {"a": spec("U8", (1,))})
    tensor = tensorhold.load(file)["a"]
    for made in copies(tensor):
        assert made.file == str(file) and made.info.file == str(file)
    with tensorhold.safe_open(file, framework="np") as f:
        assert pickle.loads(pickle.dumps(f)).files() == [str(file)]


EXCEPTIONS = [
    kind for kind in map(lambda name: getattr(tensorhold, name), tensorhold.__all__) if isinstance(kind, type) and issubclass(kind, BaseException)
]


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_exceptions_go_through_with_all_attributes(kind: type[tensorhold.Error]) -> None:
    plain = kind("a message")
    rich = kind("a message", "more") if issubclass(kind, OSError) else kind("a message")
    for name, value in {"errno": 13, "path": "/a", "operation": "open", "strerror": "no", "filename": "f", "filename2": "g", "own": [1]}.items():
        setattr(rich, name, value)
    if hasattr(rich, "add_note"):
        rich.add_note("a note")
    if issubclass(kind, ImportError):
        setattr(rich, "name", "torch")  # noqa: B010
    for error in (plain, rich):
        for made in copies(error):
            assert type(made) is kind and repr(made) == repr(error) and str(made) == str(error) and made.args == error.args
            for name in ("errno", "path", "operation", "strerror", "filename", "filename2", "own", "__notes__", "name"):
                assert getattr(made, name, None) == getattr(error, name, None), name


def test_errors_of_the_library_go_through(tmp_path: pathlib.Path) -> None:
    failing: list[Callable[[], object]] = [
        lambda: tensorhold.load(tmp_path / "none"),
        lambda: tensorhold.load(tmp_path),
        lambda: tensorhold.load(write(tmp_path / "m.safetensors", {"a": spec("U8", (2,))}), threads=0),
        lambda: tensorhold.load(tmp_path / "m.safetensors")["b"],
        lambda: tensorhold.load(tmp_path / "m.safetensors", memory_budget=1),
        lambda: tensorhold.save_file({}, tmp_path),
    ]
    for call in failing:
        with pytest.raises(tensorhold.Error) as caught:
            call()
        error = caught.value
        for made in copies(error):
            assert type(made) is type(error) and str(made) == str(error) and made.__dict__ == error.__dict__
            assert getattr(made, "errno", None) == getattr(error, "errno", None)


class Own(tensorhold.FileError):
    """An exception of a caller's, with arguments of its own."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{number} {text}")
        self.args = number, text


def test_exceptions_that_derive_from_ours_go_through() -> None:
    error = Own(7, "seven")
    error.errno = 5
    for made in copies(error):
        assert type(made) is Own and made.args == (7, "seven") and made.errno == 5


def test_an_open_checkpoint_is_opened_again(checkpoint: pathlib.Path, few: dict[str, Spec], framework: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    options: dict[str, Any] = {"select": ["matrix", "ids"], "dtype": None, "cuts": {"matrix": tensorhold.Cut.narrow(0, 1, 1)}, "backend": "buffered"}
    with tensorhold.safe_open([checkpoint.name], framework, device, **options) as f:
        monkeypatch.chdir("/")
        for made in copies(f):
            assert type(made) is tensorhold.safe_open and made.keys() == f.keys() and made.files() == [str(checkpoint)]
            assert raw(made.get_tensor("matrix")) == few["matrix"].data[20:40]
            assert type(made.get_tensor("ids")) is type(f.get_tensor("ids"))
            made.close()
        # Of a method, too, as a function for workers is.
        assert raw(pickle.loads(pickle.dumps(f.get_tensor))("ids")) == few["ids"].data
    with pytest.raises(tensorhold.ClosedError, match="safe_open"):
        pickle.dumps(f)


def test_options_that_cannot_be_pickled_are_named(checkpoint: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    options: list[tuple[str, Any]] = [
        ("select", lambda info: True), ("dtype", lambda info: None), ("cuts", lambda info: None), ("pool", tensorhold.Pool("cpu")),
    ]  # fmt: skip
    for name, value in options:
        with tensorhold.safe_open(checkpoint, "np", **{name: value}) as f, pytest.raises(TypeError, match=f"pickle safe_open: its option {name} "):
            pickle.dumps(f)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_an_open_checkpoint_opens_it_again_with_its_options(checkpoint: pathlib.Path, few: dict[str, Spec], copied: Any) -> None:
    import_for("numpy", "cpu")
    import tensorhold.safetensors

    pool = tensorhold.Pool("cpu")
    for kind in (tensorhold.safe_open, tensorhold.safetensors.safe_open):
        with kind(checkpoint, "np", select=lambda info: info.name == "ids", pool=pool) as f:
            made = copied(f)
        with pytest.raises(tensorhold.ClosedError):
            copied(f)
        assert type(made) is kind and made.keys() == ["ids"] and raw(made.get_tensor("ids")) == few["ids"].data
        made.close()
    with open(checkpoint, "rb") as file, tensorhold.safetensors._safe_open_handle(file, "np") as f, copied(f) as made:
        assert made.keys() == f.keys()


def wants(info: tensorhold.TensorInfo) -> bool:
    return info.name != "large"


def test_rules_of_modules_go_with_an_open_checkpoint(checkpoint: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    with tensorhold.safe_open(checkpoint, "np", select=wants) as f:
        assert pickle.loads(pickle.dumps(f)).keys() == [name for name in f.keys() if name != "large"]


def test_what_belongs_to_a_process_says_so_by_its_name(checkpoint: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    weights = tensorhold.load(checkpoint)
    with tensorhold.stream(checkpoint) as stream, tensorhold.safe_open(checkpoint, "np") as f:
        private = [f._open, f._get, f._open.hand_over_part("ids", [])]
        for value, words in [(weights, "Weights"), (stream, "Stream"), (tensorhold.Pool(), "Pool"), (f.get_slice("ids"), "Slice"), *((value, "") for value in private)]:
            for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError) as caught:
                    refuse(value)
                message = str(caught.value)
                assert message.startswith("pickle ") and words in message and ";" in message and "_core" not in message, message


STATES: list[tuple[str, Any]] = [
    ("Tensor", (("a", "F32", (2,), "f"), "cpu", bytes(7))),
    ("Tensor", (("a", "F32", (2,), "f"), "cpu", bytes(9))),
    ("Tensor", (("a", "F32", (2**62, 2**62), "f"), "cpu", b"")),
    ("Tensor", (("a", "F4", (1,), "f"), "cpu", b"x")),
    ("Tensor", (("a", "F5", (1,), "f"), "cpu", b"x")),
    ("Tensor", (("a", "U8", (-1,), "f"), "cpu", b"")),
    ("Tensor", (("a", "U8", (1,), "f"), "tpu", b"x")),
    ("Tensor", (("a", "U8", (1,), "f"), "cpu", "x")),
    ("Tensor", ()),
    ("TensorInfo", ("a", "F32", (2**63, 2), "f")),
    ("TensorInfo", (1, "F32", (2,), "f")),
    ("Cut", ("widen", 0, 1, 2)),
    ("Cut", ("narrow", -1, 1, 2)),
    ("Stats", (1, 2)),
    ("Report", ("cpu", {}, [])),
    ("Report", ("cpu", [], [])),
    ("Report", ("cpu", {"tensors": -1}, [])),
    ("Held", (b"a", 1)),
    ("Closed", (1, [("a", "b")], 1, 1)),
    ("None", ()),
]


@pytest.mark.parametrize(("kind", "state"), STATES, ids=lambda value: str(value)[:40])
def test_states_that_are_made_by_hand_are_checked(kind: str, state: Any) -> None:
    with pytest.raises((tensorhold.Error, TypeError, ValueError, OverflowError)):
        _core.restore(kind, state)


def test_a_nested_state_is_refused_before_the_stack_ends() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(tensorhold.OptionError, match="unpickle"):
        _core.restore("Report", ("cpu", deep, []))
    while deep:
        deep = deep.pop("a")


def test_damaged_pickles_of_a_tensor_never_crash(checkpoint: pathlib.Path) -> None:
    # Only what names a class and function of ours is called.
    class Ours(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("tensorhold._core", "restore"):
                return _core.restore
            raise pickle.UnpicklingError(name)

    whole = pickle.dumps(tensorhold.load(checkpoint)["matrix"], 2)
    draw = random.Random(7)
    for _ in range(2000):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            found = Ours(io.BytesIO(bytes(damaged))).load()
        except Exception:
            continue
        if isinstance(found, tensorhold.Tensor):
            assert len(found.to_host()) == found.nbytes


SPAWNED = """
import multiprocessing, sys
import tensorhold

def child(opened, tensor, info, pipe):
    pipe.send((opened.get_tensor("ids").tolist(), tensor, info, type(opened).__name__))
    try:
        tensorhold.load("/none/such")
    except tensorhold.Error as error:
        pipe.send(error)

def fails(path):
    return tensorhold.load(path)

if __name__ == "__main__":
    method, path = sys.argv[1:]
    context = multiprocessing.get_context(method)
    with tensorhold.safe_open(path, "np") as opened:
        tensor = tensorhold.load(path)["matrix"]
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(opened, tensor, tensor.info, theirs))
        process.start()
        ids, came, info, name = ours.recv()
        error = ours.recv()
        process.join()
        assert ids == opened.get_tensor("ids").tolist() and name == "safe_open"
        assert repr(came) == repr(tensor) and came.to_host() == tensor.to_host() and repr(info) == repr(tensor.info)
        assert type(error) is tensorhold.MissingFileError and error.errno == 2 and error.path == "/none/such", error
    with context.Pool(1) as pool:
        try:
            pool.apply(fails, ("/none/such",))
        except tensorhold.MissingFileError as raised:
            assert raised.errno == 2 and str(raised) == str(error)
        else:
            raise SystemExit("it did not raise")
    print("right")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_objects_arrive_in_other_processes_and_back(checkpoint: pathlib.Path, tmp_path: pathlib.Path, method: str) -> None:
    import_for("numpy", "cpu")
    script = tmp_path / "script.py"
    script.write_text(SPAWNED)
    done = subprocess.run([sys.executable, str(script), method, str(checkpoint)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "right\n", done.stdout + done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_open_checkpoint_is_read_by_workers_of_a_data_loader(checkpoint: pathlib.Path, tmp_path: pathlib.Path, method: str) -> None:
    import_for("torch", "cpu")
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
import torch.utils.data
import tensorhold

class Rows(torch.utils.data.Dataset):
    def __init__(self, path):
        self.opened = tensorhold.safe_open(path, "pt")
    def __len__(self):
        return 3
    def __getitem__(self, row):
        return self.opened.get_slice("matrix")[row]

if __name__ == "__main__":
    rows = Rows(sys.argv[2])
    loader = torch.utils.data.DataLoader(rows, batch_size=3, num_workers=1, multiprocessing_context=sys.argv[1])
    [found] = list(loader)
    assert torch.equal(found, rows.opened.get_tensor("matrix"))
    print("right")
"""
    )
    done = subprocess.run([sys.executable, str(script), method, str(checkpoint)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "right\n", done.stdout + done.stderr
