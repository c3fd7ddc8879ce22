"""Which weights of a folder are loaded, and how a variant chooses among them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import tensorhold
from support import spec, write

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def folder(path: pathlib.Path, *files: str) -> pathlib.Path:
    """A folder of files, each with a tensor of its name."""
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        write(path / file, {file: spec("U8", (3,))})
    return path


def names(paths: Any, **options: Any) -> list[str]:
    """The names that each function loads, which are the same, or the error that all raise."""
    found: list[list[str]] = []
    errors: list[str] = []
    calls: list[Callable[[], list[str]]] = [
        lambda: list(tensorhold.load(paths, **options).keys()),
        lambda: [name for name, _ in tensorhold.stream(paths, in_file_order=True, **options)],
        lambda: tensorhold.safe_open(paths, "np", **options).keys(),
        lambda: [info.name for info in tensorhold.inspect(paths, **options)[0]],
        lambda: list(tensorhold.load_file(paths, framework="np", **options)),
    ]
    for call in calls:
        try:
            found.append(call())
        except tensorhold.FormatError as error:
            errors.append(str(error))
    assert len({*errors}) + len({*map(tuple, found)}) == 1, (found, errors)
    if errors:
        raise tensorhold.FormatError(errors[0])
    return found[0]


def test_one_set_is_loaded_and_the_others_are_reported(tmp_path: pathlib.Path) -> None:
    folder(tmp_path, ONE, TWO, "consolidated.safetensors", "model.fp16.safetensors", "._model.safetensors")
    assert names(tmp_path) == [ONE, TWO]
    report = tensorhold.load(tmp_path).report()
    with tensorhold.safe_open(tmp_path, "np") as opened:
        for left_out in (report.left_out, report["left_out"], opened.left_out()):
            assert {pathlib.Path(file.path).name for file in left_out} == {"consolidated.safetensors", "model.fp16.safetensors"}
            assert all(file.why and file.why in repr(file) for file in left_out)
    assert len(report.as_dict()["left_out"]) == 2


def test_a_variant_chooses_among_the_weights_of_a_folder(tmp_path: pathlib.Path) -> None:
    stem = "diffusion_pytorch_model"
    sets = {
        None: [f"{stem}.safetensors"],
        "fp16": [f"{stem}-00001-of-00002.fp16.safetensors", f"{stem}-00002-of-00002.fp16.safetensors"],
        "non_ema": [f"{stem}.non_ema-1-of-2.safetensors", f"{stem}.non_ema-2-of-2.safetensors"],
        "mine": [f"{stem}.mine.safetensors"],
    }
    folder(tmp_path, *(file for files in sets.values() for file in files))
    for variant, files in sets.items():
        if variant:
            assert names(tmp_path, variant=variant) == files
    with pytest.raises(tensorhold.FormatError, match='"diffusion_pytorch_model" of variant "mine"'):
        names(tmp_path)
    with pytest.raises(tensorhold.FormatError, match='no weights of variant "bf16".*"fp16", "mine", "non_ema"'):
        names(tmp_path, variant="bf16")
    for wrong in ("", "a/b"):
        with pytest.raises(tensorhold.OptionError, match="option variant"):
            tensorhold.load(tmp_path, variant=wrong)
    (tmp_path / f"{stem}.mine.safetensors").unlink()
    assert names(tmp_path) == sets[None]


def test_half_a_checkpoint_is_an_error_that_lists_the_rest(tmp_path: pathlib.Path) -> None:
    folder(tmp_path, ONE)
    with pytest.raises(tensorhold.FormatError, match=f'1 is missing: "{TWO}"'):
        names(tmp_path)
    assert names(tmp_path / ONE) == names([tmp_path / ONE]) == [ONE]


def test_what_has_no_precedence_is_an_error_that_lists_the_sets(tmp_path: pathlib.Path) -> None:
    folder(tmp_path, "model.safetensors", "other.safetensors")
    with pytest.raises(tensorhold.FormatError, match='"model" and "other".*name files or an index'):
        names(tmp_path)


def test_a_pipeline_says_which_folders_hold_weights(tmp_path: pathlib.Path) -> None:
    folder(tmp_path, "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(tensorhold.FormatError, match='"unet", "vae"'):
        names(tmp_path)
    with pytest.raises(tensorhold.FormatError, match="configuration of a model"):
        (tmp_path / "config.json").write_text("{}")
        names(tmp_path / "config.json")


def test_an_index_says_which_of_two_copies_is_loaded(tmp_path: pathlib.Path) -> None:
    old, new, other = spec("F32", (2,)), spec("F32", (3,), seed=1), spec("U8", (4,))
    write(tmp_path / "base.safetensors", {"x": old, "y": other})
    write(tmp_path / "patch.safetensors", {"x": new})
    files = {"x": "./patch.safetensors", "y": "base.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert sorted(names(tmp_path)) == ["x", "y"]
    weights = tensorhold.load(tmp_path)
    assert weights["x"].to_host() == new.data and weights["y"].to_host() == other.data
    assert [pathlib.Path(file.path).name for file in weights.report().left_out] == ["base.safetensors"]


def test_a_part_of_a_model_is_not_taken_for_all_of_it(tmp_path: pathlib.Path) -> None:
    for number, (files, words) in enumerate(
        [
            (["model.safetensors", "model.visual.safetensors"], "the argument variant"),
            (["00001-of-00002.safetensors"], "1 is missing"),
            (["model-00001-OF-00002.safetensors"], "1 is missing"),
            (["consolidated.01.safetensors", "consolidated.02.safetensors"], "the first of them 0"),
        ]
    ):
        path = folder(tmp_path / str(number), *files)
        with pytest.raises(tensorhold.FormatError, match=words):
            names(path)
        assert names(path / files[0]) == files[:1]


def test_a_variant_may_have_dots(tmp_path: pathlib.Path) -> None:
    folder(tmp_path, "model.safetensors", "model.fp16.ema.safetensors")
    assert names(tmp_path) == ["model.safetensors"]
    assert names(tmp_path, variant="fp16.ema") == ["model.fp16.ema.safetensors"]


def test_an_unfinished_download_is_not_loaded(tmp_path: pathlib.Path) -> None:
    folder(tmp_path, "model.safetensors")
    (tmp_path / "model.safetensors.aria2").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "model.safetensors", [tmp_path / "model.safetensors"]):
        with pytest.raises(tensorhold.FormatError, match="unfinished"):
            names(path)


def test_what_is_no_path_is_a_missing_file_that_says_what_it_looks_like() -> None:
    paths: list[tuple[str | pathlib.Path, str]] = [
        ("no-such-org/no-such-model", "hf download no-such-org/no-such-model"),
        ("https://example.org/model.safetensors", "URL"),
        (pathlib.Path("https://example.org/model.safetensors"), "URL"),
        ("~/no-such-folder/model.safetensors", "os.path.expanduser"),
    ]
    for path, words in paths:
        with pytest.raises(FileNotFoundError, match=words):
            tensorhold.load_file(path, framework="np")


def test_a_file_that_is_named_twice_is_an_error_that_says_so(tmp_path: pathlib.Path) -> None:
    path = folder(tmp_path, "a.safetensors") / "a.safetensors"
    with pytest.raises(tensorhold.FormatError, match="is named twice"):
        names([path, path])
