"""Every command with random option values: an answer with status 0 or 2, or the work begins.

Where work begins, programs and long computations are replaced by an exception, so what is tried is
all that a command does with its options before. Seeds count up, as in test_loaders.
"""

import contextlib
import importlib
import io
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from fuzzing import HOSTILE, Forbidden, guarded

from m2xfp.cli import cli
from m2xfp.commands.options import OUTPUT, InputPath, Number
from m2xfp.errors import M2xfpError
from m2xfp.formats import BLOCK_FORMATS
from m2xfp.fpga.flow.boards import BOARDS
from m2xfp.rtl.catalog import UNITS
from m2xfp.synth.flow.pdk import PDKS


class ReachedError(BaseException):
    """The options were taken, and the work would begin."""


def _reached(*_arguments: object, **_keywords: object) -> None:
    raise ReachedError


# Where work begins that takes no program.
WORK = (
    "m2xfp.accelerator.driver.driver_files",
    "m2xfp.accelerator.generation.generate_golden",
    "m2xfp.fpga.flow.bitstream.build",
    "m2xfp.fpga.check.bitstream_check.check_bitstream",
    "m2xfp.fpga.flow.report.write_results",
    "m2xfp.fpga.host.link._open",
    "m2xfp.manual.explorer.explorer_page",
    "m2xfp.manual.site.build",
    "m2xfp.models.activations.layer_inputs",
    "m2xfp.models.bench.bench",
    "m2xfp.models.family_study.family_figures",
    "m2xfp.models.model_study.model_figures",
    "m2xfp.models.recipe_study.recipe_figures",
    "m2xfp.models.bench_products.bench_products",
    "m2xfp.models.evaluate.bundled_losses",
    "m2xfp.models.evaluate.window_nats",
    "m2xfp.models.libraries.findings",
    "m2xfp.models.lm.load_model",
    "m2xfp.models.quality.measure_sqnr",
    "m2xfp.models.train.train",
    "m2xfp.rtl.verilog.emit.emit",
    "m2xfp.synth.checks.measure.check_instance",
    "m2xfp.tb.bench.random_operands",
    "m2xfp.rtl.verilog.registers.register_files",
    "m2xfp.synth.coverage.measure.measure",
    "m2xfp.synth.formal.record.prove",
    "m2xfp.synth.mutants.kill.measure",
    "m2xfp.synth.report.figures.measure_all",
    "m2xfp.synth.studies.explore.explore",
    "m2xfp.synth.studies.gemm_perplexity.compare_perplexity",
)
STUDIES = (
    "accelerator_area",
    "array",
    "measured_accelerator",
    "paper_accelerator",
    "fractions",
    "gemm",
    "mac",
    "paper",
    "paths",
    "sram",
    "linear_layers",
    "dot_layers",
    "mixed_layers",
)


def leaves(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = dict(leaves(cli))
WORDS = (
    *UNITS,
    *BLOCK_FORMATS,
    *BOARDS,
    *PDKS,
    *(
        "bf16x32",
        "m2xfp-2x2",
        "lanes=8",
        "rows=1",
        "depth=2",
        "max_k=64",
        "lanes=8,32",
        "quantizer",
    ),
    *("x.npy", "x.npz", "folder", "new", "new.json", "4096x4096", "NAND2=NAND2X1", "cpu", "cuda"),
    *("cpu=64GiB", "0=1", "speed", "default", "wikitext", "m2xfp-weight:subgroup=4", "top"),
)


def as_given(text: str) -> str:
    """Return what a shell can give: no NUL, and surrogates only for bytes that are no UTF-8."""
    return text.replace("\0", "0").replace("\ud800", "\udcff")


def value(kind: click.ParamType, rng: random.Random) -> str:
    """Return a value, right as often as not."""
    if isinstance(kind, click.Choice) and rng.random() < 0.7:
        return str(rng.choice(list(kind.choices)))
    if isinstance(kind, (click.types.IntParamType, click.IntRange)) and rng.random() < 0.7:
        return str(rng.choice((0, 1, 2, 12, 64, 4096, -1, 1 << 31, 1 << 64)))
    if isinstance(kind, (click.types.FloatParamType, click.FloatRange)) and rng.random() < 0.7:
        return rng.choice(("0", "0.5", "1", "-1", "1e-9", "1e300", "nan", "inf", "-inf"))
    return rng.choice(WORDS) if rng.random() < 0.6 else as_given(rng.choice(HOSTILE))


def arguments(path: tuple[str, ...], command: click.Command, rng: random.Random) -> list[str]:
    given: list[str] = [*path]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            for _ in range(rng.choice((0, 1, 1, 1, 2)) if parameter.nargs != 1 else 1):
                if parameter.required or rng.random() < 0.8:
                    given.append(value(parameter.type, rng))
            continue
        assert isinstance(parameter, click.Option)
        if not parameter.required and rng.random() < 0.75:
            continue
        name = rng.choice([*parameter.opts, *parameter.secondary_opts])
        if parameter.is_flag:
            given.append(name)
        else:
            joined = name.startswith("--") and rng.random() < 0.5
            text = value(parameter.type, rng)
            given += [f"{name}={text}"] if joined else [name, text]
    if rng.random() < 0.05:
        given.insert(rng.randrange(len(path), len(given) + 1), rng.choice(("--no-such", "--", "-")))
    return given


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a few files, deep enough for `..`; everything that takes long is replaced."""
    work = tmp_path / "a" / "b" / "c"
    (work / "folder").mkdir(parents=True)
    np.save(work / "x.npy", np.ones((2, 32), np.float32))
    np.savez(work / "x.npz", codes=np.zeros((2, 8), np.uint8), meta=np.zeros(2, np.uint8))
    monkeypatch.chdir(work)
    for name in WORK:
        monkeypatch.setattr(name, _reached)
    for name in STUDIES:
        module = importlib.import_module(f"m2xfp.synth.studies.{name}")
        for function in [name for name in vars(module) if name.startswith(("measure", "compare"))]:
            monkeypatch.setattr(module, function, _reached)
    monkeypatch.setattr("m2xfp.commands.report.all_tables", _reached)
    return tmp_path


def attempt(path: tuple[str, ...], seed: str) -> str:
    """Call a command with options from a seed; return what became of it."""
    rng = random.Random(seed)
    given = arguments(path, COMMANDS[path], rng)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main(given, prog_name="m2xfp", standalone_mode=False)
    except (click.ClickException, M2xfpError):
        return "refused"
    except OSError as error:  # the command line tells it, see m2xfp.cli.main
        if error.errno is None:
            raise AssertionError(f"{seed}: {given}: {error}") from error
        return "refused"
    except (ReachedError, click.exceptions.Exit):
        return "taken"
    except Forbidden as error:
        if "subprocess.Popen" in str(error) or "ctypes.dlopen" in str(error):
            return "taken"  # a program, or compiled code of the golden model
        if probed := re.fullmatch(r"os\.mkdir of (.*)/\.tmp\w+", str(error)):
            # A place is tried where an option says, beside what it names.
            named = (Path(os.path.abspath(word.rpartition("=")[2])) for word in given)
            folder = Path(os.path.abspath(probed[1] or "/"))
            if any(folder in (path, *path.parents) for path in named):
                return "taken"
        raise AssertionError(f"{seed}: {given}: {error}") from error
    except BaseException as error:
        raise AssertionError(f"{seed}: {given}: {type(error).__name__}: {error}") from error
    return "taken"


def run(path: tuple[str, ...], count: int, seed: int, place: Path) -> None:
    found = {"refused": 0, "taken": 0}
    for index in range(4):  # what is imported at first use
        with contextlib.suppress(AssertionError):
            attempt(path, f"{seed}/{index}")
    with guarded(place):
        for index in range(count):
            found[attempt(path, f"{seed}/{index}")] += 1
    print(" ".join(path), found)
    assert not list(place.rglob("PWNED"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_random_options(path: tuple[str, ...], place: Path) -> None:
    run(path, 8, 1, place)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_number_is_bounded_and_every_path_looked_at(path: tuple[str, ...]) -> None:
    """By the types of `m2xfp.commands.options`, or a range with both ends."""
    for parameter in COMMANDS[path].params:
        kind, name = parameter.type, parameter.name
        if isinstance(kind, click.types.FloatParamType):
            assert isinstance(kind, Number), name
        elif isinstance(kind, click.types.IntParamType):
            assert isinstance(kind, click.IntRange), name
            assert None not in (kind.min, kind.max), name
        elif isinstance(kind, click.Path):
            assert isinstance(kind, (InputPath, type(OUTPUT))), name


LONG = "a" * 300  # no file system takes that as a name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        *(
            ((*command.split(), option, LONG), "choose a shorter path")
            for command, option in (
                ("demo", "--build-dir"),
                ("synth --list", "--json"),
                ("verilog", "-o"),
                ("study sqnr", "-o"),
                ("fpga table", "--results"),
                ("explore x", "--results"),
                ("simulate x --input x.npy --output y", "--waves"),
            )
        ),
        (("bench", "--threads", "2147483648"), "1<=x<=1024"),
        (("gemm", "--layer", "\u00b2x5"), "is not NxK"),
        (("gemm", "--layer", f"{'1' * 5000}x5"), "is not NxK"),
        (("train", "--rate", "nan", "--steps", "1"), "not a finite number"),
        (("synth", "--clock-ns", "inf", "--list"), "not a finite number"),
        (("verilog", "--from", "/dev/zero"), "/dev/zero is a device; give a file"),
        (("gemm", "--set", f"max_k={'1' * 5000}"), "at most 18 digits"),
        (("eval", "x", "--max-memory", "\u00b2=1GiB"), "is not DEVICE=AMOUNT"),
    ],
)
def test_values_that_random_ones_have_found(given: tuple[str, ...], told: str, place: Path) -> None:
    with pytest.raises((click.ClickException, M2xfpError)) as caught, guarded(place):
        cli.main([*given], prog_name="m2xfp", standalone_mode=False)
    assert told in str(getattr(caught.value, "message", caught.value))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_many_random_options(path: tuple[str, ...], place: Path) -> None:
    run(path, 500, 2, place)
