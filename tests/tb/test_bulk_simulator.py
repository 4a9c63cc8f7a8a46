"""The bulk simulator on a small unit with two inputs, whose faults are switched on one by one."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from m2xfp.facts import Facts, Port, Stream
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.cache import cached_build
from m2xfp.tb.vectors import Beats, TestVectors

# Adds a, b and bias. `fault` breaks it: 1 drops valid under stall, 2 changes the payload under
# stall, 3 stops for good after three results, 4 goes on delivering, 5 loses tlast under stall.
ADDER = """
module adder_small (
  input  wire        clk, rst,
  input  wire [15:0] s_axis_a_tdata,
  input  wire        s_axis_a_tvalid, s_axis_a_tlast,
  output wire        s_axis_a_tready,
  input  wire  [7:0] s_axis_b_tdata,
  input  wire        s_axis_b_tvalid, s_axis_b_tlast,
  output wire        s_axis_b_tready,
  output reg  [23:0] m_axis_tdata,
  output reg         m_axis_tvalid, m_axis_tlast,
  input  wire        m_axis_tready,
  input  wire  [2:0] fault,
  input  wire [69:0] bias,
  output reg  [39:0] count,
  output reg   [6:0] without_reset
);
  wire free = (~m_axis_tvalid | m_axis_tready) & ~(fault == 3 && count == 3);
  wire take = free & s_axis_a_tvalid & s_axis_b_tvalid;
  assign s_axis_a_tready = take;
  assign s_axis_b_tready = take;
  always @(posedge clk) begin
    if (take) begin
      m_axis_tdata <= s_axis_a_tdata + s_axis_b_tdata + bias[69:46];
      m_axis_tlast <= s_axis_a_tlast ^ s_axis_b_tlast;
      count <= count + 1;
    end else if (m_axis_tvalid & ~m_axis_tready) begin
      if (fault == 2) m_axis_tdata <= m_axis_tdata + 1;
      if (fault == 5) m_axis_tlast <= ~m_axis_tlast;
    end
    m_axis_tvalid <= take | fault == 4 | (m_axis_tvalid & ~m_axis_tready & fault != 1);
    if (rst) begin
      m_axis_tvalid <= 0;
      count <= 0;
    end
  end
endmodule
"""


FACTS = Facts(
    unit="adder",
    config="small",
    top="adder_small",
    purpose="adds two streams",
    version="0",
    parameters={},
    streams=(
        Stream("a", "s_axis_a", "sink", 16),
        Stream("b", "s_axis_b", "sink", 8),
        Stream("o", "m_axis", "source", 24),
    ),
    signals=(
        Port("fault", "input", 3),
        Port("bias", "input", 70),
        Port("count", "output", 40),
        Port("without_reset", "output", 7),
    ),
    latency=1,
    beats_per_group=1,
    clocks_per_group=1,
    clocks_per_block=1,
    groups_per_clock=1.0,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("adder")
    (folder / "adder_small.v").write_text(ADDER)
    (folder / "adder_small.json").write_text(FACTS.to_json())
    return SimpleNamespace(verilog=folder / "adder_small.v", json=folder / "adder_small.json")


@pytest.fixture(scope="module")
def simulator(files: SimpleNamespace, sim_dir: Path) -> BulkSimulator:
    return BulkSimulator(files, build_dir=sim_dir)


COUNT = 2000
RNG = np.random.default_rng(0)
A = RNG.integers(0, 1 << 16, COUNT).astype("<u2")
B = RNG.integers(0, 1 << 8, COUNT).astype("u1")
LAST = RNG.random((2, COUNT)) < 0.5
INPUTS = {
    "a": Beats(A.view(np.uint8).reshape(COUNT, 2), LAST[0]),
    "b": Beats(B.reshape(COUNT, 1), LAST[1]),
}


def sums(beats: Beats) -> np.ndarray:
    return beats.data.astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])


@pytest.mark.parametrize("stall", [0.0, 0.4, {"a": 0.9}, {"b": 0.5, "o": 0.9}])
def test_streams_signals_and_settings(
    simulator: BulkSimulator, stall: float | dict[str, float]
) -> None:
    bias = 0xABCDEF
    run = simulator.run(INPUTS, stall=stall, seed=7, settings={"bias": bias << 46}, stamps=True)
    assert np.array_equal(sums(run.outputs["o"]), (A.astype(int) + B + bias) % (1 << 24))
    assert np.array_equal(run.outputs["o"].last, LAST[0] ^ LAST[1])
    assert run.signals["count"] == COUNT
    assert np.array_equal(run.stamps["a"], run.stamps["b"])
    assert np.all(run.stamps["o"] > run.stamps["a"])
    assert np.all(np.diff(run.stamps["o"].astype(int)) >= 1)
    if not stall:
        assert np.array_equal(run.stamps["o"], np.arange(1, COUNT + 1))
    else:
        assert run.stamps["o"][-1] > 1.3 * COUNT


def test_seed_decides(simulator: BulkSimulator) -> None:
    first, again, other = (
        simulator.run(INPUTS, stall=0.5, seed=seed, stamps=True) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.stamps["o"], again.stamps["o"])
    assert not np.array_equal(first.stamps["o"], other.stamps["o"])


def test_registers_start_at_random(simulator: BulkSimulator) -> None:
    """A register that reset misses is not always zero, so that a unit with one is found out."""
    values = {simulator.run({}, seed=seed).signals["without_reset"] for seed in range(20)}
    assert len(values) > 5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (1, "m_axis: valid dropped"),
        (2, "m_axis: the payload changed"),
        (3, "took 3 of 2000 beats"),
        (4, "still busy"),
        (5, "m_axis: the payload changed"),
    ],
)
def test_faults_are_noticed(simulator: BulkSimulator, fault: int, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        simulator.run(INPUTS, stall=0.2, settings={"fault": fault})


def test_cycle_limit(simulator: BulkSimulator) -> None:
    with pytest.raises(SimulationError, match="still busy after 100 clocks"):
        simulator.run(INPUTS, cycle_limit=100)


def test_nothing_to_play(simulator: BulkSimulator) -> None:
    run = simulator.run({})
    assert len(run.outputs["o"]) == 0
    assert run.signals["count"] == 0


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({"c": INPUTS["a"]}, {}, "no input stream 'c'"),
        ({"a": INPUTS["b"]}, {}, r"uint8 \[beats, 2\]"),
        ({"a": Beats(A.reshape(-1, 1))}, {}, "got uint16"),
        ({"a": Beats(INPUTS["a"].data, LAST[0][:5])}, {}, r"last must be \[2000\]"),
        (INPUTS, {"stall": {"x": 0.5}}, "no stream 'x'"),
        (INPUTS, {"stall": 1.0}, "probability 1.0"),
        (INPUTS, {"settings": {"fault": 8}}, "fault=8"),
        (INPUTS, {"settings": {"count": 1}}, "count=1"),
        (INPUTS, {"waves": Path("x.fst")}, "trace=True"),
    ],
)
def test_bad_arguments(simulator: BulkSimulator, inputs: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulator.run(inputs, **options)


def test_build_is_kept_and_failure_leaves_nothing(tmp_path: Path, files: SimpleNamespace) -> None:
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        assert (folder / files.verilog.name).read_text() == ADDER
        (folder / "half").touch()
        if len(calls) == 1:
            raise RuntimeError("broken")

    def get(fact: str) -> Path:
        return cached_build(tmp_path, "unit", files.verilog, [fact], build)

    with pytest.raises(RuntimeError, match="broken"):
        get("x")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    first = get("x")
    assert (first / "half").exists()
    assert get("x") == first
    assert len(calls) == 2
    assert get("y") != first
    assert len(calls) == 3


def test_broken_verilog_is_reported(tmp_path: Path, files: SimpleNamespace) -> None:
    broken = tmp_path / "adder_small.v"
    broken.write_text(ADDER.replace("endmodule", ""))
    with pytest.raises(RuntimeError, match="syntax error"):
        BulkSimulator(SimpleNamespace(verilog=broken, json=files.json), build_dir=tmp_path)


def test_vectors_in_parts_and_files(tmp_path: Path) -> None:
    vectors = TestVectors(INPUTS, {"o": Beats(np.zeros((COUNT // 2, 3), np.uint8))}, COUNT // 2)
    part = vectors.part(3, 5)
    assert np.array_equal(part.inputs["a"].data, INPUTS["a"].data[6:10])
    assert np.array_equal(part.inputs["b"].last, LAST[1][6:10])
    assert len(part.outputs["o"]) == part.groups == 2
    part.save(tmp_path / "vectors.npz")
    loaded = TestVectors.load(tmp_path / "vectors.npz")
    assert loaded.groups == 2
    assert np.array_equal(loaded.inputs["a"].data, part.inputs["a"].data)
    assert np.array_equal(loaded.inputs["a"].last, part.inputs["a"].last)
    assert loaded.outputs["o"].last is None
    with pytest.raises(ValueError, match="2000 beats in 3 groups"):
        TestVectors(INPUTS, {}, 3)
