"""``m2xfp bench``: what it measures and prints."""

import json
import re

import pytest
import torch
from click.testing import CliRunner

from m2xfp.commands.bench import command
from m2xfp.models import peers
from m2xfp.models.bench import OPERATIONS, peak_extra_bytes, tables
from m2xfp.models.peers import Peer


def test_peak_memory_sees_a_temporary():
    x = torch.ones(1 << 24)  # beyond what malloc keeps for itself
    result = peak_extra_bytes(lambda: x + 1, x.device)
    assert x.nbytes * 0.9 < result < x.nbytes * 1.6
    temporary = peak_extra_bytes(lambda: (x + 1) + (x + 2), x.device)
    assert temporary > x.nbytes * 2.5


def test_bench_writes_a_table_and_json(tmp_path):
    arguments = ["--device", "cpu", "--format", "m2xfp-act", "--values", "65536"]
    result = CliRunner().invoke(command, [*arguments, "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "bench-cpu-bfloat16.json").read_text())
    rows = data["measurements"]
    assert [row["operation"] for row in rows] == ["copy", *OPERATIONS]
    assert all(row["gvalues_per_second"] > 0 for row in rows)
    assert rows[2]["output_bytes"] == 65536 * 4.5 / 8
    table = tables(tmp_path)["bench-cpu-bfloat16"]
    assert table in result.output
    assert f"{rows[1]['gvalues_per_second']:.3g}" in table


def test_other_libraries_are_measured_where_they_are_installed(monkeypatch, tmp_path):
    """A stand-in that is installed, one that fails, one that is not there."""

    def fails(x):
        raise RuntimeError("no such kernel\nmore")

    stand_ins = (
        Peer("pytest", "pytest", lambda name, device: torch.clone if name == "mxfp4" else None),
        Peer("click", "click", lambda name, device: fails),
        Peer("nothing", "no_such_module", lambda name, device: torch.clone),
    )
    monkeypatch.setattr(peers, "PEERS", stand_ins)
    arguments = ["--device", "cpu", "--format", "mxfp4", "--values", "65536", "-o", str(tmp_path)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"click \S+ does not quantize mxfp4 here: no such kernel\n", result.output)
    rows = json.loads((tmp_path / "bench-cpu-bfloat16.json").read_text())["measurements"]
    ours, theirs = [row for row in rows if row["operation"] == "fake-quantize"][:2]
    assert theirs["path"] == f"pytest {pytest.__version__}"
    table = tables(tmp_path)["bench-cpu-bfloat16"]
    share = theirs["gvalues_per_second"] / ours["gvalues_per_second"]
    assert "of ours" in table
    assert re.search(rf"\| pytest .*\| {share:.3g} ", table)
    assert "nothing" not in table
    result = CliRunner().invoke(command, [*arguments, "--no-peers"])
    assert "of ours" not in result.output


def test_bad_input(tmp_path):
    result = CliRunner().invoke(command, ["--format", "mxfp5"])
    assert result.exit_code != 0
    assert "unknown format 'mxfp5'" in str(result.exception)
    if not torch.cuda.is_available():
        result = CliRunner().invoke(command, ["--device", "cuda", "-o", str(tmp_path / "x")])
        assert "pass --device cpu" in str(result.exception)
        assert not (tmp_path / "x").exists()
