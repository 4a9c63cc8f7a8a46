"""Facts: field maps of every stream of every unit, and their place in header and JSON."""

import inspect
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Shape, signed
from amaranth.lib import data

from m2xfp.errors import InputError
from m2xfp.facts import Facts, Field
from m2xfp.rtl.catalog import find_unit, select
from m2xfp.rtl.verilog.axi import fields_of
from m2xfp.rtl.verilog.emit import emit, header

INSTANCES = list(select())


def bits(field: Field) -> list[int]:
    """Return every bit that a field's values take."""
    places = [field.offset]
    for size, step in zip(field.shape, field.strides, strict=True):
        places = [place + i * step for place in places for i in range(size)]
    return [place + bit for place in places for bit in range(field.width)]


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance.top)
def test_fields_cover_every_bit_once(instance) -> None:
    words = [(stream.fields, stream.data_width) for stream in instance.facts.streams]
    words += [(port.fields, port.width) for port in instance.facts.signals]
    assert words
    for fields, width in words:
        taken = sorted(bit for field in fields for bit in bits(field))
        assert taken == list(range(width))
        assert len({field.name for field in fields}) == len(fields)


def test_fields_of_a_layout() -> None:
    pair = data.StructLayout({"code": 3, "level": signed(5)})
    layout = data.StructLayout({"first": 1, "pairs": data.ArrayLayout(pair, 4), "empty": 0})
    first, code, level = fields_of(layout)
    assert first == Field("first", 0, 1)
    assert code == Field("pairs.code", 1, 3, False, (4,), (8,))
    assert level == Field("pairs.level", 4, 5, True, (4,), (8,))
    assert (code.at(2), level.at(3), level.last_bit) == (17, 28, 32)
    assert Shape.cast(layout).width == 33
    assert (first.formula, first.title) == ("[0]", "first")
    assert (code.formula, code.title) == ("[1 + 8*i +: 3]", "pairs.code[i]")
    (nested,) = fields_of(data.ArrayLayout(data.ArrayLayout(4, 8), 2))
    assert (nested.shape, nested.strides, nested.title) == ((2, 8), (32, 4), "value[i][j]")
    for index in ((), (2, 0), (0, 8), (-1, 0), (0, 0, 0)):
        with pytest.raises(IndexError):
            nested.at(*index)


def test_header_shows_the_fields() -> None:
    """Nobody guesses where codes[5] or nan is."""
    (instance,) = select("group_dot", "m2xfp")
    text = header(instance.facts)
    assert re.search(
        r"//   s_axis_tdata\n//     \[4\*i \+: 4\] +act\.codes\[i\] +i = 0\.\.31\n", text
    )
    assert re.search(r"//     \[18:0\] +product +signed\n", text)
    assert re.search(r"//     \[28\] +nan\n", text)
    assert instance.facts.stream("i").field("act.codes").at(5) == 20
    for parameter in instance.parameters:
        assert f"//   {parameter} = " in text


def test_damaged_descriptions_are_refused(tmp_path: Path) -> None:
    (instance, *_) = INSTANCES
    text = instance.facts.to_json()
    for damaged in ("", "{}", "[]", text[:-20], text.replace('"latency"', '"delay"')):
        (tmp_path / "unit.json").write_text(damaged)
        with pytest.raises(InputError, match="m2xfp verilog"):
            Facts.load(tmp_path / "unit.json")


def test_long_groups_are_told_by_fields_that_there_are() -> None:
    facts = find_unit("switching_dot_product").instance().facts
    long = facts.long_groups
    assert long is not None
    assert long.beats == 2
    assert (3, 3) in long.values
    for wrong in (
        replace(long, fields=("operands.mode.act", "mode")),
        replace(long, stream="o"),
        replace(long, values=((1,),)),
        replace(long, beats=1),
    ):
        with pytest.raises(InputError, match="m2xfp verilog"):
            Facts.from_json(replace(facts, long_groups=wrong).to_json())


@pytest.mark.parametrize("unit", ["activation_quantizer", "gemm_core"])
def test_one_emission_builds_the_component_once(
    unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verilog, header, JSON and core come from one constructed and one elaborated component."""
    row = find_unit(unit)
    built: Counter[str] = Counter()
    component: Any = row.component

    class Counted(component):  # type: ignore[misc]
        def __init__(self, **parameters: object) -> None:
            built["constructed"] += 1
            super().__init__(**parameters)

        def build(self) -> Any:
            built["elaborated"] += 1
            return super().build()

    Counted.__name__ = component.__name__
    Counted.__init__.__signature__ = inspect.signature(component.__init__)  # type: ignore[attr-defined]
    Counted.__doc__ = component.__doc__
    emit(replace(row, component=Counted).instance(), tmp_path)
    assert built == {"constructed": 1, "elaborated": 1}
