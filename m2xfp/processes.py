"""Programs that this one runs: none of them, nor what they start, outlives it.

Compilers, simulators and place-and-route run for minutes and start processes of their own, which a
signal to this process does not reach. So each program gets a process group, and the group is ended
when the call is left for any reason: an interrupt, an exception, and, through a pipe that a small
guard process reads, even when this process is killed without a chance to do anything.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from m2xfp.files import is_plain

__all__ = ["run"]

# Variables that name a folder for temporary files. Icarus and yosys put that into a shell's line.
_TEMPORARY = ("TMPDIR", "TMP", "TEMP")

# The guard is no child of the program: some programs wait for any child. It holds none of the
# program's files open, so that the end of their output is seen. Arguments come as "$@" and are
# never read as text of the script.
_GUARDED = (
    '((read -r _ </dev/fd/$0; kill -KILL 0) </dev/null >/dev/null 2>&1 &) 2>/dev/null; exec "$@"'
)


def run(
    command: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    text: str | None = None,
    merged: bool = True,
    seconds: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its exit status and output, whatever they are.

    Parameters
    ----------
    command
        Program and arguments, no shell.
    cwd, environment
        Folder to run in, and all variables; those of this process if left out. A folder for
        temporary files whose name has more than letters, digits and the like is /tmp instead.
    text
        Standard input; nothing if left out.
    merged
        Whether errors come with the output, in order; otherwise they are apart.
    seconds
        How long it may take. Goes without ``on_line``.
    on_line
        Called with each line of the output as it comes, the output of the result then being empty.
        Goes with ``merged`` and without ``text``.

    Raises
    ------
    FileNotFoundError
        There is no such program.
    subprocess.TimeoutExpired
        It took longer than ``seconds``, and was ended.
    """
    program = _found(command[0], cwd, environment)
    here, guard = os.pipe()
    try:
        with subprocess.Popen(
            ["/bin/sh", "-c", _GUARDED, str(here), program, *command[1:]],
            cwd=cwd,
            env=_with_plain_names(os.environ if environment is None else environment),
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=(here,),
        ) as process:
            try:
                if on_line is None:
                    out, errors = process.communicate(text, timeout=seconds)
                else:
                    assert process.stdout is not None
                    out, errors = "", None
                    for line in process.stdout:
                        on_line(line)
                    process.wait()
            except BaseException:
                _end(process)
                raise
        return subprocess.CompletedProcess(list(command), process.returncode, out, errors)
    finally:
        os.close(guard)
        os.close(here)


def _with_plain_names(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which no folder for temporary files has a name that is code."""
    hostile = [name for name in _TEMPORARY if not is_plain(environment.get(name, "/tmp"))]
    return {**environment, **dict.fromkeys(hostile, "/tmp")}


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a program and all that it has started."""
    if process.returncode is None:  # so its number is not another process's yet
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _found(
    program: str, cwd: str | os.PathLike[str] | None, environment: Mapping[str, str] | None
) -> str:
    """Return the path of a program as exec would find it; FileNotFoundError if there is none."""
    import shutil

    if os.sep in program:
        path = Path(cwd or ".", program)
        if path.is_file():
            return program
    elif found := shutil.which(program, path=(environment or os.environ).get("PATH")):
        return found
    raise FileNotFoundError(f"no program {program!r}")
