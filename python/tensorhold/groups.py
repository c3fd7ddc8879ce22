"""Process groups for loads that several ranks share: `TorchGroup`, over `torch.distributed`.

A group of one's own has the same methods. Each is given tensors as bytes, objects with `nbytes` and `__dlpack__`, and returns when the bytes have
moved. `check_group` says whether it keeps what is asked of it.
"""

from tensorhold._core import OptionError, check_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    class Payload(Protocol):
        """A tensor as bytes."""

        @property
        def nbytes(self) -> int: ...
        def __dlpack__(self, **options: Any) -> Any: ...
        def __dlpack_device__(self) -> tuple[int, int]: ...


__all__ = ["TorchGroup", "check_group"]


class TorchGroup:
    """A group of `torch.distributed`, the default group if none is named. Ranks are those within the group."""

    def __init__(self, group: "Any" = None) -> None:
        import torch
        import torch.distributed as distributed

        if not distributed.is_available() or not distributed.is_initialized():
            raise OptionError(
                "open a process group: torch.distributed has not been initialized; call torch.distributed.init_process_group() first"
            )
        self._torch = torch
        self._distributed = distributed
        self._group = distributed.group.WORLD if group is None else group
        self._rank: int = distributed.get_rank(self._group)
        self._size: int = distributed.get_world_size(self._group)
        if self._rank < 0:
            raise OptionError("open a process group: this process is no member of it; use a group that it belongs to")

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def barrier(self) -> None:
        self._distributed.barrier(self._group)

    def broadcast(self, payload: "Payload", root: int) -> None:
        """From rank `root` to all others."""
        if payload.nbytes:
            bytes_ = self._tensor(payload)
            self._distributed.broadcast(bytes_, src=self._global(root), group=self._group)
            self._wait(bytes_)

    def scatter(self, payloads: "Sequence[Payload]") -> None:
        """Each to its rank, which receives it by `recv`; this rank's own stays."""
        parts = [
            (self._tensor(payload), rank) for rank, payload in enumerate(payloads) if rank != self._rank and payload.nbytes
        ]
        works = [self._distributed.isend(part, dst=self._global(rank), group=self._group) for part, rank in parts]
        for work in works:
            if work is not None:
                work.wait()
        for part, _ in parts:
            self._wait(part)

    def send(self, payload: "Payload", to: int) -> None:
        if payload.nbytes:
            bytes_ = self._tensor(payload)
            self._distributed.send(bytes_, dst=self._global(to), group=self._group)
            self._wait(bytes_)

    def recv(self, payload: "Payload", source: int) -> None:
        if payload.nbytes:
            bytes_ = self._tensor(payload)
            self._distributed.recv(bytes_, src=self._global(source), group=self._group)
            self._wait(bytes_)

    def _tensor(self, payload: "Payload") -> "Any":
        return self._torch.utils.dlpack.from_dlpack(payload.__dlpack__())

    def _global(self, rank: int) -> int:
        return int(self._distributed.get_global_rank(self._group, rank))

    def _wait(self, tensor: "Any") -> None:
        """Until what was enqueued for a tensor on a device has ended."""
        if tensor.is_cuda:
            self._torch.cuda.current_stream(tensor.device).synchronize()

    def __repr__(self) -> str:
        return f"TorchGroup(rank {self._rank} of {self._size})"
