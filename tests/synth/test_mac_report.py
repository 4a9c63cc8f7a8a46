"""The tables of what the MAC path costs."""

from dataclasses import fields

import pytest

from m2xfp.synth.report.figures import Row
from m2xfp.synth.studies.mac import BARE_PJ, ENGINE_PJ, area_table, energy_table


def row(unit: str, config: str, **figures: float) -> Row:
    empty = dict.fromkeys(("unit", "config", "pdk", "path_start", "path_end"), "")
    given = {field.name: 1 for field in fields(Row)} | empty
    return Row(**(given | {"unit": unit, "config": config} | figures))


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_areas_add_up() -> None:
    base = {"lanes": 60.0, "sums": 40.0}
    table = cells(area_table({"mxfp4": base, "m2xfp": base | {"sums": 45.0, "decoder": 7.0}}))
    assert table[2:] == [
        ["decoder", "0.0", "7.0", "+7.0", "+7.0%"],
        ["sums", "40.0", "45.0", "+5.0", "+5.0%"],
        ["lanes", "60.0", "60.0", "+0.0", "+0.0%"],
        ["all", "100.0", "112.0", "+12.0", "+12.0%"],
    ]


def test_energy_is_compared_with_a_bare_product() -> None:
    """A fifth of the bare product's energy is its clock's, which does not count."""
    bare = row(
        "group_dot",
        "mxfp4",
        energy_pj_per_mac=2.5,
        energy_pj_per_group=80.0,
        clock_energy_pj=16.0,
    )
    other = row("dot_product", "m2xfp-fp32", energy_pj_per_mac=4.0)
    rows = {(found.unit, found.config): found for found in (bare, other)}
    last = cells(energy_table(rows))[-1]
    assert last[:2] == ["dot_product", "m2xfp-fp32"]
    assert float(last[5]) == pytest.approx(2.0)
    assert float(last[6]) == pytest.approx(2.0 * BARE_PJ / ENGINE_PJ, abs=0.005)
