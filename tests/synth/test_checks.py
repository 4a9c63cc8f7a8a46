"""`m2xfp check` finds what is wrong with a unit, and `m2xfp status` says only what was measured."""

import importlib.util
import json
from pathlib import Path

import pytest

from m2xfp.cli import cli
from m2xfp.errors import M2xfpError, MissingToolError
from m2xfp.rtl.catalog import UNITS, find_unit
from m2xfp.rtl.parameters import parameters_of
from m2xfp.rtl.verilog import emit as emission
from m2xfp.synth.checks import measure
from m2xfp.synth.checks.measure import CHECKS, Checked, check_instance
from m2xfp.synth.checks.record import accept, row_of
from m2xfp.synth.checks.status import own_rows, tables
from m2xfp.synth.flow.lint import LINTERS

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
    """Return the cells of each unit's rows, of both tables, by the names of the columns."""

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("| ").split("|")]

    found: dict[str, dict[str, str]] = {name: {} for name in UNITS}
    for table in tables(results).values():
        titles, _, *lines = table.splitlines()
        assert len(lines) == len(UNITS)
        for line in lines:
            row = dict(zip(cells(titles), cells(line), strict=True))
            found[row["unit"].strip("`")] |= row
    return found


def test_nothing_measured_is_a_dash(tmp_path: Path) -> None:
    found = rows(tmp_path)
    assert list(found) == list(UNITS)
    for unit, row in found.items():
        assert row == own_rows(tmp_path, UNITS[unit])
        assert row.pop("unit") == f"`{unit}`"
        assert row.pop("D") == "D0"
        assert row.pop("V") == "V0"
        total = len(parameters_of(UNITS[unit].component))
        assert row.pop("described") == f"{total}/{total}"
        assert set(row.values()) == {"-"}


def figures(folder: Path, **changes: object) -> Path:
    """Write what makes a decoder D3 and V3, with changes in its rows."""
    unit = {"unit": "activation_decoder", "config": "m2xfp"}
    checks = {"lint": len(LINTERS), "regression": 9, "streams": 0, "second": 5, "core": 7}
    files = {
        "checks.json": {"rows": [{**unit, **checks}]},
        "coverage.json": {"rows": [{**unit, "holes": [], "crosses": {"a": [2, 2], "b": [3, 1]}}]},
        "mutants.json": {"rows": [{**unit, "mutants": 102, "killed": 99, "alive": 1}]},
        "proofs.json": {"proofs": [{**unit, "fault": "an inverter"}]},
    }
    for number in range(3):
        files[f"synth-{number}.json"] = {
            "rows": [{**unit, "pdk": str(number), "gate_level_groups": 8}]
        }
    for name, content in files.items():
        (row,) = next(iter(content.values()))
        row |= {key: value for key, value in changes.items() if key in row}
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "design", "verification"),
    [
        ({}, "D3", "V3"),
        ({"killed": 98}, "D3", "V2"),
        ({"fault": ""}, "D3", "V2"),
        ({"holes": ["a line"]}, "D3", "V1"),
        ({"lint": 2}, "D0", "V0"),
        ({"gate_level_groups": None}, "D2", "V3"),
    ],
)
def test_stages(changes: dict[str, object], design: str, verification: str, tmp_path: Path) -> None:
    row = rows(figures(tmp_path, **changes))["activation_decoder"]
    assert (row["D"], row["V"]) == (design, verification)
    assert row["streams"] == "no streams"
    assert row["features"] == "1/2"


@pytest.mark.parametrize(
    ("missing", "stages"),
    [
        ("lint", ("D0", "V0")),
        ("regression", ("D3", "V0")),
        ("second", ("D3", "V1")),
        ("core", ("D1", "V3")),
    ],
)
def test_a_check_that_failed_is_no_entry(
    missing: str, stages: tuple[str, str], tmp_path: Path
) -> None:
    path = figures(tmp_path) / "checks.json"
    content = json.loads(path.read_text())
    del content["rows"][0][missing]
    path.write_text(json.dumps(content))
    row = rows(tmp_path)["activation_decoder"]
    assert (row["D"], row["V"]) == stages


def test_a_check_alone_keeps_what_others_found(tmp_path: Path) -> None:
    figures(tmp_path)
    accept(tmp_path, [row_of(ONE, [Checked("core", 11), Checked("lint", 0, "a fault")])])
    (row,) = json.loads((tmp_path / "checks.json").read_text())["rows"]
    assert (row["core"], row["second"], row["lint"]) == (11, 5, len(LINTERS))


def test_parameters_that_are_varied_are_counted(tmp_path: Path) -> None:
    for configs, varied in ((("bf16x32",), 0), (("bf16x32", "bf16x8", "fp16x16"), 2)):
        kept = [
            {"unit": "activation_quantizer", "config": name, "lint": len(LINTERS)}
            for name in configs
        ]
        accept(tmp_path, kept)
        row = rows(tmp_path)["activation_quantizer"]
        assert row["varied"].startswith(f"{varied}/")
        assert row["lint"].startswith(f"{len(configs)}/")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "m2xfp"], "name the one UNIT"),
        (["pe_tile", "--every", "--config", "m2xfp"], "--every: goes without"),
        (["pe_tile", "--set", "chains=1", "--accept"], "--accept: goes without --set"),
        (["pe_tile", "--only", "style"], "unknown check 'style'; there are: lint, regression"),
    ],
)
def test_bad_options(arguments: list[str], said: str) -> None:
    with pytest.raises(M2xfpError, match=said):
        cli.main(["check", *arguments], prog_name="m2xfp", standalone_mode=False)


def test_what_has_no_tool_is_left_out_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fusesoc" else known(name)
    )
    monkeypatch.setattr(measure, "check_instance", lambda _, folder, names: iter(()))
    call = ["check", "activation_decoder", "--build-dir", str(tmp_path)]
    cli.main(call, prog_name="m2xfp", standalone_mode=False)
    said = capsys.readouterr().out
    assert "left out: core; the Python package fusesoc is missing" in said
    assert "pip install 'm2xfp[lint]'" in said
    with pytest.raises(MissingToolError, match="fusesoc is missing"):
        cli.main([*call, "--only", "core"], prog_name="m2xfp", standalone_mode=False)


def test_the_status_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli.main(
        ["status", "--results", str(figures(tmp_path))], prog_name="m2xfp", standalone_mode=False
    )
    assert capsys.readouterr().out == "\n".join(tables(tmp_path).values())
