"""What the pages say: links lead somewhere, and the guide to adding a unit works as written."""

import re
from pathlib import Path

import numpy as np
import pytest
import stimulus

from m2xfp.rtl.catalog import Unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bulk.simulator import Player
from m2xfp.tb.vectors import Beats

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert not missing


def test_guide(tmp_path: Path, sim_dir: Path) -> None:
    """The unit of the guide, emitted and played against its own definition."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "adding-a-unit.md").read_text(), re.DOTALL
    )
    namespace: dict[str, object] = {"Unit": Unit}
    exec(blocks[0] + "\nfrom m2xfp.formats import MXFP4\n", namespace)
    exec("unit = " + blocks[1], namespace)
    exec(blocks[2], namespace)
    unit, negate = namespace["unit"], namespace["negate_codes"]
    assert isinstance(unit, Unit)
    assert callable(negate)
    groups = stimulus.packed_groups(1000, seed=5)
    player = Player(emit(unit.instance("m2xfp"), tmp_path), build_dir=sim_dir)
    out = player.run({"i": Beats(groups, np.arange(1000) % 7 == 0)}, stall=0.3, seed=5).outputs["o"]
    expected = np.concatenate([negate(groups[:, :16]), groups[:, 16:]], axis=1)
    assert np.array_equal(out.data, expected)
    assert np.array_equal(out.last, np.arange(1000) % 7 == 0)
