"""Plain names for what yosys names: wires, instances and temporaries of a module."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain, count

from m2xfp.rtl.verilog.body import DECLARATION, INSTANCE, PORT
from m2xfp.rtl.verilog.component import EmittedModule

__all__ = ["bodies", "outputs", "plain_names", "renamed"]

_MODULE = re.compile(r"^module (\S+?)\(.*?\);\n(.*?)^endmodule\n", re.MULTILINE | re.DOTALL)
_MEMORY_OF_ZEROS = re.compile(
    r"^  initial begin\n(?:    \S+ ?\[\d+\] = \d+'h0+;\n)+  end\n", re.MULTILINE
)
_CONNECTION = re.compile(r"    \.(\w+)\((\\\S+ |\w+)\)")
_IDENTIFIER = re.compile(r"(?<![\w'.])[A-Za-z_]\w*")
_NAME = re.compile(r"(\\\S+) |(?<![\w$'.\\])[A-Za-z_]\w*")


def bodies(text: str) -> dict[str, str]:
    """Return what stands in each module between its head and its end.

    Memories of zeros, Amaranth's default, lose their contents, since a chip's memory has none;
    others are ROMs.
    """
    return {match[1]: _MEMORY_OF_ZEROS.sub("", match[2]) for match in _MODULE.finditer(text)}


def outputs(parts: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the names of the outputs of each module."""
    return {
        name: {port for direction, _, port in PORT.findall(body) if direction == "output"}
        for name, body in parts.items()
    }


def plain_names(text: str, modules: Mapping[str, EmittedModule]) -> dict[str, dict[str, str]]:
    """Return, by module, the plain name of each wire, register, instance and escaped name.

    No two in a module share one. The wire at an output of an instance is called
    <instance>_<port>. An instance is called u_<name> if a module has a wire of its name, which
    would hide the instance there. Temporaries are called t0, t1, ...; other escaped names lose
    their special characters. Names without any are escaped because they are keywords of
    SystemVerilog; they get a number.
    """
    parts = bodies(text)
    results = outputs(parts)
    wires = {_bare(raw.strip()) for _, _, raw in DECLARATION.findall(text)}
    return {
        name: _names(parts[name], {"clk", "rst", *module.ports}, results, wires)
        for name, module in modules.items()
    }


def _names(
    body: str, keep: set[str], results: Mapping[str, set[str]], wires_anywhere: set[str]
) -> dict[str, str]:
    """Return the plain names of a module, which keeps the names of its ports."""
    declared = [raw.strip() for _, _, raw in DECLARATION.findall(body)]
    functions = set(re.findall(r"^  function .*?(\\\S+) ;$", body, re.MULTILINE))
    instances = dict.fromkeys(match[2].strip() for match in INSTANCE.finditer(body))
    at_instance = {
        wire.strip(): f"{_bare(instance.strip())}_{port}"
        for submodule, instance, connections in INSTANCE.findall(body)
        for port, wire in _CONNECTION.findall(connections)
        if port in results.get(submodule, ()) and wire.strip() not in keep
    }
    names = [*instances, *at_instance, *declared, *re.findall(r"\\\S+(?= )", body)]
    unescaped = set(_IDENTIFIER.findall(re.sub(r"\\\S+ ", " ", body)))
    taken = keep | (unescaped - {*declared, *instances})
    numbers = count()
    plain = {name: name for name in taken}

    def candidates(raw: str) -> Iterator[str]:
        if raw in instances and _bare(raw) in wires_anywhere:
            return iter([f"u_{_bare(raw)}"])
        if raw in functions:
            return (f"choice_{n}" for n in count())
        if raw not in at_instance and re.match(r"\\\$|\\.*\$procmux|_\d+_$", raw):
            return (f"t{n}" for n in numbers)
        base = at_instance.get(raw, _bare(raw))
        # A keyword is escaped although it is plain.
        first = [] if raw == f"\\{base}" else [base]
        return chain(first, (f"{base}_{n}" for n in count(1)))

    for raw in dict.fromkeys(names):
        if raw not in plain:
            plain[raw] = next(name for name in candidates(raw) if name not in taken)
            taken.add(plain[raw])
    return plain


def renamed(body: str, names: Mapping[str, str]) -> str:
    """Return the text of a module with other names."""
    return _NAME.sub(lambda match: names.get(match[1] or match[0], match[0]), body)


def _bare(raw: str) -> str:
    """Return a name without special characters and without the numbers that kept it apart."""
    return re.sub(r"\W+", "_", re.sub(r"\$\d+", "", raw.removeprefix("\\")))
