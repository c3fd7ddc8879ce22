"""`Weights` and `Report` are mappings, and None is what is not given."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, MutableMapping
from typing import Any

import pytest
from support import Spec, import_for, raw, spec, write

import tensorhold


def test_weights_are_a_mapping(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    with tensorhold.load(checkpoint, device) as weights:
        assert isinstance(weights, Mapping) and not isinstance(weights, MutableMapping)
        assert {**weights}.keys() == dict(weights).keys() == few.keys()
        assert [name for name, _ in weights.items()] == list(weights) == [tensor.name for tensor in weights.values()] == list(few)
        assert (len(weights.items()), len(weights.values())) == (5, 5)
        assert all(tensor.to_host() == few[name].data for name, tensor in weights.items())
        found = weights.get("ids")
        assert found is not None and found.to_host() == few["ids"].data
        assert (weights.get("none"), weights.get("none", 7), weights.get(3)) == (None, 7, None)  # type: ignore[call-overload]
        del found
    for use in (weights.items, weights.values, weights.keys, lambda: weights.get("ids")):
        with pytest.raises(tensorhold.ClosedError):
            use()


def test_names_are_a_list_with_the_operations_of_a_set(checkpoint: pathlib.Path, few: dict[str, Spec]) -> None:
    names = tensorhold.load(checkpoint).keys()
    assert isinstance(names, list) and names == list(few) and list(few) == names and names[0] == "matrix" and names[1:3] == ["scalar", "empty"]
    assert names != list(few)[::-1] and repr(names) == repr(list(few))
    keys, some = few.keys(), {"ids", "other"}
    for other in (some, frozenset(some), dict.fromkeys(some).keys()):
        assert (names & other, names | other, names - other, names ^ other) == (keys & other, keys | other, keys - other, keys ^ other)
        assert (other & names, other | names, other - names, other ^ names) == (other & keys, other | keys, other - keys, other ^ keys)
        assert names.isdisjoint(other) is False and names.isdisjoint({"other"})
    assert names == set(few) == names and names == few.keys() and names != {"ids"} and not names == {"ids"}
    assert names >= {"ids"} and names > {"ids"} and names <= set(few) and not names < set(few)
    with pytest.raises(TypeError):
        hash(names)


def test_a_report_is_a_mapping(checkpoint: pathlib.Path) -> None:
    report = tensorhold.load(checkpoint).report()
    assert isinstance(report, Mapping)
    assert dict(report).keys() == {**report}.keys() == set(report.keys()) == set(report)
    assert dict(report.items())["bytes"] == report["bytes"] == report.bytes == report.get("bytes")
    assert report.bytes in list(report.values()) and len(report.values()) == len(report)
    assert "bytes" in report and "none" not in report and report.get("no") is None and report.get("none", 7) == 7
    with pytest.raises(KeyError):
        report["none"]
    report.keys().clear()
    assert len(report.keys()) == len(report)


def test_no_device_is_the_cpu(checkpoint: pathlib.Path, few: dict[str, Spec]) -> None:
    assert tensorhold.load(checkpoint, None).device == tensorhold.load(checkpoint, device=None).device == "cpu"
    assert tensorhold.Pool(None).device == tensorhold.Pool(device=None).device == "cpu"
    assert len(tensorhold.inspect(checkpoint, None)[0]) == 5
    with tensorhold.stream(checkpoint, None, in_file_order=None) as stream:
        assert {tensor.device for _, tensor in stream} == {"cpu"}


def test_no_device_is_the_cpu_for_frameworks(checkpoint: pathlib.Path, few: dict[str, Spec], framework: str, device: str) -> None:
    if device != "cpu":
        pytest.skip("it is about the CPU")
    assert raw(tensorhold.load_file(checkpoint, None, framework)["ids"]) == few["ids"].data
    with tensorhold.safe_open(checkpoint, framework, None) as f:
        assert raw(f.get_tensor("ids")) == few["ids"].data


def test_arguments_that_are_none_are_not_given(checkpoint: pathlib.Path, few: dict[str, Spec], tmp_path: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    names = ["variant", "select", "dtype", "cuts", "backend", "memory_budget", "threads", "staging_bytes", "pool", "parts", "count_conversions", "progress"]
    none: Any = dict.fromkeys(names)
    assert tensorhold.load(checkpoint, **none).keys() == list(few)
    with tensorhold.safe_open(checkpoint, "np", None, **none) as f:
        assert f.metadata(None) == {"format": "pt"} and list(f.load(None)) == list(few)
    tensorhold.save_file({}, tmp_path / "none.safetensors", None, synced=None)
    pool = tensorhold.Pool(None, limit_bytes=None, parts=None, retain_bytes=None, name=None)  # type: ignore[arg-type]
    assert pool.name == "cpu"


@pytest.mark.parametrize("backend", ["auto", "mmap", "pread", "buffered"])
def test_backends_of_safetensors_are_hints(checkpoint: pathlib.Path, few: dict[str, Spec], backend: str) -> None:
    import_for("numpy", "cpu")
    assert tensorhold.load(checkpoint, backend=backend)["ids"].to_host() == few["ids"].data
    assert raw(tensorhold.load_file(checkpoint, framework="np", backend=backend)["ids"]) == few["ids"].data
    assert len(tensorhold.inspect(checkpoint, backend=backend)[0]) == 5
    with tensorhold.stream(checkpoint, backend=backend) as stream:
        assert len(dict(stream)) == 5
    with tensorhold.safe_open(checkpoint, framework="np", backend=backend) as f:
        assert {name: raw(tensor) for name, tensor in f.get_tensors().items()} == {name: tensor.data for name, tensor in few.items()}
        assert list(f.get_tensors()) == f.offset_keys()


def test_the_names_of_safetensors_are_there(tmp_path: pathlib.Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    import_for("numpy", "cpu")
    file = write(tmp_path / "t.safetensors", {"t": spec("F32", (2,))})
    with safetensors.safe_open(file, "np") as theirs, tensorhold.safe_open(file, "np") as ours:
        for one, other in ((theirs, ours), (theirs.get_slice("t"), ours.get_slice("t"))):
            assert [name for name in dir(one) if not name.startswith("_") and not hasattr(other, name)] == []
