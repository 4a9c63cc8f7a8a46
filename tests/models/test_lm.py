import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.models import corpus
from m2xfp.models.evaluate import window_nats
from m2xfp.models.lm import (
    HELD_OUT,
    WEIGHTS,
    LanguageModel,
    ModelConfig,
    as_tokens,
    load_model,
    save_model,
)
from m2xfp.models.train import TrainConfig, _windows, learning_rate, train
from m2xfp.models.windows import cut_windows, spread

SHAPE = ModelConfig(width=32, layers=2, heads=2, hidden=64, context=16)
TEXT = b"the quick brown fox jumps over the lazy dog; " * 60
BITS = 0.6931471805599453


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(SHAPE).eval()


@torch.no_grad()
def test_logits_depend_on_the_past_only(model: LanguageModel) -> None:
    tokens = torch.randint(256, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(-1).all()


def test_a_text_without_a_byte_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    result = CliRunner().invoke(cli, ["eval", "--text", str(tmp_path / "empty"), "--windows", "1"])
    assert isinstance(result.exception, InputError)
    assert "the text has 0 tokens" in str(result.exception)


@torch.no_grad()
def test_architecture_is_llama(model: LanguageModel) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # away from the norms' initial ones
        parameter.normal_(0.5, 0.3)
    found = llama.model.load_state_dict(model.state_dict())
    assert not found.missing_keys
    tokens = torch.randint(256, (2, 16))
    torch.testing.assert_close(model(tokens), llama(tokens).logits, rtol=1e-4, atol=1e-4)


def test_saved_model_comes_back_in_bfloat16(model: LanguageModel, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model, {"note": "x"})
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == SHAPE
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name


def test_load_refuses_what_is_no_model(tmp_path: Path, model: LanguageModel) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="no model file"):
        load_model(tmp_path / "absent")
    (tmp_path / "noise").write_bytes(b"\1" * 40)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    save_file({"x": torch.zeros(1)}, tmp_path / "wrong", {"config": json.dumps({"width": 32})})
    for name in ("noise", "other", "wrong"):
        with pytest.raises(InputError, match="holds no language model"):
            load_model(tmp_path / name)


def bundled_bits(count: int | None) -> float:
    text = cut_windows(as_tokens(HELD_OUT.read_bytes()), 512)
    return window_nats(load_model(), spread(text, count or len(text)), 4).mean().item() / BITS


def test_committed_weights_predict_well() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000
    assert 0.8 < bundled_bits(8) < 1.1


@pytest.mark.slow
def test_committed_weights_have_the_bits_they_claim() -> None:
    from safetensors import safe_open

    with safe_open(WEIGHTS, framework="pt") as file:
        claimed = float(file.metadata()["held_out_bits_per_byte"])
    assert bundled_bits(None) == pytest.approx(claimed, abs=0.002)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate(step / 100, 2.0, 0.1) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(1.0)
    assert max(rates) == rates[10] == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "budget", [{}, {"steps": 5, "minutes": 1.0}, {"steps": 0}, {"minutes": -1.0}]
)
def test_a_budget_is_needed(budget: dict[str, float]) -> None:
    with pytest.raises(InputError, match="either minutes or steps"):
        TrainConfig(**budget)


def fit(tmp_path: Path, steps: int = 12, **options) -> LanguageModel:
    config = TrainConfig(steps=steps, batch=8, peak=1e-2, **options.pop("config", {}))
    return train(SHAPE, config, TEXT, TEXT[:100], tmp_path / "state", **options)


def test_training_learns_and_repeats(tmp_path: Path) -> None:
    model, facts = fit(tmp_path)
    assert facts["steps"] == "12"
    assert facts["bytes_seen"] == str(12 * 8 * 16)
    assert float(facts["held_out_bits_per_byte"]) < 6.5  # 8 without training
    again, _ = fit(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_norms_of_the_layers_have_no_gains(tmp_path: Path) -> None:
    model, _ = fit(tmp_path)
    gains = {name: value for name, value in model.named_parameters() if value.ndim == 1}
    last = gains.pop("norm.weight")
    assert len(gains) == 2 * SHAPE.layers
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains.values())
    assert (last != 1).any()


def test_dropout_is_for_training_alone(tmp_path: Path) -> None:
    with_it, facts = fit(tmp_path, config={"dropout": 0.5})
    without, _ = fit(tmp_path, config={"dropout": 0.0})
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(with_it.state_dict()[name], without.state_dict()[name])
    bits = window_nats(with_it, cut_windows(as_tokens(TEXT[:100]), SHAPE.context)).mean() / BITS
    assert facts["held_out_bits_per_byte"] == f"{bits:.4f}"


def test_training_needs_muon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"needs torch 2\.9 or later"):
        fit(tmp_path)


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"5 bytes; one window needs .*--corpus"):
        train(SHAPE, TrainConfig(steps=1), b"short", TEXT[:100], tmp_path / "state")


def test_windows_depend_on_seed_and_step() -> None:
    text = torch.arange(256, dtype=torch.uint8)

    def drawn(step: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _windows(text, step, TrainConfig(steps=1, batch=8, seed=seed), 16)

    inputs, targets = drawn(3, 0)
    assert inputs.shape == targets.shape == (8, 16)
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(drawn(3, 0)[0], inputs)
    assert not torch.equal(drawn(4, 0)[0], inputs)
    assert not torch.equal(drawn(3, 1)[0], inputs)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path)

    class InterruptionError(Exception):
        pass

    def interrupt(_progress: float, line: str) -> None:
        if line.startswith("step 10, training"):
            raise InterruptionError

    every = {"checkpoint_seconds": 0.0}
    with pytest.raises(InterruptionError):
        fit(tmp_path, config=every, report=interrupt)
    resumed, _ = fit(tmp_path, config=every, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_state_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Neither zip nor torch notices a weight that has become another."""
    fit(tmp_path, config={"checkpoint_seconds": 0.0})
    (state,) = (path for path in tmp_path.iterdir() if path.is_file())
    whole = state.read_bytes()
    for wrong in (whole[:-1], whole[: len(whole) // 2], b"", whole[:5000] + b"x" + whole[5001:]):
        state.write_bytes(wrong)
        with pytest.raises(InputError, match="no state of an interrupted run"):
            fit(tmp_path, config={"checkpoint_seconds": 0.0}, resume=True)


def test_resume_needs_the_same_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no interrupted run"):
        fit(tmp_path, resume=True)
    fit(tmp_path, config={"checkpoint_seconds": 0.0})
    for other in ({"seed": 1}, {"dropout": 0.2}):
        with pytest.raises(InputError, match="is a run of"):
            fit(tmp_path, config=other, resume=True)


def test_train_command_writes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held").write_bytes(TEXT[:64])
    monkeypatch.setattr("m2xfp.models.lm.HELD_OUT", tmp_path / "held")
    (tmp_path / "corpus").write_bytes(TEXT)
    output = tmp_path / "m.safetensors"
    arguments = ["train", "--steps", "2", "--batch", "2", "--corpus", str(tmp_path / "corpus")]
    with monkeypatch.context() as small:
        small.setattr("m2xfp.models.lm.ModelConfig", lambda **_: SHAPE)
        result = CliRunner().invoke(cli, [*arguments, "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert "held_out_bits_per_byte" in result.stdout
    assert load_model(output).config == SHAPE
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "held", "m.safetensors"]


LINES = [f"this is line number {number} of a file".encode() for number in range(40)]


def write(folder: Path, name: str, lines: list[bytes]) -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(lines))
    return path


def test_collect_drops_repetitions_and_binaries(tmp_path: Path) -> None:
    first = write(tmp_path, "a.py", LINES[:10])
    copy = write(tmp_path, "b.py", [*LINES[:6], *LINES[10:15]])
    fresh = write(tmp_path, "c.py", [*LINES[:4], *LINES[20:30]])
    nul = write(tmp_path, "d.py", [b"\0" + LINES[30]])
    latin = write(tmp_path, "e.py", [b"\xe9" + LINES[31]])
    kept = [path for path, _ in corpus.collect([first, copy, fresh, nul, latin])]
    assert kept == [first, fresh]
    assert [path for path, _ in corpus.collect([first, fresh], set(LINES[:10]))] == [fresh]


def test_training_text_leaves_the_sample_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = write(tmp_path, "held.py", LINES[:10])
    rest = write(tmp_path, "rest.py", [b"x" * 1_000_000, *LINES[10:12]])
    monkeypatch.setattr(corpus, "source_files", lambda: [sample, rest])
    text = corpus.training_text(sample.read_bytes())
    assert text == rest.read_bytes() + b"\n\f\n"
    monkeypatch.setattr(corpus, "source_files", lambda: [sample])
    with pytest.raises(InputError, match="0 bytes of training text"):
        corpus.training_text(sample.read_bytes())


def test_held_out_sample_is_whole_files_of_the_library() -> None:
    files = HELD_OUT.read_bytes().split(corpus.SEPARATOR)
    assert files.pop() == b""
    assert len(files) == 17
    assert corpus.join(files) == HELD_OUT.read_bytes()
    for text in files:
        compile(text, "held_out", "exec", dont_inherit=True)
