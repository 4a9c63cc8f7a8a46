"""The array side of the GEMM core: operands to beats, beats to results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, block_format
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.tb.bench import golden_of
from m2xfp.tb.fields import Bytes, number, pack, read
from m2xfp.tb.parts.groups import (
    elements,
    group_arrays,
    group_beats,
    join_planes,
    planes_of_beats,
)
from m2xfp.tb.vectors import Beats

__all__ = [
    "GemmStreams",
    "Product",
    "golden_product",
    "status_names",
    "status_tag",
    "timing_of",
]


def timing_of(facts: Facts) -> GemmTiming:
    """Return the clocks of a core, which its component knows."""
    component: Any = Instance.of(facts).component
    return GemmTiming.of(component)


def status_names(status: int, facts: Facts) -> list[str]:
    """Return the names of the faults that a status reports; none is success."""
    return [
        field.name
        for field in facts.stream("status").fields
        if field.name != "tag" and status >> field.offset & 1
    ]


def status_tag(status: int, facts: Facts) -> int:
    """Return the tag of the command that a status is of."""
    tag = facts.stream("status").field("tag")
    return status >> tag.offset & (1 << tag.width) - 1


def _end_mark(count: int) -> NDArray[np.bool_]:
    """Return TLAST of one command's beats."""
    return np.arange(count) == count - 1


@dataclass(frozen=True)
class Product:
    """One matrix product.

    Members
    -------
    acts
        Rows of packed groups, uint8 [m, groups, bytes]; or, for a core that quantizes, patterns of
        its input type, uint16 or uint32 [m, k].
    weights
        uint8 [n, groups, bytes]: rows of packed groups.
    k
        Values a row.
    """

    acts: NDArray[Any]
    weights: Bytes
    k: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """m, n and k."""
        return len(self.acts), len(self.weights), self.k


def golden_product(product: Product, facts: Facts) -> NDArray[Any]:
    """Return what the core must deliver, as ``GemmStreams.results`` gives it."""
    return golden_of(facts)(product.acts, product.weights)["out"]


class GemmStreams:
    """The order in which a GEMM core takes operands and gives results.

    Parameters
    ----------
    facts
        The core.

    Members
    -------
    act, weight
        Formats of the operands.
    rows, columns, chains
        Of the core.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        given = facts.parameters
        self.act: BlockFormat = block_format(given["act"])
        self.weight: BlockFormat = block_format(given["weight"])
        self.rows, self.columns, self.chains = (
            int(given[name]) for name in ("rows", "columns", "chains")
        )
        self._packed_results = given["results"] == "packed"

    def golden(self, product: Any) -> NDArray[Any]:
        """Return what the core must deliver of a product."""
        return golden_product(product, self.facts)

    def closing(self, product: Any) -> NDArray[Any]:
        """Return the result of one row of zeros, which closes those of a product that failed."""
        return self.golden(Product(product.acts[:1] * 0, product.weights[:1] * 0, product.k))

    def words(self, product: Any) -> int:
        """Return the beats of a row of weights."""
        return int(product.k // self.act.group)

    def due(self, products: Sequence[Any]) -> list[int]:
        """Return the clocks of each product's last result, by the cycle model."""
        return timing_of(self.facts).finish([product.sizes for product in products])

    @property
    def tags(self) -> int:
        """How many tags there are; commands carry them in turn."""
        return 1 << self.facts.stream("cmd").field("tag").width

    def command_beats(self, sizes: list[tuple[int, int, int]], tags: Sequence[int] = ()) -> Bytes:
        """Return the beats of commands (m, n, k), with these tags or numbered from 0."""
        stream, numbers = self.facts.stream("cmd"), np.array(sizes, np.int64)
        return pack(
            stream,
            {stream.field(name): numbers[:, n] for n, name in enumerate(("m", "n", "k"))}
            | {stream.field("tag"): np.array(tags or range(len(sizes))) % self.tags},
        )

    def resync_beat(self, tag: int) -> Bytes:
        """Return the beat of the command that ends a failure."""
        stream = self.facts.stream("cmd")
        one = {"tag": tag % self.tags, "resync": 1}
        return pack(stream, {stream.field(name): np.array([bit]) for name, bit in one.items()})

    def weight_beats(self, weights: Bytes, tag: int = 0) -> Bytes:
        """Return the beats of weights [n, groups, bytes] of the command with a tag."""
        together = int(self.facts.parameters["weight_rows"])
        if together > 1:
            return self._weight_words(weights, together, tag)
        planes = group_arrays(weights.reshape(-1, weights.shape[-1]), self.weight)
        stream = self.facts.stream("weights")
        tags = np.full(weights.shape[0] * weights.shape[1], tag % self.tags)
        return group_beats(stream, planes, self.weight, "group.", {stream.field("tag"): tags})

    def _weight_words(self, weights: Bytes, together: int, tag: int) -> Bytes:
        """Return the beats of a core that takes groups of several rows at the same time."""
        n, groups, size = weights.shape
        padded = np.zeros((-(-n // together) * together, groups, size), np.uint8)
        padded[:n] = weights
        beats = padded.reshape(-1, together, groups, size).swapaxes(1, 2)
        return self._words("weights", self.weight, beats.reshape(-1, together, size), tag)

    def act_beats(self, acts: NDArray[Any], n: int, tag: int = 0) -> Bytes:
        """Return the activation beats of a product with n weight rows; ``acts`` as in `Product`."""
        m = len(acts)
        groups = acts.reshape(m, -1, self.act.group) if acts.ndim == 2 else acts
        block = self.rows * self.chains
        padded = np.zeros((-(-m // block) * block, *groups.shape[1:]), groups.dtype)
        padded[:m] = groups
        # [blocks, chains, rows, groups, values] to one beat a (block, group, chain)
        shape = (-1, self.chains, self.rows, *groups.shape[1:])
        order = padded.reshape(shape).transpose(0, 3, 1, 2, 4)
        first_row = np.arange(0, len(padded), self.rows).reshape(-1, 1, self.chains)
        wanted = np.broadcast_to(first_row < m, order.shape[:3]).reshape(-1)
        beats = order.reshape(-1, self.rows, groups.shape[2])[wanted]
        panels = -(-n // self.columns)
        return np.tile(self._act_words(beats, tag), (panels, 1))

    def _act_words(self, beats: NDArray[Any], tag: int) -> Bytes:
        """Return TDATA of groups [beats, rows, values or bytes]."""
        if beats.dtype == np.uint8:
            return self._words("acts", self.act, beats, tag)
        stream = self.facts.stream("acts")
        tags = {stream.field("tag"): np.full(len(beats), tag % self.tags)}
        return pack(stream, {number(stream, "rows."): beats} | tags)

    def _words(self, name: str, block: BlockFormat, beats: Bytes, tag: int) -> Bytes:
        """Return TDATA of packed groups [beats, rows, bytes]."""
        stream = self.facts.stream(name)
        tags = {stream.field("tag"): np.full(len(beats), tag % self.tags)}
        planes = group_arrays(beats.reshape(-1, beats.shape[2]), block)
        values = {"codes": elements(planes["codes"], block.element.bits, block.group)}
        values["scale"] = planes["scales"]
        if block.subgroups:
            values["meta"] = elements(planes["meta"], block.metadata.bits, block.subgroups)
        return pack(
            stream,
            {
                stream.field(f"rows.{name}"): array.reshape(*beats.shape[:2], *array.shape[1:])
                for name, array in values.items()
            }
            | tags,
        )

    def inputs(self, products: Sequence[Any]) -> dict[str, Beats]:
        """Return the beats of all input streams; the tags are the numbers of the products."""
        streams = {
            "acts": [self.act_beats(p.acts, len(p.weights), n) for n, p in enumerate(products)],
            "weights": [self.weight_beats(p.weights, n) for n, p in enumerate(products)],
        }
        beats = {
            name: Beats(np.concatenate(parts), np.concatenate([_end_mark(len(x)) for x in parts]))
            for name, parts in streams.items()
        }
        return beats | {"cmd": Beats(self.command_beats([p.sizes for p in products]))}

    def outputs(self, results: list[NDArray[Any]]) -> dict[str, Beats]:
        """Return the beats of all output streams that have these results, all commands done."""
        parts = [self._result_beats(result) for result in results]
        status = self.facts.stream("status")
        statuses = pack(status, {status.field("tag"): np.arange(len(results)) % self.tags})
        return {
            "o": Beats(np.concatenate(parts), np.concatenate([_end_mark(len(x)) for x in parts])),
            "status": Beats(statuses, np.ones(len(results), bool)),
        }

    def _result_beats(self, result: NDArray[Any]) -> Bytes:
        """Return the beats of one result: for each panel, for each row, a beat."""
        stream = self.facts.stream("o")
        if self._packed_results:
            groups = result.swapaxes(0, 1).reshape(-1, result.shape[-1])
            return group_beats(stream, group_arrays(groups, self.act), self.act)
        m, n = result.shape
        wide = np.zeros((m, -(-n // self.columns) * self.columns), result.dtype)
        wide[:, :n] = result  # columns beyond n are 0
        panels = wide.reshape(m, -1, self.columns).swapaxes(0, 1)
        return pack(stream, {number(stream): panels.reshape(-1, self.columns)})

    def results(self, out: Beats, products: Sequence[Any]) -> Iterator[NDArray[Any]]:
        """Cut the output beats into results: patterns [m, n], or groups uint8 [m, groups, bytes].

        AssertionError if their number or TLAST is wrong, or a column beyond n is not 0.
        """
        stream, start = self.facts.stream("o"), 0
        assert out.last is not None
        for product in products:
            m, n, _ = product.sizes
            panels = -(-n // self.columns)
            stop = start + panels * m
            assert len(out) >= stop, f"{len(out)} result beats, {stop} expected"
            assert np.array_equal(out.last[start:stop], _end_mark(stop - start))
            rows = out.data[start:stop]
            if self._packed_results:
                groups = join_planes(planes_of_beats(stream, rows, self.act), self.act)
                yield groups.reshape(panels, m, -1).swapaxes(0, 1)
            else:
                values = read(number(stream), rows).reshape(panels, m, self.columns)
                matrix = values.swapaxes(0, 1).reshape(m, -1)
                assert not matrix[:, n:].any(), "a column beyond n is not 0"
                yield matrix[:, :n]
            start = stop
        assert start == len(out), f"{len(out)} result beats, {start} expected"
