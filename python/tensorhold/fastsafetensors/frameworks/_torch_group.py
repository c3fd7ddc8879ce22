"""Groups of `torch.distributed`, and of one's own."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, List, Optional

from tensorhold import frameworks
from tensorhold.fastsafetensors.frameworks import ProcessGroupBase

if TYPE_CHECKING:
    from tensorhold.fastsafetensors.frameworks._torch import TorchTensor


@dataclass
class TorchProcessGroup(ProcessGroupBase["TorchTensor"]):
    """A group of `torch.distributed`, or one with the methods of `tensorhold.groups.TorchGroup`; None is a job of one."""

    real_pg: Optional[Any]
    _moves: Any = field(default=None, init=False, repr=False, compare=False)

    def size(self) -> int:
        return 1 if self.real_pg is None else int(self.real_pg.size())

    def rank(self) -> int:
        return 0 if self.real_pg is None else int(self.real_pg.rank())

    def broadcast(self, dst: "TorchTensor", rank: int) -> None:
        if self.size() > 1:
            self._fill(dst, lambda bytes_: self.moves().broadcast(bytes_, rank))

    def scatter(self, dst: "TorchTensor", scatter_list: List["TorchTensor"], src: int) -> None:
        if self.size() == 1:
            dst.real_tensor.copy_(scatter_list[0].real_tensor)
            return
        if self.rank() != src:
            self.recv(dst, src, 0)
            return
        self.moves().scatter([frameworks.bytes_of_torch(part.real_tensor) for part in scatter_list])
        dst.real_tensor.copy_(scatter_list[src].real_tensor)

    def send(self, t: "TorchTensor", dst_rank: int, tag: int) -> None:
        """Sends a tensor. Tensors arrive in the order in which they are sent, whatever their tags."""
        if self.size() > 1:
            self.moves().send(frameworks.bytes_of_torch(t.real_tensor), dst_rank)

    def recv(self, t: "TorchTensor", src_rank: int, tag: int) -> None:
        if self.size() > 1:
            self._fill(t, lambda bytes_: self.moves().recv(bytes_, src_rank))

    @staticmethod
    def _fill(tensor: "TorchTensor", move: Any) -> None:
        """Moves bytes into a tensor, whatever its strides."""
        real = tensor.real_tensor
        bytes_ = frameworks.bytes_of_torch(real)
        move(bytes_)
        if bytes_.numel() and bytes_.data_ptr() != real.data_ptr():
            real.copy_(bytes_.view(real.dtype).view(real.shape))

    def moves(self) -> Any:
        """What moves bytes between the ranks, as `tensorhold.groups` has it; None for a job of one."""
        if self.size() == 1:
            return None
        if self._moves is None:
            self._moves = self._opened()
        return self._moves

    def _opened(self) -> Any:
        import torch.distributed as distributed

        from tensorhold.groups import TorchGroup

        if isinstance(self.real_pg, distributed.ProcessGroup):
            return TorchGroup(self.real_pg)
        missing = [name for name in ("barrier", "broadcast", "scatter", "send", "recv") if not hasattr(self.real_pg, name)]
        if missing:
            raise TypeError(
                f"use a process group: got {type(self.real_pg).__name__} of {self.size()} ranks, which has no {', '.join(missing)}; "
                "use a group of torch.distributed, or give yours the methods of tensorhold.groups.TorchGroup"
            )
        return self.real_pg
