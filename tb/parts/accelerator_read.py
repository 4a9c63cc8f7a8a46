"""What an accelerator was given to do, read back from the beats on its buses."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.rtl.parts.descriptor_checker import GEMM
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.fields import Bytes, read, read_plane
from m2xfp.tb.parts.accelerator_tasks import Task, kinds_of, read_results
from m2xfp.tb.parts.accelerator_traffic import Descriptor, Memory, Traffic
from m2xfp.tb.parts.gemm_arrays import Product
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["Bursts", "descriptors", "done", "joined", "pushed", "sensible", "values_of"]


def joined(phases: Sequence[TestVectors]) -> dict[str, Beats]:
    """Return the beats of all phases, one after the other."""
    every: dict[str, list[Beats]] = {}
    for vectors in phases:
        for name, beats in (*vectors.inputs.items(), *vectors.outputs.items()):
            every.setdefault(name, []).append(beats)
    found = {}
    for name, parts in every.items():
        last = [part.last for part in parts if part.last is not None]
        data = np.concatenate([part.data for part in parts])
        found[name] = Beats(data, np.concatenate(last) if last else None)
    return found


def values_of(facts: Facts, beats: Mapping[str, Beats], name: str, field: str) -> NDArray[np.int64]:
    """Return the values of a field of a stream's beats."""
    if not len(beats[name]):
        return np.zeros(0, np.int64)
    return np.asarray(read(facts.stream(name).field(field), beats[name].data), np.int64)


def pushed(beats: Mapping[str, Beats], facts: Facts) -> list[dict[str, int]]:
    """Return the words of each descriptor that was pushed, as far as these beats tell them."""
    at = values_of(facts, beats, "control_aw", "addr") // 4 * 4
    words = values_of(facts, beats, "control_w", "data")
    whole = values_of(facts, beats, "control_w", "strb") == 15
    names = {offset: name for name, offset in OFFSETS.items()}
    held: dict[str, int] = {}
    found = []
    for offset, word, strobes in zip(at.tolist(), words.tolist(), whole.tolist(), strict=True):
        if strobes and offset in names:
            held[names[offset]] = word
            if names[offset] == "push" and "operation" in held:
                found.append(dict(held))
    return found


def descriptors(beats: Mapping[str, Beats], facts: Facts) -> list[Descriptor]:
    """Return descriptors with whole addresses; of words that are not told 0."""
    found = []
    for words in pushed(beats, facts):
        whole = {
            name: word | words.get(f"{name}_high", 0) << 32
            for name, word in words.items()
            if not name.endswith("_high")
        }
        found.append(Descriptor(whole, whole["push"]))
    return found


def sensible(descriptor: Descriptor, facts: Facts) -> bool:
    """Return whether a descriptor's operation and sizes are such as the build takes."""
    group, most = block_format(facts.parameters["act"]).group, (1 << SIZE_BITS) - 1
    gemm = descriptor["operation"] == GEMM
    sizes = [descriptor[name] for name in ("m", "k", *(["n"] if gemm else []))]
    return (
        (descriptor["operation"], descriptor["kind"]) in kinds_of(facts)
        and all(0 < size <= most for size in sizes)
        and descriptor["k"] % group == 0
        and not (gemm and descriptor["k"] > facts.parameters["max_k"])
    )


class Bursts:
    """The bursts of a bus, in order, with where their beats begin; taken from the front.

    Parameters
    ----------
    beats, facts
        What was played.
    address, words
        Streams of addresses and of what lies there.
    """

    def __init__(self, beats: Mapping[str, Beats], facts: Facts, address: str, words: str) -> None:
        self._at = values_of(facts, beats, address, "addr").tolist()
        counts = values_of(facts, beats, address, "len") + 1
        self._counts: list[int] = counts.tolist()
        self._begins: list[int] = (np.cumsum(counts) - counts).tolist()
        stream, self._there = facts.stream(words), len(beats[words])
        names = {field.name for field in stream.fields}
        data = beats[words].data
        self._data = read_plane(stream.field("data"), data)
        self.responses = values_of(facts, beats, words, "resp") if "resp" in names else None
        self._strobes: NDArray[np.bool_] | None = None
        if "strb" in names:
            bits = np.unpackbits(read_plane(stream.field("strb"), data), axis=1, bitorder="little")
            self._strobes = bits[:, : self._data.shape[1]].astype(bool)
        self._next = 0

    def __iter__(self) -> Iterator[tuple[int, int, slice]]:
        """Yield address, beats and which beats those are."""
        for at, count, begin in zip(self._at, self._counts, self._begins, strict=True):
            yield at, count, slice(begin, begin + count)

    def match(self, wanted: Iterator[tuple[int, int]]) -> int | None:
        """Return how many bursts come next as they are wanted; None if others do, or a fault."""
        count = 0
        for at, beats in wanted:
            here = self._next + count
            if here >= len(self._at) or (self._at[here], self._counts[here]) != (at, beats):
                return None
            end = self._begins[here] + beats
            if end > self._there or self._wrong(self._begins[here], end):
                return None
            count += 1
        return count

    def _wrong(self, begin: int, end: int) -> bool:
        return self.responses is not None and bool(self.responses[begin:end].any())

    def take(self, count: int, memory: Memory) -> None:
        """Put the contents of so many bursts into a memory."""
        for here in range(self._next, self._next + count):
            some = slice(self._begins[here], self._begins[here] + self._counts[here])
            content = self._data[some].reshape(-1)
            first, end = 0, len(content)
            if self._strobes is not None:  # those of a piece lie side by side
                kept = np.flatnonzero(self._strobes[some].reshape(-1))
                first, end = (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, 0)
            memory.write(self._at[here] + first, content[first:end])
        self._next += count


def done(
    beats: Mapping[str, Beats], facts: Facts
) -> Iterator[tuple[Descriptor, Task, NDArray[Any]]]:
    """Yield what was carried out, with its results as ``task_results`` gives them.

    Up to the first descriptor that was begun and did not end as it should.
    """
    traffic = Traffic(facts, Memory())
    buses = {
        operand: Bursts(beats, facts, f"{operand}_ar", f"{operand}_r")
        for operand in ("acts", "weights")
    }
    out = Bursts(beats, facts, "results_aw", "results_w")
    for at in descriptors(beats, facts):
        if not sensible(at, facts):
            continue
        gemm = at["operation"] == GEMM
        wanted = {"acts": traffic.requests("a", at) if gemm else traffic.value_requests(at)}
        if gemm:
            wanted["weights"] = traffic.requests("w", at)
        counts = {}
        for operand, requests in wanted.items():
            bursts = (burst for request in requests for burst in traffic.bursts(*request))
            if (count := buses[operand].match(bursts)) is None:
                break
            counts[operand] = count
        if len(counts) < len(wanted):
            continue
        pieces = (
            burst for piece in _pieces(at, facts, traffic) for burst in traffic.bursts(*piece)
        )
        if (results := out.match(pieces)) is None:
            return
        memory = Memory()
        for operand, count in counts.items():
            buses[operand].take(count, memory)
        task = _task(at, facts, traffic, memory)
        out.take(results, memory)
        yield at, task, read_results(task, facts, at, memory)


def _pieces(at: Descriptor, facts: Facts, traffic: Traffic) -> Iterator[tuple[int, int]]:
    """Yield address and length of what is written."""
    if not at.packed:
        for _, columns, start in traffic.pieces(at):
            yield start, (columns.stop - columns.start) * at.value_bytes
        return
    act = block_format(facts.parameters["act"])
    count = (at["n"] if at["operation"] == GEMM else at["k"]) // act.group
    groups = np.zeros((at["m"], count, sum(act.group_bytes)), np.uint8)
    for start, content in traffic.plane_pieces(at, groups):
        yield start, len(content)


def _task(at: Descriptor, facts: Facts, traffic: Traffic, memory: Memory) -> Task:
    """Return what a descriptor asked for, its operands read from a memory."""
    group = block_format(facts.parameters["act"]).group
    if at["operation"] != GEMM:
        size = at.value_bytes
        rows = memory.read_rows(at["a_codes"], at["a_codes_pitch"], at["m"], at["k"] * size)
        return Task(at["operation"], at["kind"], values=rows.view(f"<u{size}"))
    sides: list[Bytes] = []
    for side, rows_of in (("a", "m"), ("w", "n")):
        planes = []
        for plane, size in traffic.planes(side).items():
            pitch = at[f"{side}_{'codes' if plane == 'codes' else 'scales'}_pitch"]
            length = at["k"] // group * size
            rows = memory.read_rows(at[f"{side}_{plane}"], pitch, at[rows_of], length)
            planes.append(rows.reshape(len(rows), -1, size))
        sides.append(np.concatenate(planes, axis=2))
    return Task(GEMM, at["kind"], Product(sides[0], sides[1], at["k"]))
