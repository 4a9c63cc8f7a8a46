"""Lines of Verilog that are too long, folded at their spaces: no name is ever cut."""

import re

__all__ = ["folded"]

_WIDTH = 100
# Spaces within quotes divide nothing, nor do those of a comment up to the end of its line.
_PIECES = re.compile(r'//.*|(?:"(?:[^"\\]|\\.)*"|[^\s"])+')


def folded(text: str) -> str:
    """Return Verilog with no line of over 100 characters, where spaces allow that.

    What is behind a break stands four spaces further in than its line. Lines that are comments stay
    as they are.
    """
    return "".join(f"{_folded(line)}\n" for line in text.splitlines())


def _folded(line: str) -> str:
    if len(line) <= _WIDTH or line.lstrip().startswith("//"):
        return line
    margin = " " * (len(line) - len(line.lstrip()))
    lines = [margin]
    for piece in _PIECES.findall(line):
        if len(lines[-1]) + 1 + len(piece) > _WIDTH and lines[-1].strip():
            lines.append(f"{margin}    ")
        lines[-1] += piece if not lines[-1].strip() else f" {piece}"
    return "\n".join(lines)
