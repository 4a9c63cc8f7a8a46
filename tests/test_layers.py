"""Who may import whom: two implementations that share code would prove nothing about each other."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2xfp.rtl.catalog import UNITS

ROOT = Path(__file__).parent.parent
ROOMS = ("rtl", "golden", "models", "tb", "synth", "fpga", "accelerator", "manual")

# Layer: those that it may import, at the top of a file or inside a function. `base` is what stands
# in m2xfp/ itself, `commands` the command line.
ALLOWED = {
    "base": set(),
    "golden": {"base"},
    "models": {"base", "golden"},
    "rtl": {"base"},
    "tb": {"base", "golden", "rtl"},
    "synth": {"base", "golden", "models", "rtl", "tb"},
    "fpga": {"base", "golden", "rtl", "tb", "synth"},  # of synth: the native yosys
    "manual": {"base", "golden", "rtl", "tb", "synth"},
    "accelerator": {"base", "golden", "models", "rtl", "tb"},
    "commands": {"base", *ROOMS},
}
# Of synth, only these take tensors from models or evaluate them.
TENSORS = ("synth/gate_sim/", "synth/studies/")
# Of m2xfp itself, what stands above the commands.
TOP = ("cli", "__main__")
LIBRARIES = {
    "base": {"torch", "amaranth"},
    "rtl": {"torch"},
    "golden": {"amaranth"},
    "models": {"amaranth"},
}


def layer_of(module: str) -> str:
    """Return the layer of a module by its dotted name."""
    room = module.split(".")[1] if module.startswith("m2xfp.") else "base"
    if room in ROOMS:
        return room
    return "commands" if room in ("commands", *TOP) else "base"


def imports(tree: ast.AST, top_level_only: bool = False) -> set[str]:
    """Return the modules that a file imports."""
    nodes = ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(layer: str) -> Iterator[tuple[Path, ast.AST]]:
    """Yield the sources of a layer."""
    if layer == "base":
        paths = [path for path in (ROOT / "m2xfp").glob("*.py") if path.stem not in TOP]
    elif layer == "commands":
        paths = [ROOT / "m2xfp" / f"{name}.py" for name in TOP]
        paths += (ROOT / "m2xfp" / "commands").glob("*.py")
    else:
        paths = list((ROOT / layer).rglob("*.py"))
    assert paths
    for path in sorted(paths):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_go_one_way(layer: str) -> None:
    bad = [
        f"{path} imports {module}"
        for path, tree in files(layer)
        for module in sorted(imports(tree))
        if module.startswith("m2xfp.") and layer_of(module) not in {layer, *ALLOWED[layer]}
    ]
    assert not bad, "\n".join(bad)


def test_synthesis_takes_models_where_it_says() -> None:
    for path, tree in files("synth"):
        if any(layer_of(module) == "models" for module in imports(tree)):
            assert str(path).startswith(TENSORS), path


@pytest.mark.parametrize("layer", LIBRARIES)
def test_libraries(layer: str) -> None:
    for path, tree in files(layer):
        found = {module.split(".")[0] for module in imports(tree)} & LIBRARIES[layer]
        assert not found, f"{path} imports {', '.join(sorted(found))}"


def test_commands_load_heavy_libraries_when_they_run() -> None:
    for path, tree in files("commands"):
        found = {module.split(".")[0] for module in imports(tree, top_level_only=True)}
        assert not found & {"torch", "amaranth", "matplotlib"}, path


def test_forbidden_imports_are_noticed() -> None:
    """Inside functions too."""
    tree = ast.parse("def f():\n    from m2xfp.models.lm import load_model\n    import torch\n")
    assert {layer_of(module) for module in imports(tree) if "m2xfp" in module} == {"models"}
    assert "torch" in imports(tree)
    assert not imports(tree, top_level_only=True)


@pytest.mark.parametrize(
    ("folder", "prefix"),
    [("rtl/units", ""), ("golden/units", ""), ("tb/units", ""), ("tests/units", "test_")],
)
def test_a_unit_has_its_name_in_every_room(folder: str, prefix: str) -> None:
    names = {
        path.stem.removeprefix(prefix)
        for path in (ROOT / folder).glob(f"{prefix}*.py")
        if path.stem != "__init__"
    }
    if folder == "tests/units":
        names &= UNITS.keys()  # beside them stand tests of all units
    assert names == UNITS.keys()


@pytest.mark.parametrize(
    ("blocked", "statement"),
    [
        ("torch", "import m2xfp.rtl.catalog, m2xfp.rtl.verilog.emit"),
        ("torch", "from m2xfp.cli import main; import sys; sys.argv = ['m2xfp', '--help']; main()"),
        ("torch", "from m2xfp.cli import main; import sys; sys.argv = ['m2xfp', 'gemm']; main()"),
        ("amaranth", "import m2xfp.golden"),
        ("amaranth", "import m2xfp.models.evaluate"),
    ],
)
def test_runs_without(blocked: str, statement: str) -> None:
    """Blocked for real: importing it fails."""
    code = f"import sys; sys.modules[{blocked!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
