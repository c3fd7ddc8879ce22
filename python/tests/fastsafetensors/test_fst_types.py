"""What needs no load: types, devices, frames, filters, configurations."""

from __future__ import annotations

import json
import pathlib

import pytest
from drop_in import all_goes_back  # noqa: F401

import tensorhold.fastsafetensors as fst
from tensorhold.fastsafetensors import ep_slice
from tensorhold.fastsafetensors.config import CONFIG_ENV_VAR, DEFAULT_CONFIG_PATH, LoaderConfig, load_config
from tensorhold.fastsafetensors.st_types import DTYPE_SIZES, Device, DeviceType, DType

FRAME = {"dtype": "F32", "shape": [4, 6, 2], "data_offsets": [0, 192]}


def test_devices_are_told_by_their_names() -> None:
    assert Device.from_str("cpu") == Device()
    assert Device.from_str("cuda:1") == Device(DeviceType.CUDA, 1)
    assert Device.from_str("gpu") == Device(DeviceType.GPU)
    for name in ("cpu", "cuda", "cuda:3", "gpu:0"):
        assert Device.from_str(name).as_str() == name
    with pytest.raises(ValueError, match="Unknown device type: xpu"):
        Device.from_str("xpu:0")
    with pytest.raises(ValueError, match="Invalid index: x"):
        Device.from_str("cuda:x")


def test_types_are_those_of_the_format_and_have_its_sizes() -> None:
    assert [dtype.value for dtype in DType] == [dtype.name for dtype in DType]
    assert len(DType) == 18 and DType.AUTO not in DTYPE_SIZES
    assert (DTYPE_SIZES[DType.F4], DTYPE_SIZES[DType.F8_E8M0], DTYPE_SIZES[DType.BF16], DTYPE_SIZES[DType.I64]) == (0.5, 1, 2, 8)
    assert DTYPE_SIZES[DType.BOOL] == 1


@pytest.mark.parametrize(
    ("index", "shape", "offsets"),
    [
        (1, [1, 6, 2], [1, 0, 0]),
        (-1, [1, 6, 2], [3, 0, 0]),
        ((1, 2), [1, 1, 2], [1, 2, 0]),
        (slice(1, 3), [2, 6, 2], [1, 0, 0]),
        ((slice(None), slice(1, 3)), [4, 2, 2], [0, 1, 0]),
        (slice(None, None, 2), [2, 6, 2], [0, 0, 0]),
        (slice(3, 0, -1), [3, 6, 2], [3, 0, 0]),
        ((slice(1, 4, 2), 5, 1), [2, 1, 1], [1, 5, 1]),
        (slice(3, 1), [], []),
        ((), [4, 6, 2], [0, 0, 0]),
    ],
)
def test_slices_of_frames_are_arithmetic(index: object, shape: list[int], offsets: list[int]) -> None:
    frame = fst.TensorFrame.from_buffer(FRAME)
    part = frame[index]
    assert (part.shape, part.offsets, part.sliced) == (shape, offsets, bool(shape))
    assert (frame.shape, frame.strides, frame.sliced) == ([4, 6, 2], [12, 2, 1], False)


def test_a_slice_of_a_slice_counts_from_the_slice() -> None:
    frame = fst.TensorFrame.from_buffer(FRAME)
    part = frame[1:4, 2:][1, 1:3]
    assert (part.offsets, part.strides, part.shape) == ([2, 3, 0], [12, 2, 1], [1, 2, 2])
    part = frame[1:4:2][1]
    assert (part.offsets, part.strides[0], part.shape) == ([2, 0, 0], 24, [1, 6, 2])


@pytest.mark.parametrize("index", [4, -5, (0, 6), (0, 0, 0, 0)])
def test_indexes_out_of_range_are_index_errors(index: object) -> None:
    with pytest.raises(IndexError):
        fst.TensorFrame.from_buffer(FRAME)[index]


def test_a_step_of_zero_and_other_indexes_are_refused() -> None:
    frame = fst.TensorFrame.from_buffer(FRAME)
    with pytest.raises(ValueError, match="step"):
        frame[::0]
    for index in (..., None, "a", 1.5):
        with pytest.raises(TypeError):
            frame[index]


def test_experts_are_shared_in_blocks() -> None:
    assert [fst.owned_expert_range(10, 4, rank) for rank in range(4)] == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert fst.owned_expert_range(2, 4, 3) == (2, 2)
    for size, rank in ((0, 0), (4, 4), (4, -1)):
        with pytest.raises(ValueError, match="ep_"):
            fst.owned_expert_range(10, size, rank)
    keep = fst.expert_parallel_filter(10, 4, 1)
    names = [f"layer.experts.{n}.w" for n in range(10)]
    assert [name for name in names if keep(name)] == names[3:6]
    assert keep("layer.norm.weight")


def test_the_environment_asks_for_an_expert_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EP_SLICE", "EP_NUM_EXPERTS", "EP_SIZE", "EP_RANK"):
        monkeypatch.delenv(f"FASTSAFETENSORS_{name}", raising=False)
    assert fst.expert_parallel_filter_from_env() is None
    monkeypatch.setenv("FASTSAFETENSORS_EP_SLICE", "1")
    assert fst.expert_parallel_filter_from_env() is None
    monkeypatch.setenv("FASTSAFETENSORS_EP_NUM_EXPERTS", "8")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    keep = ep_slice.expert_parallel_filter_from_env()
    assert keep is not None and keep("a.experts.6.w") and not keep("a.experts.5.w")
    monkeypatch.setenv("FASTSAFETENSORS_EP_SIZE", "2")
    monkeypatch.setenv("FASTSAFETENSORS_EP_RANK", "0")
    keep = ep_slice.expert_parallel_filter_from_env()
    assert keep is not None and keep("a.experts.3.w") and not keep("a.experts.4.w")
    monkeypatch.setenv("FASTSAFETENSORS_EP_SIZE", "two")
    with pytest.raises(ValueError, match="FASTSAFETENSORS_EP_SIZE"):
        fst.expert_parallel_filter_from_env()


def test_configurations_come_from_the_named_file_or_the_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CONFIG_ENV_VAR, raising=False)
    assert load_config() == LoaderConfig()
    (tmp_path / DEFAULT_CONFIG_PATH).write_text(json.dumps({"queue_size": 5}))
    assert load_config().queue_size == 5
    named = tmp_path / "named.json"
    named.write_text(json.dumps({"queue_size": 2, "base": {"copier_type": "nogds"}, "3fs": {"mount_point": "/m"}}))
    monkeypatch.setenv(CONFIG_ENV_VAR, str(named))
    config = load_config()
    assert (config.queue_size, config.get_extension_config("base")) == (2, {"copier_type": "nogds"})
    assert config.get_extension_config("3fs") == {"mount_point": "/m"} and config.get_extension_config("else") == {}
    monkeypatch.setenv(CONFIG_ENV_VAR, str(tmp_path / "missing.json"))
    with pytest.raises(FileNotFoundError, match=CONFIG_ENV_VAR):
        load_config()
    with pytest.raises(FileNotFoundError):
        LoaderConfig.from_file(str(tmp_path / "missing.json"))


def test_configurations_say_what_a_pipeline_is_given() -> None:
    assert LoaderConfig().create_parallel_kwargs()["queue_size"] == -1
    options = LoaderConfig(use_pipeline=True, queue_size=3, max_batch_bytes=7).create_parallel_kwargs()
    assert (options["queue_size"], options["max_batch_bytes"], options["max_concurrent_producers"]) == (3, 7, 1)
    with pytest.raises(ValueError, match="max_concurrent_producers must be 1"):
        LoaderConfig.from_dict({"max_concurrent_producers": 2})
    with pytest.raises(ValueError, match="object"):
        LoaderConfig.from_dict([1])  # type: ignore[arg-type]


def test_a_loaders_options_come_from_its_part_of_the_configuration() -> None:
    options = fst.SafeTensorsFileLoader.process_extension_config({"copier_type": "nogds", "max_threads": 3})
    assert options == {"nogds": True, "use_fgds": False, "max_threads": 3}
    assert fst.SafeTensorsFileLoader.process_extension_config({"copier_type": "fgds"})["use_fgds"]


def test_loaders_of_3fs_say_that_there_are_none() -> None:
    from tensorhold.fastsafetensors.threefs_loader import ParallelThreeFSLoader, ThreeFSLoader

    for make in (lambda: ThreeFSLoader(None), lambda: ParallelThreeFSLoader(None, [])):
        with pytest.raises(ImportError, match="3FS"):
            make()


def test_a_group_of_one_and_places_that_are_not_known() -> None:
    group = fst.SingleGroup()
    assert (group.size(), group.rank()) == (1, 0)
    assert fst.get_device_numa_node(None) is None
    assert fst.get_device_numa_node(10_000) is None
