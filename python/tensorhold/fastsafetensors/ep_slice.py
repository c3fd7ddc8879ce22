"""Filters for expert parallelism: each rank reads the experts that it runs."""

import re
from typing import Callable, Optional, Pattern, Tuple

from tensorhold.fastsafetensors import _settings

DEFAULT_EXPERT_PATTERN: Pattern[str] = re.compile(r"\.experts\.(\d+)\.")
"""Where a tensor's name has the number of its expert."""


def owned_expert_range(num_experts: int, ep_size: int, ep_rank: int) -> Tuple[int, int]:
    """The experts of a rank, first and past the last: blocks in the order of ranks, the first ones longer by one where they cannot be equal."""
    if ep_size <= 0:
        raise ValueError(f"ep_size must be positive: got {ep_size}; give the number of ranks")
    if not 0 <= ep_rank < ep_size:
        raise ValueError(f"ep_rank {ep_rank} out of range: expected 0 to {ep_size - 1}; count ranks from 0")
    each, longer = divmod(num_experts, ep_size)
    first = ep_rank * each + min(ep_rank, longer)
    return first, first + each + (ep_rank < longer)


def expert_parallel_filter(
    num_experts: int, ep_size: int, ep_rank: int, pattern: Pattern[str] = DEFAULT_EXPERT_PATTERN
) -> Callable[[str], bool]:
    """A rule from a tensor's name to whether this rank reads it: its own experts, and all that belongs to none."""
    owned = range(*owned_expert_range(num_experts, ep_size, ep_rank))

    def keep(name: str) -> bool:
        found = pattern.search(name)
        return found is None or int(found.group(1)) in owned

    return keep


def expert_parallel_filter_from_env() -> Optional[Callable[[str], bool]]:
    """The filter that the environment asks for, or None. Size and rank that it does not give are those of `torch.distributed`, if that is
    initialized, else torchrun's."""
    if not _settings.is_expert_slice():
        return None
    experts = _settings.number(_settings.EP_NUM_EXPERTS) or 0
    if experts <= 0:
        return None
    size, rank = _settings.number(_settings.EP_SIZE[0]), _settings.number(_settings.EP_RANK[0])
    size = size if size is not None and size > 0 else None
    rank = rank if rank is not None and rank >= 0 else None
    if size is None or rank is None:
        world = _world()
        size = size if size is not None else world[0]
        rank = rank if rank is not None else world[1]
    return expert_parallel_filter(experts, size, rank) if size > 1 else None


def _world() -> Tuple[int, int]:
    try:
        import torch.distributed as distributed
    except ImportError:
        pass
    else:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_world_size(), distributed.get_rank()
    return _settings.number(_settings.EP_SIZE[1]) or 1, _settings.number(_settings.EP_RANK[1]) or 0
