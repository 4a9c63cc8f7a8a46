"""Testbench of the channel permuter: rows and orders in, permuted rows out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import InputType, input_type
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.fields import number, pack, read
from m2xfp.tb.parts.channel_cover import SMALL, cover
from m2xfp.tb.parts.channel_tables import check_order, table_of
from m2xfp.tb.parts.files import as_patterns, check_names, load_arrays, type_name
from m2xfp.tb.regression import RESETS, STALLS, WARM, Case
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "check",
    "cover",
    "decode",
    "encode",
    "expected",
    "load",
    "regression",
    "sample",
    "unreached",
    "vectors",
]

Table = dict[str, NDArray[np.int64]]


def _kind(facts: Facts) -> InputType:
    return input_type(facts.parameters["input_type"])


def _lanes(facts: Facts) -> int:
    return int(facts.parameters["lanes"])


def load(path: Path, facts: Facts) -> Arrays:
    """Read rows and the orders that they are to be in.

    Returns
    -------
    dict
        ``x``: patterns [tables, rows, k], uint16 (uint32 for fp32); ``order`` int64 [tables, k]:
        the channel that comes at each place.

    Raises
    ------
    InputError
        If the file is no .npz file, a field is missing, too many, or of another type or shape, or
        an order is no permutation that the unit takes.
    """
    arrays = load_arrays(path)
    check_names(path, facts, arrays, ["x", "order"])
    arrays["x"] = as_patterns(arrays["x"], _kind(facts))
    x, order = arrays["x"], arrays["order"]
    if order.dtype != np.int64 or order.ndim != 2 or not order.size:
        raise InputError(
            f"input {path}: order is {type_name(order)} {list(order.shape)}; must be int64 "
            "[tables, k]"
        )
    dtype = np.dtype(f"uint{_kind(facts).width}")
    tables, k = order.shape
    if x.dtype != dtype or x.ndim != 3 or x.shape[::2] != (tables, k) or not x.size:
        raise InputError(
            f"input {path}: x is {type_name(x)} {list(x.shape)}; must be {dtype} "
            f"[{tables}, rows, {k}] beside an order of {[tables, k]}"
        )
    check(arrays, facts)
    return arrays


def check(arrays: Arrays, facts: Facts) -> None:
    """Raise InputError, with the limits, for an order that is no permutation that goes."""
    for one in arrays["order"]:
        check_order(one, _lanes(facts), int(facts.parameters["max_k"]))


def _table_beats(tables: Sequence[Table], facts: Facts) -> Beats:
    stream = facts.stream("table")
    fields = {stream.field(name): [table[name] for table in tables] for name in tables[0]}
    data = pack(stream, {field: np.concatenate(rows) for field, rows in fields.items()})
    ends = np.cumsum([len(table["to"]) for table in tables]) - 1
    return Beats(data, np.isin(np.arange(len(data)), ends))


@dataclass(frozen=True)
class _Rows:
    """Rows one after the other: patterns [beats, lanes], which end one, which ask for a table."""

    values: NDArray[Any]
    last: NDArray[np.bool_]
    fresh: NDArray[np.bool_]


def _rows(x: NDArray[Any], lanes: int, fresh: bool = True) -> _Rows:
    """Return rows [rows, k]; the first asks for a table if it is ``fresh``."""
    beats = x.shape[1] // lanes
    at = np.arange(x.shape[0] * beats)
    return _Rows(x.reshape(-1, lanes), at % beats == beats - 1, (at == 0) & fresh)


def _row_beats(rows: Sequence[_Rows], facts: Facts) -> Beats:
    stream = facts.stream("i")
    values = np.concatenate([each.values for each in rows])
    fresh = np.concatenate([each.fresh for each in rows])
    data = pack(stream, {number(stream, "values."): values, stream.field("fresh"): fresh})
    return Beats(data, np.concatenate([each.last for each in rows]))


def _statuses(words: Sequence[str], facts: Facts) -> Beats:
    """Return reports: a fault's name each, or nothing."""
    stream = facts.stream("status")
    values = {field: np.array([word == field.name for word in words]) for field in stream.fields}
    return Beats(pack(stream, values), np.ones(len(words), bool))


def _out(rows: Sequence[_Rows], facts: Facts) -> Beats:
    stream = facts.stream("o")
    if not rows:
        return Beats(np.zeros((0, stream.bytes), np.uint8), np.zeros(0, bool))
    data = pack(stream, {number(stream): np.concatenate([each.values for each in rows])})
    return Beats(data, np.concatenate([each.last for each in rows]))


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn orders into tables, and rows into packets, the first of each table fresh."""
    lanes = _lanes(facts)
    return {
        "table": _table_beats([table_of(order, lanes) for order in arrays["order"]], facts),
        "i": _row_beats([_rows(x, lanes) for x in arrays["x"]], facts),
    }


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``y``: the rows' patterns in their tables' orders."""
    found = read(number(facts.stream("o")), beats["o"].data)
    return {"y": found.reshape(arrays["x"].shape).astype(arrays["x"].dtype)}


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the rows in order."""
    return golden_of(facts)(arrays["x"], arrays["order"])


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return tables with their rows, a piece each."""
    lanes = _lanes(facts)
    y = expected(arrays, facts)["y"]
    return TestVectors(
        encode(arrays, facts),
        {
            "o": _out([_rows(each, lanes) for each in y], facts),
            "status": _statuses([""] * len(y), facts),
        },
        len(y),
    )


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return the activations as rows of at most 128 channels, with two random orders a lane.

    A gate-level run records the first one's rows, while the second table waits: as many rows as
    keep it at work for so long.
    """
    from m2xfp.golden.bits import round_to_bits

    lanes, most = _lanes(facts), int(facts.parameters["max_k"])
    k = min(most, 128) // lanes * lanes
    rows = 4 + -(-facts.clocks_per_block // (k // lanes))
    drawn = round_to_bits(_kind(facts).name, operands.activations).reshape(-1)
    rng = np.random.default_rng(0)
    x = drawn.take(np.arange(2 * operands.lanes * rows * k), mode="wrap")
    order = np.stack([rng.permutation(k) for _ in range(2 * operands.lanes)])
    return {"x": x.reshape(2 * operands.lanes, rows, k), "order": order}


def _spoilt(rng: np.random.Generator, facts: Facts) -> Iterator[tuple[str, Table]]:
    """Yield tables that are no permutations, each by one word."""
    lanes, most = _lanes(facts), int(facts.parameters["max_k"]) // _lanes(facts)
    beats = max(2, most - 1)
    for name in ("to", "source"):
        for missing in range(lanes):
            table = table_of(rng.permutation(beats * lanes), lanes)
            row = table[name][int(rng.integers(beats))]
            row[row == missing] = (missing + 1) % lanes
            yield name, table
    for memory in range(lanes):
        table = table_of(rng.permutation(beats * lanes), lanes)
        at = int(rng.integers(1, beats))
        table["address"][at, memory] = table["address"][at - 1, memory]
        yield "address", table
    for memory, near in product(range(lanes), (False, True)):
        table = table_of(rng.permutation(beats * lanes), lanes)
        address = table["address"]
        at = int(np.flatnonzero(address[:, memory] == beats - 1)[0])
        if near:  # beside it the other memories have the largest that there may be
            places = (address == beats - 1).argmax(axis=0)
            every = np.arange(lanes)
            address[places, every], address[at] = address[at], beats - 1
        address[at, memory] = beats  # beyond the end, if a word has it
        if beats < most:
            yield "beyond", table
    long = table_of(rng.permutation((most + 1) * lanes), lanes)
    yield "long", {name: np.minimum(words, most - 1) for name, words in long.items()}
    twice = table_of(rng.permutation(most * lanes), lanes)
    yield "twice as long", {name: np.concatenate([each, each]) for name, each in twice.items()}


def _renamed(rng: np.random.Generator, table: Table, lanes: int) -> Table:
    """Return a table that does the same with the memories in any other order."""
    names = rng.permutation(lanes)
    address = np.empty_like(table["address"])
    address[:, names] = table["address"]
    return {"to": names[table["to"]], "source": names[table["source"]], "address": address}


def _values(rng: np.random.Generator, facts: Facts, rows: int, k: int) -> NDArray[Any]:
    width = _kind(facts).width
    return rng.integers(0, 1 << width, (rows, k)).astype(f"uint{width}")


def _mixed(rng: np.random.Generator, facts: Facts, bad: Sequence[Table]) -> TestVectors:
    """Return good tables and rows with bad ones among them: what is dropped, and reported."""
    lanes, most = _lanes(facts), int(facts.parameters["max_k"]) // _lanes(facts)
    tables: list[Table] = []
    rows: list[_Rows] = []
    given: list[_Rows] = []
    words: list[str] = []
    # Before there is any table.
    rows.append(_rows(_values(rng, facts, 1, lanes * 2), lanes, fresh=False))
    words.append("bad_row")
    for wrong in [None, *bad, None]:
        beats = int(rng.integers(1, most + 1))
        if wrong is not None:
            tables.append(wrong)
            rows.append(_rows(_values(rng, facts, 2, beats * lanes), lanes))
            words += ["bad_table", "bad_row", "bad_row"]
        order = rng.permutation(beats * lanes)
        tables.append(_renamed(rng, table_of(order, lanes), lanes))
        words.append("")
        x = _values(rng, facts, int(rng.integers(1, 4)), beats * lanes)
        rows.append(_rows(x, lanes))
        given.append(_rows(x[:, order], lanes))
        for other in {max(1, beats - 1), beats + 1, 2 * beats} - {beats}:
            rows.append(_rows(_values(rng, facts, 1, other * lanes), lanes, fresh=False))
            words.append("bad_row")
        x = _values(rng, facts, 2, beats * lanes)
        rows.append(_rows(x, lanes, fresh=False))
        given.append(_rows(x[:, order], lanes))
    return TestVectors(
        {"table": _table_beats(tables, facts), "i": _row_beats(rows, facts)},
        {"o": _out(given, facts), "status": _statuses(words, facts)},
        1,
    )


def _rotated(facts: Facts, seed: int) -> Arrays:
    """Return rows in turned orders, so that each channel comes to each place if these are few."""
    k = int(facts.parameters["max_k"])
    turns = np.linspace(0, k - 1, k if k <= SMALL else 4).astype(np.int64)
    x = _values(np.random.default_rng(seed), facts, len(turns), k)
    return {"x": x[:, None], "order": (np.arange(k) + turns[:, None]) % k}


def _steady(run: Any, facts: Facts) -> str:
    """Look for a pause between the beats of rows with one table, or a result that is late."""
    took, given = run.stamps["i"].astype(np.int64), run.stamps["o"].astype(np.int64)
    beats = int(facts.parameters["max_k"]) // _lanes(facts)
    # Two beats are in before the table.
    if (np.diff(took[2:]) != 1).any() or (np.diff(given) != 1).any():
        return "a beat had to wait"
    late = given[::beats] - took[beats - 1 :: beats]
    return "" if (late == facts.latency).all() else f"rows after {late.tolist()} clocks"


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield rows in random orders, tables that are none, rows that are cut short, and resets."""
    rng, lanes = np.random.default_rng(seed), _lanes(facts)
    k = int(facts.parameters["max_k"])
    steady: Arrays = {
        "x": _values(rng, facts, 12, k).reshape(1, 12, k),
        "order": rng.permutation(k)[None],
    }
    yield Case("one table", (vectors(steady, facts),), timing=_steady)
    for number_, stall in enumerate((*STALLS, (0.5, 0.1), (0.1, 0.5))):
        # Of full length at first, so that no address may be remembered from the table before.
        size = lanes * int(rng.integers(1, k // lanes + 1)) if number_ else k
        arrays: Arrays = {
            "x": _values(rng, facts, 24, size).reshape(8, 3, size),
            "order": np.stack([rng.permutation(size) for _ in range(8)]),
        }
        made = vectors(arrays, facts)
        yield Case("rows", (made,), stall, seed + number_, before=WARM + number_)
    yield Case("each place", (vectors(_rotated(facts, seed), facts),), STALLS[1], seed)
    named = list(_spoilt(rng, facts))
    for number_, stall in enumerate(STALLS):
        chosen = [table for at, (_, table) in enumerate(named) if at % len(STALLS) == number_]
        yield Case("refused", (_mixed(rng, facts, chosen),), stall, seed + number_)
    few = _mixed(rng, facts, [named[0][1]])
    for clock, stall in enumerate(RESETS):
        yield Case(f"reset {clock}", (few,), stall, seed + clock, before=WARM + clock)
    for clock in range(24):
        # Where tables and reports are taken as they come, so that one is in the clock of a reset.
        yield Case(f"reset without pauses {clock}", (few,), seed=seed, before=3 * clock + 3)


def unreached(_: Facts) -> dict[str, str]:
    """Return what follows from how a table is looked at, and reported."""
    looked = (
        "a beat of a table is taken in a clock after the one in which it came, at the earliest "
        "(job looked-at)"
    )
    return {
        r"beats of table: 0, (none|no valid)": looked,
        r"table in the clock of the reset: no, yes": looked,
        r"beats of status: 0, (none|no ready)": "no report is there in the clock after one was "
        "taken (job apart)",
    }
