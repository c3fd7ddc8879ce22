"""Calls about configurations, pipelines and their plans."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from parity_base import AGAIN, MIXED, ONE, OP, TWO, Of, attributes, loader, pipeline, weights  # isort: skip

from fastsafetensors import (
    AutoLoader,
    LoaderConfig,
    ParallelLoader,
    SafeTensorsFileLoader,
    SafeTensorsMetadata,
    _planner,
    config,
    load_config,
    parallel_loader,
    threefs_loader,
)


def closed_pipeline() -> ParallelLoader:
    made = pipeline()
    made.close()
    made.close()
    return made


def iterated_twice() -> Any:
    made = pipeline()
    first = [name for name, _ in made.iterate_weights()]
    if getattr(made, "stop_event", None) is not None and made.stop_event.is_set():
        return "its queue is never filled again"
    return [first, [name for name, _ in made.iterate_weights()]]


class Refusing(SafeTensorsFileLoader):
    def copy_files_to_device(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("gds")


def refused_by_a_subclass() -> Any:
    return list(parallel_loader.PipelineParallel(None, Refusing(None, nogds=True), [ONE], use_tqdm_on_load=False).iterate_weights())


PIPELINE = (
    "accumulate_resident borrowed_tensors broadcast_run_bytes broadcast_run_tensors device_memory_budget hf_weights_files loader log_prefix max_batch_bytes "
    "max_concurrent_producers need_clone overlap_io print_log queue_size resident_tensor use_chunk_budget_as_allocation_size use_tqdm_on_load weight_files_batches"
)


def grouped(size: int, **options: Any) -> Any:
    return parallel_loader.PipelineParallel(Of(size), SafeTensorsFileLoader(None, nogds=True), [ONE, TWO], use_tqdm_on_load=False, **options)


def configured(options: Any) -> Any:
    path = pathlib.Path("configuration.json")
    path.write_text(options if isinstance(options, str) else json.dumps(options))
    os.environ[config.CONFIG_ENV_VAR] = str(path)
    try:
        return load_config()
    finally:
        del os.environ[config.CONFIG_ENV_VAR]


def auto(options: Any) -> Any:
    os.environ[config.CONFIG_ENV_VAR] = "auto.json"
    pathlib.Path("auto.json").write_text(json.dumps(options))
    try:
        made = AutoLoader(None, [ONE, TWO])
        found = [made.config, [(name, tensor.clone()) for name, tensor in made.iterate_weights()]]
        made.close()
        made.close()
        return found
    finally:
        del os.environ[config.CONFIG_ENV_VAR]


STATS = [_planner.FileWeightStats("f0", 80, 100, 30), _planner.FileWeightStats("f1", 0, 0, 0), _planner.FileWeightStats("f2", 60, 60, 20, 10)]


def fits(**options: Any) -> Any:
    """What the planner says for many budgets."""
    found = []
    for budget in range(0, 500, 7):
        for depth in (1, 2, 4):
            try:
                found.append(_planner.plan_file_budgets(STATS, budget, depth, **options))
            except _planner.BudgetInfeasibleError as error:
                found.append("already fully serial" in str(error) if budget else True)
        found.append([_planner.fit_queue_size(queue, STATS, budget, **options) for queue in (-1, 0, 3)])
    return found


def mount_point(options: Any, **reader: Any) -> Any:
    sys.modules["fastsafetensor_3fs_reader"] = types.SimpleNamespace(extract_mount_point=lambda path: "/of/" + path) if reader.pop("there", True) else None  # type: ignore[assignment]
    try:
        return threefs_loader.ThreeFSLoader.process_extension_config(options, **reader)
    finally:
        del sys.modules["fastsafetensor_3fs_reader"]


CONFIGURATIONS: dict[str, Any] = {
    "nothing": {},
    "known options": {"loader": "3fs", "queue_size": 3, "max_batch_bytes": 7, "use_pipeline": True},
    "groups": {"parallel": {"queue_size": 3, "use_tqdm_on_load": False}, "debug": {"debug_log": True, "set_numa": False}},
    "any option in a group": {"debug": {"loader": "x", "device_memory_budget": 5}},
    "unknown options": {"other": 3, "list": [1], "none": None, "parallel": {"other": 1, "base": {}}},
    "a group that is none": {"parallel": 3, "debug": None},
    "an option that is a group": {"queue_size": {"a": 1}},
    "the later of two": {"queue_size": 1, "parallel": {"queue_size": 2}},
    "the later of two, the other way": {"parallel": {"queue_size": 2}, "queue_size": 1},
    "extensions": {"base": {"copier_type": "nogds", "framework": "paddle", "debug_log": 1, "max_threads": 3}, "oss": {"bucket": "b"}},
    "an extension that is none": {"base": 3},
    "the private field": {"_extensions": {"base": {"a": 1}}},
    "two producers": {"max_concurrent_producers": 2},
    "two producers in a group": {"parallel": {"max_concurrent_producers": 2}},
    "no producers in a group": {"debug": {"max_concurrent_producers": 0}},
    "types that are others": {"queue_size": "3", "set_numa": None},
}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, options in CONFIGURATIONS.items():
        yield f"configuration of {name}", lambda options=options: LoaderConfig.from_dict(options)
        yield f"configuration file of {name}", lambda options=options: configured(options)
        yield f"extension of {name}", lambda options=options: [LoaderConfig.from_dict(options).get_extension_config(of) for of in ("base", "3fs", "oss", "a")]
        yield f"pipeline options of {name}", lambda options=options: LoaderConfig.from_dict(options).create_parallel_kwargs()
    for text in ("[]", "3", "{", "", '{"queue_size": NaN}'):
        yield f"configuration file with {text!r}", lambda text=text: configured(text)
    for options in (
        {}, {"base": {"framework": "paddle", "copier_type": "nogds"}}, {"parallel": {"use_pipeline": True, "queue_size": 1}, "base": {"max_threads": 2}},
        {"max_batch_bytes": 64, "base": {"copier_type": "nogds"}}, {"loader": "other"}, {"parallel": {"max_concurrent_producers": 3}}, {"framework": "x"},
        {"base": {"unknown": 3, "copier_type": "nogds"}}, {"device_memory_budget": 1},
    ):  # fmt: skip
        yield f"AutoLoader of {json.dumps(options)}", lambda options=options: auto(options)
    for options in ({}, {"copier_type": "nogds"}, {"copier_type": "gds", "a": 1}, {"copier_type": "fgds", "nogds": True}, {"copier_type": "x"}, {"use_fgds": True}, {"nogds": True}):
        yield f"options of the loader of {options}", lambda options=options: SafeTensorsFileLoader.process_extension_config(options, hf_weights_files=[ONE])
    for options in ({}, {"mount_point": "/m"}, {"mount_point": " "}, {"mount_point": None, "a": 1}):
        yield f"options of 3FS of {options}", lambda options=options: mount_point(options, hf_weights_files=["f"])
        yield f"options of 3FS of {options} without its reader", lambda options=options: mount_point(options, hf_weights_files=["f"], there=False)
        yield f"options of 3FS of {options} without files", lambda options=options: mount_point(options)
    yield "ThreeFSLoader", lambda: threefs_loader.ThreeFSLoader(None)
    yield "ParallelThreeFSLoader", lambda: threefs_loader.ParallelThreeFSLoader(None, [ONE])

    yield "all weights", weights
    for name, options in {
        "a filter": {"tensor_filter": lambda name: name in "ab"},
        "a filter of nothing": {"tensor_filter": lambda name: False},
        "a filter that fails": {"tensor_filter": lambda name: 1 // 0},
        "no queue": {"queue_size": -1},
        "a queue": {"queue_size": 2},
        "a queue that is negative": {"queue_size": -5},
        "no integer for a queue": {"queue_size": None},
        "a string for a queue": {"queue_size": "x"},
        "parts": {"max_batch_bytes": 64},
        "parts of a fraction": {"max_batch_bytes": 64.5},
        "parts of one size": {"max_batch_bytes": 64, "use_chunk_budget_as_allocation_size": True},
        "parts that are too short": {"max_batch_bytes": 10},
        "parts of nothing": {"max_batch_bytes": 0},
        "parts that are negative": {"max_batch_bytes": -1},
        "one size without parts": {"use_chunk_budget_as_allocation_size": True},
        "a rule without a budget": {"resident_tensor": lambda name: True},
        "a rule that counts nothing": {"resident_tensor": lambda name: True, "accumulate_resident": False},
        "borrowed tensors": {"borrowed_tensors": True, "accumulate_resident": False},
        "borrowed tensors that are kept": {"borrowed_tensors": True},
        "two producers": {"max_concurrent_producers": 2},
        "no bytes for broadcasts": {"broadcast_run_bytes": 0, "broadcast_run_tensors": 0},
        "negative bytes for broadcasts": {"broadcast_run_bytes": -1},
        "all files for each rank": {"all_local": True, "overlap_io": False},
        "an unknown option": {"unknown": 3},
        "an option of the drop-in's own": {"threads": 3},
        "a string for a budget": {"device_memory_budget": "1000"},
        "a list for a budget": {"device_memory_budget": [1]},
        "a queue that is never full": {"queue_size": 10**30},
        "an unknown framework": {"framework": "x"},
        "an unknown device": {"device": "xpu"},
        "FGDS": {"use_fgds": True},
    }.items():
        yield f"weights with {name}", lambda options=options: weights(**options)
        yield f"a pipeline with {name}", lambda options=options: attributes(pipeline(**options), PIPELINE.replace(" resident_tensor", ""))
    for budget, (keeps, options), queue in itertools.product(
        (0, -1, 1, 47, 48, 95, 96, 97, 143, 144, 145, 191, 192, 240, 1000, 1e4, 1 << 40),
        {"all": {}, "none": {"accumulate_resident": False}, "one": {"resident_tensor": lambda name: name == "s"},
         "none, borrowed": {"accumulate_resident": False, "borrowed_tensors": True}}.items(),
        (-1, 0, 3),
    ):  # fmt: skip
        yield f"a queue of {queue} for a budget of {budget} that keeps {keeps}", lambda budget=budget, options=options, queue=queue: pipeline(
            device_memory_budget=budget, queue_size=queue, **options
        ).queue_size
    for size, options in itertools.product((2, 3), ({}, {"max_batch_bytes": 64}, {"device_memory_budget": 1 << 20}, {"max_batch_bytes": 64, "use_chunk_budget_as_allocation_size": True})):
        yield f"batches of {size} ranks with {options}", (
            lambda size=size, options=options: attributes(grouped(size, **options), "weight_files_batches need_clone log_prefix queue_size")
        )
    for options in ({"tensor_filter": lambda name: True}, {"borrowed_tensors": True, "accumulate_resident": False}):
        yield f"{next(iter(options))} with two ranks", lambda options=options: grouped(2, **options)
    for files in ([], [ONE, ONE], [ONE, AGAIN], ["missing"], ONE, (ONE, TWO), [ONE, "missing"]):
        yield f"weights of {files!r}".replace(os.path.dirname(ONE) + "/", ""), lambda files=files: weights(files)
        yield f"parts of {files!r}".replace(os.path.dirname(ONE) + "/", ""), lambda files=files: weights(files, max_batch_bytes=64)
    yield "weights of no files within a budget", lambda: weights([], device_memory_budget=100)
    yield "weights by a loader of the caller's", refused_by_a_subclass
    yield "weights of a folder", lambda: weights(["."])
    yield "weights of a closed pipeline", lambda: list(closed_pipeline().iterate_weights())
    yield "weights, iterated twice", iterated_twice
    yield "a progress bar", lambda: [parallel_loader.enable_tqdm(True), parallel_loader.enable_tqdm(False), parallel_loader.enable_tqdm(True, OP)]
    yield "times", lambda: re.sub(r"\d", "0", parallel_loader.parse_time(1234.5678))

    yield "plans for budgets", fits
    for options in ({"max_batch_bytes": 25}, {"accumulate_resident": False}, {"transient_multiplier": 2}, {"group_size": 2}, {"account_for_yield_clone": True}, {"chunk_overhead": 5}):
        yield f"plans for budgets with {options}", lambda options=options: fits(**options)
    for options in ({"depth": 0}, {"transient_multiplier": 0}, {"chunk_overhead": -1}, {"group_size": 0}):
        yield f"a plan with {options}", lambda options=options: _planner.plan_file_budgets(STATS, **{"device_memory_budget": 1000, "depth": 1, **options})
        yield f"a queue with {options}", (
            lambda options=options: _planner.fit_queue_size(1, STATS, 1000, **{key: value for key, value in options.items() if key != "depth"})
        )
    yield "depths", lambda: [[_planner.pipeline_depth(queue), _planner.load_depth(queue), _planner.load_depth(queue, 4)] for queue in (-2, -1, 0, 1, 5)]
    yield "sizes of files", lambda: [
        _planner.collect_file_stats([(path, SafeTensorsMetadata.from_file(path, OP)) for path in (ONE, TWO, MIXED)], keep, keep)
        for keep in (None, lambda name: name in "ai", lambda name: False)
    ]
    yield "what is kept", lambda: [_planner.has_non_resident(STATS), _planner.has_non_resident(STATS[:2]), [file.resident for file in STATS]]
    for limit, gap in itertools.product((40, 47, 48, 60, 1000), (0, 4096)):
        yield f"parts of {limit} bytes with gaps of {gap}", lambda limit=limit, gap=gap: [
            _planner.plan_chunks(SafeTensorsMetadata.from_file(MIXED, OP), limit, keep, gap) for keep in (None, lambda name: name != "u")
        ]
