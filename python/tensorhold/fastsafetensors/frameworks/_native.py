"""What loads ask of a framework beyond fastsafetensors' operations, and of a group: to take tensors of tensorhold, and to move bytes."""

from abc import abstractmethod
from typing import Any, Dict, Optional

from tensorhold import _core
from tensorhold.fastsafetensors.frameworks import FrameworkOpBase, ProcessGroupBase, TensorBase
from tensorhold.fastsafetensors.st_types import Device, DType


class DeviceBuffer:
    """A buffer of a framework's memory: `memory`, a tensor of bytes, holds it."""

    def __init__(self, memory: Any, address: int, length: int) -> None:
        self.memory = memory
        self._address = address
        self._length = length

    def get_base_address(self) -> int:
        """The address of the first byte."""
        return self._address

    def get_length(self) -> int:
        """The length in bytes."""
        return self._length

    def __dlpack__(self, **options: Any) -> Any:
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.memory.__dlpack_device__()


class NativeOp(FrameworkOpBase[Any, Any]):
    """A framework that takes tensors of tensorhold."""

    @abstractmethod
    def place(self, device: Device) -> str:
        """What tensorhold calls a device, if the framework can use it."""

    @abstractmethod
    def take(self, tensor: Any) -> TensorBase:
        """A tensor of tensorhold's as the framework's: it owns its memory."""

    def take_raw(self, tensor: Any) -> Any:
        """The same, not wrapped."""
        return self.take(tensor).get_raw()

    @abstractmethod
    def take_all(self, weights: _core.Weights) -> Dict[str, Any]:
        """The framework's tensors of weights, which they own from now on."""

    @abstractmethod
    def refusal(self, tensor: Any) -> Optional[str]:
        """Why an object is no tensor of the framework's that can be saved, and what helps; None if it is one."""

    @abstractmethod
    def let_go(self, tensor: Any) -> None:
        """Empties a tensor: it gives up its memory, which views of it still keep."""

    @abstractmethod
    def move_out(self, tensor: Any) -> None:
        """Moves a tensor's bytes to memory of the framework's: it gives up the memory that it has, as in `let_go`."""


def moves_of(pg: ProcessGroupBase[Any], framework: NativeOp, device: Device) -> Any:
    """The group as `tensorhold.groups` has groups, which move bytes; None for a job of one."""
    if pg.size() == 1:
        return None
    moves = getattr(pg, "moves", None)
    return moves() if callable(moves) else TensorMoves(pg, framework, device)


class TensorMoves:
    """Moves bytes as tensors, through a group that has only the methods of `ProcessGroupBase`."""

    def __init__(self, pg: ProcessGroupBase[Any], framework: NativeOp, device: Device) -> None:
        self._pg = pg
        self._framework = framework
        self._device = device

    def rank(self) -> int:
        return self._pg.rank()

    def size(self) -> int:
        return self._pg.size()

    def barrier(self) -> None:
        # Each rank has heard from every other when it returns.
        for root in range(self.size()):
            self._pg.broadcast(self._framework.get_empty_tensor([1], DType.U8, self._device), root)

    def broadcast(self, payload: Any, root: int) -> None:
        if payload.nbytes:
            self._pg.broadcast(self._tensor(payload), root)

    def scatter(self, payloads: Any) -> None:
        for rank, payload in enumerate(payloads):
            if rank != self.rank():
                self.send(payload, rank)

    def send(self, payload: Any, to: int) -> None:
        if payload.nbytes:
            self._pg.send(self._tensor(payload), to, 0)

    def recv(self, payload: Any, source: int) -> None:
        if payload.nbytes:
            self._pg.recv(self._tensor(payload), source, 0)

    def _tensor(self, payload: Any) -> Any:
        return self._framework.from_dlpack(payload.__dlpack__(), self._device, DType.U8)
