"""Who of a team's processes is still there.

Each writes into torchrun's store twice a second, from a thread, so that a long step is no silence; the last word
of a process that stops in an orderly way says why. So the others can tell a lost process from one that stopped
because of it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

BEAT = 0.5
"""Seconds between a process's words."""

SILENT = 30.0
"""Seconds without a word after which a process is lost, though nothing has broken: no power, no cable."""

BROKEN = 4.0
"""The same once something has broken: whoever lives is heard within the next second."""

FOLLOWS, INTERRUPTED = "follows another", "interrupted"
"""Why a process stopped, where that is not the reason to tell."""

NO_REASON = (FOLLOWS, INTERRUPTED)

ORPHANED = "its torchrun was lost"


class Watch:
    """Speaks for this process and listens to the others until `leave`."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        """`store` is this object's alone: an operation of another thread would keep it waiting."""
        store.set_timeout(timedelta(seconds=SILENT))
        self._store, self._rank, self._parent = store, rank, os.getppid()
        self._others = [other for other in range(size) if other != rank]
        self._last_word: str | None = None
        self._stop = threading.Event()
        store.set(f"nst/host/{rank}", socket.gethostname())
        self.hosts = [store.get(f"nst/host/{other}").decode() for other in range(size)]
        self._speak(0)
        self._heard = [self._store.get(self._key(other)) for other in range(size)]
        self._heard_at = [time.monotonic()] * size
        self._answered_at, self._store_broke = time.monotonic(), False
        self._thread = threading.Thread(target=self._talk, daemon=True, name="watch")
        self._thread.start()

    def stops(self) -> bool:
        """Whether this process has to stop: another one did, or nobody has heard of it for long."""
        return self._orphaned() or bool(self._last_words()) or bool(self._silent(SILENT))

    def reason(self) -> str:
        """One sentence: which process stopped, or was lost, and on which host. Waits seconds to be sure."""
        if found := self.blamed():
            return found
        interrupted = [rank for rank, why in self._last_words().items() if why == INTERRUPTED]
        if interrupted:
            return f"{self._names(interrupted)} was interrupted"
        return "the connection between the processes broke"

    def blamed(self) -> str | None:
        """The same, None if nobody is found in seconds who was lost or stopped for a reason of its own."""
        until = time.monotonic() + BROKEN + 4 * BEAT
        while time.monotonic() < until:
            words = self._last_words()
            own = [f"{self._names([rank])} stopped: {why}" for rank, why in words.items() if why not in NO_REASON]
            if self._orphaned():
                return f"torchrun on {self.hosts[self._rank]}, which started rank {self._rank}, was lost"
            if own:
                return "; ".join(own)
            if silent := self._silent(BROKEN):
                return f"{self._names(silent)} was lost (its process ended, or the machine no longer answers)"
            if len(words) == len(self._others):
                break
            time.sleep(BEAT / 5)
        return None

    def say(self, why: str | None) -> None:
        """Tell the others why this process stops, None at the proper end."""
        self._last_word = ORPHANED if why and self._orphaned() else why

    def leave(self, why: str | None) -> None:
        """`say` it, and be silent from now on."""
        self.say(why)
        self._stop.set()
        self._thread.join(timeout=2 * BEAT)  # the store's machine may be the one that was lost

    def _talk(self) -> None:
        count = 0
        try:
            while not self._stop.wait(BEAT):
                count += 1
                self._speak(count)
                for rank, heard in enumerate(
                    self._store.multi_get([self._key(one) for one in range(len(self._heard))])
                ):
                    if heard != self._heard[rank]:
                        self._heard[rank], self._heard_at[rank] = heard, time.monotonic()
                self._answered_at = time.monotonic()
            self._speak(-1)
        except RuntimeError:
            self._store_broke = True

    def _speak(self, count: int) -> None:
        self._store.set(self._key(self._rank), json.dumps({"count": count, "stopped": self._last_word}))

    def _last_words(self) -> dict[int, str]:
        """Why others stopped, by rank."""
        words = {rank: json.loads(self._heard[rank])["stopped"] for rank in self._others}
        return {rank: why for rank, why in words.items() if why}

    def _silent(self, seconds: float) -> list[int]:
        """Which others were not heard for so long before the store last answered; with the store its host, rank 0's."""
        now, gone = time.monotonic(), self._last_words()
        silent = [rank for rank in self._others if self._answered_at - self._heard_at[rank] > seconds]
        if (self._store_broke or now - self._answered_at > seconds) and self._rank != 0:
            silent.append(0)
        return sorted({rank for rank in silent if rank not in gone and not self._done(rank)})

    def _done(self, rank: int) -> bool:
        return bool(json.loads(self._heard[rank])["count"] < 0)

    def _orphaned(self) -> bool:
        return os.getppid() != self._parent

    def _names(self, ranks: Sequence[int]) -> str:
        return " and ".join(f"rank {rank} on {self.hosts[rank]}" for rank in ranks)

    @staticmethod
    def _key(rank: int) -> str:
        return f"nst/word/{rank}"
