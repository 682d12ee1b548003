"""One thread at a time drives a model: hooks and edits are put on its modules, which all threads share.

Without this a plain run in one thread would carry the edits of another. Whoever waits is served in the order of asking,
and a thread that has the model may take it again. A model's mode (training, evaluation) is shared in the same way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch


class FairLock:
    """A re-entrant lock that is given in the order in which it was asked for.

    ``threading.RLock`` promises no order: a thread that releases and asks again in a loop can starve the others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, and hold it inside."""
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner == me:
                self._depth += 1
                return
            ticket = object()
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._owner is None and self._waiting[0] is ticket)
                self._owner, self._depth = me, 1
            finally:  # also when the wait is interrupted: those behind must not wait for a ticket that is gone
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _release(self) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()


_locks: WeakKeyDictionary[torch.nn.Module, FairLock] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(network: torch.nn.Module) -> FairLock:
    """Return the lock of a network; two handles on one network share it."""
    with _making:
        return _locks.setdefault(network, FairLock())


@contextmanager
def evaluation_mode(network: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off; each module then gets its own mode back, which ``train()`` would give to all alike."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
