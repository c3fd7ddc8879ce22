"""Loading: a dict of tensors, weights, options and reports."""

from __future__ import annotations

import json
import pathlib

import pytest
from support import Spec, raw, spec, write

import tensorhold


def test_a_file_becomes_a_dict_of_the_frameworks_tensors(
    checkpoint: pathlib.Path, few: dict[str, Spec], device: str, framework: str
) -> None:
    loaded = tensorhold.load_file(checkpoint, device, framework)
    assert list(loaded) == list(few)
    for name, tensor in few.items():
        assert type(loaded[name]).__module__.split(".")[0] in (framework, "jaxlib")
        assert tuple(loaded[name].shape) == tensor.shape
        assert raw(loaded[name]) == tensor.data


def test_a_folder_an_index_and_files_are_checkpoints(tmp_path: pathlib.Path, device: str) -> None:
    one, two = {"a": spec("U8", (9,))}, {"b": spec("F16", (4, 2))}
    files = [write(tmp_path / "1.safetensors", one, {"k": "1"}), write(tmp_path / "2.safetensors", two, {"l": "2"})]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    for paths in (tmp_path, str(tmp_path), index, files, [str(file) for file in files]):
        with tensorhold.load(paths, device) as weights:
            assert {name: weights[name].to_host() for name in weights} == {"a": one["a"].data, "b": two["b"].data}
            assert weights.metadata() == {"k": "1", "l": "2"}
            assert weights.metadata(files[1]) == {"l": "2"}
            assert weights.files() == [str(file) for file in files]


def test_weights_say_what_they_are(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    weights = tensorhold.load(checkpoint, device)
    assert weights.keys() == list(weights) == list(few) and len(weights) == len(few)
    assert "matrix" in weights and "matrixx" not in weights and 3 not in weights  # type: ignore[comparison-overlap]
    info = weights.info("matrix")
    assert (info.name, info.dtype, info.shape, info.nbytes, info.file) == ("matrix", "F32", (3, 5), 60, str(checkpoint))
    tensor = weights["matrix"]
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, tensor.device) == ("matrix", "F32", (3, 5), 60, device)
    assert len(tensor) == 3 and tensor.info.shape == (3, 5) and tensor.data_ptr % 256 == 0
    assert [info.name for info in weights.infos()] == list(few)
    for name in few:
        assert weights.tensor(name).to_host() == few[name].data


def test_a_report_has_numbers_times_and_choices(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    report = tensorhold.load(checkpoint, device).report()
    nbytes = sum(len(tensor.data) for tensor in few.values())
    assert (report.tensors, report.bytes, report.files, report.device) == (len(few), nbytes, 1, device)
    assert report.cached_bytes + report.direct_bytes + report.gds_bytes == nbytes
    assert 0 < report.times["fill"] <= report.times["total"]
    assert "threads" in [choice.about for choice in report.choices] and all(choice.why for choice in report.choices)
    assert dict(report)["bytes"] == report["bytes"] == report.as_dict()["bytes"] == nbytes
    assert json.loads(json.dumps(report.as_dict()))["device"] == device
    with pytest.raises(KeyError):
        report["speed"]


def test_names_or_a_rule_select_before_bytes_are_read(checkpoint: pathlib.Path, few: dict[str, Spec], device: str) -> None:
    by_rule = tensorhold.load(checkpoint, device, select=lambda info: info.dtype == "I32")
    by_name = tensorhold.load(checkpoint, device, select=["ids"])
    for weights in (by_rule, by_name):
        assert weights.keys() == ["ids"] and weights.report().bytes == len(few["ids"].data)


def test_tensors_are_converted_and_cut_on_their_way(checkpoint: pathlib.Path, few: dict[str, Spec], torch_device: str) -> None:
    import torch

    before = torch.frombuffer(bytearray(few["matrix"].data), dtype=torch.float32).reshape(3, 5)
    for dtype in ("BF16", "bfloat16", torch.bfloat16):
        loaded = tensorhold.load_file(checkpoint, torch_device, dtype=dtype)
        assert torch.equal(loaded["matrix"].cpu(), before.bfloat16())
        assert loaded["ids"].dtype == torch.int32
    by_rule = tensorhold.load_file(checkpoint, torch_device, dtype=lambda info: "F16" if info.name == "matrix" else None)
    assert (by_rule["matrix"].dtype, by_rule["scalar"].dtype) == (torch.float16, torch.float32)
    cut = tensorhold.Cut.narrow(1, 2, 2)
    for cuts in ({"matrix": cut}, {"matrix": [cut]}, lambda info: cut if info.name == "matrix" else None):
        loaded = tensorhold.load_file(checkpoint, torch_device, cuts=cuts)
        assert torch.equal(loaded["matrix"].cpu(), before[:, 2:4])
    shard = tensorhold.load_file(checkpoint, torch_device, cuts={"large": tensorhold.Cut.shard(0, 1, 4)})
    assert shard["large"].shape == (75, 1000)
    chunk = tensorhold.load_file(checkpoint, torch_device, cuts={"ids": tensorhold.Cut.chunk(0, 1, 2)})
    assert chunk["ids"].shape == (3,)


def test_conversions_are_counted_when_that_is_asked_for(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "m.safetensors", {"t": Spec("F32", (2,), b"\x00\x00\x00\x7f\x00\x00\x80\x3f")})
    report = tensorhold.load(file, dtype="F16", count_conversions=True).report()
    assert report.converted == [{"name": "t", "out_of_range": 1, "nan": 0}]
    assert tensorhold.load(file, dtype="F16").report().converted is None


@pytest.mark.parametrize("backend", ["auto", "buffered", "direct", "io-uring"])
def test_every_backend_reads_the_same(checkpoint: pathlib.Path, few: dict[str, Spec], device: str, backend: str) -> None:
    try:
        weights = tensorhold.load(checkpoint, device, backend=backend, threads=2)
    except tensorhold.OptionError as error:
        pytest.skip(f"the file system does not allow it: {error}")
    assert weights["large"].to_host() == few["large"].data


def test_loads_that_share_a_pool_share_its_numbers_and_its_limit(checkpoint: pathlib.Path, device: str) -> None:
    pool = tensorhold.Pool(device, limit_bytes=2 << 20, parts=False, name="shared")
    assert (pool.name, pool.device, pool.parts) == ("shared", device, False)
    weights = tensorhold.load(checkpoint, device, pool=pool)
    assert pool.stats().live_bytes == weights.report().bytes == weights.pool_stats().live_bytes
    with pytest.raises(tensorhold.OutOfMemoryError, match='on pool "shared".*raise the limit'):
        tensorhold.load(checkpoint, device, pool=pool)
    weights.close()
    tensorhold.load(checkpoint, device, pool=pool)


def test_a_load_beyond_its_budget_is_refused(checkpoint: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    with pytest.raises(MemoryError, match="budget"):
        tensorhold.load(checkpoint, device, memory_budget=100_000)
    assert len(tensorhold.load(checkpoint, device, memory_budget=64 << 20)) == 5


def test_headers_can_be_inspected_alone(checkpoint: pathlib.Path, few: dict[str, Spec]) -> None:
    infos, files = tensorhold.inspect(checkpoint, select=["matrix"], dtype="F16")
    assert [(info.name, info.dtype, info.nbytes) for info in infos] == [("matrix", "F16", 30)]
    assert files == {str(checkpoint): {"format": "pt"}}


def test_modules_have_the_names_of_safetensors(checkpoint: pathlib.Path, few: dict[str, Spec], framework: str, device: str) -> None:
    import tensorhold.numpy
    import tensorhold.torch

    assert tensorhold.SafetensorError is tensorhold.Error
    module = {"torch": tensorhold.torch, "numpy": tensorhold.numpy}.get(framework)
    if module is None:
        pytest.skip(f"safetensors.{framework} has no module here")
    assert raw(module.load_file(checkpoint, device)["matrix"]) == few["matrix"].data


def test_a_progress_callback_is_told_and_a_false_answer_ends_the_load(checkpoint: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    told: list[tuple[int, int, int]] = []
    tensorhold.load(checkpoint, device, progress=lambda p: told.append((p.done_bytes, p.total_bytes, p.tensors)))
    total = told[0][1]
    assert told[0] == (0, total, 5) and told[-1] == (total, total, 5) and told == sorted(told)
    with pytest.raises(tensorhold.CancelledError, match="cancelled"):
        tensorhold.load(checkpoint, device, pool=pool, progress=lambda p: False)
    assert pool.stats().reserved_bytes == 0


def test_progress_true_shows_a_bar(checkpoint: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    tensorhold.load(checkpoint, progress=True)
    assert "loading" in capsys.readouterr().err
    tensorhold.load(checkpoint, progress=False)
    assert capsys.readouterr().err == ""


def test_what_a_callback_raises_ends_the_load_and_comes_out(checkpoint: pathlib.Path, device: str, pool: tensorhold.Pool) -> None:
    def fail(_: object) -> bool:
        raise LookupError("of the callback")

    for option in ("progress", "select", "dtype", "cuts"):
        with pytest.raises(LookupError, match="of the callback"):
            tensorhold.load(checkpoint, device, pool=pool, **{option: fail})  # type: ignore[arg-type]
        assert pool.stats().reserved_bytes == 0


def test_a_real_checkpoint_is_as_safetensors_reads_it(device: str) -> None:
    import_safetensors = pytest.importorskip("safetensors.numpy")
    folder = pathlib.Path(__file__).parents[2] / "target" / "checkpoints"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pytest.skip("the real checkpoints have not been fetched")
    for file in files:
        theirs = import_safetensors.load_file(file)
        weights = tensorhold.load(file, device)
        assert set(weights) == set(theirs)
        for name, array in theirs.items():
            assert weights[name].shape == array.shape and weights[name].to_host() == array.tobytes()
