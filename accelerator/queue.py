"""The accelerator's registers: what it can do, its queue of descriptors, errors and counters."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from m2xfp.accelerator.transport import Transport
from m2xfp.errors import M2xfpError
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.descriptor_checker import CAUSES

__all__ = ["DeviceError", "Queue", "Ticket"]

_IDENTIFICATION, _VERSION = 0x4D325846, 2
_COUNTERS = ("cycles", "work", "wait_acts", "wait_weights", "wait_results")
_WORDS = {n: at for n, at in OFFSETS.items() if OFFSETS["operation"] <= at < OFFSETS["push"]}


class DeviceError(M2xfpError):
    """The accelerator ended a descriptor with an error, does not end one, or is none."""


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A descriptor in the queue.

    Members
    -------
    number
        What it was pushed as.
    ends
        How many descriptors have ended when it has.
    fault
        What went wrong, once that is known.
    done
        It has ended.
    """

    number: int = 0
    ends: int = 0
    fault: str = ""
    done: bool = False


class Queue:
    """Descriptors that an accelerator runs in order.

    Parameters
    ----------
    transport
        How it is reached.
    timeout
        Clocks without any movement after which what the bus owes is an error; 0 for none.
    patience
        Seconds without the end of any descriptor after which waiting for one is an error.

    Members
    -------
    counts
        Clocks since this object was made: ``cycles`` in which a descriptor ran, ``work`` in which
        the array took activations, and ``wait_...``. As of the last wait.

    Raises
    ------
    DeviceError
        What answers is no accelerator of this version.
    """

    def __init__(self, transport: Transport, timeout: int, patience: float) -> None:
        self.transport, self.patience = transport, patience
        found = self._read("id"), self._read("version")
        if found != (_IDENTIFICATION, _VERSION):
            raise DeviceError(
                f"what answers is no accelerator with registers of version {_VERSION}: id "
                f"0x{found[0]:08X}, version {found[1]}; look at the address of the registers"
            )
        self.counts = dict.fromkeys(_COUNTERS, 0)
        self._counted = {name: self._read(name) for name in _COUNTERS}
        self._depth = self.field("bus", "depth")
        self._pushed = self._seen = self._read("completed")
        self._waiting: list[Ticket] = []
        self._words: dict[str, int] = {}
        self._write("timeout", timeout)
        self._write("error", 1 << 31)
        self._write("int_status", 3)
        self._write("int_enable", 1)

    def field(self, register: str, name: str) -> int:
        """Return a field of a register."""
        low, width = FIELDS[register][name]
        return self._read(register) >> low & (1 << width) - 1

    def push(self, words: Mapping[str, int], ticket: Ticket) -> None:
        """Write what differs from the descriptor before, and push it; waits while there is no room.

        Words that are left out do not count for the operation.
        """
        while self._pushed - self._seen >= self._depth:
            self._pass_time()
        for name, offset in _WORDS.items():
            whole = words.get(name.removesuffix("_high"))
            if whole is None:
                continue
            word = whole >> 32 if name.endswith("_high") else whole & 0xFFFFFFFF
            if self._words.get(name) != word:
                self.transport.write(offset, word)
                self._words[name] = word
        self._pushed += 1
        ticket.number, ticket.ends = self._pushed & 0xFFFF, self._pushed
        self._waiting.append(ticket)
        self._write("push", ticket.number)

    def wait(self, tickets: Iterable[Ticket] | None = None) -> None:
        """Wait until descriptors have ended, all that were pushed if none are named.

        Raises
        ------
        DeviceError
            One of them ended with an error, or nothing ends.
        """
        waited = list(self._waiting if tickets is None else tickets)
        while not all(ticket.done for ticket in waited):
            self._pass_time()
        self._count()
        for ticket in waited:
            if ticket.fault:
                raise DeviceError(ticket.fault)

    def settle(self) -> None:
        """Wait until nothing runs, whatever has become of it; DeviceError if nothing ends."""
        try:
            self.wait()
        except DeviceError:
            if self._waiting:
                raise

    def utilisation(self) -> float:
        """Return the share of clocks in which the array took activations; nan before any."""
        return self.counts["work"] / self.counts["cycles"] if self.counts["cycles"] else math.nan

    def _read(self, name: str) -> int:
        return self.transport.read(OFFSETS[name])

    def _write(self, name: str, word: int) -> None:
        self.transport.write(OFFSETS[name], word)

    def _pass_time(self) -> None:
        """Let some time pass; DeviceError when nothing has ended for long."""
        seen, began = self._seen, time.monotonic()
        self._look()
        while self._seen == seen:
            if time.monotonic() - began > self.patience:
                raise DeviceError(
                    f"no descriptor has ended for {self.patience:g} s; status "
                    f"0x{self._read('status'):08X}, completed {self._read('completed')}"
                )
            self.transport.wait()
            self._look()

    def _count(self) -> None:
        """Add what the counters, which wrap, have counted since they were read."""
        for name, before in self._counted.items():
            now = self._read(name)
            self.counts[name] += (now - before) & 0xFFFFFFFF
            self._counted[name] = now

    def _look(self) -> None:
        """Note which descriptors have ended, and how."""
        self._write("int_status", 3)
        self._seen += (self._read("completed") - self._seen) & 0xFFFFFFFF
        word = self._read("error")
        if word >> 31:
            # What ended until it is cleared may have failed as well.
            self._write("error", 1 << 31)
            self._seen += (self._read("completed") - self._seen) & 0xFFFFFFFF
        ended = [ticket for ticket in self._waiting if ticket.ends <= self._seen]
        self._waiting = [ticket for ticket in self._waiting if ticket.ends > self._seen]
        if word >> 31:
            names = {number: name for name, number in CAUSES.items()}
            cause, number = names.get(word & 0xFF, f"cause {word & 0xFF}"), word >> 8 & 0xFFFF
            culprit = next((ticket for ticket in ended if ticket.number == number), None)
            for ticket in ended:
                if ticket is culprit:
                    ticket.fault = f"descriptor {ticket.number} ended with: {cause}"
                elif culprit is not None and ticket.ends > culprit.ends:
                    # The register keeps the first error alone.
                    ticket.fault = (
                        f"descriptor {ticket.number} came after one that failed; repeat it"
                    )
        for ticket in ended:
            ticket.done = True
