"""The array side of the mixed GEMM: segments of packed groups to beats, beats to results."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS, PairSet, pair_set
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.mixed_cycles import MixedTiming, SlotCommand
from m2xfp.rtl.parts.mixed_layouts import SEGMENTS
from m2xfp.tb.bench import golden_of
from m2xfp.tb.fields import Bytes, pack
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.vectors import Beats

__all__ = ["GROUP", "MixedProduct", "MixedStreams", "Part", "Table", "segment_table"]

GROUP = 32

Table = Sequence[tuple[int, int, int]]
"""Of each segment: the group behind it, and the numbers of its formats."""


@dataclass(frozen=True)
class Part:
    """A segment of both operands.

    Members
    -------
    act, weight
        Formats.
    acts, weights
        Packed groups, uint8 [m, groups, bytes] and [n, groups, bytes].
    """

    act: BlockFormat
    weight: BlockFormat
    acts: Bytes
    weights: Bytes

    @property
    def groups(self) -> int:
        """Groups of k."""
        return self.acts.shape[1]


@dataclass(frozen=True)
class MixedProduct:
    """One matrix product, its k cut into segments in order; InputError if their sizes disagree."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Refuse parts that are not of one product."""
        rows = {(len(part.acts), len(part.weights)) for part in self.parts}
        groups = [(part.acts.shape[1], part.weights.shape[1]) for part in self.parts]
        if len(rows) != 1 or any(act != weight for act, weight in groups):
            raise InputError(
                f"segments of {sorted(rows)} rows and {groups} groups; give one number of rows a "
                "side, and one of groups a segment"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """m, n and k."""
        groups = sum(part.groups for part in self.parts)
        return len(self.parts[0].acts), len(self.parts[0].weights), groups * GROUP

    @property
    def acts(self) -> Bytes:
        """The first segment's activations, one row a row of the product."""
        return self.parts[0].acts

    @property
    def weights(self) -> Bytes:
        """The first segment's weights, one row a column of the product."""
        return self.parts[0].weights

    @property
    def table(self) -> Table:
        """The segment table: what is left of it is empty segments."""
        ends = np.cumsum([part.groups for part in self.parts]).tolist()
        rows = [
            (end, FORMAT_NUMBERS[part.act.name], FORMAT_NUMBERS[part.weight.name])
            for end, part in zip(ends, self.parts, strict=True)
        ]
        return rows + [rows[-1]] * (SEGMENTS - len(rows))


def _pair_names(pairs: PairSet) -> str:
    return ", ".join(f"{act.name}:{weight.name}" for act, weight in pairs.pairs)


def segment_table(
    segments: Sequence[tuple[str, str, int, int]], k: int, facts: Facts
) -> list[tuple[BlockFormat, BlockFormat, int]]:
    """Check a segment table as a driver has it, and return formats and groups of its segments.

    Parameters
    ----------
    segments
        Formats of activations and weights, first channel, channel behind the last one.
    k
        Channels of the product.
    facts
        The unit.

    Raises
    ------
    InputError
        A pair that the unit was not built for, more segments than a table has, segments that
        overlap, are out of order or leave channels out, are no whole tiles, or need more beats than
        the weight buffers hold; with the limits.
    """
    pairs, tile = pair_set(facts.parameters["pairs"]), int(facts.parameters["tile"])
    built = {(act.name, weight.name): (act, weight) for act, weight in pairs.pairs}
    if not 1 <= len(segments) <= SEGMENTS:
        raise InputError(f"{len(segments)} segments; a table has 1 to {SEGMENTS}")
    behind, found = 0, []
    for number, (act, weight, start, stop) in enumerate(segments):
        label = f"segment {number} ({act}:{weight}, channels {start} to {stop})"
        if (act, weight) not in built:
            raise InputError(f"{label}: {facts.top} multiplies {_pair_names(pairs)}")
        if stop <= start:
            raise InputError(f"{label}: ends before it begins; leave empty segments out")
        if start != behind:
            fault = "overlaps the one before" if start < behind else "leaves channels out"
            raise InputError(f"{label}: {fault}, which ends at {behind}; give them in order")
        if stop % tile:
            raise InputError(f"{label}: must end at a multiple of {tile} channels")
        found.append((*built[act, weight], (stop - start) // GROUP))
        behind = stop
    if behind != k:
        raise InputError(f"segments end at channel {behind}, k is {k}; they must cover it")
    _check_room(found, facts)
    return found


def _beats(pairs: PairSet, act: BlockFormat, weight: BlockFormat, lanes: int) -> int:
    """Return the beats of a group."""
    return GROUP // lanes if (act, weight) in pairs.wide else 1


def _check_room(parts: Sequence[tuple[BlockFormat, BlockFormat, int]], facts: Facts) -> None:
    """Raise InputError if a row has more beats than the buffers hold."""
    pairs, lanes = pair_set(facts.parameters["pairs"]), int(facts.parameters["fp8_lanes"])
    needed = sum(groups * _beats(pairs, act, weight, lanes) for act, weight, groups in parts)
    most = int(facts.parameters["max_k"]) // lanes
    if needed > most:
        raise InputError(
            f"segments take {needed} beats of k, {facts.top}'s weight buffers hold {most}: a group "
            f"of {GROUP} is one beat of E2M1 on both sides and {GROUP // lanes} of wider elements"
        )


class MixedStreams(GemmStreams):
    """The order in which a mixed GEMM takes operands and gives results.

    Parameters
    ----------
    facts
        The core.
    noise
        Seed of the bits of a beat that mean nothing; None leaves them 0.
    """

    def __init__(self, facts: Facts, noise: int | None = None) -> None:
        self.facts, given = facts, facts.parameters
        self.rows, self.columns, self.chains = (
            int(given[name]) for name in ("rows", "columns", "chains")
        )
        self.pairs, self.lanes = pair_set(given["pairs"]), int(given["fp8_lanes"])
        self.tile, self.depth = int(given["tile"]), int(given["max_k"]) // self.lanes
        self._packed_results, self._noise = False, noise

    def golden(self, product: Any) -> NDArray[Any]:
        """Return what the core must deliver of a product."""
        parts: tuple[Part, ...] = product.parts
        return golden_of(self.facts)(
            [part.acts for part in parts],
            [part.weights for part in parts],
            [(part.act.name, part.weight.name) for part in parts],
        )["out"]

    def closing(self, product: Any) -> NDArray[Any]:
        """Return the result of one row of zeros."""
        wide = self.facts.parameters["results"] == "fp32"
        return np.zeros((1, 1), np.uint32 if wide else np.uint16)

    def beats(self, part: Part) -> int:
        """Return the beats of a group."""
        return _beats(self.pairs, part.act, part.weight, self.lanes)

    def words(self, product: Any) -> int:
        """Return the beats of a row."""
        return sum(part.groups * self.beats(part) for part in product.parts)

    @property
    def timing(self) -> MixedTiming:
        """The clocks of the core."""
        component: Any = Instance.of(self.facts).component
        return MixedTiming.of(component)

    def due(self, products: Sequence[Any]) -> list[int]:
        """Return the clocks of each product's last result, by the cycle model."""
        commands = []
        for product in products:
            ends = np.cumsum([part.groups * self.beats(part) for part in product.parts])
            commands.append(SlotCommand(len(product.acts), len(product.weights), ends.tolist()))
        return self.timing.finish(commands)

    def check(self, product: MixedProduct) -> None:
        """Raise InputError, with the limits, for a product that the core refuses."""
        m, n, _ = product.sizes
        for name, size in (("m", m), ("n", n)):
            if not 1 <= size < 1 << SIZE_BITS:
                raise InputError(f"{name}={size}: must be from 1 to {(1 << SIZE_BITS) - 1}")
        ends = np.cumsum([part.groups * GROUP for part in product.parts]).tolist()
        table = [
            (part.act.name, part.weight.name, start, stop)
            for part, (start, stop) in zip(product.parts, pairwise([0, *ends]), strict=True)
        ]
        segment_table(table, ends[-1], self.facts)

    def table_beats(
        self,
        commands: Sequence[tuple[tuple[int, int, int], Table]],
        tags: Sequence[int] = (),
    ) -> Bytes:
        """Return the beats of commands, (m, n, k) and a table each."""
        stream = self.facts.stream("cmd")
        sizes = np.array([size for size, _ in commands], np.int64)
        tables = np.array([table for _, table in commands], np.int64)
        values = {stream.field(name): sizes[:, n] for n, name in enumerate(("m", "n", "k"))}
        for n, name in enumerate(("end", "act", "weight")):
            values[stream.field(f"segments.{name}")] = tables[:, :, n]
        values[stream.field("tag")] = np.array(tags or range(len(commands))) % self.tags
        return pack(stream, values)

    def _beats_of(self, groups: Bytes, block: BlockFormat, beats: int) -> Bytes:
        """Return the beats of groups [rows, groups, bytes]: codes, scale and metadata of each."""
        fields = {f.name.rpartition(".")[2]: f for f in self.facts.stream("weights").fields}
        count = fields["codes"].shape[0]
        size = block.group_bytes[0]
        codes = groups[..., :size].reshape(*groups.shape[:2], beats, size // beats)
        rest = np.zeros((*codes.shape[:3], count), np.uint8)
        if self._noise is not None:
            rest = np.random.default_rng(self._noise).integers(0, 256, rest.shape, np.uint8)
        rest[..., : size // beats] = codes
        parts = [rest, np.broadcast_to(groups[..., None, size : size + 1], (*rest.shape[:3], 1))]
        if "meta" in fields:
            own = np.zeros((*rest.shape[:3], 1), np.uint8)
            if block.metadata.bits:  # a beat has its own part, from the first subgroup on
                bits = block.metadata.bits * block.subgroups // beats
                places = np.arange(beats, dtype=np.uint8)[:, None] * np.uint8(bits)
                own = (groups[..., None, -1:] >> places).astype(np.uint8)
            parts.append(np.broadcast_to(own, (*rest.shape[:3], 1)))
        whole = np.concatenate(parts, -1)
        return whole.reshape(len(groups), -1, whole.shape[-1])

    def side(self, product: MixedProduct, name: str) -> Bytes:
        """Return all beats of a side, ``acts`` or ``weights``: uint8 [rows, beats, bytes]."""
        blocks = {"acts": "act", "weights": "weight"}
        return np.concatenate(
            [
                self._beats_of(getattr(part, name), getattr(part, blocks[name]), self.beats(part))
                for part in product.parts
            ],
            axis=1,
        )

    def _values(self, words: Bytes, stream: str, path: str) -> dict[Any, NDArray[Any]]:
        """Return the fields of words [..., bytes]."""
        facts = self.facts.stream(stream)
        count = facts.field(f"{path}.codes").shape[-1]
        values = {
            facts.field(f"{path}.codes"): words[..., :count],
            facts.field(f"{path}.scale"): words[..., count],
        }
        if any(field.name == f"{path}.meta" for field in facts.fields):
            meta = words[..., count + 1, None] >> np.arange(0, 8, 2) & 3
            values[facts.field(f"{path}.meta")] = meta.astype(np.uint8)
        return values

    def weight_beats(self, weights: Bytes, tag: int = 0) -> Bytes:
        """Return the stream's beats of weights [n, beats, bytes]."""
        words, stream = weights.reshape(-1, weights.shape[-1]), self.facts.stream("weights")
        tags = {stream.field("tag"): np.full(len(words), tag % self.tags)}
        return pack(stream, self._values(words, "weights", "beat") | tags)

    def _act_words(self, beats: NDArray[Any], tag: int) -> Bytes:
        """Return TDATA of beats [beats, rows, bytes]."""
        stream = self.facts.stream("acts")
        tags = {stream.field("tag"): np.full(len(beats), tag % self.tags)}
        return pack(stream, self._values(beats, "acts", "rows") | tags)

    def inputs(self, products: Sequence[Any]) -> dict[str, Beats]:
        """Return the beats of all input streams; the tags are the numbers of the products."""
        streams = {
            "acts": [
                self.act_beats(self.side(p, "acts"), len(p.weights), n)
                for n, p in enumerate(products)
            ],
            "weights": [
                self.weight_beats(self.side(p, "weights"), n) for n, p in enumerate(products)
            ],
        }
        beats = {
            name: Beats(
                np.concatenate(parts),
                np.concatenate([np.arange(len(x)) == len(x) - 1 for x in parts]),
            )
            for name, parts in streams.items()
        }
        commands = self.table_beats([(p.sizes, p.table) for p in products])
        return beats | {"cmd": Beats(commands)}
