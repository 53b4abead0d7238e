"""Detect which processes of a team are alive.

A thread of each process writes a heartbeat into torchrun's store twice a second, also during a long step. The last
heartbeat of a process that stops in an orderly way says why, so the others can tell a lost process from a process that
stopped because of it.
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

HEARTBEAT_SECONDS = 0.5

LOST_AFTER_SECONDS = 30.0
"""Silence after which a process counts as lost although no connection broke (no power, no cable)."""

LOST_AFTER_BREAK_SECONDS = 4.0
"""The same after a connection broke: a live process sends a heartbeat within a second."""

FOLLOWS, INTERRUPTED = "follows another", "interrupted"
SECONDARY_REASONS = (FOLLOWS, INTERRUPTED)
"""Reasons that are consequences of another process's end, not causes to report."""

ORPHANED = "its torchrun was lost"


class Liveness:
    """Sends this process's heartbeats and listens to the others until `leave`."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        """`store` must not be used elsewhere: an operation of another thread would block this object's."""
        store.set_timeout(timedelta(seconds=LOST_AFTER_SECONDS))
        self._store, self._rank, self._parent = store, rank, os.getppid()
        self._others = [other for other in range(size) if other != rank]
        self._stop_reason: str | None = None
        self._stop = threading.Event()
        store.set(f"nst/host/{rank}", socket.gethostname())
        self.hosts = [store.get(f"nst/host/{other}").decode() for other in range(size)]
        self._send_heartbeat(0)
        self._heartbeats = [self._store.get(self._key(other)) for other in range(size)]
        self._heard_at = [time.monotonic()] * size
        self._answered_at, self._store_broke = time.monotonic(), False
        self._thread = threading.Thread(target=self._exchange_heartbeats, daemon=True, name="liveness")
        self._thread.start()

    def stops(self) -> bool:
        """Return whether this process must stop: another process stopped, or has been silent for too long."""
        return self._orphaned() or bool(self._stop_reasons()) or bool(self._silent(LOST_AFTER_SECONDS))

    def reason(self) -> str:
        """Return a sentence that names the process that stopped or was lost, and its host; takes some seconds."""
        if found := self.find_cause():
            return found
        interrupted = [rank for rank, why in self._stop_reasons().items() if why == INTERRUPTED]
        if interrupted:
            return f"{self._name_ranks(interrupted)} was interrupted"
        return "the connection between the processes broke"

    def find_cause(self) -> str | None:
        """Return a sentence that names the process that was lost or stopped first, and why; None if there is none."""
        deadline = time.monotonic() + LOST_AFTER_BREAK_SECONDS + 4 * HEARTBEAT_SECONDS
        while time.monotonic() < deadline:
            words = self._stop_reasons()
            own = [
                f"{self._name_ranks([rank])} stopped: {why}"
                for rank, why in words.items()
                if why not in SECONDARY_REASONS
            ]
            if self._orphaned():
                return f"torchrun on {self.hosts[self._rank]}, which started rank {self._rank}, was lost"
            if own:
                return "; ".join(own)
            if silent := self._silent(LOST_AFTER_BREAK_SECONDS):
                return f"{self._name_ranks(silent)} was lost (the process ended, or the machine does not answer)"
            if len(words) == len(self._others):
                break
            time.sleep(HEARTBEAT_SECONDS / 5)
        return None

    def announce(self, why: str | None) -> None:
        """Tell the others why this process stops; None at the regular end."""
        self._stop_reason = ORPHANED if why and self._orphaned() else why

    def leave(self, why: str | None) -> None:
        """Announce why this process stops, and stop sending."""
        self.announce(why)
        self._stop.set()
        self._thread.join(timeout=2 * HEARTBEAT_SECONDS)  # the store's machine may be the one that was lost

    def _exchange_heartbeats(self) -> None:
        count = 0
        try:
            while not self._stop.wait(HEARTBEAT_SECONDS):
                count += 1
                self._send_heartbeat(count)
                keys = [self._key(rank) for rank in range(len(self._heartbeats))]
                for rank, heartbeat in enumerate(self._store.multi_get(keys)):
                    if heartbeat != self._heartbeats[rank]:
                        self._heartbeats[rank], self._heard_at[rank] = heartbeat, time.monotonic()
                self._answered_at = time.monotonic()
            self._send_heartbeat(-1)
        except RuntimeError:
            self._store_broke = True

    def _send_heartbeat(self, count: int) -> None:
        self._store.set(self._key(self._rank), json.dumps({"count": count, "stopped": self._stop_reason}))

    def _stop_reasons(self) -> dict[int, str]:
        """Return why others stopped, by rank."""
        words = {rank: json.loads(self._heartbeats[rank])["stopped"] for rank in self._others}
        return {rank: why for rank, why in words.items() if why}

    def _silent(self, seconds: float) -> list[int]:
        """Return the others that were silent for `seconds` before the store last answered; rank 0 if the store is."""
        now, gone = time.monotonic(), self._stop_reasons()
        silent = [rank for rank in self._others if self._answered_at - self._heard_at[rank] > seconds]
        if (self._store_broke or now - self._answered_at > seconds) and self._rank != 0:
            silent.append(0)
        return sorted({rank for rank in silent if rank not in gone and not self._finished(rank)})

    def _finished(self, rank: int) -> bool:
        return bool(json.loads(self._heartbeats[rank])["count"] < 0)

    def _orphaned(self) -> bool:
        return os.getppid() != self._parent

    def _name_ranks(self, ranks: Sequence[int]) -> str:
        return " and ".join(f"rank {rank} on {self.hosts[rank]}" for rank in ranks)

    @staticmethod
    def _key(rank: int) -> str:
        return f"nst/heartbeat/{rank}"
