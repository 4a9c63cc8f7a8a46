"""The documentation site: pages of docs/, a page a unit, the Python interface, the command line.

Sources are put together in a folder of their own, since a site needs links and pages that the
repository does not: links to files of the repository become copies that the site carries, and the
pages of units are drawn anew. Sphinx then builds it; a warning is an error.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from m2xfp.errors import InputError, tool_failure
from m2xfp.files import write_atomic
from m2xfp.manual.explorer import explorer_page
from m2xfp.manual.notebooks import notebook_page
from m2xfp.manual.unit_page import unit_page
from m2xfp.processes import run
from m2xfp.progress import track
from m2xfp.rtl.catalog import UNITS

__all__ = ["assemble", "build"]

# The pages of the site, by part; each page of docs/ stands in one of them.
_PARTS = {
    "Start": ("install", "explorer", "format", "formats-conformance"),
    "Models": ("evaluation", "recipes", "checkpoints", "pytorch", "speed"),
    "Hardware": (
        *("quantizer", "weight-encoder", "rotation", "mac", "gemm", "integration"),
        *("accelerator-unit", "accelerator-driver", "accelerator-registers", "generation"),
        *("accelerator", "silicon", "fpga"),
    ),
    "Proof": ("simulation", "proofs", "coverage", "mutants", "status", "robustness"),
    "Inside": ("architecture", "adding-a-unit"),
}

# The Python interface: the modules that users import, each with what its __all__ names.
_MODULES = (
    *("m2xfp.golden", "m2xfp.formats", "m2xfp.facts", "m2xfp.errors"),
    *("m2xfp.models.quantized", "m2xfp.models.linear", "m2xfp.models.evaluate", "m2xfp.models.qat"),
    *("m2xfp.models.packed_model", "m2xfp.models.huggingface", "m2xfp.accelerator"),
    *("m2xfp.rtl.catalog", "m2xfp.rtl.verilog.emit"),
    *("m2xfp.tb.bulk.simulator", "m2xfp.tb.vectors", "m2xfp.tb.portable"),
)

# Packages whose names come from modules of theirs.
_GATHERED = {"m2xfp.golden", "m2xfp.accelerator"}

_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def assemble(root: Path, folder: Path) -> Path:
    """Write the sources of the site into ``folder``, which is emptied, and return it.

    Parameters
    ----------
    root
        The repository, with docs/ and README.md.
    folder
        Where the sources go.

    Raises
    ------
    InputError
        ``root`` is no repository of m2xfp, a page of docs/ is in no part of the site, or a link
        leads nowhere.
    """
    docs = root / "docs"
    if not (docs / "architecture.md").is_file() or not (root / "README.md").is_file():
        raise InputError(f"{root} is no clone of m2xfp: it has no docs/ and README.md")
    pages = {path.stem for path in docs.glob("*.md")}
    listed = {name for names in _PARTS.values() for name in names}
    if pages != listed:
        odd = ", ".join(sorted(pages ^ listed))
        raise InputError(f"docs/: {odd} must stand both in the folder and in m2xfp/manual/site.py")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "units").mkdir(parents=True)
    for name in sorted(pages):
        text = _relinked((docs / f"{name}.md").read_text(), docs, root, folder)
        write_atomic(folder / f"{name}.md", text)
    notebooks = sorted(docs.glob("notebooks/*.ipynb"))
    for path in notebooks:
        write_atomic(folder / "notebooks" / f"{path.stem}.md", notebook_page(path))
    readme = _relinked((root / "README.md").read_text(), root, root, folder)
    write_atomic(folder / "index.md", f"{readme}\n{_contents(notebooks)}")
    for unit in track(list(UNITS.values()), desc="pages of units", unit="page"):
        write_atomic(folder / "units" / f"{unit.name}.md", unit_page(unit, docs / "results"))
    write_atomic(folder / "units" / "index.md", _units())
    write_atomic(folder / "api.md", _interface())
    write_atomic(folder / "commands.md", _commands())
    shutil.copyfile(Path(__file__).with_name("conf.py"), folder / "conf.py")
    return folder


def _relinked(text: str, place: Path, root: Path, folder: Path) -> str:
    """Return a page whose links lead to pages of the site, and to copies of other files."""

    def there(found: re.Match[str]) -> str:
        target = (place / found[1]).resolve()
        anchor = found[2] or ""
        if not target.exists() or not target.is_relative_to(root.resolve()):
            raise InputError(f"{place}: the link to {found[1]} leads nowhere")
        relative = target.relative_to(root.resolve())
        if relative.parent == Path("docs/notebooks"):
            return f"](notebooks/{target.stem}.md)"
        if relative.parts[0] == "docs" and target.suffix == ".md":
            return f"]({target.name}{anchor})"
        if relative.name == "README.md":
            return "](index.md)"
        if target.is_dir():
            return f"](files/{_listing(target, relative, folder)})"
        # A page would be one of the site's; as text it is a file to take.
        relative = relative.with_suffix(".md.txt" if target.suffix == ".md" else target.suffix)
        copy = folder / "files" / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, copy)
        return f"](files/{relative})"

    return _LINK.sub(there, text)


def _listing(target: Path, relative: Path, folder: Path) -> str:
    """Write the names of a folder's files, and return where."""
    names = sorted(path.name for path in target.iterdir() if not path.name.startswith((".", "__")))
    path = Path(f"{relative}.txt")
    write_atomic(folder / "files" / path, "\n".join([f"{relative}/", *names, ""]))
    return str(path)


def _toctree(caption: str, pages: Iterator[str] | list[str]) -> str:
    joined = "\n".join(pages)
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{joined}\n```\n"


def _contents(notebooks: list[Path]) -> str:
    parts = [_toctree(part, list(names)) for part, names in _PARTS.items()]
    parts.append(_toctree("Notebooks", [f"notebooks/{path.stem}" for path in notebooks]))
    reference = ["units/index", "api", "commands"]
    return "\n".join([*parts, _toctree("Reference", reference)])


def _units() -> str:
    rows = "\n".join(f"- [{unit.name}]({unit.name}.md): {unit.purpose}" for unit in UNITS.values())
    return (
        "# Units\n\nEach page tells you how to connect a unit, and what it costs.\n\n"
        f"{rows}\n\n{_toctree('Units', [unit.name for unit in UNITS.values()])}"
    )


def _interface() -> str:
    """Return the page of the Python interface."""
    parts = ["# Python interface", "What you import, module by module."]
    for module in _MODULES:
        parts.append(f"## {module}")
        parts.append(
            f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :imported-members:\n```"
            if module in _GATHERED
            else f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```"
        )
    return "\n\n".join(parts) + "\n"


def _commands() -> str:
    """Return the page of the command line."""
    return (
        "# Command line\n\nEvery command with its options, as `--help` prints them.\n\n"
        "```{eval-rst}\n.. click:: m2xfp.cli:cli\n   :prog: m2xfp\n   :nested: full\n```\n"
    )


def build(root: Path, output: Path) -> Path:
    """Build the site into ``output`` and return its first page.

    Sources lie beside it, in ``<output>-source``. No network is needed.

    Raises
    ------
    InputError
        As ``assemble``.
    ToolError
        Sphinx warned or failed; the message has what it said.
    """
    source = assemble(root, output.with_name(f"{output.name}-source"))
    page = explorer_page(root / "docs" / "results", output.with_name(f"{output.name}-cache"))
    write_atomic(source / "extra" / "explorer" / "index.html", page)
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = run([*command, str(source), str(output)])
    if done.returncode:
        raise tool_failure("sphinx", str(source), done.stdout, done.returncode, str(output))
    return output / "index.html"
