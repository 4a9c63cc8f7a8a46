"""Deliberate faults in the hardware's source, to show that a regression would notice them.

A mutant is emitted by a process of its own, in which one module of the generator was loaded with
one piece of its text replaced. The piece must occur exactly once: a mutation that no longer applies
fails its test instead of proving nothing.
"""

import ast
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parameters import parse_settings

__all__ = ["Mutation", "emit_mutant"]


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Members
    -------
    name
        What is broken.
    module
        Dotted name of the module.
    old, new
        The text to replace, and what by; an empty ``old`` appends ``new`` to the module.
    scope
        Name of the class or function within which ``old`` is looked for; the whole module if empty.
    """

    name: str
    module: str
    old: str
    new: str
    scope: str = ""


def emit_mutant(
    mutation: Mutation, unit: str, config: str, directory: Path, settings: tuple[str, ...] = ()
) -> EmittedFiles:
    """Emit a configuration with the fault into ``directory`` and return its files.

    ``settings`` are parameters that differ from the configuration, as ``--set`` has them.
    """
    done = subprocess.run(
        [
            *(sys.executable, __file__, mutation.module, mutation.old, mutation.new),
            *(mutation.scope, unit, config, str(directory), *settings),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{mutation.name}: no mutant was emitted\n{done.stderr}"
    row = find_unit(unit)
    stem = directory / row.instance(config, parse_settings(row.component, settings)).top
    files = (stem.with_suffix(suffix) for suffix in (".v", ".json", ".core"))
    return EmittedFiles(stem.name, *files)


def mutated(source: str, old: str, new: str, scope: str) -> str:
    """Return a source with ``old`` replaced, which must stand in ``scope`` once: AssertionError."""
    if not old:
        return source + new
    lines = source.splitlines(keepends=True)
    first, last = 0, len(lines)
    if scope:
        [node] = [node for node in ast.parse(source).body if getattr(node, "name", "") == scope]
        first, last = node.lineno - 1, node.end_lineno
    text = "".join(lines[first:last])
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times {scope and 'in ' + scope}"
    return "".join([*lines[:first], text.replace(old, new), *lines[last:]])


def _load_mutated(name: str, old: str, new: str, scope: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = mutated(Path(spec.origin).read_text(), old, new, scope)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, spec.origin, "exec"), module.__dict__)


if __name__ == "__main__":
    # find_unit above has loaded the generator; the mutated module must be there before all of it.
    for loaded in [name for name in sys.modules if name.startswith("m2xfp.rtl.")]:
        del sys.modules[loaded]
    _load_mutated(*sys.argv[1:5])
    from m2xfp.rtl.catalog import find_unit as find_mutant
    from m2xfp.rtl.parameters import parse_settings as parse
    from m2xfp.rtl.verilog.emit import emit

    mutant = find_mutant(sys.argv[5])
    changes = parse(mutant.component, tuple(sys.argv[8:]))
    emit(mutant.instance(sys.argv[6], changes), sys.argv[7])
