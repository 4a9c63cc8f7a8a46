"""Descriptors of which a bit is wrong, each alone."""

from collections.abc import Iterator

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, FP32_VALUES, GEMM
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.parts.accelerator_faults import after, packing, product
from m2xfp.tb.parts.accelerator_memory import Descriptor
from m2xfp.tb.parts.accelerator_story import Story
from m2xfp.tb.parts.accelerator_tasks import Task, kinds_of
from m2xfp.tb.regression import Case

__all__ = ["refused"]

Wrong = tuple[str, dict[str, int]]


def refused(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield descriptors of which a bit is wrong, each alone, of each operation."""
    story = Story(facts, seed)
    tasks = [product(story, 2, 2, 1, kind) for kind in (FP32_VALUES, BF16_VALUES)]
    tasks += packing(story, 2, 1)
    for offset, task in enumerate(tasks):
        at = story.scatter(task)
        by_cause: dict[str, list[dict[str, int]]] = {}
        for cause, words in _wrong(task, at, facts):
            by_cause.setdefault(cause, []).append(words)
        for number, (cause, found) in enumerate(by_cause.items()):
            story.phase()
            story.tell("error", 1 << 31)  # so that each cause is seen
            story.now.configure(Descriptor({**at.words, **found[0]}, at.number))
            story.ended(at.number, cause)
            before = found[0]
            for words in found[1:]:
                # Only words that differ are written.
                changes = {name: at.words[name] for name in before} | words
                for name, word in changes.items():
                    story.now.tell(OFFSETS[name], word & 0xFFFFFFFF)
                    if f"{name}_high" in OFFSETS:
                        story.now.tell(OFFSETS[f"{name}_high"], word >> 32)
                other = story.number()
                story.now.tell(OFFSETS["push"], other)
                story.ended(other, cause)
                before = words
            after(story, number + offset)
        story.phase()
        story.run(task, at)
    yield story.case("descriptors that are wrong", (0.0, 0.0))


def _wrong(task: Task, at: Descriptor, facts: Facts) -> Iterator[Wrong]:
    """Yield a cause, and words of a descriptor that have it."""
    given = facts.parameters
    act, bits = block_format(given["act"]), given["address_bits"]
    gemm = task.operation == GEMM
    able = kinds_of(facts)
    for bit in range(32):
        for name, word in (("operation", task.operation), ("kind", task.kind)):
            words = {name: word ^ 1 << bit}
            now = {"operation": task.operation, "kind": task.kind} | words
            if (now["operation"], now["kind"]) not in able:
                yield "operation", words
    sizes = ("m", "n", "k") if gemm else ("m", "k")
    for name in sizes:
        yield "zero", {name: 0}
    for name in sizes:
        for bit in range(SIZE_BITS, 32):
            yield "large", {name: at[name] | 1 << bit}
    most = given["max_k"]
    if gemm:
        yield "large", {"k": most + act.group}
        for bit in range(SIZE_BITS):
            if 1 << bit > most:
                yield "large", {"k": 1 << bit}
    for bit in range(act.group.bit_length() - 1):
        if gemm and act.group | 1 << bit > most:
            continue
        yield "multiple", {"k": act.group | 1 << bit}
    size, codes = at.value_bytes, act.group_bytes[0]
    steps = {"a_codes": codes if gemm else size * act.group}
    steps["a_codes_pitch"] = steps["a_codes"]
    if gemm:
        steps |= {"w_codes": codes, "w_codes_pitch": codes}
    steps |= dict.fromkeys(("out", "out_pitch"), codes if at.packed else size)
    for name, step in steps.items():
        for bit in range(step.bit_length() - 1):
            yield "misaligned", {name: at[name] ^ 1 << bit}
    planes = ["a_codes", "out"]
    meta = bool(act.subgroups or block_format(given["weight"]).subgroups)
    if gemm:
        rest = ("scales", "meta") if meta else ("scales",)
        planes += ["w_codes", *(f"{side}_{plane}" for side in "aw" for plane in rest)]
    if at.packed:
        planes += ["out_scales", *(["out_meta"] if meta else [])]
    for name in planes:
        for bit in range(bits, 64):
            yield "address", {name: at[name] | 1 << bit}
