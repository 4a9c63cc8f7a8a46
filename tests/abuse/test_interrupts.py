"""Commands that are interrupted: outputs whole or absent, caches healthy, nothing left running.

Each case runs once to its end. Then it is sent a signal at random moments, and run again in the
folder that the interruption left, where it must give what it gave at first. Seeds are printed; a
process counts as left over if it has the environment of the interrupted command.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import even

from m2xfp.interrupts import Interrupted, orderly_end
from m2xfp.processes import run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
START = 0.3  # seconds until the command has its handlers; before, Python's own are there
MARK = "M2XFP_INTERRUPT_TEST"
COMMAND = "from m2xfp.cli import main; main()"


@dataclass(frozen=True)
class Case:
    """A command, what it writes, and whether that is the same bytes every time, and all at once.

    ``source`` makes what it reads, beside the files of every case. ``code`` runs in front of the
    command, and ``state`` is a file that a run leaves for one with ``--resume`` to go on with.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    same: bool = True
    at_once: bool = False
    source: Callable[[Path], object] | None = None
    code: str = ""
    state: str = ""


# A model so small, with its state on disk after every step, that a run takes seconds.
SMALL = """
from functools import partial
from pathlib import Path
import torch
from m2xfp.models import lm, train
torch.set_num_threads(1)
lm.HELD_OUT = Path("text")
lm.ModelConfig = partial(lm.ModelConfig, width=32, layers=1, heads=2, hidden=64, context=16)
train.TrainConfig = partial(train.TrainConfig, checkpoint_seconds=0.0)
"""
TRAIN = ("train", "--steps", "40", "--batch", "2", "--corpus", "text", "-o", "m.safetensors")
SIMULATE = ("simulate", "activation_decoder", "--input", "x.npz", "--output", "y.npz")
EVAL = ("eval", "--windows", "2", "--context", "64", "--weights", "m2xfp-weight")
CASES = {
    case.name: case
    for case in (
        Case("verilog", ("verilog", "activation_decoder", "-o", "v"), ("v/*",)),
        Case("quantizers", ("verilog", "activation_quantizer", "-o", "v"), ("v/*",)),
        Case("simulate", SIMULATE, ("y.npz",), same=False),
        Case(
            "synth",
            ("synth", "activation_decoder", "--no-power", "--json", "r.json"),
            ("r.json", "build/synth/activation_decoder*/netlist.*"),
        ),
        Case("eval", (*EVAL, "--save", "m.safetensors", "-o", "e"), ("m.safetensors", "e/*")),
        Case(
            "bench",
            ("bench", "--format", "mxfp4", "--values", "4096", "-o", "b"),
            ("b/*",),
            same=False,
        ),
        Case(
            "fpga",
            ("fpga", "build", "icebreaker", "-o", "f", "--unit", "quantizer"),
            ("f/report.json", "f/top.bin"),
        ),
        Case(
            "convert",
            ("convert", "source", "out", "--to", "mxfp4", "--shard-size", "4MB"),
            ("out/config.json", "out/m2xfp*"),
            at_once=True,
            source=lambda folder: even(folder / "source", 6),
        ),
        Case(
            "train",
            TRAIN,
            ("m.safetensors",),
            source=lambda folder: (folder / "text").write_bytes(bytes(range(256))),
            code=SMALL,
            state="m.safetensors.state",
        ),
        Case(
            "demo",
            ("demo", "--windows", "1", "--perplexity-windows", "2"),
            ("build/verilog/*", "build/demo/*"),
        ),
    )
}


def start(case: Case, folder: Path, mark: str) -> "subprocess.Popen[str]":
    goes_on = bool(case.state) and (folder / case.state).exists()
    return subprocess.Popen(
        [
            *(sys.executable, "-c", case.code + COMMAND, *case.arguments),
            *(["--resume"] if goes_on else []),
        ],
        cwd=folder,
        env={**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def marked(mark: str) -> list[str]:
    """Return the command lines of all processes that a command with this mark has left."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line]


def prepare(case: Case, folder: Path) -> Path:
    folder.mkdir()
    if case.source is not None:
        case.source(folder)
    codes = np.random.default_rng(0).integers(0, 16, (64, 8)).astype(np.uint8)
    np.savez(folder / "x.npz", codes=codes, meta=codes[:, 0] % 4)
    return folder


def written(case: Case, folder: Path) -> dict[str, bytes]:
    """Return the outputs that are there, every one of which must be whole by itself."""
    found = {}
    for pattern in case.outputs:
        for path in folder.glob(pattern):
            if path.name.startswith("."):
                continue
            data = path.read_bytes()
            if path.suffix == ".json":
                json.loads(data)
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    data = b"".join(arrays[name].tobytes() for name in sorted(arrays.files))
            found[path.relative_to(folder).as_posix()] = data
    return found


def finished(case: Case, folder: Path) -> tuple[dict[str, bytes], float]:
    """Run a case to its end; return outputs and seconds."""
    begun = time.monotonic()
    process = start(case, folder, uuid.uuid4().hex)
    told, _ = process.communicate(timeout=900)
    assert process.returncode == 0, told
    found = written(case, folder)
    assert found
    return found, time.monotonic() - begun


def interrupted(case: Case, folder: Path, number: signal.Signals, moment: float) -> bool:
    """Send a signal at a moment; whatever is left must be in order. Return whether all was done.

    Then the interpreter was about to end, and ends by the signal; shells give that the same status.
    """
    mark = uuid.uuid4().hex
    process = start(case, folder, mark)
    time.sleep(moment)
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode in {STATUS[number], -number, 0}, told
    assert "Traceback" not in told
    in_order = process.returncode == STATUS[number]
    assert number == signal.SIGKILL or not in_order or "Interrupted." in told
    for _ in range(50):
        if not (left := marked(mark)):
            return not in_order
        time.sleep(0.1)
    raise AssertionError(left)


def check(name: str, place: Path, moments: list[tuple[signal.Signals, float]]) -> None:
    """Hold a case against all this; moments are shares of its run from START to its end."""
    case = CASES[name]
    first = prepare(case, place / "first")
    right, seconds = finished(case, first)
    for index, (number, share) in enumerate(moments):
        folder = prepare(case, place / f"run{index}")
        moment = START + share * max(0.0, seconds - START)
        print(f"{name}: {number.name} after {moment:.2f} of {seconds:.2f} s")
        done = interrupted(case, folder, number, moment)
        half = written(case, folder)
        assert not (done or (half and case.at_once)) or half.keys() == right.keys()
        if half and case.at_once:  # it refuses to write there once more
            shutil.rmtree(folder / Path(case.outputs[0]).parent)
        again, _ = finished(case, folder)
        if case.same:
            assert again == right
            assert half == {path: right[path] for path in half}
        assert again.keys() == right.keys()


# The normal run: the commands that take a second or two, a moment of each kind of signal.


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("verilog", (signal.SIGINT, signal.SIGTERM)), ("synth", (signal.SIGKILL,))],
)
def test_a_moment(name: str, numbers: tuple[signal.Signals, ...], tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    check(name, tmp_path, [(number, rng.random()) for number in numbers])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("verilog", 12),
        ("quantizers", 12),
        ("simulate", 12),
        ("synth", 18),
        ("eval", 18),
        ("bench", 12),
        ("convert", 18),
        ("train", 12),
        ("fpga", 6),
        ("demo", 3),
    ],
)
def test_many_moments(name: str, count: int, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    check(name, tmp_path, [(SIGNALS[i % 3], rng.random()) for i in range(count)])


def test_what_is_started_hears_an_interrupt() -> None:
    """A shell's job in the background starts its programs so that they do not: see conftest."""
    told = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    assert run([sys.executable, "-c", told]).stdout == "False\n"


# The two modules behind it


def test_programs_run_as_with_subprocess(tmp_path: Path) -> None:
    words = ["a b", "$HOME", "`x`", "", "-n", "*", "\\", "'", '"', ";", "é", "new\nline"]
    shown = run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], cwd=tmp_path)
    assert shown.stdout == f"{words}\n"
    apart = run(["sh", "-c", "cat; echo wrong >&2; exit 3"], text="right", merged=False)
    assert (apart.returncode, apart.stdout, apart.stderr) == (3, "right", "wrong\n")
    lines: list[str] = []
    assert run(["sh", "-c", "echo 1; echo 2"], on_line=lines.append).stdout == ""
    assert lines == ["1\n", "2\n"]
    with pytest.raises(FileNotFoundError, match="no program 'no-such-program'"):
        run(["no-such-program"])


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Return a function that starts a Python process with a grandchild that sleeps."""
    started = []

    def begin(code: str) -> "subprocess.Popen[str]":
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append((process, mark))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process, mark in started:
        process.kill()
        process.communicate()
        for _ in range(50):
            if not marked(mark):
                break
            time.sleep(0.1)
        assert not marked(mark)


TREE = """
import sys
from m2xfp.processes import run
show = lambda line: print(line, end="", flush=True)
run(["sh", "-c", "(sleep 60 & sleep 60) & echo ready; sleep 60"], on_line=show)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_what_programs_start_ends_with_us(child, number: signal.Signals) -> None:
    process = child(TREE)
    process.send_signal(number)
    assert process.wait(10) != 0


DROPPED = """
import time
from m2xfp.interrupts import leave, orderly_end
class Freed:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
try:
    with orderly_end() as received:
        Freed()
        time.sleep(60)
except KeyboardInterrupt:
    leave(received[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_drops_comes_again(child, number: signal.Signals) -> None:
    process = child(DROPPED)
    process.send_signal(number)
    assert process.wait(10) == STATUS[number]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted), orderly_end() as received:
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
