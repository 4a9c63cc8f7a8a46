"""The house rules of rtl/: sizes and imports of units and parts, and what their annotations say."""

import ast
import importlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import pytest

import m2xfp.rtl.parts
from m2xfp.errors import InputError
from m2xfp.formats import block_format
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parameters import (
    Among,
    Between,
    Formats,
    Names,
    PairTexts,
    Parameter,
    checked,
    parameters_of,
)
from m2xfp.rtl.units.dot_product import DotProduct
from m2xfp.rtl.units.fp32_accumulator import Fp32Accumulator
from m2xfp.rtl.verilog.component import Component

RTL = Path(m2xfp.rtl.parts.__file__).parents[1]
LONGEST = 400


def sources(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((RTL / room).glob("*.py"))]


def imported_units(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for whatever a file takes from rtl/units, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m2xfp.rtl.units"):
            yield from ((node.module or "", alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("m2xfp.rtl.units"), path


@pytest.mark.parametrize("path", sources("units", "parts", "arith"), ids=lambda path: path.stem)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", sources("parts", "arith"), ids=lambda path: path.stem)
def test_parts_know_no_unit(path: Path) -> None:
    assert not list(imported_units(path))


@pytest.mark.parametrize("path", sources("units"), ids=lambda path: path.stem)
def test_units_take_units_as_hardware_only(path: Path) -> None:
    for module, name in imported_units(path):
        taken = getattr(importlib.import_module(module), name)
        assert isinstance(taken, type)
        assert issubclass(taken, Component), f"{name} is a helper: it belongs to rtl/parts"


PARAMETERS = [
    pytest.param(unit, parameter, id=f"{unit}-{parameter.name}")
    for unit, row in UNITS.items()
    for parameter in parameters_of(row.component).values()
]


@pytest.mark.parametrize(("unit", "parameter"), PARAMETERS)
def test_every_parameter_has_a_text(unit: str, parameter: Parameter) -> None:
    """One that reads well on a terminal, where no markup is shown."""
    assert parameter.text
    assert "`" not in parameter.text


@pytest.mark.parametrize(("unit", "parameter"), PARAMETERS)
def test_constructors_hold_to_their_annotations(unit: str, parameter: Parameter) -> None:
    wrong = {
        Between: lambda limit: limit.low - 1,
        Among: lambda limit: max(limit.samples) + 1,
        Names: lambda _: "no such name",
        Formats: lambda _: 7,
        PairTexts: lambda _: "no such pair",
        type(None): lambda _: object(),
    }[type(parameter.limit)](parameter.limit)
    with pytest.raises(InputError, match=f"{parameter.name}="):
        UNITS[unit].component(**{parameter.name: wrong})


def formats() -> Iterator[object]:
    for unit, row in UNITS.items():
        for name, parameter in parameters_of(row.component).items():
            if isinstance(parameter.limit, Formats):
                for text in parameter.limit.samples:
                    yield pytest.param(unit, name, text, id=f"{unit}-{name}-{text}")


@pytest.mark.parametrize(("unit", "name", "text"), list(formats()))
def test_formats_that_are_listed_are_accepted(unit: str, name: str, text: str) -> None:
    known = parameters_of(UNITS[unit].component)
    given: dict[str, Any] = {name: block_format(text)}
    for other, role in (("weight", "act"), ("act", "weight")):
        if name == role:
            given[other] = block_format(text.replace(f"-{role}", f"-{other}"))
    if "quantizer" in known:  # engines of the accelerator are for fewer formats than its products
        given |= {"quantizer": None, "encoder": None}
    if "lanes" in known and name == "block":
        UNITS[unit].component(**given, lanes=given[name].group)
        return
    partners = {"act": "weight", "weight": "act"}
    if name not in partners:
        UNITS[unit].component(**given)
        return
    # Two of a kind need not go together: another that is listed has to.
    other = known[partners[name]]
    assert isinstance(other.limit, Formats)
    for text_of_other in (None, *other.limit.samples):
        if text_of_other is not None:
            given[other.name] = block_format(text_of_other)
        with suppress(InputError):
            UNITS[unit].component(**given)
            return
    pytest.fail(f"no other format goes with {text}")


def test_products_wider_than_fp32_are_refused() -> None:
    """26 bits, of which the adder aligns 24; a part of the group with all its facts does fit."""
    act, weight = (block_format(f"m2nvfp4-{role}:group=64") for role in ("act", "weight"))
    for unit in (Fp32Accumulator, DotProduct):
        with pytest.raises(InputError, match="26 bits"):
            unit(act=act, weight=weight)
    DotProduct(act=act, weight=weight, lanes=16)


def test_checked() -> None:
    class Thing:
        @checked
        def __init__(self, *, size: Annotated[int | None, Between(2, 4)] = 2) -> None:
            self.size = size

    assert [Thing().size, Thing(size=4).size, Thing(size=None).size] == [2, 4, None]
    for size in (1, 5, "3", True):
        with pytest.raises(InputError, match="size="):
            Thing(size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="colour"):
        Thing(colour=1)  # type: ignore[call-arg]
    assert list(parameters_of(Thing)) == ["size"]
