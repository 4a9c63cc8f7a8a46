"""The Verilog writer changes nothing: each module is proved equal to Amaranth's own."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from choices import usual_first
from equivalence import Netlist, NotEqualError, prove_equal, read

from m2xfp.rtl.catalog import find_unit, select
from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.emit import yosys_verilog
from m2xfp.rtl.verilog.expression import Expression, parse, substitute
from m2xfp.rtl.verilog.writer import plain_names, rewrite

ALL = [(instance.unit.name, instance.config) for instance in select()]
# The first configuration of every unit, but a small one where that takes long.
USUAL = {unit: (unit, config) for unit, config in reversed(ALL)}
USUAL |= {
    "activation_quantizer": ("activation_quantizer", "bf16x8"),
    "weight_encoder": ("weight_encoder", "bf16-fixed-4"),
}

# Modules that are proved, as text before and after; configurations have many in common.
PROVED: set[tuple[str, str]] = set()


@cache
def raw_emission(unit: str, config: str) -> tuple[str, dict[str, EmittedModule]]:
    instance = find_unit(unit).instance(config)
    return yosys_verilog(instance.component, instance.top)


def module_texts(text: str) -> dict[str, str]:
    return {
        match[1]: match[0]
        for match in re.finditer(r"^module (\w+) .*?^endmodule$", text, re.MULTILINE | re.DOTALL)
    }


def prove(unit: str, config: str, folder: Path, text: str | None = None) -> None:
    """Prove ``text``, the writer's if None, equal to what Amaranth gives."""
    raw, modules = raw_emission(unit, config)
    text = text or rewrite(raw, modules)
    top = next(reversed(modules))
    design = "\n".join(module.rtlil for module in modules.values())
    (folder / "amaranth.il").write_text(design)
    (folder / "written.v").write_text(text)
    names = plain_names(raw, modules)

    def name_in_text(module: str, name: str) -> str:
        bare = name.removeprefix("\\")
        return names[module].get(bare) or names[module].get(f"\\{bare}") or bare

    texts = module_texts(text)
    assert texts.keys() == modules.keys()
    keys = {
        name: (module.rtlil.replace(top, "top"), texts[name].replace(top, "top"))
        for name, module in modules.items()
    }
    prove_equal(
        folder,
        read(folder, "read_rtlil amaranth.il", name_in_text, purge=True),
        read(folder, "read_verilog -sv written.v"),
        proved={name for name, key in keys.items() if key in PROVED},
    )
    PROVED.update(keys.values())


@pytest.mark.parametrize("names", usual_first(ALL, USUAL.values()), ids="-".join)
def test_written_equals_amaranths(names: tuple[str, str], tmp_path: Path) -> None:
    prove(*names, tmp_path)
