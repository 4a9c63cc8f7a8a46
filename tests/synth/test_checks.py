"""`m2xfp check` finds what is wrong with a unit, and `m2xfp status` says only what was measured."""

import json
from pathlib import Path

import pytest

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.rtl.catalog import UNITS, find_unit
from m2xfp.rtl.verilog import emit as emission
from m2xfp.synth.checks.measure import CHECKS, check_instance
from m2xfp.synth.checks.status import tables

ONE = find_unit("activation_decoder").instance()
QUICK = ("lint", "regression", "second")


def test_a_sound_unit_passes(sim_dir: Path) -> None:
    found = list(check_instance(ONE, sim_dir))
    assert [each.name for each in found] == list(CHECKS)
    assert not any(each.fault for each in found)
    assert all(each.count for each in found if each.name != "streams")


@pytest.mark.parametrize(
    ("old", "new", "faulty"),
    [
        ("endmodule", "  wire [1:0] cut = {codes[2:0]};\nendmodule", {"lint"}),
        ("assign refinement[3:2] = {", "assign refinement[3:2] = ~{", {"regression", "second"}),
    ],
)
def test_a_fault_is_told(
    old: str,
    new: str,
    faulty: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = emission.verilog_text

    def broken(*arguments: object) -> str:
        whole = text(*arguments)  # type: ignore[arg-type]
        assert old in whole
        return whole.replace(old, new, 1)

    monkeypatch.setattr(emission, "verilog_text", broken)
    found = list(check_instance(ONE, tmp_path, QUICK))
    assert {each.name for each in found if each.fault} == faulty


def rows(results: Path) -> dict[str, dict[str, str]]:
    """Return the cells of each unit's row by the names of the columns."""

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("| ").split("|")]

    titles, _, *lines = tables(results)["status"].splitlines()
    found = [dict(zip(cells(titles), cells(line), strict=True)) for line in lines]
    return {row["unit"].strip("`"): row for row in found}


def test_nothing_measured_is_a_dash(tmp_path: Path) -> None:
    found = rows(tmp_path)
    assert list(found) == list(UNITS)
    for unit, row in found.items():
        assert row.pop("unit") == f"`{unit}`"
        assert row.pop("stage") == "V0"
        assert row.pop("configurations").startswith("0 of ")
        assert set(row.values()) == {"-"}


def figures(folder: Path, **changes: object) -> Path:
    """Write what makes a decoder V3, with changes in its rows."""
    unit = {"unit": "activation_decoder", "config": "m2xfp"}
    files = {
        "checks.json": {"rows": [{**unit, "lint": 2, "regression": 9, "streams": 0, "second": 5}]},
        "coverage.json": {"rows": [{**unit, "holes": []}]},
        "mutants.json": {"rows": [{**unit, "mutants": 102, "equivalent": 2, "killed": 99}]},
        "proofs.json": {"proofs": [{**unit, "fault": "an inverter"}]},
    }
    for name, content in files.items():
        (row,) = next(iter(content.values()))
        row |= {key: value for key, value in changes.items() if key in row}
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, "V3"),
        ({"killed": 98}, "V2"),
        ({"fault": ""}, "V2"),
        ({"holes": ["a line"]}, "V1"),
    ],
)
def test_stages(changes: dict[str, object], stage: str, tmp_path: Path) -> None:
    row = rows(figures(tmp_path, **changes))["activation_decoder"]
    assert row["stage"] == stage
    assert row["streams"] == "no streams"


@pytest.mark.parametrize("missing", ["lint", "regression", "second"])
def test_a_check_that_failed_is_no_entry(missing: str, tmp_path: Path) -> None:
    path = figures(tmp_path) / "checks.json"
    content = json.loads(path.read_text())
    del content["rows"][0][missing]
    path.write_text(json.dumps(content))
    assert rows(tmp_path)["activation_decoder"]["stage"] == ("V1" if missing == "second" else "V0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "m2xfp"], "name the one UNIT"),
        (["pe_tile", "--every", "--config", "m2xfp"], "--every: goes without"),
        (["pe_tile", "--set", "chains=1", "--accept"], "--accept: goes without --set"),
    ],
)
def test_bad_options(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cli.main(["check", *arguments], prog_name="m2xfp", standalone_mode=False)


def test_the_status_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli.main(
        ["status", "--results", str(figures(tmp_path))], prog_name="m2xfp", standalone_mode=False
    )
    assert capsys.readouterr().out == tables(tmp_path)["status"]
