"""slang as a program, since its Python package brings none: what follows are slang's options."""

import sys

from m2xfp.extras import require

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Read, elaborate and analyse; what slang has to say goes where it would."""
    require("pyslang")
    from pyslang.driver import Driver

    driver = Driver()
    driver.addStandardArgs()
    ready = (
        driver.parseCommandLine(" ".join(["slang", *arguments]))
        and driver.processOptions()
        and driver.parseAllSources()
    )
    return 0 if ready and driver.runFullCompilation(True) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
