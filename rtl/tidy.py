"""Makes the Verilog that yosys writes readable: ANSI ports, plain names, no initial values."""

import re
from collections.abc import Mapping
from itertools import chain, count

from m2xfp.rtl.component import EmittedModule

__all__ = ["tidy"]

_MODULE = re.compile(r"^module (\S+?)\(.*?\);\n(.*?)^endmodule\n", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"^  (input|output) (\[\d+:0\] )?(\S+);\n", re.MULTILINE)
_MEMORY_CONTENTS = re.compile(
    r"^  initial begin\n(?:    \S+\[\d+\] = \d+'h[0-9a-f]+;\n)+  end\n", re.MULTILINE
)
_ESCAPED = re.compile(r"\\(\S+) ")


def tidy(text: str, modules: Mapping[str, EmittedModule]) -> str:
    """Return Verilog ``text`` rewritten for people, the top module first.

    Ports are declared in the module's head, clk and rst first, the others in the order of the
    signature; temporaries are called t0, t1, ...; other escaped names lose their special
    characters; initial values are dropped, since a chip has none.
    """
    bodies = dict(match.groups() for match in _MODULE.finditer(text))
    return "\n".join(
        _tidy_module(name, bodies[name], module) for name, module in reversed(modules.items())
    )


def _tidy_module(name: str, body: str, module: EmittedModule) -> str:
    body = _plain_names(body, keep={"clk", "rst", *module.ports})
    body = re.sub(r"^(  reg .*?) = [^;]+;$", r"\1;", body, flags=re.MULTILINE)
    body = _MEMORY_CONTENTS.sub("", body)
    directions = {port: direction for direction, _, port in _PORT.findall(body)}
    body = _PORT.sub("", body)
    head = []
    for port in ("clk", "rst", *module.ports):
        if port not in directions:
            continue
        declaration = re.compile(rf"^  (wire|reg) (\[\d+:0\] )?{port};\n", re.MULTILINE)
        match = declaration.search(body)
        assert match, f"{name}: port {port} has no declaration"
        body = declaration.sub("", body, count=1)
        head.append(f"  {directions[port]:<6} {match[1]:<4} {match[2] or '':<8}{port}")
    return f"// {module.summary}\nmodule {name} (\n" + ",\n".join(head) + f"\n);\n{body}endmodule\n"


def _plain_names(body: str, keep: set[str]) -> str:
    """Give each escaped name of a module a plain one that no other name has.

    Names without special characters are escaped because they are keywords of SystemVerilog; they
    get an underscore.
    """
    taken = keep | set(re.findall(r"(?<![\\\w$'])[A-Za-z_]\w*", _ESCAPED.sub(" ", body)))
    numbers = count()
    plain: dict[str, str] = {}
    for escaped in dict.fromkeys(_ESCAPED.findall(body)):
        if escaped.startswith("$") or "$procmux" in escaped:
            candidates = (f"t{number}" for number in numbers)
        else:
            base = re.sub(r"\W+", "_", re.sub(r"\$\d+$", "", escaped)).strip("_")
            candidates = chain([base] if base != escaped else [], (f"{base}_{n}" for n in count(1)))
        plain[escaped] = next(name for name in candidates if name not in taken)
        taken.add(plain[escaped])
    return re.sub(r" +([;)\]])", r"\1", _ESCAPED.sub(lambda match: plain[match[1]] + " ", body))
