"""The driver in C as a folder: headers, an example, and the accelerator that it runs on."""

import shutil
from pathlib import Path

from m2xfp.facts import EmittedFiles
from m2xfp.files import write_atomic
from m2xfp.rtl.verilog.registers import register_files
from m2xfp.tb.axi.model import axi_library

__all__ = ["driver_files", "simulated_library"]

SOURCES = Path(__file__).parent / "c"
LIBRARY = "libm2xfp_accelerator.so"
_MAKEFILE = f"""# The example of the accelerator's driver, on the simulated accelerator.
CFLAGS = -std=c99 -O2 -Wall -Wextra -Werror -pedantic

example: example.c m2xfp_accelerator.h m2xfp_simulated.h accelerator-registers.h {LIBRARY}
\t$(CC) $(CFLAGS) -o $@ example.c -L. -lm2xfp_accelerator -Wl,-rpath,'$$ORIGIN'

clean:
\trm -f example
"""


def driver_files(folder: Path) -> list[Path]:
    """Write headers, example and Makefile into a folder; return their paths."""
    texts = {path.name: path.read_text() for path in sorted(SOURCES.iterdir())}
    header = "accelerator-registers.h"
    texts |= {header: register_files()[f"docs/{header}"], "Makefile": _MAKEFILE}
    return [write_atomic(folder / name, text) for name, text in texts.items()]


def simulated_library(files: EmittedFiles, folder: Path, build_dir: Path) -> Path:
    """Build an emitted accelerator and its memory as a library in a folder; return its path.

    ``build_dir`` is the folder of the build cache.
    """
    library = axi_library(files, build_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(library, folder / LIBRARY))
