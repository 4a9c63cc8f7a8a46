"""Parameters: read, checked, written, listed; chips of instances; nothing written on an error."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.commands.options import parameter_help
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.facts import Facts
from m2xfp.formats import BF16, M2XFP_ACT, USUAL_EXPONENTS, BlockFormat, InputType, Window
from m2xfp.rtl.catalog import UNITS, Instance, find_unit, select
from m2xfp.rtl.chip import read_chip
from m2xfp.rtl.parameters import (
    Between,
    Formats,
    Names,
    bind,
    parameters_of,
    parse_settings,
)


def example(
    *,
    count: Annotated[int, Between(1, 3)] = 2,
    depth: Annotated[int, Between(1)] | None = None,
    flag: bool = True,
    word: Annotated[str, Names(("one", "two"))] = "one",
    block: Annotated[BlockFormat, Formats(("mxfp4",))] = M2XFP_ACT,
    kind: InputType | None = None,
    window: Window = USUAL_EXPONENTS,
) -> dict[str, Any]:
    """Stand for a component.

    Parameters
    ----------
    count, depth
        How many,
        and how deep.
    flag
        Whether.

    Members
    -------
    word
        Not this.
    """
    return locals()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("count=3", 3),
        ("depth=none", None),
        ("depth=70", 70),
        ("flag=false", False),
        ("word=two", "two"),
        ("block=mxfp4", "mxfp4"),
        ("block=m2xfp-act:subgroup=4", "m2xfp-act:subgroup=4"),
        ("kind=bf16", "bf16"),
        ("kind=none", None),
        ("window=all", "all"),
        ("window=200..300/130", "200..300/130"),
    ],
)
def test_texts_are_read_and_written_back(text: str, value: Any) -> None:
    (name, found), *rest = parse_settings(example, [text]).items()
    assert not rest
    assert getattr(found, "name", found) == value
    written = parameters_of(example)[name].write(found)
    assert f"{name}={written}" == text
    assert bind(example, {name: found})[name] == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("count=0", "count=0: must be 1 to 3"),
        ("count=4", "1 to 3"),
        ("count=none", "whole number"),
        ("count=1.5", "whole number, 1 to 3"),
        ("count=0x3", "whole number"),
        ("count=", "NAME=VALUE"),
        ("count", "NAME=VALUE"),
        ("depth=0", "at least 1"),
        ("flag=yes", "true or false"),
        ("word=three", "one, two"),
        ("block=mxfp5", "mxfp4"),
        ("block=mxfp4:subgroup=4", "takes group"),
        ("block=m2xfp-act:subgroup=3", "power of two"),
        ("block=mxfp4:group=31", "one of: 8, 16"),
        ("kind=bf17", "bf16"),
        ("window=9..1/40", "window"),
        ("window=some", "LOWEST..HIGHEST/BITS"),
        ("rows=1", "count"),
    ],
)
def test_wrong_texts_name_the_remedy(text: str, told: str) -> None:
    with pytest.raises((InputError, UnknownNameError), match=told.replace("..", r"\.\.")):
        parse_settings(example, [text])


def test_values_are_checked_as_texts_are() -> None:
    for given, told in (
        ({"count": 4}, "1 to 3"),
        ({"count": True}, "whole number"),
        ({"count": "2"}, "whole number"),
        ({"flag": 1}, "true or false"),
        ({"kind": "bf16"}, "input type"),
        ({"rows": 2}, "unknown parameter"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=told):
            bind(example, given)


def test_docstrings_say_what_a_parameter_is() -> None:
    known = parameters_of(example)
    assert known["count"].text == known["depth"].text == "How many, and how deep."
    assert known["word"].text == ""
    for unit in UNITS.values():
        for name, parameter in parameters_of(unit.component).items():
            assert parameter.text, f"{unit.name} says nothing of {name}"


def test_random_values_are_within_the_limits() -> None:
    rng = random.Random(1)
    for parameter in parameters_of(example).values():
        drawn = {str(parameter.draw(rng)) for _ in range(60)}
        assert len(drawn) > 1 or parameter.name == "block"


@pytest.mark.parametrize("unit", UNITS)
def test_every_parameter_is_bound(unit: str) -> None:
    """Facts name all parameters, and the instance comes back from them."""
    for instance in select(unit):
        facts = instance.facts
        assert set(facts.parameters) == set(parameters_of(instance.unit.component))
        again = Facts.from_json(facts.to_json())
        assert again == facts
        rebuilt = Instance.of(again)
        assert rebuilt.parameters == instance.parameters
        assert rebuilt.facts == facts


def test_settings_start_from_a_configuration() -> None:
    instance = find_unit("activation_quantizer").instance("fp16x8", {"lanes": 16})
    assert instance.parameters["input_type"].name == "fp16"
    assert instance.facts.beats_per_group == 2
    assert instance.top == "activation_quantizer_fp16x8_lanes_16"
    assert instance.config == "fp16x8+lanes=16"
    named = find_unit("activation_quantizer").instance(None, {"lanes": 16}, name="quantize")
    assert (named.top, named.parameters["input_type"]) == ("quantize", BF16)


@pytest.mark.parametrize(
    "name", ["9lives", "a b", "a-b", "module", "logic", "", "a;b", "$x", "a\n"]
)
def test_names_are_identifiers(name: str) -> None:
    with pytest.raises(InputError, match="name="):
        find_unit("group_dot").instance(name=name)


def run(*arguments: str) -> tuple[int, str]:
    code = "from m2xfp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_verilog_takes_any_parameter(tmp_path: Path) -> None:
    """The 1 x 32 core of the paper, from the command line."""
    settings = ("--set", "rows=1", "--set", "columns=32", "--set", "max_k=4096")
    status, text = run("verilog", "gemm_core", *settings, "--name", "array", "-o", str(tmp_path))
    assert status == 0, text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "array.core",
        "array.json",
        "array.v",
    ]
    facts = json.loads((tmp_path / "array.json").read_text())
    assert (facts["parameters"]["rows"], facts["parameters"]["columns"]) == (1, 32)
    assert facts["macs_per_clock"] == 1024
    assert "\nmodule array (" in (tmp_path / "array.v").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("gemm_core", "--set", "rows=0"), "rows"),
        (("gemm_core", "--set", "max_k=33"), "multiple"),
        (("gemm_core", "--set", "width=3"), "max_k"),
        (("gemm_core", "--config", "3x3"), "m2xfp-2x2"),
        (("activation_quantizer", "--set", "lanes=5"), "lanes"),
        (("group_dot", "--name", "1x"), "name="),
        (("--set", "rows=1"), "UNIT"),
        (("--name", "x"), "UNIT"),
        (("--from", "nowhere.toml"), "nowhere.toml"),
        (("group_dot", "--from", "chip.toml"), "--from"),
    ],
)
def test_what_is_not_allowed_writes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    status, text = run("verilog", *arguments, "-o", str(tmp_path / "out"))
    assert status == 2
    assert told in text
    assert not (tmp_path / "out").exists()


def test_help_lists_parameters() -> None:
    """For every unit: each parameter with default, text and what is allowed."""
    for unit in UNITS.values():
        done = CliRunner().invoke(cli, ["verilog", unit.name, "--help-parameters"])
        assert done.exit_code == 0
        for name, parameter in parameters_of(unit.component).items():
            assert f"  {name}={parameter.write(parameter.default)}\n" in done.output
        assert "``" not in done.output
        assert all(config in done.output for config in unit.configs)


@pytest.mark.parametrize(
    "command", [["gemm"], ["study", "gemm-layer"], ["fpga", "build", "icebreaker"]]
)
def test_commands_about_known_units_list_their_parameters(command: list[str]) -> None:
    """Without naming the unit again."""
    done = CliRunner().invoke(cli, [*command, "--help-parameters"])
    assert done.exit_code == 0
    assert re.search(r"^Parameters, with their defaults", done.output, re.MULTILINE)


def test_numbers_and_windows_are_told_in_full() -> None:
    """A number among a few is no range; a window may be written out."""
    help_of = {unit: parameter_help(unit) for unit in ("weight_encoder", "exact_accumulator")}
    assert "Allowed: whole number, one of 1, 2, 3, 4, 6, 12." in help_of["weight_encoder"]
    assert "or written LOWEST..HIGHEST/BITS" in " ".join(help_of["exact_accumulator"].split())


CHIP = """
[quantize]
unit = "activation_quantizer"
config = "fp16x8"

[multiply]
unit = "dot_product"
chains = 1
window = "usual"
"""


def test_a_chip_of_instances(tmp_path: Path) -> None:
    (tmp_path / "chip.toml").write_text(CHIP)
    status, text = run(
        "verilog", "--from", str(tmp_path / "chip.toml"), "-o", str(tmp_path / "out")
    )
    assert status == 0, text
    assert "2 modules" in text
    for top, parameter, value in (("quantize", "lanes", 8), ("multiply", "window", "usual")):
        facts = Facts.load(tmp_path / "out" / f"{top}.json")
        assert facts.top == top
        assert facts.parameters[parameter] == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no table"),
        ("x", "not a TOML file"),
        ("[a]\n", r"\[a\] needs unit"),
        ("a = 1\n", r"\[a\] needs unit"),
        ('[a]\nunit = "b"\n', "unknown unit"),
        ('[a]\nunit = "group_dot"\nconfig = 3\n', "config=3"),
        ('[a]\nunit = "group_dot"\ndepth = 9\n', r"\[a\].*depth=9"),
        ('[a]\nunit = "group_dot"\nrows = 9\n', "unknown parameter"),
        ('["a b"]\nunit = "group_dot"\n', "name="),
        ('[a]\nunit = "group_dot"\ndepth = true\n', "whole number"),
        ('[a]\nunit = "group_dot"\ndepth = [1]\n', "whole number"),
    ],
)
def test_what_is_no_chip(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "chip.toml").write_text(text)
    with pytest.raises(InputError, match=told):
        read_chip(tmp_path / "chip.toml")
