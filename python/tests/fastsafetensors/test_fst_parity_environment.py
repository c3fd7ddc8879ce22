"""The environment means the same to fastsafetensors 0.5.0 and to the drop-in. Each setting is tried in a process of its own."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from typing import Any

from drop_in import all_goes_back  # noqa: F401
from parity import compared, is_same, run
from support import spec, write

EXPERTS = {"FASTSAFETENSORS_EP_SLICE": "1", "FASTSAFETENSORS_EP_NUM_EXPERTS": "8"}


def outcomes(settings: list[Any]) -> list[tuple[Any, Any, Any]]:
    """Each setting with what fastsafetensors and the drop-in make of it: an outcome, and what was printed."""
    real, found = (run(package, "parity_environment.py", json.dumps(settings))[0] for package in ("real", "drop-in"))
    return list(zip(settings, real, found))


@compared
def test_configurations_are_found_in_the_same_places(tmp_path: pathlib.Path) -> None:
    settings: list[Any] = []
    for has_default in (True, False):
        folder = tmp_path / str(has_default)
        folder.mkdir()
        (folder / "named.json").write_text(json.dumps({"parallel": {"queue_size": 2}, "base": {"copier_type": "nogds"}}))
        if has_default:
            (folder / "fastsafetensors.json").write_text(json.dumps({"debug": {"debug_log": True}, "other": 1}))
        settings += [[env, "configuration", str(folder), []] for env in ({}, *({"FASTSAFETENSORS_CONFIG": path} for path in ("named.json", "", "missing.json", ".")))]
    for setting, (real, _), (found, _) in outcomes(settings):
        assert is_same(real, found), (setting, real, found)


@compared
def test_experts_are_chosen_by_the_same_settings(tmp_path: pathlib.Path) -> None:
    envs: list[dict[str, str]] = [
        {},
        {"FASTSAFETENSORS_EP_SLICE": "1"},
        {**EXPERTS, "FASTSAFETENSORS_EP_SLICE": "true"},
        EXPERTS,
        {**EXPERTS, "WORLD_SIZE": "4", "RANK": "3"},
        {**EXPERTS, "WORLD_SIZE": "4"},
        {**EXPERTS, "WORLD_SIZE": "", "RANK": ""},
        {**EXPERTS, "WORLD_SIZE": "4", "RANK": "3", "FASTSAFETENSORS_EP_SIZE": "2", "FASTSAFETENSORS_EP_RANK": "0"},
        {**EXPERTS, "WORLD_SIZE": "4", "RANK": "1", "FASTSAFETENSORS_EP_SIZE": "0", "FASTSAFETENSORS_EP_RANK": "-1"},
        {**EXPERTS, "FASTSAFETENSORS_EP_SIZE": "2", "FASTSAFETENSORS_EP_RANK": "2"},
        {**EXPERTS, "FASTSAFETENSORS_EP_SIZE": "two"},
        {**EXPERTS, "FASTSAFETENSORS_EP_SIZE": ""},
        {**EXPERTS, "FASTSAFETENSORS_EP_NUM_EXPERTS": "-3", "WORLD_SIZE": "2"},
        {**EXPERTS, "FASTSAFETENSORS_EP_NUM_EXPERTS": "x"},
    ]
    for setting, (real, _), (found, _) in outcomes([[env, "experts", str(tmp_path), []] for env in envs]):
        assert is_same(real, found), (setting, real, found)


@compared
def test_a_trace_is_printed_for_the_same_setting_in_the_same_form(tmp_path: pathlib.Path) -> None:
    files = [str(write(tmp_path / f"{n}.safetensors", {f"{n}.{k}": spec("F32", (k + 1,)) for k in range(3)})) for n in range(2)]
    envs = [{}, *({"FASTSAFETENSORS_DEBUG": value} for value in ("true", "TRUE", "1", ""))]
    settings = [[env, what, str(tmp_path), files] for env, what in itertools.product(envs, ("whole", "closed early"))]
    for (env, what, _, _), (real, real_text), (found, found_text) in outcomes(settings):
        assert real == found and "returned" in real, (env, what)
        is_set = env.get("FASTSAFETENSORS_DEBUG", "").lower() == "true"
        assert real["returned"][0] == is_set
        # How a batch is read differs, and so do some steps.
        same = {
            "Starting ParallelLoader iterate_weights", "Batch 0: copy_files_to_device took 0 ms", "Batch 0: tensor key len: 0", "Batch 0: get_tensor took 0 ms",
            "Batch 0: fb.close took 0 ms", "Completed ParallelLoader iterate_weights, processed 0 batches, total time: 0 seconds",
        }  # fmt: skip
        if what == "closed early":
            same.add("iterate_weights closed early: 0 of 0 batches fully consumed")
        for text in (real_text, found_text):
            lines = [line for line in text.splitlines() if line]
            if not is_set:
                # fastsafetensors prints that its producer was stopped, whatever is set.
                assert all("stop_event" in line for line in lines)
                continue
            assert all(re.fullmatch(r"\[PG0\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} - .+", line) for line in lines)
            assert same <= {re.sub(r"\d+(\.\d+)?", "0", line.partition(" - ")[2]) for line in lines}, (env, what)
