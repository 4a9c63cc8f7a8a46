"""Random parameters over the catalog: legal ones work, illegal ones are refused at once.

What is drawn follows from a number, which is in the name of the test: `-k "legal and [17]"` draws
the same again.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_checks import check

from m2xfp.cli import main
from m2xfp.errors import InputError, M2xfpError
from m2xfp.formats import GROUP_SIZES, BlockFormat, Window, block_format, window
from m2xfp.rtl.catalog import UNITS, Instance, Unit
from m2xfp.rtl.parameters import Parameter, parameters_of, parse_settings
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow.lint import lint_file
from m2xfp.tb.bench import Operands, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator

LEGAL, SLOW_LEGAL = 12, 200
ILLEGAL, SLOW_ILLEGAL = 18, 180
GROUPS = 1000
# Bits of all ports and multiplications a clock, of what compiles in seconds, and in a minute.
SMALL, MEDIUM = (1500, 64), (2500, 300)
TRIES = 20_000
# One of these replaces a value, to make a set that is illegal more often than not.
OTHERS = ("-1", "0", "7", "1000000", "none", "true", "int4", "mxfp8-e4m3", "nvfp4", "0..600/9")
NUMBERS = (1, 1, 2, 3, 8, 16, 32)  # of a parameter that does not say what is usual


def _layout(rng: random.Random) -> dict[str, int]:
    """Return a group and a subgroup, those of the formats half of the time."""
    if rng.random() < 0.5:
        return {}
    return {"group": rng.choice(GROUP_SIZES[:4]), "subgroup": rng.choice((2, 4, 8, 16))}


def _draw(parameter: Parameter, layout: dict[str, int], rng: random.Random) -> Any:
    """Return a random value; formats with the layout, which the others of the set have too."""
    if parameter.limit is None and parameter.type in (int, str):
        usual = map(str, NUMBERS) if parameter.type is int else [parameter.write(parameter.default)]
        return parameter.parse(rng.choice([*usual, *["none"] * parameter.optional]))
    value = parameter.draw(rng)
    if isinstance(value, BlockFormat) and layout:
        names = ("group", "subgroup") if value.metadata.bits else ("group",)
        return block_format(f"{value.name}:" + ",".join(f"{n}={layout[n]}" for n in names))
    if isinstance(value, Window) and rng.random() < 0.5:
        low = rng.randrange(0, 480)
        high = rng.randrange(low, min(low + 100, 509))
        return window(f"{low}..{high}/{high - low + rng.randrange(2, 40)}")
    return value


def draws(unit: Unit, seed: int) -> Iterator[dict[str, Any]]:
    """Yield random values of all parameters of a unit, legal or not."""
    rng = random.Random(f"{unit.name} {seed}")
    known = parameters_of(unit.component)
    for _ in range(TRIES):
        layout = _layout(rng)
        try:
            yield {name: _draw(each, layout, rng) for name, each in known.items()}
        except InputError:
            continue  # a format that cannot have the layout, or numbers that are no window


def _fits(instance: Instance, limits: tuple[int, int]) -> bool:
    facts = instance.facts
    bits = sum(width for _, _, width in facts.ports())
    return bits <= limits[0] and (facts.macs_per_clock or 0) <= limits[1]


def legal(unit: Unit, seed: int) -> Instance:
    """Return an instance of random parameters that go together and do not make it large."""
    for given in draws(unit, seed):
        try:
            instance = unit.instance(None, given, name=f"{unit.name}_random_{seed}")
        except InputError:
            continue
        if _fits(instance, SMALL if seed < LEGAL else MEDIUM):
            return instance
    raise AssertionError(f"{unit.name}, seed {seed}: nothing legal in {TRIES} draws")


def numbered(count: int, most: int) -> list[Any]:
    return [
        pytest.param(n, marks=[] if n < count else [pytest.mark.slow], id=str(n))
        for n in range(most)
    ]


def unit_of(seed: int) -> Unit:
    """Return the units in turn."""
    return list(UNITS.values())[seed % len(UNITS)]


def operands(lanes: int, depth: int, seed: int) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, lanes * depth, 32)
    values = torch.randn(shape, generator=generator)
    values *= 2.0 ** torch.randint(-12, 13, (*shape[:2], 1), generator=generator)
    values *= torch.rand(shape, generator=generator) > 0.1
    return Operands(lanes, depth, *values)


@pytest.mark.parametrize("seed", numbered(LEGAL, SLOW_LEGAL))
def test_legal(seed: int, sim_dir: Path) -> None:
    """It is emitted, lints clean with both tools and equals golden on a thousand groups."""
    instance = legal(unit_of(seed), seed)
    facts = instance.facts
    print(f"seed {seed}: {facts.unit} {facts.parameters}")
    files = emit(instance, sim_dir / "random")
    assert lint_file(files.verilog, files.top) == []
    bench, lanes, depth = find_bench(instance.unit), 24, 7
    while True:
        vectors = bench.vectors(bench.sample(operands(lanes, depth, seed), facts), facts, seed)
        if max(map(len, vectors.inputs.values())) >= GROUPS:
            break
        lanes *= 2
    stall = 0.2 * (seed % 2) if facts.streams else 0.0
    check(BulkSimulator(files, build_dir=sim_dir), vectors, stall, seed)


def illegal(unit: Unit, seed: int) -> Iterator[list[str]]:
    """Yield settings that the unit refuses; an error that is no M2xfpError ends the test.

    Random parameters, one of which is replaced by what may be none of its values.
    """
    known, rng = parameters_of(unit.component), random.Random(seed)
    for given in draws(unit, seed):
        written = {name: known[name].write(value) for name, value in given.items()}
        written[rng.choice(list(known))] = rng.choice(OTHERS)
        settings = [f"{name}={text}" for name, text in written.items()]
        try:
            unit.instance(None, parse_settings(unit.component, settings))
        except M2xfpError:
            yield settings


@pytest.mark.parametrize("seed", numbered(ILLEGAL, SLOW_ILLEGAL))
def test_illegal(
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status 2 and a message, before anything is written."""
    unit = unit_of(seed)
    settings = next(illegal(unit, seed))
    call = ["m2xfp", "verilog", unit.name, "-o", str(tmp_path / "out")]
    call += [f"--set={setting}" for setting in settings]
    print(f"seed {seed}: {' '.join(call)}")
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_draws_are_the_same_again() -> None:
    unit = unit_of(0)
    one, two = (legal(unit, 5).facts for _ in range(2))
    assert one == two
    assert any(legal(unit, n).facts.parameters != one.parameters for n in range(6, 12))
