"""The FP32 accumulation against Berkeley SoftFloat, in the bulk simulator.

Another method and another reference than the proof: what is compared is each result of the emitted
Verilog with ``f32_add`` of the result before it and the addend.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from m2xfp.extras import require
from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome
from m2xfp.synth.formal.job import Job, always_slow
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator

__all__ = ["JOBS", "pairs"]

RUN = 8  # additions from one clear to the next
BATCH = 1_000_000


def pairs(count: int, facts: Facts, bias: int, seed: int) -> dict[str, NDArray[np.generic]]:
    """Return exact products whose sums are hard: runs that stay near, cancel, and reach the ends.

    Every product is a number that FP32 holds exactly, so that one FP32 addition is its reference.
    """
    rng = np.random.default_rng(seed)
    field = facts.stream("i").field("product.product")
    bits = field.width - 1
    highest = (1 << facts.stream("i").field("product.exponent").width) - 4
    low, high = max(0, bias - 149), min(highest, bias + 128 - bits)
    runs = -(-count // RUN)
    size = rng.integers(1, bits, (runs, RUN))
    product = rng.integers(1 << (size - 1), 1 << size) * rng.choice((-1, 1), (runs, RUN))
    start = rng.integers(low, high + 1, (runs, 1))
    ends = rng.random((runs, 1))
    start = np.where(ends < 0.1, low, np.where(ends > 0.9, high, start))
    reach = rng.choice((0, 1, 3, 12, 26, 40), (runs, 1))
    exponent = np.clip(start + rng.integers(-reach, reach + 1, (runs, RUN)), low, high)
    # A third of the steps takes back what the one before has added, but for a little.
    for n in range(1, RUN):
        back = rng.random(runs) < 0.33
        little = rng.integers(-1, 2, runs)
        product[back, n] = (-product[:, n - 1] + little)[back]
        exponent[back, n] = exponent[back, n - 1]
    product[product == 0] = 1
    first = np.zeros((runs, RUN), bool)
    first[:, 0] = True
    return {
        "product": product.reshape(-1)[:count],
        "exponent": exponent.reshape(-1)[:count],
        "nan": np.zeros(count, bool),
        "first": first.reshape(-1)[:count],
    }


def _sums(before: NDArray[np.uint32], addend: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the sums by SoftFloat."""
    require("softfloatpy")
    import softfloatpy

    number, add = softfloatpy.Float32.from_bytes, softfloatpy.f32_add
    left, right = before.astype(">u4").tobytes(), addend.astype(">f4").tobytes()
    out = b"".join(
        add(number(left[n : n + 4]), number(right[n : n + 4])).to_bytes()
        for n in range(0, len(left), 4)
    )
    return np.frombuffer(out, ">u4").astype(np.uint32)


def _compare(count: int) -> Callable[[Design], Outcome]:
    def prove(design: Design) -> Outcome:
        begin, facts = time.perf_counter(), design.facts
        bench = find_bench(design.instance.unit)
        with tempfile.TemporaryDirectory() as name:
            files = emit(design.instance, name)
            files.verilog.write_text(design.verilog)
            simulator = BulkSimulator(files)
        bias = _bias(facts)
        for done in range(0, count, BATCH):
            arrays = pairs(min(BATCH, count - done), facts, bias, seed=done)
            run = simulator.run(bench.encode(arrays, facts))
            found = np.asarray(bench.decode(run.outputs, arrays, facts)["acc"], np.uint32)
            before = np.where(arrays["first"], 0, np.roll(found, 1)).astype(np.uint32)
            exact = np.ldexp(arrays["product"].astype(float), arrays["exponent"] - bias)
            addend = exact.astype(np.float32)
            assert np.array_equal(addend.astype(float), exact)
            if np.any(wrong := _sums(before, addend) != found):
                at = done + int(wrong.argmax())
                return Outcome(False, f"fails at pair {at}", time.perf_counter() - begin)
        return Outcome(True, f"{count:,} pairs".replace(",", " "), time.perf_counter() - begin)

    return prove


def _bias(facts: Facts) -> int:
    """Return what a product's exponent is less: D * 2^(exponent - bias)."""
    act, weight = (block_format(facts.parameters[name]) for name in ("act", "weight"))
    quarters = (act.metadata.bits > 0) + (weight.metadata.bits > 0)
    return 2 + 2 * quarters + (20 if act.scale.name == "e4m3" else 254)


def _applies(design: Design) -> bool:
    fields = {field.name for stream in design.facts.inputs for field in stream.fields}
    return "accumulator" in design.modules and "product.product" in fields


def _faults(design: Design) -> Iterator[Design]:
    """Yield the unit with a rounding that never goes up."""
    text, count = re.subn(
        r"(wire \[23:0\] rounded = \{1'h0, i\[22:0\]\}) \+ \{23'h000000, i\[33\]\};",
        r"\1;",
        design.verilog,
    )
    assert count == 1
    yield replace(design, fault="rounded: no increment", verilog=text, _modules={})


def _job(name: str, count: int, slow: Callable[[Design], bool] | None = None) -> Job:
    return Job(
        name,
        f"{count:,} additions equal those of Berkeley SoftFloat".replace(",", " "),
        "bulk simulation",
        _applies,
        _compare(count),
        _faults,
        slow,
    )


JOBS = (_job("softfloat", 100_000), _job("softfloat-long", 100_000_000, always_slow))
