"""Random sequences of descriptors, right and wrong, before memories of many kinds.

What must hold of each: it ends; nothing is written but results; all that is right and that nothing
befell has golden's results; a descriptor whose words are wrong writes nothing; the first error is
told with its cause and descriptor.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from accelerator_bench import Bench

from m2xfp.formats import block_format
from m2xfp.rtl.parts.descriptor_checker import CAUSES, GEMM
from m2xfp.tb.parts.accelerator_story import joined, planes_of, spans
from m2xfp.tb.parts.accelerator_tasks import Task, kinds_of, random_tasks
from m2xfp.tb.parts.accelerator_traffic import Descriptor

__all__ = ["sequence"]

PATIENCE = 400  # clocks of a timeout that only a memory which never answers reaches
OF_THE_BUS = {2: "slverr", 3: "decerr", 4: "timeout"}
FATES, SHARES = ("good", "word", "slverr", "decerr", "timeout"), (0.68, 0.15, 0.07, 0.07, 0.03)


@dataclass(frozen=True)
class Given:
    """A descriptor of a sequence.

    Members
    -------
    task, descriptor
        What it is, and where it lies.
    pushed
        What is pushed: the descriptor, or one with a word that is wrong.
    fate
        ``good``, ``word``, or what the bus answers in one of its places.
    causes
        Causes that its error may have, none if it is good.
    """

    task: Task
    descriptor: Descriptor
    pushed: Descriptor
    fate: str = "good"
    causes: frozenset[int] = frozenset()


def wrong_words(bench: Bench, task: Task, descriptor: Descriptor) -> list[tuple[str, int]]:
    """Return words that no descriptor of this task may have."""
    given = bench.facts.parameters
    group, beyond = bench.group, 1 << given["address_bits"]
    codes = block_format(given["act"]).group_bytes[0]
    able = kinds_of(bench.facts)
    found = [("operation", word) for word in (0, 4, 1 << 31)]
    found += [("kind", n) for n in (0, 1, 2, 3) if (task.operation, n) not in able]
    found += [("kind", 1 << 20), ("m", 0), ("m", 1 << 20), ("m", 0xFFFFFFFF)]
    found += [("k", word) for word in (0, group // 2, group + 1, 1 << 25)]
    found += [("a_codes_pitch", word) for word in (codes // 2, 0xFFFFFFF1)]
    found += [(name, word) for name in ("out", "out_pitch") for word in (1, 3)]
    for name in planes_of(descriptor.words, bench.facts):
        found += [(name, beyond), (name, beyond | descriptor[name]), (name, 1 << 63)]
    if task.operation == GEMM:
        found += [("n", 0), ("n", 1 << 20), ("k", given["max_k"] + group)]
        found += [("w_codes", codes // 2), ("w_codes_pitch", 1)]
    else:
        found += [("a_codes", group), ("a_codes_pitch", group)]  # of values: half a group of bf16
    if task.packed:
        found += [("out", codes // 2), ("out_pitch", codes // 2)]
    if task.packed and task.operation == GEMM:
        found += [("n", group + 1), ("n", group // 2)]
    return found


def befall(
    bench: Bench, rng: np.random.Generator, task: Task, descriptor: Descriptor, fate: str
) -> Given:
    """Return a descriptor with its fate, which the memory knows of."""
    if fate == "good":
        return Given(task, descriptor, descriptor)
    if fate == "word":
        words = wrong_words(bench, task, descriptor)
        name, word = words[int(rng.integers(len(words)))]
        pushed = Descriptor({**descriptor.words, name: word}, descriptor.number)
        causes = (CAUSES[name] for name in CAUSES if CAUSES[name] <= CAUSES["address"])
        return Given(task, descriptor, pushed, fate, frozenset(causes))
    name = str(rng.choice(list(planes_of(descriptor.words, bench.facts))))
    response = {said: n for n, said in OF_THE_BUS.items()}[fate]
    bench.answer(descriptor[name], descriptor[name] + 1, response)
    way = "write" if name.startswith("out") else "read"
    cause = CAUSES[fate if fate == "timeout" else f"{way}_{fate}"]
    return Given(task, descriptor, descriptor, fate, frozenset([cause]))


def words_of(bench: Bench, given: Given) -> Iterator[tuple[int, int]]:
    """Yield the words of the bus in which a descriptor's rows lie."""
    size = int(bench.facts.parameters["bus"]) // 8
    words = given.descriptor.words
    for start, end in spans(words, planes_of(words, bench.facts)):
        yield start // size * size, -(-end // size) * size


def drawn(bench: Bench, rng: np.random.Generator) -> list[Given]:
    """Return descriptors of a sequence, placed in memory."""
    most = bench.facts.parameters["max_k"] // bench.group
    most = min(most, int(rng.choice([1, 2, 3, 5, most])))
    near = rng.random() < 0.3
    found: list[Given] = []
    taken: list[tuple[int, int]] = []
    for index, task in enumerate(random_tasks(rng, bench.facts, int(rng.integers(1, 6)), most)):
        number = int(rng.integers(1, 1 << 13)) * 8 + index
        at = bench.prepare(task, index, number) if near else bench.scatter(rng, task, number, taken)
        found.append(befall(bench, rng, task, at, str(rng.choice(FATES, p=SHARES))))
        taken = joined([*taken, *words_of(bench, found[-1])])
    return found


def sequence(bench: Bench, rng: np.random.Generator) -> Counter[str]:
    """Push a few descriptors before a memory of some kind; return what was among them."""
    bench.clear()
    bench.forget()
    latency, size = int(rng.choice([0, 1, 20, 100])), int(bench.facts.parameters["bus"]) // 8
    rate = float(rng.choice([0, 0, 0, 0.75, 0.2])) * size
    bench.set_memory(pauses=float(rng.choice([0, 0, 0.2, 0.6])), latency=latency, rate=rate)
    given = drawn(bench, rng)
    hasty = latency == 100 and rng.random() < 0.1  # no answer comes before the timeout
    stuck = any(each.fate == "timeout" for each in given)
    bench.write("timeout", 40 if hasty else PATIENCE if stuck or rng.random() < 0.5 else 0)
    for each in given:
        bench.push(each.pushed)
    seen = Counter(each.fate for each in given)
    seen.update(f"operation {each.task.operation} kind {each.task.kind}" for each in given)
    if rng.random() < 0.05:
        bench.write("int_enable", 0)
        bench.wait(int(rng.integers(1000)))
        bench.reset()
        return seen + Counter(["reset"])
    bench.end(len(given))
    check(bench, given, hasty=hasty)
    if stuck or hasty:
        late(bench, rng)
    return seen + Counter({"hasty": hasty})


def check(bench: Bench, given: list[Given], *, hasty: bool) -> None:
    """Hold results and error against what befell the descriptors of a sequence."""
    cause, number = bench.cause()
    bad = [index for index, each in enumerate(given) if each.fate != "good"]
    first = next((n for n, e in enumerate(given) if cause and e.descriptor.number == number), None)
    assert (first is None) == (cause == 0)
    if hasty and first is not None:
        bad.append(first)
    assert first == min(bad, default=None)
    if first is not None:
        assert cause in given[first].causes or (hasty and cause == CAUSES["timeout"])
    # Behind an answer that does not come all others wait.
    stuck = (n for n, e in enumerate(given) if e.fate == "timeout" or (hasty and n == first))
    end = next(stuck, len(given))
    for index, each in enumerate(given):
        if each.fate == "word":
            assert bench.untouched(each.task, each.descriptor), index
        elif each.fate == "good" and index < end:
            assert bench.right(each.task, each.descriptor), index


def late(bench: Bench, rng: np.random.Generator) -> None:
    """Let what never was answered be answered: it belongs to nobody, and a product is right."""
    bench.forget()
    bench.write("timeout", 0)
    products = [pair for pair in kinds_of(bench.facts) if pair[0] == GEMM]
    (task,) = random_tasks(rng, bench.facts, 1, 2, products)
    descriptor = bench.prepare(task, 0, 1)
    bench.push(descriptor)
    bench.end(1)
    assert bench.cause() == (0, 0)
    assert bench.right(task, descriptor)
