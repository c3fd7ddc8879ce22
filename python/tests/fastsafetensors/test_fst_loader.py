"""Files loaded as a whole: `SafeTensorsFileLoader`, its buffer, `fastsafe_open` and headers."""

from __future__ import annotations

import ctypes
import os
import pathlib
from collections.abc import Callable, Iterator

import pytest
import torch
from drop_in import all_goes_back, files, place, shards, tensors  # noqa: F401
from support import Spec, raw, spec, write, write_raw

import tensorhold
import tensorhold.fastsafetensors as fst
from tensorhold.fastsafetensors import SafeTensorsFileLoader, SafeTensorsMetadata, SingleGroup, fastsafe_open
from tensorhold.fastsafetensors.common import HeaderTooSmall
from tensorhold.fastsafetensors.frameworks import get_framework_op
from tensorhold.fastsafetensors.frameworks._torch import dtype_convert
from tensorhold.fastsafetensors.st_types import Device, DType

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}


@pytest.fixture
def loader(place: str, files: list[str]) -> Iterator[SafeTensorsFileLoader]:
    loader = SafeTensorsFileLoader(SingleGroup(), place)
    loader.add_filenames({0: files})
    yield loader
    loader.close()


def assert_same(tensor: torch.Tensor, expected: Spec, place: str) -> None:
    assert (tensor.dtype, tuple(tensor.shape), str(tensor.device)) == (TORCH[expected.dtype], expected.shape, place)
    assert raw(tensor) == expected.data


def test_the_call_sequence_of_sglang_gives_every_tensor(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    group = SingleGroup()
    for nogds in (False, True):
        found = {}
        for file in files:
            loader = SafeTensorsFileLoader(group, torch.device(place), nogds=nogds)
            loader.add_filenames({group.rank(): [file]})
            fb = loader.copy_files_to_device()
            for key in list(fb.key_to_rank_lidx.keys()):
                found[key] = fb.get_tensor(key)
            loader.close()
        assert list(found) == list(tensors)
        for name, tensor in found.items():
            assert_same(tensor, tensors[name], place)


def test_loads_equal_those_of_safetensors(place: str, files: list[str]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    for file in files:
        with fastsafe_open(file, device=place) as opened:
            for name, expected in safetensors.load_file(file).items():
                assert torch.equal(opened.get_tensor(name).cpu(), expected), name


def test_what_a_loader_says_of_its_files(loader: SafeTensorsFileLoader, files: list[str], tensors: dict[str, Spec]) -> None:
    assert loader.get_keys() == list(tensors)
    assert loader.get_shape("b.weight") == [8, 4, 6]
    assert loader.get_shape("a.scalar") == []
    with pytest.raises(KeyError):
        loader.get_shape("nothing")
    fb = loader.copy_files_to_device()
    assert dict(fb.key_to_rank_lidx) == {name: (0, "abc".index(name[0])) for name in tensors}
    assert isinstance(fb.key_to_rank_lidx, dict)
    assert [fb.get_filename(name) for name in ("a.norm", "b.ids", "c.mask")] == files
    assert fb.get_shape("c.weight") == [12, 4]
    fb.close()


def test_unknown_names_are_value_errors(loader: SafeTensorsFileLoader) -> None:
    fb = loader.copy_files_to_device()
    for ask in (fb.get_tensor, fb.get_filename, fb.get_shape, fb.get_tensor_wrapped):
        with pytest.raises(ValueError, match='"nothing"'):
            ask("nothing")
    for other in (lambda: fb.get_sharded("nothing", 0), lambda: fb.push_tensor("nothing", 0), lambda: fb.as_dict({"nothing": 0})):
        with pytest.raises(ValueError, match='"nothing"'):
            other()
    fb.close()


def test_filtered_names_are_value_errors_and_are_not_read(loader: SafeTensorsFileLoader, place: str, tensors: dict[str, Spec]) -> None:
    loader.set_tensor_filter(lambda name: name != "c.bytes")
    assert loader.get_keys() == [name for name in tensors if name != "c.bytes"]
    with pytest.raises(ValueError, match="filtered"):
        loader.get_shape("c.bytes")
    fb = loader.copy_files_to_device()
    with pytest.raises(ValueError, match="filtered"):
        fb.get_tensor("c.bytes")
    assert_same(fb.get_tensor("c.mask"), tensors["c.mask"], place)
    if place == "cpu":
        assert fst.live_allocation_bytes() < 100_003
    fb.close()


def test_a_filter_is_not_for_groups() -> None:
    class Two(SingleGroup):
        def size(self) -> int:
            return 2

    loader = SafeTensorsFileLoader(Two())
    with pytest.raises(ValueError, match="single-process"):
        loader.set_tensor_filter(lambda name: True)
    loader.set_tensor_filter(None)


def test_without_a_group_parts_are_the_whole(loader: SafeTensorsFileLoader, place: str, tensors: dict[str, Spec]) -> None:
    fb = loader.copy_files_to_device()
    # As with fastsafetensors, whatever the dimension: an engine that runs on one rank need not look which tensors have it.
    for dim in (0, 1, -1, 2):
        assert_same(fb.get_sharded("a.weight", dim), tensors["a.weight"], place)
    assert_same(fb.push_tensor("b.ids", 0), tensors["b.ids"], place)
    parts = fb.as_dict({"a.weight": 1, "a.scalar": -1})
    assert {name: part.get_shape() for name, part in parts.items()} == {"a.weight": [12, 8], "a.scalar": []}
    joined = fb.get_multi_cols(["a.weight", "c.weight"], 1).get_raw()
    expected = torch.cat([fb.get_tensor("a.weight"), fb.get_tensor("c.weight")], 1)
    assert torch.equal(joined, expected)
    assert [name for name, _ in fb.iter_local_tensors(["b.ids", "a.norm"])] == ["b.ids", "a.norm"]
    with pytest.raises(ValueError):
        fb.get_multi_cols(["a.weight", "c.weight"], 0)
    # Whatever the rank: there is no other.
    for rank in (1, -1):
        assert_same(fb.push_tensor("b.ids", rank), tensors["b.ids"], place)
    fb.close()


def test_types_and_devices_can_be_asked_for_with_a_tensor(loader: SafeTensorsFileLoader) -> None:
    fb = loader.copy_files_to_device()
    whole = fb.get_tensor("a.weight")
    half = fb.get_tensor("a.weight", device=Device.from_str("cpu"), dtype=DType.BF16)
    assert (half.dtype, half.device.type) == (torch.bfloat16, "cpu")
    assert torch.equal(half, whole.to("cpu", torch.bfloat16))
    assert fb.get_tensor("a.weight", device="cpu").device.type == "cpu"
    fb.close()


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32, DType.F64, DType.I32, DType.U8], ids=lambda dtype: dtype.value)
def test_all_tensors_of_a_load_are_converted_to_its_type(loader: SafeTensorsFileLoader, dtype: DType) -> None:
    plain = loader.copy_files_to_device()
    fb = loader.copy_files_to_device(dtype=dtype)
    for name in ("a.weight", "b.weight", "a.norm", "a.scalar", "b.ids", "b.empty", "c.bytes", "c.mask"):
        expected = plain.get_tensor(name).to(dtype_convert[dtype])
        assert torch.equal(fb.get_tensor(name), expected), name
        wrapped = fb.get_tensor_wrapped(name)
        assert (wrapped.dtype, wrapped.get_raw().dtype) == (dtype, expected.dtype)
        assert torch.equal(fb.push_tensor(name, 0), expected), name
        del wrapped
    joined = fb.get_multi_cols(["a.weight", "c.weight"], 1).get_raw()
    assert joined.dtype == dtype_convert[dtype]
    del joined
    fb.close()
    plain.close()


def test_wrapped_tensors_do_what_tensors_do(loader: SafeTensorsFileLoader) -> None:
    fb = loader.copy_files_to_device()
    wrapped = fb.get_tensor_wrapped("a.weight")
    real = wrapped.get_raw()
    assert (wrapped.dtype, wrapped.device.as_str(), wrapped.get_shape(), wrapped.get_nbytes()) == (DType.F32, str(real.device), [12, 8], 384)
    assert wrapped.data_ptr() == real.data_ptr()
    assert torch.equal(wrapped.clone().get_raw(), real) and wrapped.clone().data_ptr() != real.data_ptr()
    assert wrapped.detach().data_ptr() == real.data_ptr()
    assert torch.equal(wrapped[1:3, 0].get_raw(), real[1:3, 0])
    assert wrapped[:, 1].contiguous().get_raw().is_contiguous()
    assert wrapped.reshape([8, 12]).get_shape() == [8, 12]
    assert wrapped.view(DType.I32).get_raw().dtype == torch.int32
    buffer = bytearray(384)
    wrapped.copy_to_buffer(buffer)
    assert bytes(buffer) == raw(real)
    with pytest.raises(ValueError, match="383"):
        wrapped.copy_to_buffer(bytearray(383))
    assert "F32" in repr(wrapped)
    fb.close()


def test_quantized_types_are_those_of_torch_and_shapes_of_f4_are_halved(tmp_path: pathlib.Path, place: str) -> None:
    kinds = {name: spec(name, (4, 6)) for name in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "U16", "U32", "U64", "F4")}
    file = str(write(tmp_path / "kinds.safetensors", kinds))
    reals = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn_x2"}
    with fastsafe_open(file, device=place) as opened:
        for name, expected in kinds.items():
            real = getattr(torch, reals.get(name, name.replace("U", "uint")), None)
            if real is None:
                continue
            tensor = opened.get_tensor(name)
            assert tensor.dtype == real
            assert raw(tensor.view(torch.uint8)) == expected.data
            assert opened.fb.get_shape(name) == [4, 6]
            assert list(tensor.shape) == ([4, 3] if name == "F4" else [4, 6])
            del tensor


def test_files_open_as_one_and_tensors_stay(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    for named in (files, {0: files}):
        with fastsafe_open(named, device=place) as opened:
            assert opened.keys() == list(tensors)
            assert opened.metadata() == {file: {"part": str(n)} for n, file in enumerate(files)}
            tensor = opened.get_tensor("c.bytes")
            assert opened.get_tensor_wrapped("c.bytes").get_shape() == [100_003]
        assert_same(tensor, tensors["c.bytes"], place)
        with pytest.raises(ValueError):
            opened.get_tensor("c.bytes")
        del tensor


def test_reset_reads_headers_again(place: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "model.safetensors"
    loader = SafeTensorsFileLoader(None, place)
    for seed in (1, 2):
        expected = {f"t{seed}": spec("F32", (3, seed), seed)}
        write(file, expected)
        loader.add_filenames({0: [str(file)]})
        fb = loader.copy_files_to_device()
        assert loader.get_keys() == [f"t{seed}"]
        assert_same(fb.get_tensor(f"t{seed}"), expected[f"t{seed}"], place)
        fb.close()
        loader.reset()
        assert loader.get_keys() == []


def test_closing_twice_is_fine(loader: SafeTensorsFileLoader) -> None:
    fb = loader.copy_files_to_device()
    for close in (fb.close, fb.close, loader.close, loader.close):
        close()
    assert fb.rank_loaders == {}
    reads: list[Callable[[], object]] = [
        lambda: fb.get_tensor("a.norm"),
        lambda: fb.get_tensor_wrapped("a.norm"),
        lambda: fb.get_shape("a.norm"),
        lambda: fb.get_filename("a.norm"),
        lambda: fb.get_sharded("a.norm", 0),
        lambda: fb.push_tensor("a.norm", 0),
        lambda: fb.get_multi_cols(["a.norm"], 0),
        lambda: fb.as_dict({"a.norm": 0}),
        lambda: list(fb.iter_local_tensors(["a.norm"])),
    ]
    for read in reads:
        for kind in (KeyError, ValueError):
            with pytest.raises(kind, match="closed"):
                read()
    with pytest.raises(ValueError, match="not found"):
        fb.get_tensor("nothing")


def test_a_loader_without_files_loads_nothing(place: str) -> None:
    fb = SafeTensorsFileLoader(None, place).copy_files_to_device()
    assert fb.key_to_rank_lidx == {}
    fb.close()


def test_ways_of_reading_that_are_not_there_are_no_errors(place: str, files: list[str], tensors: dict[str, Spec]) -> None:
    for options in ({"nogds": False}, {"nogds": True}, {"use_fgds": True}, {"max_threads": 2, "bbuf_size_kb": 64}, {"set_numa": False}):
        loader = SafeTensorsFileLoader(SingleGroup(), place, **options)
        loader.add_filenames({0: files})
        fb = loader.copy_files_to_device(use_buf_register=False, allow_inflight=True)
        assert_same(fb.get_tensor("b.weight"), tensors["b.weight"], place)
        fb.close()


def test_options_that_cannot_be_followed_are_refused(files: list[str]) -> None:
    with pytest.raises(ValueError, match="positive"):
        SafeTensorsFileLoader(None, max_threads=0)
    with pytest.raises(ValueError, match="Unknown device type"):
        SafeTensorsFileLoader(None, "xpu")
    with pytest.raises(ValueError, match="1024"):
        SafeTensorsFileLoader(None, max_threads=1025)
    with pytest.raises(RuntimeError, match="argument device"):
        SafeTensorsFileLoader(None, "gpu")
    with pytest.raises(ValueError, match="framework"):
        SafeTensorsFileLoader(None, framework="numpy")
    with pytest.raises(ImportError, match="paddle"):
        get_framework_op("paddle")
    if not torch.cuda.is_available():
        with pytest.raises((tensorhold.DeviceError, tensorhold.FrameworkError), match="cuda:0"):
            SafeTensorsFileLoader(None, "cuda:0")


def test_damaged_files_are_refused_when_they_are_added(tmp_path: pathlib.Path, place: str) -> None:
    loader = SafeTensorsFileLoader(None, place)
    short = tmp_path / "short.safetensors"
    short.write_bytes(b"123")
    header = '{"t":{"dtype":"F32","shape":[4],"data_offsets":[%d,%d]}}'
    cut = write_raw(tmp_path / "cut.safetensors", header % (0, 16), bytes(10))
    hole = write_raw(tmp_path / "hole.safetensors", header % (4, 20), bytes(20))
    with pytest.raises(Exception, match="HeaderTooSmall"):
        loader.add_filenames({0: [str(short)]})
    for path in (cut, hole):
        with pytest.raises(ValueError, match=path.name):
            loader.add_filenames({0: [str(path)]})
    with pytest.raises(FileNotFoundError):
        loader.add_filenames({0: [str(tmp_path / "missing.safetensors")]})
    assert loader.get_keys() == []


def test_a_name_in_two_files_is_refused_by_a_load(tmp_path: pathlib.Path) -> None:
    files = [str(write(tmp_path / f"{n}.safetensors", {"t": spec("F32", (2 + n,), n), f"u{n}": spec("F32", (1,))})) for n in range(2)]
    loader = SafeTensorsFileLoader(None)
    loader.add_filenames({0: files})
    assert (loader.get_keys(), loader.get_shape("t")) == (["t", "u0", "u1"], [3])
    with pytest.raises(ValueError, match="must be unique among files"):
        loader.copy_files_to_device()
    loader.reset()
    loader.add_filenames({0: [files[0], files[0]]})
    assert (loader.get_keys(), loader.get_shape("t")) == (["t", "u0"], [2])
    loader.copy_files_to_device().close()


def test_files_are_added_round_robin_and_loaded_by_rank_and_path(tmp_path: pathlib.Path) -> None:
    one, two = (str(write(tmp_path / f"{n}.safetensors", {f"t{n}": spec("F32", (2,))}, {"n": str(n)})) for n in (1, 2))
    loader = SafeTensorsFileLoader(None)
    loader.add_filenames({0: [two, one]})
    assert (loader.get_keys(), list(loader.meta), list(loader.frames)) == (["t2", "t1"], [two, one], ["t2", "t1"])
    assert {path: (found.metadata, rank) for path, (found, rank) in loader.meta.items()} == {two: ({"n": "2"}, 0), one: ({"n": "1"}, 0)}
    assert loader.frames["t1"].shape == [2]
    fb = loader.copy_files_to_device()
    assert fb.key_to_rank_lidx == {"t1": (0, 0), "t2": (0, 1)}
    assert [file.metadata.src for file in fb.rank_loaders[0]] == [one, two]
    fb.close()


def test_a_rank_outside_the_group_is_a_key_error_of_the_load(files: list[str]) -> None:
    for rank in (3, -1):
        loader = SafeTensorsFileLoader(None)
        loader.add_filenames({0: files[:1], rank: files[1:]})
        with pytest.raises(KeyError, match=str(rank)):
            loader.copy_files_to_device()


def test_memory_is_counted_while_loads_hold_it(place: str, files: list[str]) -> None:
    op = get_framework_op("pytorch")
    assert op.get_mem_used() == 0
    loader = SafeTensorsFileLoader(None, place)
    loader.add_filenames({0: files})
    fb = loader.copy_files_to_device()
    assert op.get_mem_used() >= 100_003
    view = fb.get_tensor("c.bytes")[5:]
    fb.close()
    loader.close()
    assert op.get_mem_used() >= 100_003
    del view
    assert op.get_mem_used() == 0
    buffer = op.alloc_tensor_memory(128, Device.from_str(place))
    assert (op.get_mem_used(), buffer.get_length(), buffer.get_base_address() != 0) == (128, 128, True)
    op.free_tensor_memory(buffer, Device.from_str(place))
    assert op.get_mem_used() == 0


class TestHeaders:
    def test_headers_are_read_from_files_descriptors_and_memory(self, files: list[str], shards: list[dict[str, Spec]]) -> None:
        op = get_framework_op("pytorch")
        data = pathlib.Path(files[0]).read_bytes()
        memory = ctypes.create_string_buffer(data, len(data))
        fd = os.open(files[0], os.O_RDONLY)
        try:
            found = [
                SafeTensorsMetadata.from_file(files[0], op),
                SafeTensorsMetadata.from_fd(fd, files[0], op, keep_orig_dict=True),
                SafeTensorsMetadata.from_buffer(ctypes.addressof(memory), len(data), files[0], op),
            ]
        finally:
            os.close(fd)
        for metadata in found:
            assert list(metadata.tensors) == list(shards[0])
            assert (metadata.metadata, metadata.src, metadata.size_bytes) == ({"part": "0"}, files[0], len(data))
            assert metadata.header_length + sum(len(tensor.data) for tensor in shards[0].values()) == len(data)
            assert "a.norm" in repr(metadata)
        assert list(found[1].ser) == list(shards[0])

    def test_tensors_over_bytes_that_were_read_share_them(self, files: list[str], shards: list[dict[str, Spec]]) -> None:
        metadata = SafeTensorsMetadata.from_file(files[2], get_framework_op("pytorch"))
        data = bytearray(pathlib.Path(files[2]).read_bytes())
        for begin in (0, metadata.header_length):
            taken = metadata.get_tensors(data[begin:], Device(), begin)
            assert {name: raw(tensor.get_raw()) for name, tensor in taken.items()} == {
                name: tensor.data for name, tensor in shards[2].items()
            }
        with pytest.raises(ValueError, match="c.mask"):
            metadata.get_tensors(data[:-1], Device(), 0)
        whole = torch.frombuffer(data, dtype=torch.uint8)
        taken = metadata.get_tensors(whole, Device(), 0)
        whole[metadata.header_length + metadata.tensors["c.bytes"].data_offsets[0]] = 77
        assert taken["c.bytes"].get_raw()[0] == 77

    def test_ranges_of_bytes_are_joined_over_small_gaps(self, files: list[str]) -> None:
        metadata = SafeTensorsMetadata.from_file(files[0], get_framework_op("pytorch"))
        first, last = (metadata.header_length + offset for offset in (0, 384 + 4 + 128))
        assert metadata.select_byte_ranges(lambda name: True) == [(first, last)]
        assert metadata.select_byte_ranges(lambda name: name != "a.scalar") == [(first, last)]
        assert metadata.select_byte_ranges(lambda name: name != "a.scalar", merge_gap=3) == [(first, first + 384), (first + 388, last)]
        assert metadata.select_byte_ranges(lambda name: False) == []

    @pytest.mark.parametrize(
        ("header", "problem"),
        [
            ("{", "JSON"),
            ("[]", "object"),
            ('{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "twice"),
            ('{"t":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}', "F33"),
            ('{"t":{"dtype":"F32","shape":[1]}}', "data_offsets"),
            ('{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "negative"),
            ('{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "TensorInvalidInfo"),
            ('{"t":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}', "InvalidOffset"),
            ('{"t":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', "MetadataIncompleteBuffer"),
        ],
    )
    def test_damaged_headers_are_refused(self, tmp_path: pathlib.Path, header: str, problem: str) -> None:
        file = write_raw(tmp_path / "damaged.safetensors", header, bytes(8))
        with pytest.raises(tensorhold.FormatError, match=problem):
            SafeTensorsMetadata.from_file(str(file), get_framework_op("pytorch"))

    def test_files_too_short_for_a_header_are_called_so(self, tmp_path: pathlib.Path) -> None:
        file = tmp_path / "short.safetensors"
        op = get_framework_op("pytorch")
        for data, problem in ((b"", "HeaderTooSmall"), (b"1234567", "HeaderTooSmall"), (b"\xff" * 9, "HeaderTooLarge"), (b"\x09" + bytes(8), "InvalidHeaderLength")):
            file.write_bytes(data)
            with pytest.raises(tensorhold.FormatError, match=problem):
                SafeTensorsMetadata.from_file(str(file), op)
        with pytest.raises(HeaderTooSmall):
            memory = ctypes.create_string_buffer(b"1234567", 7)
            SafeTensorsMetadata.from_buffer(ctypes.addressof(memory), 7, "memory", op)

    def test_a_fifo_is_refused_without_waiting_for_a_writer(self, tmp_path: pathlib.Path) -> None:
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(tensorhold.FormatError, match="not a regular file"):
            SafeTensorsMetadata.from_file(str(tmp_path / "pipe.safetensors"), get_framework_op("pytorch"))


def test_a_group_may_close_what_it_serves(files: list[str]) -> None:
    class Group:
        """Rank 0 of two; the other one says that all is well, and takes what it is given."""

        closes: list[object] = []

        def rank(self) -> int:
            return 0

        def size(self) -> int:
            return 2

        def broadcast(self, payload: object, root: int) -> None:
            if root == 1:
                torch.from_dlpack(payload).fill_(1)
            while self.closes:
                self.closes.pop().close()  # type: ignore[attr-defined]

        barrier = scatter = send = recv = lambda self, *arguments: None

    group = Group()
    loader = SafeTensorsFileLoader(group, "cpu")
    loader.add_filenames({0: files})
    fb = loader.copy_files_to_device()
    group.closes.append(fb)
    assert fb.get_tensor("a.norm").shape == (64,)
    with pytest.raises(tensorhold.ClosedError):
        fb.get_tensor("a.norm")
    pipeline = fst.ParallelLoader(group, files[:1], use_tqdm_on_load=False)
    weights = pipeline.iterate_weights()
    next(weights)
    group.closes.extend(pipeline._running)
    assert next(weights)[1].numel() > 0
    with pytest.raises(tensorhold.ClosedError):
        next(weights)
