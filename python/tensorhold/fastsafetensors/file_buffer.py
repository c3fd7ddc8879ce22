"""`FilesBufferOnDevice`: the tensors of files that the ranks of a group have read between them."""

import weakref
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from tensorhold import _core
from tensorhold._text import kind, quoted
from tensorhold.fastsafetensors.frameworks import TensorBase
from tensorhold.fastsafetensors.frameworks._native import NativeOp
from tensorhold.fastsafetensors.st_types import Device, DType, check_dtype
from tensorhold.fastsafetensors.tensor_factory import LazyTensorFactory


def _check_int(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"argument {argument}: got {quoted(value)} of type {kind(value)}, expected an int; convert it with int()")


class ClosedBufferError(_core.ClosedError, KeyError):
    """The tensors of a buffer that has been closed are asked for."""

    __str__ = Exception.__str__


class FilesBufferOnDevice:
    """Tensors by name. What is returned owns its memory and stays when this is closed, but for `borrowed_tensors`.

    In a group, `get_tensor`, `get_sharded`, `get_multi_cols`, `push_tensor` and `as_dict` are collective: all ranks call them, with the same arguments
    and in the same order.
    """

    def __init__(
        self,
        rank_loaders: Dict[int, List[LazyTensorFactory]],
        pg: Any,
        framework: NativeOp,
        auto_mem_delete: bool = True,
        keep_tensor: Optional[Callable[[str], bool]] = None,
        borrowed_tensors: bool = False,
    ) -> None:
        """Of files by rank. `auto_mem_delete` changes nothing: memory goes with its tensors anyway."""
        self.framework = framework
        self.pg = framework.get_process_group(pg)
        self.auto_mem_delete = auto_mem_delete and self.pg.size() > 1
        self.borrowed_tensors = borrowed_tensors
        self.rank_loaders = rank_loaders
        self.key_to_rank_lidx: Dict[str, Tuple[int, int]] = {}
        self._borrowed: List["weakref.ref[Any]"] = []
        self._shared: Any = None
        self._dtype = DType.AUTO
        for rank, files in rank_loaders.items():
            for number, file in enumerate(files):
                for name in file.infos:
                    if keep_tensor is not None and not keep_tensor(name):
                        continue
                    if name in self.key_to_rank_lidx:
                        raise _core.FormatError(
                            f"load files: tensor {quoted(name)} is in {self._file(name).path!r} and in {file.path!r}, and must be unique among files; "
                            "leave one of them out"
                        )
                    self.key_to_rank_lidx[name] = (rank, number)

    def _serve(self, shared: Any, dtype: DType) -> None:
        """Takes the load that the tensors come from, and the type that they are converted to."""
        self._shared = shared
        self._dtype = dtype

    def close(self) -> None:
        """Gives up the tensors. Those that were returned stay; borrowed ones are emptied."""
        for borrowed in self._borrowed:
            tensor = borrowed()
            if tensor is not None:
                self.framework.let_go(tensor)
        self._borrowed.clear()
        if self._shared is not None:
            self._shared.close()
        self.rank_loaders = {}

    def _get_rank_lidx(self, tensor_name: str) -> Tuple[int, int]:
        found = self.key_to_rank_lidx.get(tensor_name)
        if found is None:
            raise ValueError(
                f"find tensor {quoted(tensor_name)}: it was not found in the files, or is filtered out, among {len(self.key_to_rank_lidx)}; "
                "key_to_rank_lidx has their names"
            )
        return found

    def _file(self, tensor_name: str) -> LazyTensorFactory:
        rank, number = self._get_rank_lidx(tensor_name)
        files = self.rank_loaders.get(rank)
        if files is None:
            raise ClosedBufferError(
                f"take tensor {quoted(tensor_name)}: the buffer has been closed; take the tensors that you need before, they stay valid"
            )
        return files[number]

    def get_filename(self, tensor_name: str) -> str:
        """The file that a tensor is from."""
        return self._file(tensor_name).path

    def get_shape(self, tensor_name: str) -> List[int]:
        """The shape in the header."""
        return list(self._file(tensor_name).infos[tensor_name].shape)

    def get_tensor(self, tensor_name: str, device: Optional[Union[Device, str]] = None, dtype: DType = DType.AUTO) -> Any:
        """The whole tensor, on every rank."""
        if device is not None or dtype is not DType.AUTO or self._dtype is not DType.AUTO or self.borrowed_tensors:
            return self.get_tensor_wrapped(tensor_name, device, dtype).get_raw()
        # What wraps a tensor takes longer to make than the tensor.
        self._file(tensor_name)
        return self.framework.take_raw(self._shared.broadcast(tensor_name))

    def get_tensor_wrapped(
        self, tensor_name: str, device: Optional[Union[Device, str]] = None, dtype: DType = DType.AUTO
    ) -> TensorBase:
        """The same, wrapped."""
        self._file(tensor_name)
        return self._given(self._shared.broadcast(tensor_name), device, dtype)

    def get_sharded(
        self, tensor_name: str, dim: int, device: Optional[Union[Device, str]] = None, dtype: DType = DType.AUTO
    ) -> Any:
        """This rank's part along a dimension, as `torch.chunk` cuts; the whole tensor if `dim` is negative, or in a job of one, whatever it is."""
        return self.get_sharded_wrapped(tensor_name, dim, device, dtype).get_raw()

    def get_sharded_wrapped(
        self, tensor_name: str, dim: int, device: Optional[Union[Device, str]] = None, dtype: DType = DType.AUTO
    ) -> TensorBase:
        """The same, wrapped."""
        _check_int("dim", dim)
        if dim < 0 or self.pg.size() == 1:
            return self.get_tensor_wrapped(tensor_name, device, dtype)
        self._check_dim(tensor_name, dim)
        return self._given(self._shared.shard(tensor_name, dim), device, dtype)

    def _check_dim(self, tensor_name: str, dim: int) -> None:
        shape = self.get_shape(tensor_name)
        if not 0 <= dim < len(shape):
            raise IndexError(f"cut tensor {quoted(tensor_name)}: got dimension {dim}, expected one of its {len(shape)}; count dimensions from 0")

    def get_multi_cols(
        self, tensor_names: Sequence[str], dim: int, device: Optional[Union[Device, str]] = None, dtype: DType = DType.AUTO
    ) -> TensorBase:
        """This rank's parts of several tensors, side by side along a dimension, file by file; wrapped."""
        _check_int("dim", dim)
        names = sorted(tensor_names, key=self._get_rank_lidx)
        if not names:
            raise IndexError("join tensors: got no names, expected one or more; name the tensors")
        if dim < 0:
            dim += len(self.get_shape(names[0]))
        for name in names:
            self._check_dim(name, dim)
        if len({self._file(name).infos[name].dtype for name in names}) > 1:
            parts = [self.framework.take(self._shared.broadcast(name) if self.pg.size() == 1 else self._shared.shard(name, dim)) for name in names]
            return self._as(self.framework.concat_tensors(parts, dim), device, dtype)
        # One tensor is a view of its file; several are joined in memory of their own.
        return self._given(self._shared.columns(names, dim), device, dtype, is_borrowed=len(names) == 1)

    def push_tensor(
        self, tensor_name: str, dst_rank: int, device: Optional[Union[Device, str]] = None, dtype: DType = DType.AUTO
    ) -> Any:
        """The whole tensor on one rank; None on the others. A job of one is given the tensor, whatever the rank."""
        _check_int("dst_rank", dst_rank)
        if self.pg.size() == 1:
            return self.get_tensor(tensor_name, device, dtype)
        self._file(tensor_name)
        if not 0 <= dst_rank < self.pg.size():
            raise ValueError(f"push tensor {quoted(tensor_name)}: got rank {dst_rank}, expected 0 to {self.pg.size() - 1}; count ranks from 0")
        pushed = self._shared.push(tensor_name, dst_rank)
        return None if pushed is None else self._given(pushed, device, dtype).get_raw()

    def as_dict(self, tensor_shard_dim: Mapping[str, int]) -> Dict[str, TensorBase]:
        """This rank's parts of tensors by name, wrapped, each along its dimension; whole where that is negative."""
        return {name: self.get_sharded_wrapped(name, dim) for name, dim in tensor_shard_dim.items()}

    def iter_local_tensors(self, tensor_names: Sequence[str]) -> Iterator[Tuple[str, Any]]:
        """Tensors by name, without a group."""
        if self.pg.size() > 1:
            raise RuntimeError(f"iter_local_tensors requires a single-process group: got {self.pg.size()} ranks; use get_tensor on every rank")
        for name in tensor_names:
            yield name, self.get_tensor(name)

    def _given(self, native: Any, device: Optional[Union[Device, str]], dtype: DType, is_borrowed: bool = True) -> TensorBase:
        wrapped = self.framework.take(native)
        if self.borrowed_tensors and is_borrowed:
            self._borrowed.append(weakref.ref(wrapped.get_raw()))
        return self._as(wrapped, device, dtype)

    def _as(self, wrapped: TensorBase, device: Optional[Union[Device, str]], dtype: DType) -> TensorBase:
        if self._dtype is not DType.AUTO:
            wrapped = wrapped.to(dtype=self._dtype)
        if device is None and dtype is DType.AUTO:
            return wrapped
        check_dtype(dtype)
        wanted = device if isinstance(device, Device) or device is None else Device.from_str(str(device))
        return wrapped.to(wanted, dtype)
