"""Caches and outputs under abuse: damage, full disks, forbidden folders, odd paths, two at once."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from m2xfp import files
from m2xfp.cli import main
from m2xfp.errors import (
    FileError,
    InputError,
    ToolError,
    explain,
    memory_lack,
    tool_failure,
    unreadable,
)
from m2xfp.files import (
    SEAL,
    atomic_path,
    cache_environment,
    is_whole,
    plain_folder,
    put_folder,
    read_sealed,
    seal,
    try_place,
    write_atomic,
    write_sealed,
)
from m2xfp.tb.cache import cached_build, locked

UNIT = ("activation_quantizer", "--config", "bf16x8")
IMPOSSIBLE = ("file/below", "/proc/none/of/yours", "x" * 300)


def run(
    *arguments: object, cwd: Path, status: int, code: str = "", **environment: str | None
) -> str:
    """Run the command in a process of its own and return what it says; no traceback is allowed."""
    program = f"{code}\nfrom m2xfp.cli import main\nmain()"
    given = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr.count("\n") < 20, done.stderr
    return done.stdout + done.stderr


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", IMPOSSIBLE)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / place / "name.json"
    with pytest.raises(FileError, match=r"name\.json: .*; .*(choose|make)"):
        write_atomic(target, "text")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_a_folder_in_the_place_of_a_file_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="it is a folder"), atomic_path(tmp_path):
        pytest.fail("the work was begun")


@pytest.mark.parametrize(
    "arguments",
    [
        ("synth", "activation_decoder", "--json"),
        ("eval", "--windows", "1", "-o"),
        ("explore", "activation_quantizer", "-o"),
        ("demo", "--report"),
        ("train", "--steps", "1", "-o"),
        ("verilog", "activation_decoder", "-o"),
    ],
)
def test_a_path_is_tried_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """In /proc root has every permission, and nobody can make anything: the path is refused."""
    monkeypatch.chdir(tmp_path)
    import click

    from m2xfp.cli import cli

    with pytest.raises(click.BadParameter, match=r"/proc/m2xfp.*choose a"):
        cli.main([*arguments, "/proc/m2xfp/r.json"], standalone_mode=False)
    assert not list(tmp_path.iterdir())


def test_what_is_tried_is_removed_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("new/one")
    for place in ("file", "", "new", "new/deep/er", "new/../../x", "link"):
        try_place(tmp_path / place)
    for place, code in (("file/x", errno.ENOTDIR), ("circle", errno.ELOOP), ("x" * 300, 36)):
        with pytest.raises(OSError, match=os.strerror(code)):
            try_place(tmp_path / place)
    with pytest.raises(FileError, match="without a circle of links"):
        write_atomic(tmp_path / "circle", "text")
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "circle", "link"}
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_disk_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        try_place(tmp_path / "new" / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("eval", "--windows", "1"), ("formats",)])
def test_a_path_of_computing_is_looked_at_before_any_work(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    from m2xfp.cli import cli

    monkeypatch.setenv("M2XFP_PATH", "nope")
    monkeypatch.setattr("m2xfp.models.lm.load_model", lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(InputError, match="M2XFP_PATH='nope'; choose one of: auto, plain, fused"):
        cli.main([*arguments], standalone_mode=False)


def test_a_number_of_processes_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from m2xfp.models.devices import joined_processes

    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE='two'"), joined_processes(torch.device("cpu")):
        pytest.fail("the work was begun")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = write_atomic(tmp_path / "figures.json", "old")

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError) as caught:
        write_atomic(target, "new")
    assert str(target) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert target.read_text() == "old"


def test_another_file_is_not_called_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"/none\.npy: No such file"), atomic_path(tmp_path / "y"):
        (tmp_path / "none.npy").read_bytes()


def test_what_a_program_says_of_the_disk_is_heard(tmp_path: Path) -> None:
    said = "cc1plus: error: fatal: No space left on device\n"
    full = tool_failure("Verilator", "x.v", said, 1, tmp_path)
    assert isinstance(full, FileError)
    assert f"{tmp_path}: No space left on device; make room" in str(full)
    assert isinstance(tool_failure("g++", "x.v", "", -25, tmp_path), FileError)  # SIGXFSZ
    other = tool_failure("Verilator", "x.v", "a\n" * 99 + "%Error: syntax\n" * 40, 1, tmp_path)
    assert isinstance(other, ToolError)
    assert str(other).count("\n") == 12
    assert "a\n" not in str(other)
    assert "signal 9" in str(tool_failure("Verilator", "x.v", "", -9, tmp_path))


@pytest.mark.parametrize("library", ["safetensors", "torch", "numpy"])
def test_a_library_that_cannot_write_is_understood(tmp_path: Path, library: str) -> None:
    code = f"""
import resource
from pathlib import Path
import numpy, torch
from safetensors.torch import save_file
from m2xfp.errors import FileError
from m2xfp.files import atomic_path
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
x = torch.randn(10_000)
try:
    with atomic_path(Path("target")) as path, path.open("wb") as file:
        if {library!r} == "torch":
            torch.save(dict(x=x), file)
        elif {library!r} == "numpy":
            numpy.savez(file, x=x.numpy())
        else:
            save_file(dict(x=x), path)
except FileError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == (
        f"{tmp_path}/target: File too large; raise the limit on the size of files (ulimit -f)\n"
    ), done.stderr
    assert not list(tmp_path.iterdir())


def test_every_cause_has_a_remedy() -> None:
    assert explain(OSError(errno.ENOSPC, "full"), "/x") == (
        "/x: full; make room there, or choose a folder on another disk"
    )
    assert explain(OSError("odd")).startswith("odd; ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("verilog", *UNIT, "-o", "file/below"),
        ("lint", *UNIT, "-o", "file/below"),
        ("report", "-o", "file/below"),
        ("study", "sqnr", "--groups", "10", "-o", "file/below"),
        ("bench", "-o", "file/below"),
        ("eval", "-o", "file/below"),
        ("eval", "--save", "file/below"),
        ("synth", *UNIT, "--json", "file/below"),
        ("explore", UNIT[0], "--results", "file/below"),
        ("train", "-o", "file/below"),
        ("demo", "--build-dir", "file/below"),
        ("demo", "--report", "file/below"),
        ("simulate", *UNIT, "--input", "x.npy", "--output", "file/below"),
        ("simulate", *UNIT, "--input", "x.npy", "--output", "y", "--build-dir", "file/below"),
        ("fpga", "build", "icebreaker", "-o", "file/below"),
        ("fpga", "run", "x.npy", "--port", "none", "-o", "file/below"),
        ("fpga", "table", "--results", "file/below"),
    ],
    ids=" ".join,
)
def test_an_impossible_output_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("docs/results").mkdir(parents=True)
    np.save("x.npy", np.zeros((3, 32), np.uint16))
    monkeypatch.setattr(sys, "argv", ["m2xfp", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "part of the path is a file" in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in tmp_path.iterdir()} == {"file", "docs", "x.npy"}


@pytest.mark.parametrize("kind", ["device", "pipe", "output"])
def test_what_is_no_file_stays_in_its_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file moved onto /dev/null by root takes it away from the whole machine."""
    path = tmp_path / "x"
    if kind == "device":
        path.symlink_to(os.devnull)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/stdout")
        if not path.exists():
            pytest.skip("no /dev/stdout here")
    before = path.lstat()
    with pytest.raises(FileError, match="is a device or a pipe; choose a file"):
        write_atomic(path, "text")
    for arguments in (("synth", *UNIT, "--no-power", "--json"), ("verilog", *UNIT, "-o")):
        monkeypatch.setattr(sys, "argv", ["m2xfp", *arguments, str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "is a device or a pipe" in said or "is a file" in said, said
    assert path.lstat() == before


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a/file")
    for text in ("first", "second"):  # also while it leads nowhere yet
        write_atomic(tmp_path / "link", text)
        assert (tmp_path / "a" / "file").read_text() == text
        assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50), lambda: bytearray(1 << 50)],
    ids=["torch", "numpy", "python"],
)
def test_more_than_the_memory_holds(
    allocate: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("m2xfp.models.quality.measure_sqnr", lambda groups, seed: allocate())
    monkeypatch.setattr(sys, "argv", ["m2xfp", "study", "sqnr"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Error: not enough memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError("Cannot allocate memory (os error 12)"),
    ],
)
def test_memory_is_not_the_files_fault(error: Exception) -> None:
    """A model that finds no room is not one that is damaged."""
    assert str(memory_lack(error)).startswith("not enough memory")
    inner = InputError("within")
    inner.__cause__ = error
    for each in (error, inner):
        told = str(unreadable("m", "holds no model", each))
        assert "'m' cannot be read: not enough memory" in told
        assert "holds no" not in told
    assert str(unreadable("m", "holds no model", KeyError("x"))) == "'m' holds no model: 'x'"
    assert memory_lack(RuntimeError("shape of [4] is wrong")) is None


def test_listing_writes_nothing_and_needs_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/proc")
    monkeypatch.setattr(sys, "argv", ["m2xfp", "verilog", "--list"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "gemm_core" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verilog", "simulate", "lint", "synth"])
def test_a_working_folder_that_cannot_be_written(tmp_path: Path, command: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 32), np.uint16))
    files = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz")
    more = {"simulate": files, "synth": ("--no-power",)}.get(command, ())
    assert "/proc/build" in run(command, *UNIT, *more, cwd=Path("/proc"), status=2)


@pytest.mark.slow
def test_as_another_user_who_may_write_nothing() -> None:
    """The sources must be readable to others; where they are not, there is nothing to see.

    The folder is none of pytest's, which only their owner may enter.
    """
    drop = "import os\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        probe = subprocess.run(
            [sys.executable, "-c", f"{drop}import m2xfp, click, amaranth"],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent)},
            capture_output=True,
            check=False,
        )
        if os.getuid() or probe.returncode:
            pytest.skip("needs root, and sources that others can read")
        said = run("verilog", *UNIT, "-o", place / "v", cwd=place, status=2, code=drop)
        assert "Permission denied" in said
        (place / "v").mkdir()
        (place / "v").chmod(0o777)
        run("verilog", *UNIT, "-o", place / "v", cwd=place, status=0, code=drop, HOME="/root")
        assert {path.stat().st_uid for path in (place / "v").iterdir()} == {65534}


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """Stands for a full disk: the kernel refuses the write itself."""
    limit = textwrap.dedent(
        """
        import resource
        import m2xfp.rtl.verilog.emit as emission
        whole = emission.verilog_text
        def limited(*arguments):
            text = whole(*arguments)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
            return text
        emission.verilog_text = limited
        """
    )
    said = run("verilog", *UNIT, "-o", "v", cwd=tmp_path, status=2, code=limit)
    assert "activation_quantizer_bf16x8.v: File too large; raise the limit" in said
    assert not list((tmp_path / "v").iterdir())
    run("verilog", *UNIT, "-o", "v", cwd=tmp_path, status=0)
    assert len(list((tmp_path / "v").iterdir())) == 3


@pytest.mark.parametrize(
    "home",
    [
        {"HOME": None, "XDG_CACHE_HOME": None},
        {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": None},
        pytest.param({"XDG_CACHE_HOME": "/etc/passwd/below"}, marks=pytest.mark.slow),
    ],
    ids=["none", "missing", "forbidden"],
)
def test_without_a_home(tmp_path: Path, home: dict[str, str | None]) -> None:
    run("verilog", *UNIT, "-o", "v", cwd=tmp_path, status=0, **home)
    assert len(list((tmp_path / "v").iterdir())) == 3


def test_caches_of_programs_get_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files._cache_home.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_environment()["XDG_CACHE_HOME"] == str(tmp_path)
    files._cache_home.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    other = Path(cache_environment()["XDG_CACHE_HOME"])
    assert other.is_dir()
    assert str(other) != "/proc/none"
    files._cache_home.cache_clear()


# --- caches ---------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path: Path) -> Callable[[], Path]:
    """Return a function that asks for a build, whose log has a line for each time it is made."""
    verilog = write_atomic(tmp_path / "unit.v", "module unit; endmodule\n")

    def make(folder: Path) -> None:
        (folder / "result").write_text("right")
        with (tmp_path / "log").open("a") as log:
            log.write("built\n")

    return lambda: cached_build(tmp_path / "cache", "unit", verilog, ["fact"], make)


def times(tmp_path: Path) -> int:
    return (tmp_path / "log").read_text().count("\n")


def _truncate(folder: Path) -> None:
    (folder / "result").write_text("ri")


def _alter(folder: Path) -> None:
    (folder / "result").write_text("wrong")


def _lose(folder: Path) -> None:
    (folder / "result").unlink()


def _unseal(folder: Path) -> None:
    (folder / SEAL).unlink()


def _scribble(folder: Path) -> None:
    (folder / SEAL).write_text("[1")


def _replace(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("no folder")


@pytest.mark.parametrize("damage", [_truncate, _alter, _lose, _unseal, _scribble, _replace])
def test_a_damaged_build_is_made_anew(
    tmp_path: Path, build: Callable[[], Path], damage: Callable[[Path], None]
) -> None:
    folder = build()
    damage(folder)
    assert not is_whole(folder)
    assert (build() / "result").read_text() == "right"
    assert times(tmp_path) == 2
    assert build() == folder
    assert times(tmp_path) == 2


def test_leftovers_and_stale_locks_do_no_harm(tmp_path: Path, build: Callable[[], Path]) -> None:
    folder = build()
    folder.rename(tmp_path / "gone")
    left = folder.parent / f".build-{folder.name}"
    (left / "half" / "build").mkdir(parents=True)
    folder.with_name(f"{folder.name}.lock").write_text("1234")  # of a process that is no more
    assert build() == folder
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_read(
    tmp_path: Path, build: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build()

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert build() == folder
    _truncate(folder)
    with pytest.raises(FileError, match="Permission denied; choose a place"):
        build()


def test_two_at_once_build_once(tmp_path: Path, build: Callable[[], Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(build) for _ in range(8)]}
    assert len(found) == 1
    assert times(tmp_path) == 1


def test_a_build_whose_process_is_killed_is_made_by_the_next(
    tmp_path: Path, build: Callable[[], Path]
) -> None:
    code = textwrap.dedent(
        """
        import os, pathlib, sys
        from m2xfp.tb.cache import cached_build
        def make(folder):
            (folder / "result").write_text("ri")
            os.kill(os.getpid(), 9)
        place = pathlib.Path(sys.argv[1])
        cached_build(place / "cache", "unit", place / "unit.v", ["fact"], make)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -9
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith("unit")][1:]
    assert (build() / "result").read_text() == "right"
    assert not list((tmp_path / "cache").glob(".build-*"))


def test_the_first_of_two_finished_folders_stays(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    for text in ("first", "second"):
        made = tmp_path / "made"
        made.mkdir()
        (made / "result").write_text(text)
        put_folder(made, target)
        assert is_whole(target)
    assert (target / "result").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "made"} - {"made"}


def test_a_seal_of_some_files_leaves_the_others_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    seal(tmp_path, ["a"])
    (tmp_path / "b").write_text("changed")
    (tmp_path / "c").write_text("new")
    assert is_whole(tmp_path)
    (tmp_path / "a").write_text("changed")
    assert not is_whole(tmp_path)


def test_a_sealed_file_is_what_was_written_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    assert read_sealed(path) is None
    write_sealed(path, json.dumps([1.0, 2.5]))
    assert json.loads(read_sealed(path) or "") == [1.0, 2.5]
    for wrong in (b"", b"[1.0, 2.", b"[1.0, 2.6]", b"\xff\xfe"):
        path.write_bytes(wrong)
        assert read_sealed(path) is None
    write_sealed(path, b"[]")
    assert read_sealed(path) == b"[]"
    (tmp_path / ".losses.json.sha256").unlink()
    assert read_sealed(path) is None


def test_a_lock_whose_process_is_gone_is_free(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"):
        pass
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path / ".lock"):
        pass


def test_tools_work_where_the_path_has_only_plain_characters(tmp_path: Path) -> None:
    odd = tmp_path / "sp ace" / "it's"
    with plain_folder(odd) as folder:
        assert files.is_plain(folder)
        assert not list(folder.iterdir())
        assert not odd.exists()
    assert not folder.exists()
    with plain_folder(tmp_path / "here") as folder:
        assert folder.parent == tmp_path / "here"


def test_losses_that_were_damaged_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from m2xfp.models import evaluate
    from m2xfp.models.cases import FP
    from m2xfp.models.lm import LanguageModel, ModelConfig

    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(width=32, layers=1, heads=1, hidden=32, context=16)).eval()
    monkeypatch.setattr(evaluate, "load_model", lambda device: model)
    windows = torch.randint(256, (4, 16))
    first = evaluate.bundled_losses(FP, windows, tmp_path)
    (kept,) = tmp_path.glob("losses-*.json")
    whole = kept.read_text()
    for wrong in (whole[:20], whole.replace("5", "6"), "[1]", ""):
        kept.write_text(wrong)
        assert torch.equal(evaluate.bundled_losses(FP, windows, tmp_path), first)
        assert kept.read_text() == whole


# --- odd paths ------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / "sp ace" / "it's $HOME; `x` (1)"
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", np.zeros((3, 32), np.uint16))
    return folder


def test_simulate_in_a_folder_with_spaces_and_quotes(odd: Path) -> None:
    said = run("simulate", *UNIT, "--input", "x.npy", "--output", "y.npz", cwd=odd, status=0)
    assert "3 rows" in said
    (folder,) = (odd / "build" / "sim").glob("*-bulk-*[0-9a-f]")
    assert is_whole(folder)
    assert np.load(odd / "y.npz")["codes"].shape == (3, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("verilog", *UNIT),
        ("lint", *UNIT),
        ("synth", *UNIT, "--no-power"),
        ("fpga", "build", "icebreaker"),
        ("simulate", *UNIT, "--input", "x.npy", "--output", "y.npz", "--waves", "w.fst"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_commands_in_a_folder_with_spaces_and_quotes(odd: Path, arguments: tuple[str, ...]) -> None:
    run(*arguments, cwd=odd, status=0)


@pytest.mark.slow
def test_two_simulations_from_a_cold_start(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(96, dtype=np.uint16).reshape(3, 32))

    def simulate(name: str) -> bytes:
        arguments = ("simulate", *UNIT, "--input", "x.npy", "--output", name)
        run(*arguments, cwd=tmp_path, status=0)
        return (tmp_path / name).read_bytes()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(simulate, ("a.npz", "b.npz"))
    assert first == second
    (folder,) = (tmp_path / "build" / "sim").glob("*-bulk-*[0-9a-f]")
    (folder / "bulk.so").write_bytes((folder / "bulk.so").read_bytes()[:5000])
    assert simulate("c.npz") == first


# --- pipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("verilog", "--list"), ("formats",), ("--help",), ("gemm",)], ids=" ".join
)
def test_a_reader_may_leave_early(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", "from m2xfp.cli import main; main()", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before anything is written
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_command_whose_reader_has_left_goes_on(tmp_path: Path) -> None:
    command = f"m2xfp verilog {' '.join(UNIT)} -o v | true; echo ${{PIPESTATUS[0]}}"
    code = f"{sys.executable} -c 'from m2xfp.cli import main; main()'"
    done = subprocess.run(
        ["bash", "-c", command.replace("m2xfp", code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"
    assert len(list((tmp_path / "v").glob("*.v"))) == 1


def test_a_full_standard_output_is_told() -> None:
    command = [sys.executable, "-c", "from m2xfp.cli import main; main()", "formats"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
