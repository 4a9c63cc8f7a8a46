import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import m2xfp.golden.bits
import m2xfp.models.lm
import m2xfp.synth.flow.pdk
import m2xfp.synth.studies.dot_layers
import m2xfp.synth.studies.linear_layers
import m2xfp.synth.studies.mixed_layers
from m2xfp.cli import cli
from m2xfp.commands import demo
from m2xfp.commands.demo_page import read_page
from m2xfp.errors import MissingToolError, UnknownNameError
from m2xfp.facts import EmittedFiles
from m2xfp.models.activations import layer_inputs
from m2xfp.models.lm import LanguageModel, ModelConfig, load_model
from m2xfp.synth.studies.dot_layers import DotLayerRun
from m2xfp.synth.studies.linear_layers import LinearRun


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(width=64, layers=2, heads=2, hidden=96, context=16)).eval()


@pytest.fixture
def flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the golden model err in one bit of the metadata of group 5."""
    original = m2xfp.golden.bits.quantize_bits

    def wrong(*arguments):
        codes, scales, meta = original(*arguments)
        meta[5] ^= 1
        return codes, scales, meta

    monkeypatch.setattr(m2xfp.golden.bits, "quantize_bits", wrong)


@pytest.fixture
def compare(
    emitted: Callable[[str, str], EmittedFiles], sim_dir: Path
) -> Callable[[np.ndarray], demo.Comparison]:
    files = emitted("activation_quantizer", "bf16x32")
    return lambda raw: demo.compare(files, raw, sim_dir)


def test_layer_inputs_are_what_the_layers_read(model: LanguageModel) -> None:
    tokens = torch.randint(256, (3, 16))
    read = {}

    class Spy(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            read[self.label] = x
            return super().forward(x)

    found = layer_inputs(model, tokens)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.__class__, layer.label = Spy, name
    with torch.no_grad():
        model(tokens)
    assert len(found) == 8
    assert set(read) > set(found)
    for name, x in found.items():
        assert x.shape == (48, 96 if "down" in name else 64)
        assert torch.equal(x, read[name].flatten(0, 1))
    for name, x in read.items():  # what is left out is read elsewhere too
        assert any(torch.equal(x.flatten(0, 1), y) for y in found.values()), name


def special_groups() -> np.ndarray:
    raw = np.random.default_rng(0).integers(0, 1 << 16, (64, 32), dtype=np.uint16)
    raw[:5] = np.array([0, 0x8000, 0x7F80, 0x7FC1, 1], np.uint16)[:, None]
    return raw


def test_compare_agrees_on_any_pattern(compare: Callable[[np.ndarray], demo.Comparison]) -> None:
    result = compare(special_groups())
    assert (result.groups, result.mismatches, result.first) == (64, 0, None)
    assert result.verilog.is_file()


@pytest.mark.usefixtures("flipped")
def test_compare_finds_one_wrong_bit(compare: Callable[[np.ndarray], demo.Comparison]) -> None:
    result = compare(special_groups())
    assert (result.mismatches, result.first) == (1, 5)


def test_compare_counts_missing_groups(
    compare: Callable[[np.ndarray], demo.Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = m2xfp.golden.bits.quantize_bits
    monkeypatch.setattr(
        m2xfp.golden.bits, "quantize_bits", lambda *a: tuple(p[:-1] for p in original(*a))
    )
    assert compare(special_groups()).mismatches == 64


@pytest.mark.usefixtures("flipped")
def test_a_mismatch_ends_with_status_1(
    sim_dir: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m2xfp.models.lm, "load_model", lambda: model)
    result = CliRunner().invoke(cli, ["demo", "--build-dir", str(sim_dir.parent)])
    assert result.exit_code == 1
    for unit in ("activation_quantizer bf16x32", "weight_encoder bf16-kv"):
        assert re.search(
            rf"^{unit}: .*: 1 mismatches, first: group 5$", result.stdout, re.MULTILINE
        )
    assert "SQNR" not in result.stdout


@pytest.mark.parametrize("wrong", [(1, 0), (0, 1)])
def test_a_wrong_linear_layer_ends_with_status_1(
    sim_dir: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, int]
) -> None:
    def run(*_, layer: str, tokens: int) -> LinearRun:
        return LinearRun(layer, "m2xfp", tokens, 96, 64, 5000, 0.98, wrong[0], 1536, wrong[1])

    monkeypatch.setattr(m2xfp.models.lm, "load_model", lambda: model)
    monkeypatch.setattr(m2xfp.synth.studies.linear_layers, "run_linear", run)
    result = CliRunner().invoke(cli, ["demo", "--build-dir", str(sim_dir.parent)])
    assert result.exit_code == 1
    assert "98.0% of peak: {} and {} mismatches".format(*wrong) in result.stdout
    assert "SQNR" not in result.stdout


def test_a_wrong_layer_of_dot_products_ends_with_status_1(
    sim_dir: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LinearRun("layer", "m2xfp", 1, 96, 64, 5000, 0.98, 0, 1536, 0)

    def run(kind: str, _folder: Path, *, tokens: int) -> DotLayerRun:
        return DotLayerRun(kind, "c", "layer", "x", tokens, 96, 64, 8, 9, int(kind == "mixed"))

    monkeypatch.setattr(m2xfp.models.lm, "load_model", lambda: model)
    monkeypatch.setattr(m2xfp.synth.studies.linear_layers, "run_linear", lambda *_, **__: right)
    monkeypatch.setattr(m2xfp.synth.studies.mixed_layers, "run_mixed", lambda *_, **__: right)
    monkeypatch.setattr(m2xfp.synth.studies.dot_layers, "run_dot_layer", run)
    result = CliRunner().invoke(cli, ["demo", "--build-dir", str(sim_dir.parent)])
    assert result.exit_code == 1
    assert "asymmetric c: layer" in result.stdout
    assert result.stdout.strip().endswith("1 mismatches")


@pytest.mark.parametrize("config", ["bf16x33", "mxfp4-bf16x32"])
def test_unknown_configuration(config: str) -> None:
    result = CliRunner().invoke(cli, ["demo", "--config", config])
    assert isinstance(result.exception, UnknownNameError)
    assert "fp32x8" in str(result.exception)


def test_area_without_library_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise MissingToolError(f"cell library {name}", "apt-get install cells")

    monkeypatch.setattr(m2xfp.synth.flow.pdk, "find_pdk", missing)
    text = "not measured: cell library osu018 is missing; install it with: apt-get install cells"
    assert demo._area(["bf16x32"], tmp_path) == ([text], {"missing": text})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_main_job(sim_dir: Path, tmp_path: Path) -> None:
    arguments = ["demo", "--windows", "1", "--perplexity-windows", "4", "--report", str(tmp_path)]
    result = CliRunner().invoke(cli, [*arguments, "--build-dir", str(sim_dir.parent)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    size = load_model().config
    groups = size.context * size.layers * (3 * size.width + size.hidden) // 32
    assert f"{groups} groups" in lines[0]
    assert ": 0 mismatches" in lines[0]
    weights = size.layers * size.width * (4 * size.width + 3 * size.hidden) // 32
    assert f"weight_encoder bf16-kv: {weights} groups" in lines[1]
    assert lines[1].endswith(": 0 mismatches")
    assert re.match(r"gemm_core .* of peak: 0 and 0 mismatches$", lines[2])
    assert re.match(r"mixed_gemm .*: 0 and 0 mismatches$", lines[3])
    assert re.match(r"asymmetric_dot_product .* in amxfp4 x .*: 0 mismatches$", lines[4])
    assert re.match(r"switching_dot_product .* \+ 128 mxfp8-e4m3: .*: 0 mismatches$", lines[5])
    assert re.match(
        r"accelerator_m2xfp_2x2: 'The hardware.*: 4 tokens, .*: 0 mismatches$", lines[6]
    )

    def figures(start: str) -> list[float]:
        line = next(x for x in lines if x.startswith(f"| {start} ") and re.search(r"\d\.\d", x))
        return [float(word) for word in line.replace(start, "").split() if word[0].isdigit()]

    mxfp4, m2xfp = figures("all")
    assert 15 < mxfp4 < mxfp4 + 1.5 < m2xfp < 25
    (fp32,) = figures("fp32")
    assert 2.0 < fp32 < figures("m2xfp-act")[0] < figures("mxfp4")[0] < 4.0
    assert any("OSU 0.18 um" in line or "not measured" in line for line in lines)
    assert "activation_quantizer_bf16x32.v" in lines[-1]
    assert f"To look at: {tmp_path / 'demo.html'}" in lines[-1]

    shown = read_page((tmp_path / "demo.html").read_text())
    assert f"{shown['comparisons'][0]['groups']} groups" in lines[0]
    assert [round(x, 2) for x in shown["sqnr"]["all"].values()] == [mxfp4, m2xfp]
    plain, *others = shown["perplexity"]
    assert round(plain["value"], 4) == fp32
    assert [round(row["value"], 4) for row in others] == [
        figures("mxfp4")[0],
        figures("m2xfp-act")[0],
    ]
