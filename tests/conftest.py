"""Session helpers: where simulations are built, and units emitted once a session."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from m2xfp.facts import EmittedFiles


def pytest_configure() -> None:
    """Take Ctrl-C, also where a shell started the tests in the background, which ignores it.

    So would every program that they start, and what is tried with interrupts would pass unseen.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sim_dir(pytestconfig: pytest.Config) -> Path:
    """Return the cache of simulation models, kept from one session to the next."""
    folder = pytestconfig.rootpath / "build" / "sim"
    folder.mkdir(parents=True, exist_ok=True)  # a fresh clone has none, and tests link to it
    return folder


@pytest.fixture(scope="session")
def emitted(sim_dir: Path) -> Callable[[str, str], EmittedFiles]:
    """Return a function from unit and configuration, with settings or not, to the emitted files.

    Imported here, so that tests of the golden model run where Amaranth is not: on a GPU machine.
    """
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.verilog.emit import emit

    @cache
    def files(unit: str, config: str) -> EmittedFiles:
        return emit(find_unit(unit).labelled(config), sim_dir / "verilog")

    return files
