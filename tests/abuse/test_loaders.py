"""Every loader and parser on mutated inputs: a clear error or a right result, and nothing else.

Nothing else is also: no network, no program run, no code loaded from data, no write outside the
folder at hand; `fuzzing.guarded` ends the test at the first of these. Seeds count up from that of
the table, so a failure names the input that made it.
"""

import contextlib
import io
import json
import math
import random
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import fuzzed_checkpoints  # noqa: F401  # adds its loaders to the table
import fuzzed_models  # noqa: F401  # and so does this
import numpy as np
import pytest
import torch
from fuzzing import (
    HOSTILE,
    READERS,
    Attempt,
    Forbidden,
    fuzz,
    guarded,
    json_text,
    mutate_bytes,
    mutate_text,
    opened,
    reader,
)

from m2xfp.commands.report import DRAWERS, tables_of
from m2xfp.errors import InputError, M2xfpError
from m2xfp.facts import Facts
from m2xfp.formats import BLOCK_FORMATS, WINDOWS, block_format, input_type, window
from m2xfp.fpga.flow.bitstream import BuildReport, Cells
from m2xfp.fpga.flow.boards import BOARDS, find_board
from m2xfp.fpga.gateware.design import design_identity
from m2xfp.fpga.gateware.units import (
    board_instance,
    board_instances,
    find_board_unit,
    instance_of_text,
    instance_text,
)
from m2xfp.fpga.host.device import Device
from m2xfp.fpga.host.link import HostLink
from m2xfp.fpga.protocol import Decoder, Frame, Identity, encode, unpack_records
from m2xfp.golden import get_format
from m2xfp.results import RESULTS
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.chip import read_chip
from m2xfp.rtl.parameters import parse_settings
from m2xfp.synth.flow.liberty import parse_function
from m2xfp.synth.flow.pdk import _library, pdk_from_liberty
from m2xfp.synth.studies.explore import parse_sweep
from m2xfp.tb.bench import find_bench

# JSON


@cache
def _facts() -> list[str]:
    return [
        UNITS[unit].instance().facts.to_json()
        for unit in ("activation_decoder", "dot_product", "gemm_core")
    ]


def _within(given: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether all that was given was taken; what may be left out has a default."""
    return all(found[name] == value for name, value in given.items())


@reader(300)
def facts(folder: Path) -> Attempt:
    given = [json.loads(text) for text in _facts()]
    target = folder / "f.json"

    def attempt(rng: random.Random) -> None:
        target.write_bytes(json_text(rng.choice(given), rng))
        found = Facts.load(target)
        assert json.loads(found.to_json()) == json.loads(target.read_bytes())
        for stream in found.streams:
            assert all(0 <= field.last_bit < stream.data_width for field in stream.fields)
        for name, _, width in found.ports():
            assert name.isidentifier()
            assert width > 0

    return attempt


def _figure_files(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """Return a copy of the accepted figures, and its files by name."""
    root = Path(__file__).parents[2] / RESULTS
    files = {path.name: path.read_bytes() for path in sorted(root.glob("*.json"))}
    results = folder / "results"
    results.mkdir()
    for name, data in files.items():
        (results / name).write_bytes(data)
    return results, files


@reader(200)
def accepted_figures(folder: Path) -> Attempt:
    """The tables of a drawer, one of the files that it reads damaged."""
    results, files = _figure_files(folder)
    pairs = [
        (drawer, path.name)
        for drawer in DRAWERS
        for path in opened(lambda drawer=drawer: tables_of(drawer, results))
        if path.parent == results and path.stat().st_size < 100_000
    ]
    assert len({drawer for drawer, _ in pairs}) > len(DRAWERS) // 2

    def attempt(rng: random.Random) -> None:
        drawer, name = rng.choice(pairs)
        try:
            (results / name).write_bytes(json_text(json.loads(files[name]), rng))
            found = tables_of(drawer, results)
            assert all(isinstance(text, str) for text in found.values())
        finally:
            (results / name).write_bytes(files[name])

    return attempt


@reader(200)
def build_report(folder: Path) -> Attempt:
    cells = {"luts": Cells(1, 2), "dsp": Cells(0, 4)}
    text = instance_text(board_instance("quantizer"))
    report = BuildReport(
        *("icebreaker", ("quantizer",), 12e6, 1_000_000, cells, 20.5, 12.0, 1),
        *({"yosys": "1"}, "top.bin", "ab" * 32, (text,), 512),
    )
    (folder / "right.json").write_text(report.to_json())
    assert BuildReport.load(folder / "right.json") == report
    target = folder / "report.json"

    def attempt(rng: random.Random) -> None:
        target.write_bytes(json_text(json.loads(report.to_json()), rng))
        found = BuildReport.load(target)
        assert _within(json.loads(target.read_bytes()), json.loads(found.to_json()))
        assert Path(found.bitstream).name == found.bitstream

    return attempt


# Liberty, TOML, texts

LIBERTY = """library (small) {
  time_unit : "1ns"; capacitive_load_unit (1, pf); leakage_power_unit : "1nW"; nom_voltage : 1.8;
  lu_table_template (t) { variable_1 : input_net_transition; index_1 ("0.1, 0.2"); }
  cell (NAND2X1) { area : 8; cell_leakage_power : 0.1;
    pin (A) { direction : input; capacitance : 0.01; }
    pin (B) { direction : input; capacitance : 0.01; }
    pin (Y) { direction : output; function : "(A B)'"; timing () { related_pin : "A";
      cell_rise (t) { values ("0.1, 0.2"); } } } }
  cell (BUFX1) { area : 6; pin (A) { direction : input; capacitance : 0.01; }
    pin (Y) { direction : output; function : "A"; } }
  cell (DFFX1) { area : 20; ff (IQ, IQN) { clocked_on : "C"; next_state : "D"; }
    pin (C) { direction : input; clock : true; capacitance : 0.01; }
    pin (D) { direction : input; capacitance : 0.01; }
    pin (Q) { direction : output; function : "IQ"; } }
  cell (TIELO) { area : 1; pin (Y) { direction : output; function : "0"; } }
  cell (ICGX1) { area : 9; clock_gating_integrated_cell : "latch_posedge"; statetable ("a", "b") { }
    pin (C) { direction : input; clock_gate_clock_pin : true; }
    pin (E) { direction : input; clock_gate_enable_pin : true; }
    pin (G) { direction : output; clock_gate_out_pin : true; } }
}
"""


@reader(300)
def liberty(folder: Path) -> Attempt:
    target = folder / "l.lib"

    def attempt(rng: random.Random) -> None:
        text = mutate_text(LIBERTY, rng, 3).encode("utf-8", "replace")
        target.write_bytes(mutate_bytes(text, rng, 2) if rng.random() < 0.2 else text)
        if rng.random() < 0.05:
            target.write_bytes(b"\x1f\x8b" + rng.randbytes(40))
        _library.cache_clear()  # libraries are kept by their paths
        pdk = pdk_from_liberty([target])
        for cell in pdk.library.cells.values():
            assert 0 <= cell.area < math.inf
            assert all(0 <= pin.capacitance < math.inf for pin in cell.pins.values())
            table = cell.truth_table()
            assert table is None or set(table) <= {0, 1}
        assert pdk.nand2_cell.area > 0
        assert 0 < pdk.load_ff < math.inf
        assert pdk.driver_cell.name in pdk.library.cells
        assert pdk.flop_area_um2 >= 0
        assert pdk.tie(0) is None or len(pdk.tie(0)) == 2
        assert pdk.clock_gate_cell.clock_gate is not None
        assert pdk.library.name.isascii()

    return attempt


@reader(400)
def liberty_function(_folder: Path) -> Attempt:
    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.02:
            text = rng.choice(("(", "!", "a'", "a+")) * 50_000
        else:
            text = "".join(rng.choices("ab01!'^*&+|() \t.[_$\"é", k=rng.randrange(12)))
        found = parse_function(text)
        assert set(found) <= set("ab01'~&|^() ._[]"), found

    return attempt


CHIP = """[quantizer]
unit = "activation_quantizer"
lanes = 8
[array]
unit = "gemm_core"
config = "m2xfp-2x2"
rows = 1
columns = 2
act = "m2xfp-act"
[d]
unit = "dot_product"
"""


@reader(200)
def chip(folder: Path) -> Attempt:
    target = folder / "chip.toml"

    def attempt(rng: random.Random) -> None:
        text = mutate_text(CHIP, rng).encode("utf-8", "replace")
        if rng.random() < 0.01:
            text = b"a = " + b"[" * 50_000
        target.write_bytes(text)
        for instance in read_chip(target):
            assert instance.top.isidentifier()
            assert instance.unit.name in UNITS

    return attempt


FORMATS = (
    *("m2xfp-act:subgroup=4,ties=away", "m2xfp-weight:adaptive=false,search=fixed,fraction_bits=9"),
    *("nvfp4:tensor_scale=0.5", "mxfp4:group=64,scale_rule=ceil", "m2xfp-act:group=32,subgroup=8"),
)


@reader(500)
def format_texts(_folder: Path) -> Attempt:
    x = torch.linspace(-3, 3, 70)

    def attempt(rng: random.Random) -> None:
        text = mutate_text(rng.choice((*FORMATS, *BLOCK_FORMATS, *WINDOWS, "0..508/64")), rng, 2)
        read = rng.choice((get_format, block_format, window, input_type))
        found = read(text)
        if read is get_format and found.encodes:
            assert found.quantize(x).dequantize().shape == x.shape

    return attempt


@reader(100)
def settings(_folder: Path) -> Attempt:
    def attempt(rng: random.Random) -> None:
        unit = rng.choice(list(UNITS.values()))
        instance = unit.instance(rng.choice(list(unit.configs)))
        text = instance_text(instance) if unit.board else ""
        words = [word for word in text.split(" ") if "=" in word] or ["depth=2", "lanes=8"]
        word = rng.choice(words)
        name, _, _value = word.partition("=")
        kind = rng.randrange(4)
        if kind == 0:
            word = mutate_text(word, rng, 2)
        elif kind == 1:
            word = f"{name}={rng.choice(HOSTILE)}"
        elif kind == 2:
            word = f"{name}={rng.randrange(-3, 70)}"
        if rng.random() < 0.3:
            for axis in parse_sweep(unit, (word,), {}).values():
                assert axis
            return
        changes = parse_settings(unit.component, (word,))
        found = unit.instance(None, changes, name=rng.choice((None, "a", rng.choice(HOSTILE))))
        assert found.top.isidentifier()
        assert found.top.isascii()

    return attempt


@reader(200)
def board_names(_folder: Path) -> Attempt:
    texts = [instance_text(board_instance(name)) for name in ("quantizer", "dot")]

    def attempt(rng: random.Random) -> None:
        name = rng.choice((*BOARDS, *HOSTILE))
        name = mutate_text(name, rng, 2) if rng.random() < 0.7 else name
        kind = rng.randrange(4)
        if kind == 0:
            assert find_board(name).name == name
        elif kind == 1:
            assert find_board_unit(name).board is not None
        elif kind == 2:
            board_instances([rng.choice(("dot", "quantizer", name))], [name], [name])
        else:
            instance_of_text(mutate_text(rng.choice(texts), rng, 2))

    return attempt


# Arrays


def _npy(array: np.ndarray, rng: random.Random) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array, allow_pickle=True)
        return file.getvalue()


class Touch:
    """Pickled, this would touch a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch PWNED",)


def _odd_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    kinds = (np.uint8, np.int8, np.uint16, np.uint32, np.int64, np.float16, np.float32, np.float64)
    kind = rng.randrange(8)
    if kind == 0:
        return array.astype(rng.choice(kinds))
    if kind == 1:
        return array.reshape(-1)
    if kind == 2:
        return array[:, : rng.randrange(4)] if array.ndim > 1 else array[:0]
    if kind == 3:
        return np.array([Touch()] * 3, dtype=object)
    if kind == 4:
        return array.astype(array.dtype.newbyteorder())
    if kind == 5:
        return np.asfortranarray(array)
    if kind == 6:
        return np.array(array.reshape(-1)[:1].reshape(()))
    return rng.choice(
        (
            *(
                np.array(["a"]),
                np.zeros(3, "M8[s]"),
                np.zeros(2, [("a", "u1")]),
                np.zeros((1,) * 20),
            ),
            *(np.array([np.nan, np.inf]), np.array([2.0**200]), np.zeros((0, 32)), np.array(1j)),
        )
    )


@reader(250)
def input_arrays(folder: Path) -> Attempt:
    """What `simulate` and `fpga run` take, for every unit."""
    from m2xfp.tb.bench import Operands

    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(8, 32)).astype(np.float32)).bfloat16().float()
    operands = Operands(2, 4, values, values)
    benches = []
    for unit in UNITS.values():
        instance = unit.instance()
        bench = find_bench(unit)
        benches.append((bench, instance.facts, bench.sample(operands, instance.facts)))
    target = folder / "x.npy"

    def attempt(rng: random.Random) -> None:
        bench, facts, sample = rng.choice(benches)
        arrays = {name: np.asarray(array) for name, array in sample.items()}
        name = rng.choice(list(arrays))
        kind = rng.randrange(4)
        if kind == 0:
            arrays[name] = _odd_array(arrays[name], rng)
        elif kind == 1:
            del arrays[name]
        elif kind == 2:
            arrays[rng.choice(("x", "../y", "a b", "first"))] = arrays[name]
        if len(arrays) == 1 and rng.random() < 0.7:
            data = _npy(next(iter(arrays.values())), rng)
        else:
            method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            with io.BytesIO() as file:
                with zipfile.ZipFile(file, "w", method) as archive:
                    for key, array in arrays.items():
                        archive.writestr(f"{key}.npy", _npy(array, rng))
                data = file.getvalue()
        if rng.random() < 0.4:
            data = mutate_bytes(data, rng)
        target.write_bytes(data)
        found = bench.load(target, facts)
        beats = bench.encode(found, facts)
        assert all(each.data.dtype == np.uint8 for each in beats.values())
        bench.expected(found, facts)

    return attempt


# The link of boards


class HostilePort:
    """A serial port that answers with mutated frames."""

    timeout: float | None = 0.0

    def __init__(self, rng: random.Random, identity: bytes) -> None:
        self.rng, self.identity, self.waiting = rng, identity, b""
        self.asked = Decoder()

    @property
    def in_waiting(self) -> int:
        return len(self.waiting)

    def read(self, size: int = 1, /) -> bytes:
        part, self.waiting = self.waiting[:size], self.waiting[size:]
        return part

    def write(self, sent: bytes, /) -> int:
        for frame in self.asked.feed(sent):
            assert frame is not None
            payload = self.identity if frame.command == 0 else frame.payload
            if self.rng.random() < 0.3:
                payload = mutate_bytes(payload or b"\0", self.rng)
            status = self.rng.choice((0, 0, 0, 0, 1, 3, 200))
            answer = encode(Frame(frame.command, frame.sequence, payload[:65535], status))
            if self.rng.random() < 0.3:
                answer = mutate_bytes(answer, self.rng)
            self.waiting += answer
        return len(sent)

    def flush(self) -> None:
        pass

    def reset_input_buffer(self) -> None:
        self.waiting = b""

    def close(self) -> None:
        pass


@reader(300)
def uart_frames(_folder: Path) -> Attempt:
    def attempt(rng: random.Random) -> None:
        frame = Frame(rng.randrange(20), rng.randrange(1 << 16), rng.randbytes(rng.randrange(40)))
        sent = encode(frame)
        for found in Decoder().feed(mutate_bytes(sent, rng, 3) + sent):
            if found is not None:  # a CRC lets one in 2^32 of other frames pass
                assert found == frame or found.payload in sent
        if rng.random() < 0.3:
            port = HostilePort(rng, b"")
            answer = HostLink(port, baud=1_000_000, timeout=0.001, retries=1).request(5, b"abc")
            assert isinstance(answer, bytes)

    return attempt


@reader(300, ValueError)
def uart_records(_folder: Path) -> Attempt:
    def attempt(rng: random.Random) -> None:
        widths = [rng.randrange(1, 20) for _ in range(rng.randrange(4))]
        payload = rng.randbytes(rng.randrange(60))
        records = unpack_records(payload, widths)
        assert sum(1 + len(record.beat) for record in records) == len(payload)

    return attempt


@reader(100)
def device_identity(_folder: Path) -> Attempt:
    instances = board_instances(["quantizer", "dot"])
    right = design_identity(12e6, 1_000_000, instances, 1024)
    given = json.loads(right.payload())

    def attempt(rng: random.Random) -> None:
        payload = json_text(given, rng)
        if rng.random() < 0.5:
            found = Identity.parse(payload)
            assert _within(json.loads(payload), json.loads(found.payload()))
            return
        with Device(HostilePort(rng, payload), timeout=0.001, retries=1) as device:
            assert set(device.units) <= {"quantizer", "dot"}

    return attempt


# The tests


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run(name: str, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    found = READERS[name]
    monkeypatch.chdir(folder)
    attempt = found.make(folder)
    for index in range(
        30
    ):  # what is imported, compiled or cached at first use is no loader's doing
        try:
            attempt(random.Random(f"{seed}/{index}"))
        except found.errors:
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}/{index}: {type(error).__name__}") from error
    with guarded(folder):
        taken = fuzz(count, seed, attempt, *found.errors)
    print(f"{name}: {taken} of {count} mutated inputs taken, the others refused")
    assert not list(folder.rglob("PWNED"))


@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet) -> None:
    _run(name, READERS[name].count, tmp_path, monkeypatch, 1)


@pytest.mark.parametrize("drawer", DRAWERS)
def test_figures_that_lack_a_row(drawer: str, tmp_path: Path) -> None:
    """Each list of each file without its first row, and without any."""
    results, files = _figure_files(tmp_path)

    def try_all(name: str, whole: Any, part: Any) -> None:
        for value in part.values() if isinstance(part, dict) else part[:1]:
            if isinstance(value, (dict, list)):
                try_all(name, whole, value)
            if isinstance(value, list):
                kept = value[:]
                for left in (kept[1:], []):
                    value[:] = left
                    (results / name).write_text(json.dumps(whole))
                    with contextlib.suppress(M2xfpError):
                        tables_of(drawer, results)
                value[:] = kept
        (results / name).write_bytes(files[name])

    for path in opened(lambda: tables_of(drawer, results)):
        if path.parent == results:
            whole = json.loads(files[path.name])
            try_all(path.name, whole, whole)


def test_figures_that_are_none(tmp_path: Path) -> None:
    """Where a drawer says by an assertion that there is a number."""
    results, files = _figure_files(tmp_path)
    text = files["synth-asap7.json"].decode()
    (results / "synth-asap7.json").write_text(
        re.sub(r'"energy_pj_per_group": [0-9.e-]+', '"energy_pj_per_group": null', text)
    )
    with pytest.raises(InputError, match=r"figures for m2xfp.synth.studies.mac are damaged"):
        tables_of("m2xfp.synth.studies.mac", results)


def test_a_flag_that_is_a_number(tmp_path: Path) -> None:
    """It was how often a text was written."""
    results, files = _figure_files(tmp_path)
    whole = json.loads(files["synth-asap7.json"])
    whole["flow"]["clock_gating"] = 1 << 40
    (results / "synth-asap7.json").write_text(json.dumps(whole))
    tables = tables_of("m2xfp.synth.report.accepted", results)
    assert all(text.count(", clock gates") <= 1 for text in tables.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_many_mutated_inputs(name, tmp_path: Path, monkeypatch, quiet) -> None:
    _run(name, 10_000, tmp_path, monkeypatch, 2)


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: (folder.parent / "outside").write_text("x"),
        lambda folder: (folder.parent / "outside").mkdir(),
        lambda folder: __import__("subprocess").run(["true"], check=True),
        lambda folder: __import__("os").system("true"),
        lambda folder: __import__("socket").create_connection(("127.0.0.1", 9)),
        lambda folder: __import__("pickle").loads(__import__("pickle").dumps(Touch())),
        lambda folder: eval(compile("1", "data", "eval")),
    ],
)
def test_the_guard_sees(act: Callable[[Path], object], tmp_path: Path) -> None:
    """Each thing that a loader must not do is noticed, so the tests above can fail."""
    with guarded(tmp_path), pytest.raises(Forbidden):
        act(tmp_path)
    with guarded(tmp_path):
        (tmp_path / "inside").write_text("x")


def test_an_unclear_error_is_a_fault() -> None:
    def wrong(rng: random.Random) -> None:
        raise KeyError("x")

    with pytest.raises(AssertionError, match="seed 1/0: KeyError"):
        fuzz(3, 1, wrong, InputError)
