"""Who may import whom: two implementations that share code would prove nothing about each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "m2xfp": {"torch", "amaranth"},  # vocabulary and command line: heavy imports inside functions
    "rtl": {"torch", "m2xfp.golden", "m2xfp.tb"},
    "golden": {"amaranth", "m2xfp.rtl", "m2xfp.tb", "m2xfp.synth"},
}


def imports(tree: ast.AST, top_level_only: bool) -> set[str]:
    """Return the modules that a file imports."""
    nodes = ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        found = imports(ast.parse(file.read_text()), top_level_only=folder == "m2xfp")
        for name in FORBIDDEN[folder]:
            bad = {item for item in found if item == name or item.startswith(f"{name}.")}
            assert not bad, f"{file.relative_to(ROOT)} imports {', '.join(sorted(bad))}"


@pytest.mark.parametrize(
    ("blocked", "statement"),
    [
        ("torch", "import m2xfp.rtl.catalog, m2xfp.rtl.verilog.emit"),
        ("torch", "from m2xfp.cli import main; import sys; sys.argv = ['m2xfp', '--help']; main()"),
        ("amaranth", "import m2xfp.golden"),
    ],
)
def test_runs_without(blocked: str, statement: str) -> None:
    """Blocked for real: importing it fails."""
    code = f"import sys; sys.modules[{blocked!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
