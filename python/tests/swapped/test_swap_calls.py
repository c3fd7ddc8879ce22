"""A call of the real safetensors, and the same call of the package in its place, give the same, or raise what the same `except` catches."""

from __future__ import annotations

import pathlib
import pickle
import sys
from typing import Any

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

for needed in ("torch", "numpy", "ml_dtypes"):
    pytest.importorskip(needed)

import calls_load  # noqa: E402
import calls_save  # noqa: E402
import calls_slice  # noqa: E402
from differences import wanted  # noqa: E402
from side_by_side import OURS, Package, outcome, package, real, same  # noqa: E402

CALLS = {**calls_load.CALLS, **calls_slice.CALLS, **calls_save.CALLS}

TEXTS = [
    "a path without a file",
    "load_file of a path without a file",
    "[1, -6] for numpy",
    "[2:, 20] for numpy",
    "[:20] for numpy",
    "[:, :20] for numpy",
    "[[0, 2, 2]] for numpy",
    "torch.save_file of a sparse tensor",
    "torch.save_file of a dict as tensor",
    "torch.save_file of a str",
    "load_model of an untied file into a tied model",
    "load_model of a tied file into an untied model",
]
"""Calls whose errors programs tell apart by their texts, as the tests of safetensors do."""


@pytest.fixture(scope="module")
def theirs() -> Package:
    return real()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("files")
    calls_load.make(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OURS)
def test_calls_give_the_same(name: str, theirs: Package, files: pathlib.Path, tmp_path: pathlib.Path) -> None:
    ours = package(name)
    differing: dict[str, tuple[Any, Any]] = {}
    for number, (call, made) in enumerate(CALLS.items()):
        outs = [tmp_path / f"{number}.{which}" for which in ("theirs", "ours")]
        for out in outs:
            out.mkdir()
        found = outcome(made, theirs, files, outs[0]), outcome(made, ours, files, outs[1])
        if not same(*found, theirs, ours):
            differing[call] = found
    expected = wanted(name, CALLS)
    unwanted = {call: found for call, found in differing.items() if call not in expected}
    assert not unwanted, "\n".join(f"{call}: theirs {found[0]!r:.300}, ours {found[1]!r:.300}" for call, found in unwanted.items())
    gone = sorted(set(expected) - set(differing))
    assert not gone, f"these calls no longer differ: remove them from the list of wanted differences: {gone}"


@pytest.mark.parametrize("call", TEXTS)
def test_errors_have_the_same_text(call: str, theirs: Package, files: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    expected = outcome(CALLS[call], theirs, files, tmp_path / "theirs")
    found = outcome(CALLS[call], package("tensorhold.safetensors"), files, tmp_path / "ours")
    assert str(found.error) == str(expected.error)


def test_open_files_go_through_pickle(files: pathlib.Path) -> None:
    ours = package("tensorhold.safetensors").root
    path = files / "few.safetensors"
    with open(path, "rb") as file, ours._safe_open_handle(file, "np") as handle, ours.safe_open(path, "np", backend="pread") as opened:
        for found in (handle, opened):
            again = pickle.loads(pickle.dumps(found))
            assert isinstance(again, ours.safe_open)
            assert (again.get_tensor("b") == found.get_tensor("b")).all()
    with pytest.raises(TypeError, match="pickle a TensorSpec"):
        pickle.dumps(ours.TensorSpec(dtype="int8", shape=[1], data_ptr=8, data_len=1))
