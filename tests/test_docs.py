"""What the pages say is true: links, tables, commands and snippets."""

import os
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import m2xfp.accelerator
import m2xfp.fpga
from m2xfp.cli import cli
from m2xfp.commands.options import chosen
from m2xfp.commands.report import all_tables, pages
from m2xfp.errors import UnknownNameError
from m2xfp.fpga.gateware.units import board_instances
from m2xfp.models.lm import LanguageModel, ModelConfig
from m2xfp.results import RESULTS, read_figures, to_json
from m2xfp.rtl.catalog import UNITS
from m2xfp.tables import aligned_table, embed

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ROOMS = ("rtl", "golden", "models", "tb", "synth", "fpga", "accelerator", "manual")
GUIDE = ROOT / "docs" / "adding-a-unit.md"
EXAMPLE = "code_negator"  # the unit of the guide, which is not in the catalog
EXAMPLE_ON_BOARDS = "negator"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert not missing


def plain_lines(text: str) -> int:
    """Return the longest run of lines of a page without a table or a picture."""
    seen = [line.startswith("|") or "![" in line for line in text.splitlines()]
    return max(len(run) for run in "".join("|" if each else "." for each in seen).split("|"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_two_screens_without_a_table_or_a_picture(page: Path) -> None:
    """A screen has some fifty lines."""
    if page.parent.name == "docs" or page.name == "README.md":
        assert plain_lines(page.read_text()) <= 100


def test_a_page_of_text_alone_is_noticed() -> None:
    assert plain_lines("words\n" * 101) == 101
    assert plain_lines("words\n" * 60 + "| a |\n" + "words\n" * 60) == 60


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_names_exist(page: Path) -> None:
    """What stands as code in a sentence: paths of this repository, and names of the package."""
    text = page.read_text()
    paths = re.findall(r"`((?:docs|tools|tests|m2xfp|" + "|".join(ROOMS) + r")/[\w./-]+)`", text)
    missing = [path for path in paths if EXAMPLE not in path and not (ROOT / path).exists()]
    for name in re.findall(r"`(m2xfp\.[\w.]+)`", text):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


# --- tables ---------------------------------------------------------------------------------------


def test_tables_are_those_of_the_figures() -> None:
    """Whoever changes a number by hand, or figures without the pages, fails here."""
    found = pages(ROOT / "docs", all_tables(ROOT / RESULTS))
    assert len(found) > 5
    for page, text in found.items():
        assert page.read_text() == text, f"{name_of(page)}: run m2xfp report --pages"


def test_a_number_changed_by_hand_is_put_right() -> None:
    table = aligned_table([("area", "path"), ("286309", "4.79")])
    page = f"Text.\n\n<!-- table: area -->\n\n{table}\n<!-- end -->\n\nMore.\n"
    assert embed(page, {"area": table}) == page
    assert embed(page.replace("4.79", "4.80"), {"area": table}) == page
    assert embed(page.replace("More", "Less"), {"area": table}) != page
    with pytest.raises(UnknownNameError, match=r"'area'.*path"):
        embed(page, {"path": table})


def test_results_are_figures_alone() -> None:
    """What can be drawn from figures is not kept, and a row of figures is a line."""
    files = sorted((ROOT / RESULTS).iterdir())
    assert {file.suffix for file in files} == {".json"}
    for file in files:
        assert file.read_text() == to_json(read_figures(file)), file.name


# --- commands -------------------------------------------------------------------------------------


def blocks(text: str) -> Iterator[str]:
    """Yield the lines of indented and fenced code, comments of Python included."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().removeprefix("# ")


def commands(page: Path) -> Iterator[str]:
    """Yield every ``m2xfp`` command of a page, in code and within a sentence, without comments."""
    text = page.read_text()
    for line in blocks(text):
        found = re.match(r"(?:\.venv/bin/|torchrun .* )?m2xfp (?!=)(.*)", line)
        if found:
            yield re.split(r"\s{2,}", found[1])[0].strip()
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if span.startswith("m2xfp "):
            yield " ".join(span.split()).removeprefix("m2xfp ")


# The changelog names spellings that are gone.
EVERY = sorted(
    {
        (command, name_of(page))
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for command in commands(page)
    }
)
IDS = [f"{page}: {command}" for command, page in EVERY]

# Run in a folder of its own. All others are only parsed, since they take minutes (demo, eval,
# synth, study, lint and verilog of the whole catalog or of a large array, train), other machines or
# boards (bench --device cuda, fpga, explore), or stand for what the reader has (UNIT, MODEL, ...).
QUICK = (
    r"formats",
    r"fpga boards",
    r"gemm( --(set|config|tokens|layer) \S+)*",
    r"report",
    r"study libraries",
    r"(synth|verilog( [a-z_]+)?|explore [a-z_]+) --list",
    r"verilog [a-z_]+ (?!.*columns=32).*",
    r"simulate [a-z_]+ .*",
)


def parse(line: str) -> tuple[click.Command, dict[str, Any]]:
    """Return the command of a line and its parameters; UsageError if they do not belong to it.

    Usage lines are read without their brackets. Paths need not exist.
    """
    line = re.sub(r" \| (head|less)\b.*", "", line)
    words = shlex.split(re.sub(r"\.\.\.|[][|]", " ", line))
    command: click.Command = cli
    context = click.Context(cli, info_name="m2xfp")
    while isinstance(command, click.Group) and words:
        name, *words = words
        if name.startswith("-"):
            break
        _, found, _ = command.resolve_command(context, [name])
        assert found is not None, line
        command, context = found, click.Context(found, parent=context, info_name=name)
    if isinstance(command, click.Group):
        return command, {}
    given, rest, _ = command.make_parser(context).parse_args(words)
    if rest:
        raise click.UsageError(f"unexpected {rest}", context)
    values = {}
    for parameter in command.params:
        value = given.get(parameter.name or "")
        if not isinstance(value, (str, list, tuple, bool)):
            continue  # not given, for which click has a mark of its own
        values[parameter.name or ""] = value
        if (
            parameter.is_eager
            or not parameter.expose_value
            or isinstance(parameter.type, click.Path)
        ):
            continue  # such as --help, which prints and ends
        if value:
            parameter.process_value(context, value)
    return command, values


@pytest.mark.parametrize(("line", "page"), EVERY, ids=IDS)
def test_commands_exist(line: str, page: str) -> None:
    """Commands, options, values, and the units, configurations and parameters that they name."""
    command, values = parse(line)
    if "settings" not in {parameter.name for parameter in command.params}:
        return
    if "configs" in {
        parameter.name for parameter in command.params
    }:  # a design of several units, by what boards call them
        names = [unit for unit in values.get("units", ()) if unit != EXAMPLE_ON_BOARDS]
        if names:
            board_instances(names, values.get("configs", ()), values.get("settings", ()))
        return
    for unit in [*values.get("units", ()), *filter(None, [values.get("unit")])]:
        if unit.islower() and unit != EXAMPLE:
            assert unit in UNITS, f"{page}: no unit {unit}"
            config = values.get("config")
            if config is None or config.islower():
                chosen(unit, config, tuple(values.get("settings", ())))


def test_commands_that_do_not_exist_are_noticed() -> None:
    for line in ("gem", "gemm --rows 4", "synth a --pkd osu018", "formats x", "study fraction"):
        with pytest.raises((click.UsageError, AssertionError)):
            parse(line)
    parse("synth [UNIT ...] [--config NAME] [--pdk NAME | --liberty FILE ...]")
    with pytest.raises(click.UsageError):
        parse("study gemm-perplexity --windows two")


@pytest.fixture
def folder(tmp_path: Path, sim_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages assume it: inputs of ``m2xfp simulate``, and figures to draw from."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 1 << 15, (64, 32), dtype=np.uint16))
    planes = {
        f"{side}_{plane}": rng.integers(0, 256, (64, 16) if plane == "codes" else 64, np.uint8)
        for side in "aw"
        for plane in ("codes", "scales", "meta")
    }
    np.savez(tmp_path / "pairs.npz", **planes, first=np.arange(64) % 8 == 0)
    signed = {name: array for name, array in planes.items() if "meta" not in name}
    signed["a_scales"] = rng.integers(0, 256, (64, 2), np.uint8)
    np.savez(tmp_path / "signed.npz", **signed, first=np.arange(64) % 8 == 0)
    switched = {f"{side}_codes": rng.integers(0, 256, (64, 32), np.uint8) for side in "aw"}
    switched |= {f"{side}_scales": planes[f"{side}_scales"] for side in "aw"}
    switched |= dict.fromkeys(
        ("a_formats", "w_formats"), rng.choice([0, 2, 3], 64).astype(np.uint8)
    )
    np.savez(tmp_path / "groups.npz", **switched, first=np.arange(64) % 8 == 0)
    levels = {"x": np.load(tmp_path / "x.npy")[:, :16], "tensor_scales": np.ones(64, np.float32)}
    np.savez(tmp_path / "levels.npz", **levels)
    signs = rng.integers(0, 2, (64, 32)) > 0
    np.savez(tmp_path / "blocks.npz", x=np.load(tmp_path / "x.npy"), flips=signs)
    rows = rng.integers(0, 2**15, (1, 64, 32), np.uint16)
    np.savez(tmp_path / "rows.npz", x=rows, order=rng.permutation(32)[None])
    cut = {f"{side}_codes": rng.integers(0, 256, (6, 32), np.uint8) for side in "aw"}
    cut |= {f"{side}_scales": rng.integers(0, 255, 6, np.uint8) for side in "aw"}
    table = np.array([[[0, 0, 2], [3, 3, 1], [3, 3, 0]]])
    np.savez(tmp_path / "segments.npz", sizes=np.array([[2, 2]]), segments=table, **cut)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "sim").symlink_to(sim_dir)  # what other tests have compiled
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_quick(line: str) -> bool:
    given = any(re.fullmatch(form, line) for form in QUICK)
    return given and EXAMPLE not in line and not re.search(r"[][|]|\b[A-Z]{4,}", line)


@pytest.mark.parametrize("line", sorted({line for line, _ in EVERY if is_quick(line)}))
def test_commands_run(line: str, folder: Path) -> None:
    result = CliRunner().invoke(cli, shlex.split(line))
    assert result.exit_code == 0, result.output
    if found := re.search(r"(?:-o|--output) (\S+)", line):
        assert (folder / found[1]).exists()


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for line in blocks(page.read_text()):
            if found := re.fullmatch(r"make ([a-z-]+)(\s.*)?", line):
                assert found[1] in targets, f"{name_of(page)}: {line}"


# --- snippets -------------------------------------------------------------------------------------


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def tiny() -> torch.nn.Module:
    """A language model with attention and a layer called lm_head."""
    config = ModelConfig(width=64, layers=1, heads=2, hidden=96, context=16)
    head = torch.nn.Sequential()
    head.append(LanguageModel(config).eval())
    head.add_module("lm_head", torch.nn.Linear(256, 256))
    return head


def llama(folder: str) -> str:
    """Write a model in the layout of Hugging Face."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def names_of(page: Path) -> dict[str, Any]:
    """What a page's snippets take as given."""
    if page.name == "evaluation.md":
        tokens = torch.randint(256, (1, 16))
        return {
            "model": tiny(),
            "model_of_the_same_architecture": tiny(),
            "tokens": tokens,
            "folder": llama("whole"),
            "model_to_train": tiny(),
        }
    if page.name == "fpga.md":
        return {"x": None, "weights": None, "qw": None, "qv": None}
    return {}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page) and page != GUIDE], ids=name_of
)
def test_snippets(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a page, one snippet after the other; there is no board, so a stand-in."""
    device = mock.create_autospec(m2xfp.fpga.Device)
    device.return_value.__enter__.return_value = device.return_value
    device.return_value.identity = {}  # read when the port is opened
    monkeypatch.setattr(m2xfp.fpga, "Device", device)
    if page.name == "fpga.md":  # elsewhere the accelerator is the simulated one
        for module, name in ((m2xfp.fpga, "SerialTransport"), (m2xfp.accelerator, "Device")):
            monkeypatch.setattr(module, name, mock.create_autospec(getattr(module, name)))
    namespace = names_of(page)
    for snippet in snippets(page):
        for part in re.split(r"^(# m2xfp .*\n)", snippet, flags=re.MULTILINE):
            if part.startswith("# m2xfp "):  # what the reader does in between
                result = CliRunner().invoke(cli, shlex.split(part.removeprefix("# m2xfp ")))
                assert result.exit_code == 0, result.output
            else:
                exec(part, namespace)
    assert os.getcwd() == str(folder)
