"""What the numbers of an accelerator's tasks have gone through, and what its errors were of."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, block_format, input_type
from m2xfp.golden.units.accelerator import accelerator
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, CAUSES, ENCODE, FP32_VALUES, GEMM
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.bench import Arrays
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import Bytes
from m2xfp.tb.parts.accelerator_read import (
    Bursts,
    descriptors,
    done,
    joined,
    sensible,
    values_of,
)
from m2xfp.tb.parts.accelerator_story import PITCHES, planes_of
from m2xfp.tb.parts.accelerator_tasks import Task, kinds_of, task_results
from m2xfp.tb.parts.accelerator_traffic import Descriptor
from m2xfp.tb.parts.gemm_cover import cover_product
from m2xfp.tb.parts.groups import group_arrays
from m2xfp.tb.parts.minifloat_cover import cover_minifloat_groups
from m2xfp.tb.parts.sum_cover import RESULTS, ROUNDED, SIGNS, kind_of, rounding_of
from m2xfp.tb.parts.value_cover import cover_groups, cover_specials
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["cover_case", "names_of", "wrong_words"]

OPERATIONS = ("gemm", "quantize", "encode")
KINDS = ("fp32", "bf16", "packed")
BF16_DROPS = 16  # bits of FP32 that bf16 has not
ANSWERS = ("SLVERR", "DECERR")


def names_of(facts: Facts) -> dict[tuple[int, int], str]:
    """Return operations and kinds that a build can do, and what they are called."""
    return {(o, k): f"{OPERATIONS[o - 1]} {KINDS[k]}" for o, k in kinds_of(facts)}


def cover_case(phases: Sequence[TestVectors], facts: Facts) -> Iterator[Cross]:
    """Yield what the tasks of a case computed, and which words, planes and operations failed."""
    beats = joined(phases)
    by_kind: dict[tuple[int, int], list[tuple[Task, NDArray[np.generic]]]] = defaultdict(list)
    for at, task, results in done(beats, facts):
        by_kind[at["operation"], at["kind"]].append((task, results))
    yield from _results(by_kind, facts)
    acts, weights = (block_format(facts.parameters[side]) for side in ("act", "weight"))
    for (operation, kind), several in by_kind.items():
        if operation == GEMM:
            for task, _ in several:
                assert task.product is not None
                yield from cover_product(task.product, acts, weights)
        else:
            block = weights if operation == ENCODE else acts
            yield from _packed(several, block, names_of(facts)[operation, kind], facts)
    yield from _errors(beats, facts)


# --- numbers --------------------------------------------------------------------------------------


def _results(
    by_kind: Mapping[tuple[int, int], Sequence[tuple[Task, NDArray[np.generic]]]], facts: Facts
) -> Iterator[Cross]:
    """Yield what numbers products were, of each kind, and how they were rounded to bf16."""
    none = np.zeros(0, np.uint32)
    values: dict[int, NDArray[np.uint32]] = {FP32_VALUES: none, BF16_VALUES: none}
    for kind in values:
        found = [results.reshape(-1) for _, results in by_kind.get((GEMM, kind), ())]
        raw = np.concatenate([values[kind], *found]).astype(np.uint32)
        values[kind] = raw << np.uint32(BF16_DROPS if kind == BF16_VALUES else 0)
    patterns = np.concatenate(list(values.values()))
    numbers = np.repeat(np.arange(len(values)), [len(raw) for raw in values.values()])
    possible = np.array([[1, 1]] * 4 + [[1, 0]], bool)
    yield cross(
        "result of a product",
        {"operation": [f"gemm {KINDS[kind]}" for kind in values], "kind": RESULTS, "sign": SIGNS},
        *(numbers, kind_of(patterns), (patterns >> 31).astype(np.int64)),
        possible=possible,
    )
    exact = [
        task_results(replace(task, kind=FP32_VALUES), facts).reshape(-1).view(np.float32)
        for task, _ in by_kind.get((GEMM, BF16_VALUES), ())
    ]
    sums = np.concatenate([np.zeros(0, np.float32), *exact]).astype(float)
    rounded = values[BF16_VALUES].view(np.float32).astype(float)
    yield cross(
        "rounding of a result to bf16",
        {"case": ROUNDED, "sign": SIGNS},
        rounding_of(sums, np.zeros_like(sums), rounded, BF16_DROPS),
        np.signbit(rounded),
        where=np.isfinite(sums) & np.isfinite(rounded),
    )


@dataclass(frozen=True)
class _Packer:
    """The golden function that packs values, by its names alone."""

    act: str
    weight: str
    operation: str
    kind: str

    def __call__(self, values: NDArray[np.generic]) -> Arrays:
        """Return the planes of groups [n, group]."""
        block = block_format(self.weight if self.operation == "encode" else self.act)
        out = accelerator(
            values, act=self.act, weight=self.weight, operation=self.operation, kind=self.kind
        )["out"]
        return group_arrays(out.reshape(-1, out.shape[-1]).astype(np.uint8), block)


def _packed(
    several: Sequence[tuple[Task, NDArray[np.generic]]],
    block: BlockFormat,
    name: str,
    facts: Facts,
) -> Iterator[Cross]:
    """Yield what values became."""
    operation, text = name.split()
    kind = input_type(text)
    values = [
        task.values.reshape(-1, block.group) for task, _ in several if task.values is not None
    ]
    patterns = np.concatenate(values).astype(np.int64)
    groups: Bytes = np.concatenate(
        [out.reshape(-1, out.shape[-1]).astype(np.uint8) for _, out in several]
    )
    planes = group_arrays(groups, block)
    packer = _Packer(facts.parameters["act"], facts.parameters["weight"], operation, text)
    found = [cover_specials(patterns, kind)]
    if block.scale.grid is None:
        found.append(cover_groups(patterns, planes, block, kind, packer))
    else:
        ones = np.ones(len(patterns), np.float32)
        found.append(cover_minifloat_groups(patterns, ones, planes, block, kind))
    for crosses in found:
        for each in crosses:
            yield replace(each, name=f"{name}: {each.name}")


# --- errors ---------------------------------------------------------------------------------------


def _errors(beats: Mapping[str, Beats], facts: Facts) -> Iterator[Cross]:
    """Yield which words, planes and operations errors were of."""
    given, names = descriptors(beats, facts), names_of(facts)
    able, words = list(names), list(_checks(facts))
    wrong = [
        (words.index(found[0]), able.index((at["operation"], at["kind"])))
        for at in given
        if (at["operation"], at["kind"]) in names and len(found := wrong_words(at, facts)) == 1
    ]
    can = [[operation in which for operation, _ in able] for which in _checks(facts).values()]
    axes = {"word": words, "operation": list(names.values())}
    yield cross("word that is wrong", axes, *_columns(wrong, 2), possible=can)
    planes = _planes(facts)
    # Sensible ones alone have planes, and those whose words are all right.
    some = [at for at in given if sensible(at, facts) and not wrong_words(at, facts)]
    failed = []
    for bus, streams in _BUSES.items():
        for plane, answer in _failed(beats, some, facts, bus, *streams):
            failed.append((planes.index(plane), answer - 2))
    yield cross("error of a plane", {"plane": planes, "answer": ANSWERS}, *_columns(failed, 2))
    beyond = [found[0] for at in some if len(found := _beyond(at, facts)) == 1]
    places = np.array([planes.index(plane) for plane in beyond], np.int64)
    yield cross("plane beyond the last address", {"plane": planes}, places)
    operations = list(dict.fromkeys(operation for operation, _ in able))
    causes = [name for name in CAUSES if name not in ("operation", "internal")]
    axes = {"operation": [OPERATIONS[each - 1] for each in operations], "cause": causes}
    told = [
        (operations.index(operation), causes.index(cause))
        for operation, cause in _causes(beats, given, facts)
        if operation in operations and cause in causes
    ]
    yield cross("cause of an operation's error", axes, *_columns(told, 2))


_BUSES = {
    "a": ("acts_ar", "acts_r", "acts_r"),
    "w": ("weights_ar", "weights_r", "weights_r"),
    "out": ("results_aw", "results_w", "results_b"),
}
_PLANES = ("codes", "scales", "meta")
_EVERY = (1, 2, 3)
_PACKS = (2, 3)


def _columns(events: Sequence[tuple[int, ...]], count: int) -> NDArray[np.int64]:
    return np.array(events, np.int64).reshape(-1, count).T


def _checks(facts: Facts) -> dict[str, tuple[int, ...]]:
    """Return which words can be wrong, with the cause, and of which operations."""
    given = facts.parameters
    sizes = {"m": _EVERY, "k": _EVERY, "n": (GEMM,)}
    found = {f"{why}: {word}": of for why in ("zero", "large") for word, of in sizes.items()}
    found["multiple: k"] = _EVERY
    steps = {"a_codes": _EVERY, "w_codes": (GEMM,), "out": _EVERY}
    for word, of in steps.items():
        found |= {f"misaligned: {word}": of, f"misaligned: {word}_pitch": of}
    meta = any(block_format(given[side]).subgroups for side in ("act", "weight"))
    for plane in _PLANES if meta else _PLANES[:2]:
        for side in "aw":
            found[f"address: {side}_{plane}"] = _EVERY if (side, plane) == ("a", "codes") else (1,)
        name = "out" if plane == "codes" else f"out_{plane}"
        found[f"address: {name}"] = _EVERY if name == "out" else _PACKS
    return found


def wrong_words(at: Descriptor, facts: Facts) -> list[str]:
    """Return what is wrong with the words of a descriptor of a known operation.

    Each a cause and a word, such as ``zero: m``, by docs/accelerator.md.
    """
    given, operation = facts.parameters, at["operation"]
    act = block_format(given["act"])
    gemm, codes = operation == GEMM, act.group_bytes[0]
    limits = {"m": 1 << SIZE_BITS, "k": 1 << SIZE_BITS, "n": 1 << SIZE_BITS}
    if gemm:
        limits["k"] = given["max_k"] + 1
    reads = codes if gemm else at.value_bytes * act.group
    steps = {"a_codes": reads, "w_codes": codes, "out": codes if at.packed else at.value_bytes}
    found = []
    for check, of in _checks(facts).items():
        why, word = check.split(": ")
        plane = word.removesuffix("_pitch")
        wrong = {
            "zero": at[word] == 0,
            "large": at[word] >= limits.get(word, 1 << 64),
            "multiple": at[word] % act.group != 0,
            "misaligned": at[word] % steps.get(plane, 1) != 0,
            "address": at[word] >> given["address_bits"] != 0,
        }
        if operation in of and wrong[why]:
            found.append(check)
    return found


def _planes(facts: Facts) -> list[str]:
    """Return the planes of all operations of a build."""
    found = []
    for operation in dict.fromkeys(operation for operation, _ in names_of(facts)):
        words = {"operation": operation, "kind": BF16_VALUES, "m": 1, "n": 1, "k": 1}
        found += [f"{OPERATIONS[operation - 1]} {plane}" for plane in planes_of(words, facts)]
    return found


def _failed(
    beats: Mapping[str, Beats],
    given: Sequence[Descriptor],
    facts: Facts,
    bus: str,
    address: str,
    words: str,
    answers: str,
) -> Iterator[tuple[str, int]]:
    """Yield plane and response of bursts that failed."""
    response = values_of(facts, beats, answers, "resp")
    bytes_a_beat = int(facts.parameters["bus"]) // 8
    for number, (at, count, some) in enumerate(Bursts(beats, facts, address, words)):
        told = response[some] if address.endswith("ar") else response[number : number + 1]
        if told.any():
            lies = range(at, at + count * bytes_a_beat)
            for plane in dict.fromkeys(_lying(given, facts, bus, lies)):
                yield plane, int(told.max())


def _lying(given: Sequence[Descriptor], facts: Facts, bus: str, lies: range) -> Iterator[str]:
    """Yield the planes of a bus that have a byte in a range of addresses."""
    for at in given:
        for plane, (rows, length, _) in planes_of(at.words, facts).items():
            pitch = max(1, at[PITCHES[plane]])
            # The last row that begins before the range ends.
            row = min(rows - 1, (lies.stop - 1 - at[plane]) // pitch)
            start = at[plane] + row * pitch
            if plane.startswith(bus) and row >= 0 and start + length > lies.start:
                yield f"{OPERATIONS[at['operation'] - 1]} {plane}"


def _beyond(at: Descriptor, facts: Facts) -> list[str]:
    """Return the planes of a descriptor that go beyond the last address."""
    top = 1 << facts.parameters["address_bits"]
    return [
        f"{OPERATIONS[at['operation'] - 1]} {plane}"
        for plane, (rows, length, _) in planes_of(at.words, facts).items()
        if at[plane] + (rows - 1) * at[PITCHES[plane]] + length > top
    ]


def _causes(
    beats: Mapping[str, Beats], given: Sequence[Descriptor], facts: Facts
) -> Iterator[tuple[int, str]]:
    """Yield operation and cause of errors that the register told, by the number that it has."""
    at = values_of(facts, beats, "control_ar", "addr") // 4 * 4
    words = values_of(facts, beats, "control_r", "data")
    count = min(len(at), len(words))
    (low, width), (first, size) = (FIELDS["error"][name] for name in ("cause", "descriptor"))
    numbered = {each.number & (1 << size) - 1: each for each in given}
    names = {number: name for name, number in CAUSES.items()}
    for word in words[:count][at[:count] == OFFSETS["error"]].tolist():
        cause = names.get(word >> low & (1 << width) - 1)
        failed = numbered.get(word >> first & (1 << size) - 1)
        if failed is not None and cause is not None:
            yield failed["operation"], cause
