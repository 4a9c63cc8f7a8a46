"""`m2xfp simulate`: arrays in, planes out, and an answer to every mistake."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from m2xfp.cli import main
from m2xfp.errors import InputError
from m2xfp.golden.bits import quantize_bits
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parameters import parse_settings
from m2xfp.tb.bench import find_bench, random_operands
from m2xfp.tb.parts import value_stimulus

UNIT = "activation_quantizer"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    sim_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    """Return a function that runs `m2xfp simulate` and gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        command = ["m2xfp", "simulate", *map(str, arguments), "--build-dir", str(sim_dir)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def compare(path: Path, kind: str, raw: np.ndarray) -> None:
    codes, scales, meta = quantize_bits("m2xfp-act", kind, raw)
    with np.load(path) as y:
        assert sorted(y) == ["codes", "meta", "scales"]
        assert all(y[name].dtype == np.uint8 for name in y)
        assert np.array_equal(y["codes"], codes)
        assert np.array_equal(y["scales"], scales[:, 0])
        assert np.array_equal(y["meta"], meta[:, 0])


def test_bfloat16_of_a_file_is_taken_for_what_it_is(tmp_path: Path) -> None:
    """numpy writes ml_dtypes' type as two bytes without a meaning, |V2."""
    values = np.linspace(-3, 3, 64, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 32)
    np.save(tmp_path / "x.npy", values)
    unit = find_unit(UNIT)
    found = find_bench(unit).load(tmp_path / "x.npy", unit.instance("bf16x32").facts)
    assert np.array_equal(found["x"], values.view(np.uint16))
    with pytest.raises(InputError, match=r"type bfloat16; must be uint16.*or float16"):
        find_bench(unit).load(tmp_path / "x.npy", unit.instance("fp16x32").facts)


def test_one_array_for_a_unit_that_takes_several(cli: Cli) -> None:
    np.save("x.npy", np.zeros((2, 32), np.float32))
    status, _, err = cli("gemm_core", "--input", "x.npy", "--output", "y.npz")
    assert status == 2
    assert "x.npy: holds one array without a name; give the arrays by their names" in err


@pytest.mark.parametrize(
    ("config", "view"),
    [
        ("bf16x32", None),
        ("bf16x8", "float32"),
        ("fp16x32", None),
        ("fp16x32", "float16"),
        ("fp32x32", None),
        ("fp32x32", "float32"),
        ("fp32x32", ">u4"),
    ],
)
def test_planes_equal_golden(cli: Cli, tmp_path: Path, config: str, view: str | None) -> None:
    kind = config[:4]
    raw = np.vstack(
        [value_stimulus.groups(name, kind, 20, seed=6) for name in value_stimulus.DISTRIBUTIONS]
    )
    x = raw
    if view == "float32" and kind == "bf16":
        x = (raw.astype(np.uint32) << 16).view(np.float32)
    elif view and view.startswith(">"):
        x = raw.astype(view)
    elif view:
        x = raw.view(view)
    np.save("x.npy", np.asfortranarray(x))
    status, out, err = cli(UNIT, "--config", config, "--input", "x.npy", "--output", "out/y.npz")
    assert status == 0, err
    assert f"{len(raw)} rows" in out
    compare(tmp_path / "out" / "y.npz", kind, raw)


def test_stalls_seeds_and_reruns_give_the_same_bytes(cli: Cli, tmp_path: Path) -> None:
    np.save("x.npy", value_stimulus.groups("wide", "bf16", 200, seed=6))
    common = (UNIT, "--config", "bf16x8", "--input", "x.npy", "--output")
    for name, *options in (
        ("a", "--stall", 0),
        ("b", "--stall", 0.7, "--seed", 3),
        ("c", "--stall", 0.7, "--seed", 4),
    ):
        status, _, err = cli(*common, f"{name}.npz", *options)
        assert status == 0, err
    assert len({(tmp_path / f"{name}.npz").read_bytes() for name in "abc"}) == 1


def test_waves(cli: Cli, tmp_path: Path) -> None:
    raw = value_stimulus.groups("normal", "bf16", 10, seed=6)
    np.save("x.npy", raw)
    arguments = (UNIT, "--config", "bf16x8", "--input", "x.npy", "--output", "y.npz")
    status, _, err = cli(*arguments, "--waves", "y.fst")
    assert status == 0, err
    compare(tmp_path / "y.npz", "bf16", raw)
    wave = (tmp_path / "y.fst").read_bytes()
    assert wave[0] == 0  # an FST file begins with its header block
    assert b"s_axis_tdata" in wave or len(wave) > 1000  # names are compressed


GOOD = np.zeros((3, 32), np.uint16)
INEXACT = np.ones((4, 32), np.float32)
INEXACT[2, 5] = 1.00390625 + 2**-20


@pytest.mark.parametrize(
    ("config", "x", "message"),
    [
        ("bf16x32", np.zeros((3, 31), np.uint16), r"shape \[3, 31\]; must be \[n, 32\]"),
        ("bf16x32", np.zeros((0, 32), np.uint16), r"shape \[0, 32\].*n at least 1"),
        ("bf16x32", np.zeros(32, np.uint16), r"shape \[32\]"),
        ("bf16x32", np.zeros((2, 3, 32), np.uint16), r"shape \[2, 3, 32\]"),
        ("bf16x32", GOOD.astype(np.int16), "type int16; must be uint16"),
        ("bf16x32", GOOD.astype(np.uint32), "type uint32; must be uint16"),
        ("bf16x32", GOOD.astype(np.float16), "type float16; must be uint16"),
        ("bf16x32", GOOD.astype(np.float64), "type float64; must be uint16"),
        ("fp16x32", GOOD.astype(np.float32), "type float32; must be uint16.*or float16"),
        ("fp32x32", GOOD, "type uint16; must be uint32.*or float32"),
        ("bf16x32", INEXACT, r"x\[2, 5\] = .*1\.003.* is no bfloat16"),
        ("bf16x9", GOOD, "unknown configuration of activation_quantizer 'bf16x9'; .*bf16x32"),
    ],
)
def test_wrong_input(cli: Cli, tmp_path: Path, config: str, x: np.ndarray, message: str) -> None:
    np.save("x.npy", x)
    status, out, err = cli(UNIT, "--config", config, "--input", "x.npy", "--output", "y.npz")
    assert status == 2
    assert out == ""
    assert re.search(message, " ".join(err.split())), err
    assert "Traceback" not in err
    assert files(tmp_path) == {"x.npy"}


@pytest.mark.parametrize(
    ("unit", "settings", "spoilt", "message"),
    [
        (
            "switching_dot_product",
            [],
            {"a_formats": 7, "w_formats": 7},
            r"a_formats\[2\] = 7 and w_formats\[2\] = 7 are no pair of micromix-16; it multiplies "
            r"0 and 0 \(mxfp4:mxfp4\), 2 and 2 .*; quantize .*--set pairs=",
        ),
        # In three bits they would be 1 and 0.
        ("switching_dot_product", [], {"a_formats": 9, "w_formats": 200}, "= 9 and .* = 200 are"),
        ("switching_dot_product", [], {"a_formats": 8, "w_formats": 8}, "= 8 and .* = 8 are"),
        ("switching_dot_product", [], {"a_formats": 0, "w_formats": 3}, "= 0 and .* = 3 are no"),
        (
            "mixed_gemm",
            ["chains=3"],
            {"segments": 9},
            "segment 0 of product 0 has .* 9 and",
        ),
        ("activation_decoder", [], {"codes": 16}, r"codes\[0, 2\] = 16; must be 0 to 15"),
        ("activation_decoder", [], {"meta": 4}, r"meta\[2\] = 4; must be 0 to 3"),
        (
            "dot_product",
            ["act=m2xfp-act:subgroup=16", "weight=m2xfp-weight:subgroup=16"],
            {"w_meta": 16},
            r"last bytes of w_meta\[2\] = 16; must be 0 to 15",
        ),
        (
            "group_dot",
            ["act=m2xfp-act:subgroup=16", "weight=m2xfp-weight:subgroup=16"],
            {"a_meta": 255},
            r"last bytes of a_meta\[2\] = 255; must be 0 to 15",
        ),
        (
            "gemm_core",
            ["act=m2xfp-act:subgroup=16", "weight=m2xfp-weight:subgroup=16"],
            {"a_meta": 32},
            r"last bytes of a_meta\[2\] = 32; must be 0 to 15",
        ),
        ("channel_permuter", [], {"order": 64}, "order: channel 64 is not one of 0 to"),
    ],
)
def test_numbers_that_fit_no_field(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unit: str,
    settings: list[str],
    spoilt: dict[str, int],
    message: str,
) -> None:
    """They are refused, not cut to their last bits: before anything is built."""
    row = find_unit(unit)
    instance = row.instance(None, parse_settings(row.component, settings))
    arrays = find_bench(row).sample(random_operands(2, 6, seed=1), instance.facts)
    np.savez("x.npz", **arrays)
    assert find_bench(row).load(Path("x.npz"), instance.facts)
    for name, value in spoilt.items():
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[0 if name == "segments" else 2] = value
    np.savez("x.npz", **arrays)

    def built(*_: object, **__: object) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr("m2xfp.tb.bulk.simulator.BulkSimulator.__init__", built)
    given = [part for text in settings for part in ("--set", text)]
    status, out, err = cli(unit, *given, "--input", "x.npz", "--output", "y.npz")
    assert status == 2
    assert out == ""
    assert re.search(message, " ".join(err.split())), err
    assert files(tmp_path) == {"x.npz"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense", "--input", "x.npy", "--output", "y.npz"), "unknown unit 'nonsense'"),
        ((UNIT, "--input", "none.npy", "--output", "y.npz"), "none.npy: there is no such file"),
        ((UNIT, "--input", "text.npy", "--output", "y.npz"), "text.npy: not a readable .npy"),
        ((UNIT, "--input", "cut.npz", "--output", "y.npz"), "cut.npz: not a readable .npy"),
        ((UNIT, "--input", "many.npz", "--output", "y.npz"), "many.npz: holds several arrays"),
        ((UNIT, "--input", "objects.npy", "--output", "y.npz"), "objects.npy: not a readable"),
        ((UNIT, "--input", "x.npy", "--output", "x.npy"), "must be different files"),
        ((UNIT, "--input", "x.npy", "--output", "y", "--waves", "y"), "must be different files"),
        ((UNIT, "--input", "x.npy", "--output", "y.npz", "--stall", "1"), "--stall"),
        ((UNIT, "--input", "x.npy"), "--output"),
    ],
)
def test_wrong_arguments(cli: Cli, tmp_path: Path, arguments: tuple, message: str) -> None:
    np.save("x.npy", GOOD)
    np.savez("many.npz", a=GOOD, b=GOOD)
    Path("cut.npz").write_bytes(Path("many.npz").read_bytes()[:100])
    np.save("objects.npy", np.array([None, "text"]), allow_pickle=True)
    Path("text.npy").write_text("no array")
    before = files(tmp_path)
    status, out, err = cli(*arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert files(tmp_path) == before


def test_failure_keeps_the_old_output(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError

    def stuck(*_: object, **__: object) -> None:
        raise SimulationError("stuck")

    np.save("x.npy", GOOD)
    Path("y.npz").write_text("old")
    monkeypatch.setattr(BulkSimulator, "run", stuck)
    with pytest.raises(SimulationError):
        cli(UNIT, "--config", "bf16x8", "--input", "x.npy", "--output", "y.npz")
    assert files(tmp_path) == {"x.npy", "y.npz"}
    assert Path("y.npz").read_text() == "old"
