"""Notebooks as pages: their texts, their code, and what it printed and drew when it last ran."""

from pathlib import Path
from typing import Any

from m2xfp.plain import read_json

__all__ = ["notebook_page"]


def notebook_page(path: Path) -> str:
    """Return a notebook (.ipynb, version 4) as markdown."""
    parts = []
    for cell in read_json(path)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = "".join(
            "".join(each["text"]) for each in cell["outputs"] if each["output_type"] == "stream"
        )
        parts += [f"```text\n{printed.rstrip()}\n```"] if printed else []
        parts += [picture for each in cell["outputs"] if (picture := _picture(each))]
    return "\n\n".join(parts) + "\n"


def _picture(output: dict[str, Any]) -> str:
    """Return what a cell drew, within the page; empty for another output."""
    image = output.get("data", {}).get("image/png")
    if image is None:
        return ""
    data = "".join("".join(image).split())
    picture = f'<img alt="a plot of the figures above" src="data:image/png;base64,{data}">'
    return f"```{{raw}} html\n{picture}\n```"
