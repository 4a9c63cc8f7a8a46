"""Progress: a bar on a terminal, whole lines in a log."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from checkpoint_files import as_gguf

from m2xfp import progress
from m2xfp.progress import track

ROOT = Path(__file__).parent.parent
WORK = "from m2xfp.progress import track\nfor _ in track(range(3), desc='work'): pass"


def test_a_log_has_whole_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", desc="letters", unit="letter")) == ["a", "b", "c"]
    with track(total=5, desc="steps") as bar:
        bar.update(2)
        bar.note("half way")
    list(track(iter([1]), desc="unknown", unit="file"))
    out, err = capfd.readouterr()
    assert out == ""
    assert "\r" not in err
    assert re.fullmatch(
        r"letters: 3 of 3 letters, \d\.\d s\nsteps: 2 of 5 steps, \d\.\d s, half way\n"
        r"unknown: 1 file, \d\.\d s\n",
        err,
    )


def test_long_work_says_where_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 8))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
    with track(total=20, desc="long", unit="window", leave=False) as bar:
        for _ in range(20):
            bar.update()
    lines = capfd.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 7
    assert all(re.fullmatch(r"long: \d+ of 20 windows?, \d+\.0 s", line) for line in lines)


def test_quiet_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with track(total=5, desc="steps", quiet=True) as bar:
        bar.update(5)
    assert bar.n == 5
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_loop_ends_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    for item in track(range(9), desc="search"):
        if item == 2:
            break
    assert capfd.readouterr().err.startswith("search: 2 of 9 steps")


def test_a_terminal_has_a_bar() -> None:
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # A command that was called in this process may have left it behind.
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    call = [sys.executable, "-c", WORK]
    subprocess.run(call, stderr=side, cwd=ROOT, env=environment, check=True)
    drawn = os.read(main, 10_000).decode()
    os.close(side)
    os.close(main)
    assert "\rwork: 100%|" in drawn


def test_a_reader_of_the_log_may_leave() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORK], stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stderr is not None
        process.stderr.close()
    assert process.returncode == 0


@pytest.mark.parametrize("given", ["m.gguf", pytest.param("plain", marks=pytest.mark.slow)])
def test_libraries_draw_no_bars_in_a_log(given: str, tmp_path: Path) -> None:
    """transformers writes weights, and reads those of llama.cpp, with a bar of its own."""
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    as_gguf(tmp_path / "m.gguf", "MXFP4")
    (tmp_path / "text").write_text("t0 t 0 " * 40)
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    call = [sys.executable, "-c", "from m2xfp.cli import main; main()"]
    commands = [("eval", given, "--text", "text", "--context", "16", "--weights", "mxfp4")]
    if given == "plain":
        commands.insert(0, ("convert", "m.gguf", given, "--to", "bfloat16"))
    for words in commands:
        done = subprocess.run(
            [*call, *words], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        told = done.stderr.decode()
        assert done.returncode == 0, told
        assert "\r" not in told, told
        assert "|" not in told, told


def test_every_bar_is_one_of_these() -> None:
    for folder in ("m2xfp", "golden", "models", "rtl", "tb", "synth", "fpga", "manual"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "progress.py":
                text = path.read_text()
                assert not re.search(r"\btqdm\b", text), f"{path}: use m2xfp.progress.track"
