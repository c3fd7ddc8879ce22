"""Tensors one after the other: `ParallelLoader`, `PipelineParallel` and `AutoLoader`."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import threading

import pytest
import torch
from drop_in import all_goes_back, files, place, shards, tensors  # noqa: F401
from support import Spec, raw, spec, write

import tensorhold
from tensorhold.fastsafetensors import (
    AutoLoader,
    BudgetInfeasibleError,
    ParallelLoader,
    SafeTensorsFileLoader,
    SingleGroup,
    live_allocation_bytes,
    live_allocation_count,
)
from tensorhold.fastsafetensors.config import CONFIG_ENV_VAR
from tensorhold.fastsafetensors.frameworks import get_framework_op
from tensorhold.fastsafetensors.parallel_loader import PipelineParallel

MIB = 1 << 20


def parallel(files: list[str], place: str = "cpu", **options: object) -> ParallelLoader:
    return ParallelLoader(SingleGroup(), files, use_tqdm_on_load=False, device=place, **options)  # type: ignore[arg-type]


def given(loader: PipelineParallel) -> list[tuple[str, bytes]]:
    with contextlib.closing(loader):
        return [(name, raw(tensor)) for name, tensor in loader.iterate_weights()]


@pytest.fixture
def expected(tensors: dict[str, Spec]) -> list[tuple[str, bytes]]:
    return [(name, tensor.data) for name, tensor in tensors.items()]


@pytest.fixture
def large(tmp_path: pathlib.Path) -> tuple[list[str], dict[str, int]]:
    """Two files of four tensors of 1 MiB each, and a tensor of 2 MiB."""
    files, sizes = [], {}
    for n in range(2):
        tensors = {f"{n}.{k}": spec("U8", (MIB * (2 if k == 4 and n else 1),), k) for k in range(4 + n)}
        files.append(str(write(tmp_path / f"large-{n}.safetensors", tensors)))
        sizes.update({name: len(tensor.data) for name, tensor in tensors.items()})
    return files, sizes


def test_the_call_sequence_of_vllm_gives_every_tensor(place: str, files: list[str], expected: list[tuple[str, bytes]]) -> None:
    group = SingleGroup()
    for queue_size in (-1, 0, 1, 4):
        loader = ParallelLoader(
            pg=group, hf_weights_files=sorted(files), queue_size=queue_size, use_tqdm_on_load=True, device=place, nogds=group.size() > 1
        )
        found = []
        try:
            for name, tensor in loader.iterate_weights():
                assert str(tensor.device) == place
                found.append((name, raw(tensor)))
        finally:
            loader.close()
        assert found == expected


def test_given_tensors_are_independent(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    loader = parallel(files, place, max_batch_bytes=500)
    kept = dict(loader.iterate_weights())
    loader.close()
    kept["a.weight"].zero_()
    assert all(raw(tensor) == tensors[name].data for name, tensor in kept.items() if name != "a.weight")


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_bytes": 1},
        {"max_batch_bytes": 500},
        {"max_batch_bytes": 400_000, "use_chunk_budget_as_allocation_size": True},
        {"device_memory_budget": 64 * MIB},
        {"device_memory_budget": 64 * MIB, "use_chunk_budget_as_allocation_size": True},
        {"device_memory_budget": 64 * MIB, "accumulate_resident": False},
        {"device_memory_budget": 64 * MIB, "resident_tensor": lambda name: name.startswith("a")},
        {"all_local": True},
        {"overlap_io": False, "broadcast_run_bytes": 0, "broadcast_run_tensors": 0},
        {"nogds": False, "use_fgds": True},
    ],
    ids=str,
)
def test_options_change_nothing_of_what_is_given(place: str, files: list[str], expected: list[tuple[str, bytes]], options: dict[str, object]) -> None:
    assert given(parallel(files, place, **options)) == expected


def test_filters_choose_what_is_read(place: str, files: list[str], expected: list[tuple[str, bytes]]) -> None:
    wanted = [item for item in expected if item[0].startswith("b")]
    assert given(parallel(files, place, tensor_filter=lambda name: name.startswith("b"))) == wanted
    loader = SafeTensorsFileLoader(SingleGroup(), place)
    loader.set_tensor_filter(lambda name: name.startswith("b"))
    assert given(PipelineParallel(SingleGroup(), loader, files, use_tqdm_on_load=False)) == wanted


def test_a_filter_is_not_for_groups_but_for_ranks_that_read_all(files: list[str]) -> None:
    with pytest.raises(ValueError, match="single-process"):
        ParallelLoader(Two(), files, tensor_filter=lambda name: True)
    loader = ParallelLoader(Two(), files, use_tqdm_on_load=False, tensor_filter=lambda name: name == "a.norm", all_local=True)
    assert [name for name, _ in given(loader)] == ["a.norm"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_concurrent_producers": 2}, "max_concurrent_producers must be 1"),
        ({"use_chunk_budget_as_allocation_size": True}, "requires max_batch_bytes"),
        ({"resident_tensor": bool, "accumulate_resident": False}, "resident_tensor requires"),
        ({"borrowed_tensors": True}, "borrowed_tensors requires"),
        ({"broadcast_run_tensors": -1}, "non-negative"),
        ({"max_batch_bytes": 0}, "max_batch_bytes"),
        ({"bbuf_size_kb": 0}, "positive"),
        ({"device": "xpu"}, "Unknown device type: xpu"),
    ],
)
def test_options_that_cannot_be_followed_are_value_errors(files: list[str], options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ParallelLoader(SingleGroup(), files, **options)  # type: ignore[arg-type]


def test_no_files_give_nothing_and_bad_ones_are_told_at_the_first_tensor(tmp_path: pathlib.Path) -> None:
    assert given(parallel([])) == []
    loader = parallel([str(tmp_path / "missing.safetensors")])
    with pytest.raises(FileNotFoundError):
        next(loader.iterate_weights())
    loader.close()
    short = tmp_path / "short.safetensors"
    short.write_bytes(b"1")
    loader = parallel([str(short)])
    with pytest.raises(Exception, match="HeaderTooSmall"):
        next(loader.iterate_weights())
    loader.close()


def test_nothing_speaks_of_gds_where_a_runtime_error_may_come_from(place: str, files: list[str]) -> None:
    # Engines take such an error as a reason to begin again without GDS.
    for file in (files[0], files[0] + ".missing"):
        try:
            given(parallel([file], place, nogds=False))
        except Exception as error:
            assert not isinstance(error, RuntimeError) or "gds" not in str(error)


def test_an_iteration_that_is_closed_early_frees_its_batches_and_ends_its_thread(place: str, large: tuple[list[str], dict[str, int]]) -> None:
    files, _ = large
    before = threading.active_count()
    loader = parallel(files, place, max_batch_bytes=MIB, queue_size=2)
    iteration = loader.iterate_weights()
    name, tensor = next(iteration)
    iteration.close()
    assert threading.active_count() == before
    assert tensor.numel() == MIB
    if place == "cpu":
        assert live_allocation_bytes() < 2 * MIB
    loader.close()
    loader.close()
    del tensor
    assert (live_allocation_count(), live_allocation_bytes()) == (0, 0)


@pytest.mark.parametrize(("setting", "prints"), [("true", True), ("True", True), ("1", False), ("", False), (None, False)])
def test_a_pipeline_prints_its_steps_if_that_is_set(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str | None, prints: bool
) -> None:
    if setting is None:
        monkeypatch.delenv("FASTSAFETENSORS_DEBUG", raising=False)
    else:
        monkeypatch.setenv("FASTSAFETENSORS_DEBUG", setting)
    loader = parallel(files, max_batch_bytes=500)
    assert (loader.print_log, loader.log_prefix) == (prints, "PG0")
    given(loader)
    lines = capsys.readouterr().out.splitlines()
    if not prints:
        assert lines == []
        return
    assert all(re.fullmatch(r"\[PG0\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} - .+", line) for line in lines)
    steps = [line.partition(" - ")[2] for line in lines]
    assert steps[0] == "Starting ParallelLoader iterate_weights"
    for step in ("copy_files_to_device took ", "tensor key len: ", "get_tensor took ", "fb.close took ", "summary: "):
        assert any(line.startswith("Batch 0: " + step) or line.startswith("Batch 0 " + step) for line in steps), step
    assert "Completed ParallelLoader iterate_weights, processed " in steps[-1]
    assert "closed early" not in "".join(steps)


def test_a_trace_says_how_far_an_iteration_was_when_it_was_closed(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTSAFETENSORS_DEBUG", "true")
    loader = parallel(files, max_batch_bytes=500)
    iteration = loader.iterate_weights()
    next(iteration)
    iteration.close()
    assert "iterate_weights closed early: 0 of " in capsys.readouterr().out
    loader.close()
    loader = parallel([files[0] + ".missing"])
    with pytest.raises(FileNotFoundError):
        next(loader.iterate_weights())
    assert "Consumer error: " in capsys.readouterr().out


def test_closing_a_loader_ends_its_iterations(files: list[str]) -> None:
    loader = parallel(files, max_batch_bytes=1)
    iteration = loader.iterate_weights()
    next(iteration)
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        list(iteration)
    with pytest.raises(ValueError, match="closed"):
        loader.iterate_weights()


def test_a_loader_can_be_iterated_again(files: list[str], expected: list[tuple[str, bytes]]) -> None:
    loader = parallel(files)
    for _ in range(2):
        assert [(name, raw(tensor)) for name, tensor in loader.iterate_weights()] == expected
    loader.close()


def test_a_name_in_several_files_is_yielded_for_each_of_them(place: str, tmp_path: pathlib.Path) -> None:
    kinds = [{"t": spec("F32", (2,), n), f"u{n}": spec("F32", (300,), n)} for n in range(3)]
    files = [str(write(tmp_path / f"{n}.safetensors", tensors)) for n, tensors in enumerate(kinds)]
    order = [0, 1, 0, 2, 2]
    wanted = [(name, tensor.data) for number in order for name, tensor in kinds[number].items()]
    named = [files[number] for number in order]
    for options in ({}, {"max_batch_bytes": 8}, {"device_memory_budget": 64 * MIB}, {"device_memory_budget": 64 * MIB, "accumulate_resident": False}):
        assert given(parallel(named, place, **options)) == wanted
    # Without names in common, files are read as one load.
    assert dict(given(parallel(named, place))) == dict(wanted)


def test_files_that_are_damaged_are_no_files_in_common(tmp_path: pathlib.Path) -> None:
    good = str(write(tmp_path / "good.safetensors", {"t": spec("F32", (2,))}))
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(bytes(20))
    with pytest.raises(tensorhold.FormatError, match="bad.safetensors"):
        given(parallel([good, str(bad), good]))


def test_memory_is_counted_until_a_batch_is_past(place: str, files: list[str]) -> None:
    op = get_framework_op("pytorch")
    loader = parallel(files, place)
    weights = loader.iterate_weights()
    kept = [next(weights)[1]]
    assert op.get_mem_used() > 0
    kept += [tensor for _, tensor in weights]
    # The consumer's tensors are no memory of the loader's.
    assert op.get_mem_used() == 0
    weights = loader.iterate_weights()
    kept.append(next(weights)[1])
    weights.close()
    assert op.get_mem_used() == 0
    loader.close()


class Two(SingleGroup):
    def size(self) -> int:
        return 2


def test_borrowed_tensors_are_not_for_groups(files: list[str]) -> None:
    alone = SafeTensorsFileLoader(None)
    for pg, loader in ((Two(), alone), (None, SafeTensorsFileLoader(Two()))):
        with pytest.raises(ValueError, match="single-process loader group"):
            PipelineParallel(pg, loader, files, accumulate_resident=False, borrowed_tensors=True)
    with pytest.raises(ValueError, match="single-process loader group"):
        ParallelLoader(Two(), files, accumulate_resident=False, borrowed_tensors=True)
    with pytest.raises(ValueError, match="single-process loader group"):
        SafeTensorsFileLoader(Two()).copy_files_to_device(borrowed_tensors=True)
    loader = ParallelLoader(Two(), files, use_tqdm_on_load=False, all_local=True, accumulate_resident=False, borrowed_tensors=True)
    assert (loader.need_clone, len(list(loader.iterate_weights()))) == (False, 9)


def test_a_pipeline_and_its_loader_are_of_the_same_group(files: list[str]) -> None:
    loader = PipelineParallel(Two(), SafeTensorsFileLoader(None), files, use_tqdm_on_load=False)
    assert loader.weight_files_batches == [files[:2], files[2:]]
    with pytest.raises(ValueError, match="2 ranks with a loader of 1"):
        next(loader.iterate_weights())


def test_borrowed_tensors_are_emptied_with_their_batch(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    loader = parallel(files, place, borrowed_tensors=True, accumulate_resident=False, max_batch_bytes=500)
    seen = {}
    for name, tensor in loader.iterate_weights():
        assert raw(tensor) == tensors[name].data
        seen[name] = tensor
    loader.close()
    assert all(tensor.numel() == 0 for tensor in seen.values())
    assert (live_allocation_count(), live_allocation_bytes()) == (0, 0)


def test_no_more_is_read_at_once_than_the_largest_file(place: str, large: tuple[list[str], dict[str, int]]) -> None:
    files, _ = large
    peak = 0
    loader = parallel(files, place, queue_size=-1)
    for _, tensor in loader.iterate_weights():
        peak = max(peak, live_allocation_bytes())
        # A loop's variable would keep a part of the batch before.
        del tensor
    loader.close()
    assert 6 * MIB <= peak <= 9 * MIB


class TestBudgets:
    @pytest.mark.parametrize(
        ("budget", "options", "fitted"),
        [
            (100 * MIB, {}, 3),
            (21 * MIB, {}, 3),
            (20 * MIB, {}, 3),
            (18 * MIB, {}, 2),
            (14 * MIB, {}, 0),
            (13 * MIB, {}, -1),
            (13 * MIB, {"queue_size": -1}, -1),
            (12 * MIB, {"accumulate_resident": False}, 3),
            (11 * MIB, {"accumulate_resident": False}, 2),
            (6 * MIB, {"accumulate_resident": False}, 0),
            (6 * MIB, {"accumulate_resident": False, "borrowed_tensors": True}, 1),
            (4 * MIB, {"accumulate_resident": False}, -1),
            (2 * MIB, {"accumulate_resident": False, "borrowed_tensors": True}, -1),
            (10.5 * MIB, {"resident_tensor": lambda name: name.startswith("0")}, 0),
        ],
    )
    def test_the_queue_is_as_deep_as_the_budget_allows(
        self, place: str, large: tuple[list[str], dict[str, int]], budget: float, options: dict[str, object], fitted: int
    ) -> None:
        files, sizes = large
        loader = parallel(files, place, device_memory_budget=budget, **{"queue_size": 3, **options})
        assert loader.queue_size == fitted
        found = {}
        for name, tensor in loader.iterate_weights():
            found[name] = tensor.numel()
            del tensor
        assert found == sizes
        loader.close()

    @pytest.mark.parametrize(
        ("budget", "options"),
        [
            (0, {}),
            (-1, {}),
            (11 * MIB, {}),
            (4 * MIB - 1, {"accumulate_resident": False}),
            (2 * MIB - 1, {"accumulate_resident": False, "borrowed_tensors": True}),
            (7 * MIB, {"resident_tensor": lambda name: name.startswith("0")}),
        ],
    )
    def test_a_pipeline_that_fits_no_budget_is_not_made(
        self, large: tuple[list[str], dict[str, int]], budget: int, options: dict[str, object]
    ) -> None:
        with pytest.raises(BudgetInfeasibleError, match="already fully serial"):
            parallel(large[0], device_memory_budget=budget, queue_size=3, **options)
        assert (live_allocation_count(), live_allocation_bytes()) == (0, 0)

    def test_limits_read_headers_when_a_pipeline_is_made(self, files: list[str]) -> None:
        for options in ({"max_batch_bytes": 500}, {"device_memory_budget": MIB}):
            with pytest.raises(FileNotFoundError):
                parallel([files[0] + ".missing"], **options)

    def test_parts_of_files_are_listed(self, large: tuple[list[str], dict[str, int]]) -> None:
        files, sizes = large
        assert parallel(files).weight_files_batches == [[file] for file in files]
        loader = parallel(files, max_batch_bytes=2 * MIB, use_chunk_budget_as_allocation_size=True)
        parts = [part for batch in loader.weight_files_batches for part in batch]
        assert [part[0] for part in parts] == [files[0]] * 2 + [files[1]] * 3
        assert [set().union(*(part[1] for part in parts))] == [set(sizes)]
        assert sum(end - start for part in parts for start, end in part[2]) == sum(sizes.values())
        assert {part[3] for part in parts} == {2 * MIB}

    def test_what_is_not_kept_needs_no_more_than_the_budget(self, place: str, large: tuple[list[str], dict[str, int]]) -> None:
        files, sizes = large
        budget, peak = 8 * MIB, 0
        loader = parallel(files, place, device_memory_budget=budget, accumulate_resident=False, queue_size=3)
        for name, tensor in loader.iterate_weights():
            assert tensor.numel() == sizes[name]
            peak = max(peak, live_allocation_bytes())
        loader.close()
        assert 0 < peak <= budget < sum(sizes.values())

    def test_what_is_kept_is_counted(self, place: str, large: tuple[list[str], dict[str, int]]) -> None:
        files, sizes = large
        with pytest.raises(BudgetInfeasibleError, match="already fully serial"):
            given(parallel(files, place, device_memory_budget=8 * MIB))
        kept = {}
        loader = parallel(files, place, device_memory_budget=24 * MIB)
        for name, tensor in loader.iterate_weights():
            kept[name] = tensor
            assert live_allocation_bytes() <= 24 * MIB
        loader.close()
        assert {name: tensor.numel() for name, tensor in kept.items()} == sizes

    def test_a_rule_says_what_is_kept(self, place: str, large: tuple[list[str], dict[str, int]]) -> None:
        files, sizes = large
        kept = {}
        loader = parallel(files, place, device_memory_budget=10 * MIB, resident_tensor=lambda name: name.endswith(".0"))
        for name, tensor in loader.iterate_weights():
            if name.endswith(".0"):
                kept[name] = tensor
        loader.close()
        assert list(kept) == ["0.0", "1.0"]

    @pytest.mark.parametrize("accumulate", [True, False])
    @pytest.mark.parametrize("budget", [-1, 0, 100, MIB])
    def test_budgets_that_fit_no_tensor_are_refused(self, large: tuple[list[str], dict[str, int]], budget: int, accumulate: bool) -> None:
        files, _ = large
        with pytest.raises(ValueError, match="already fully serial") as raised:
            given(parallel(files, device_memory_budget=budget, accumulate_resident=accumulate))
        assert raised.type is BudgetInfeasibleError
        assert (live_allocation_count(), live_allocation_bytes()) == (0, 0)

    def test_a_tensor_that_a_loop_still_has_keeps_its_values(self, place: str, large: tuple[list[str], dict[str, int]]) -> None:
        files, _ = large
        loader = parallel(files, place, device_memory_budget=6 * MIB, accumulate_resident=False)
        before: torch.Tensor | None = None
        copy: torch.Tensor | None = None
        for _, tensor in loader.iterate_weights():
            if before is not None and copy is not None:
                assert torch.equal(before, copy)
            before, copy = tensor, tensor.cpu().clone().to(tensor.device)
        loader.close()


class TestAutoLoader:
    def test_options_come_from_the_configuration(
        self, place: str, files: list[str], expected: list[tuple[str, bytes]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for config in ({}, {"use_pipeline": True, "queue_size": 2, "use_tqdm_on_load": False, "max_batch_bytes": 500}, {"base": {"copier_type": "nogds", "framework": "paddle", "debug_log": False}},
            {"parallel": {"use_pipeline": True, "queue_size": 1, "unknown": 3}, "debug": {"set_numa": False}, "max_threads": 2}):
            path = tmp_path / "config.json"
            path.write_text(json.dumps(config))
            monkeypatch.setenv(CONFIG_ENV_VAR, str(path))
            loader = AutoLoader(SingleGroup(), files, device=place)
            assert loader.config.queue_size == {**config, **config.get("parallel", {})}.get("queue_size", 0)
            with contextlib.closing(loader.iterate_weights()) as weights:
                assert [(name, raw(tensor)) for name, tensor in weights] == expected
            loader.close()

    def test_unknown_loaders_and_3fs_are_refused(self, files: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "config.json"
        monkeypatch.setenv(CONFIG_ENV_VAR, str(path))
        path.write_text('{"loader": "other"}')
        with pytest.raises(ValueError, match="Unknown loader type"):
            AutoLoader(SingleGroup(), files)
        path.write_text('{"loader": "3fs"}')
        with pytest.raises(ImportError, match="3FS"):
            AutoLoader(SingleGroup(), files)
