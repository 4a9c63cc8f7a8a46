"""The accelerator's registers from their one source, a SystemRDL file.

``m2xfp registers`` writes what follows from it: the map that the hardware and the driver are built
from (``rtl/parts/accelerator_map.py``), a C header, a page and an IP-XACT description.
"""

import tempfile
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.extras import require

__all__ = ["SOURCE", "register_files"]

SOURCE = Path(__file__).parents[1] / "parts" / "accelerator.rdl"

_HEAD = '''"""The accelerator's registers, made from accelerator.rdl by `m2xfp registers`."""

__all__ = ["FIELDS", "OFFSETS"]

'''
_PAGE = """# The accelerator's registers

A program drives the accelerator ([accelerator-unit.md](accelerator-unit.md)) through these
registers. This page, the C header [accelerator-registers.h](accelerator-registers.h) and the
IP-XACT description [accelerator-registers.xml](accelerator-registers.xml) are made by
`m2xfp registers` from [`rtl/parts/accelerator.rdl`](../rtl/parts/accelerator.rdl), as is the map
that the hardware is built from.

"""


def _elaborate(source: Path) -> Any:
    from systemrdl import RDLCompileError, RDLCompiler

    compiler = RDLCompiler()
    try:
        compiler.compile_file(str(source))
        return compiler.elaborate().top
    except RDLCompileError as error:
        raise InputError(f"{source} is no register description ({error})") from error


def _map(top: Any) -> str:
    """Return the map as Python: offsets, and lowest bit and width of each field."""
    offsets, fields = ["OFFSETS = {"], ["FIELDS = {"]
    for register in top.registers():
        name = register.inst_name
        offsets.append(f'    "{name}": 0x{register.absolute_address:03X},')
        parts = [f'"{part.inst_name}": ({part.low}, {part.width})' for part in register.fields()]
        line = f'    "{name}": {{{", ".join(parts)}}},'
        if len(line) > 100:
            inner = "".join(f"        {part},\n" for part in parts)
            line = f'    "{name}": {{\n{inner}    }},'
        fields.append(line)
    texts = ['"""Byte offset of each register."""', '"""Lowest bit and width of each field."""']
    return (
        _HEAD
        + "\n".join([*offsets, "}", texts[0], ""])
        + "\n"
        + "\n".join([*fields, "}", texts[1], ""])
    )


def register_files(source: Path = SOURCE) -> dict[str, str]:
    """Return the files that follow from the source, by where they stand in the repository.

    Raises
    ------
    MissingToolError
        If a package of the extra ``registers`` is missing.
    InputError
        If the source is no register description.
    """
    require("systemrdl", "peakrdl_cheader", "peakrdl_markdown", "peakrdl_ipxact")
    from peakrdl_cheader.exporter import CHeaderExporter
    from peakrdl_ipxact import IPXACTExporter
    from peakrdl_markdown import MarkdownExporter

    top = _elaborate(source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        CHeaderExporter().export(top, path=str(folder / "accelerator_registers.h"))
        MarkdownExporter().export(top, str(folder / "accelerator_registers.md"))
        IPXACTExporter(vendor="m2xfp", library="m2xfp").export(
            top, str(folder / "accelerator_registers.xml")
        )
        header, page, ipxact = (
            (folder / f"accelerator_registers.{kind}").read_text() for kind in ("h", "md", "xml")
        )
    return {
        "rtl/parts/accelerator_map.py": _map(top),
        "docs/accelerator-registers.h": header,
        "docs/accelerator-registers.md": _PAGE + page.partition("-->")[2].lstrip(),
        "docs/accelerator-registers.xml": ipxact,
    }
