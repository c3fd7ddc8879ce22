"""The pools that the drop-in places tensors in, and how much they hold."""

import os
import threading
import weakref
from typing import Any, Callable, Dict, List, Tuple

from tensorhold import _core

_lock = threading.Lock()


def _renew_lock() -> None:
    """In a forked child: a thread of the parent, which is not there, may have the lock."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
FILES = "files"
"""Pools of files that are loaded as a whole."""

WEIGHTS = "weights"
"""Pools of iterations, whose tensors become their consumers'."""

_shared: Dict[Tuple[int, str, str], _core.Pool] = {}
_own: List[Tuple[int, _core.Pool, Callable[[], bool]]] = []
_iterations: "weakref.WeakSet[Any]" = weakref.WeakSet()


def device_pool(device: str, use: str) -> _core.Pool:
    """The pool of a device for one use, which all loads without a budget share. A forked child has its own."""
    key = (os.getpid(), device, use)
    with _lock:
        pool = _shared.get(key)
        if pool is None:
            # A tensor's memory goes back with the tensor, where the device can.
            pool = _shared[key] = _core.Pool(device, parts=None, name=f"fastsafetensors {use} {device}")
        return pool


def count_iteration(iteration: Any) -> None:
    """Counts what an iteration says in `held_bytes`, while it lives: the bytes of the batch that it has not moved past."""
    with _lock:
        _iterations.add(iteration)


def held_bytes() -> int:
    """Bytes that loads hold: files that are loaded, with the tensors that were taken from them, and batches in flight."""
    here = os.getpid()
    with _lock:
        pools = [pool for (process, _, use), pool in _shared.items() if process == here and use == FILES]
        iterations = list(_iterations)
    total = 0
    for pool in pools:
        pool.trim()
        total += pool.stats().reserved_bytes
    for iteration in iterations:
        if iteration.process == here:
            total += iteration.held_bytes
    return total


def count_in(pool: _core.Pool, has_ended: Callable[[], bool]) -> None:
    """Counts a pool of a load's own, until the load has ended and the pool is empty."""
    # Entries of loads that have ended do not add up, even if nobody asks for the numbers.
    _own_stats()
    with _lock:
        _own.append((os.getpid(), pool, has_ended))


def _live() -> List[_core.Stats]:
    """The numbers of all pools of this process, after dropped memory has gone back."""
    here = os.getpid()
    with _lock:
        pools = [pool for (process, _, _), pool in _shared.items() if process == here]
    stats = []
    for pool in pools:
        pool.trim()
        stats.append(pool.stats())
    return stats + _own_stats()


def _own_stats() -> List[_core.Stats]:
    """Those of pools of loads' own. Pools of loads that are over are forgotten."""
    here = os.getpid()
    with _lock:
        own = [entry for entry in _own if entry[0] == here]
    stats, done = [], []
    for entry in own:
        entry[1].trim()
        found = entry[1].stats()
        stats.append(found)
        if found.reserved_bytes == 0 and entry[2]():
            done.append(entry)
    with _lock:
        _own[:] = [entry for entry in _own if entry not in done]
    return stats


def live_allocation_bytes() -> int:
    """Bytes of device and host memory that loads of the drop-in hold: all that is reserved for tensors, also between them."""
    return sum(stats.reserved_bytes for stats in _live())


def live_allocation_count() -> int:
    """How many regions that memory is in."""
    return sum(stats.regions for stats in _live())
