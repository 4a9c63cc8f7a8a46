"""The notebooks run, and print what stands in them."""

import re
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from m2xfp.manual.notebooks import notebook_page

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    return [
        "".join(each.text for each in cell.outputs if each.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def differing(before: str, after: str) -> str:
    """Return what differs: words, or numbers by more than processors differ in sums of floats."""
    if NUMBER.sub("#", before) != NUMBER.sub("#", after):
        return f"{before!r} is now {after!r}"
    pairs = zip_longest(NUMBER.findall(before), NUMBER.findall(after))
    far = [
        (old, new) for old, new in pairs if abs(float(old) - float(new)) > 0.01 * abs(float(old))
    ]
    return ", ".join(f"{old} is now {new}" for old, new in far)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources=place).execute()
    for before, after in zip(printed(stored), printed(fresh), strict=True):
        said = differing(before, after)
        assert not said, f"{said}; run it again: jupyter nbconvert --execute --inplace {path.name}"
    assert any(printed(stored))


def test_a_changed_number_is_noticed() -> None:
    assert not differing("1.000 dB", "1.009 dB")
    assert differing("1.000 dB", "1.02 dB")
    assert differing("1.000 dB", "1.000 Bel")
    assert differing("554 um2", "540 um2")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_page(path: Path) -> None:
    """The page has every text, every line of code and everything that was printed."""
    page, stored = notebook_page(path), nbformat.read(path, as_version=4)
    for cell in stored.cells:
        assert cell.source in page
    for text in printed(stored):
        assert text.rstrip() in page
