"""The host library against a simulated board: golden results, faults, a real port (a pty)."""

import contextlib
import importlib
import os
import re
import select
import threading
import tty
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from m2xfp.cli import cli
from m2xfp.commands.fpga_run import _loaded as loaded
from m2xfp.errors import InputError, M2xfpError, MissingToolError
from m2xfp.formats import input_type
from m2xfp.fpga.check.line import SimulatedLine, SimulatedPort, line_bytes, line_toggles
from m2xfp.fpga.gateware.design import Design
from m2xfp.fpga.gateware.units import (
    board_instance,
    board_instances,
    board_units,
    find_board_unit,
)
from m2xfp.fpga.host.device import (
    Device,
    DeviceError,
    FaultError,
    MissingUnitError,
    NoAnswerError,
    NoDeviceError,
    WrongBuildError,
)
from m2xfp.fpga.host.link import HostLink
from m2xfp.fpga.host.remote_unit import RemoteUnit
from m2xfp.fpga.host.running_sums import _lanes, seed_pairs
from m2xfp.fpga.protocol import Decoder, Frame, Status, encode
from m2xfp.golden import PackedTensor, dot, get_format, matmul
from m2xfp.golden.bits import dot_bits, from_bits

BAUD = 1_000_000
CLOCK = 8 * BAUD

ACT, WEIGHT = get_format("m2xfp-act"), get_format("m2xfp-weight")


@pytest.fixture(scope="module")
def line(sim_dir: Path) -> Iterator[SimulatedLine]:
    """A board with the units that most boards have."""
    with SimulatedLine(
        Design(CLOCK, BAUD, board_instances(["quantizer", "dot"])), build_dir=sim_dir
    ) as line:
        yield line


@pytest.fixture
def device(line: SimulatedLine) -> Iterator[Device]:
    with Device(SimulatedPort(line)) as device:
        yield device


def random_values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bfloat16 pattern, and groups whose values are close to each other."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 1 << 16, shape, np.uint16)
    close = torch.from_numpy(rng.normal(size=shape).astype(np.float32)).bfloat16()
    anything = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    rows = torch.from_numpy(np.asarray(rng.random(shape[:-1]) < 0.5))
    return torch.where(rows[..., None], close, anything)


def random_groups(name: str, shape: tuple[int, ...], seed: int) -> PackedTensor:
    """Any bytes, with scales close to each other, so that sums are of many groups."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (*shape, 18), np.uint8)
    data[..., 16] = rng.integers(115, 135, shape)
    return PackedTensor.from_groups(get_format(name), torch.from_numpy(data))


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(
        found.view(torch.int32), expected.view(torch.int32)
    )


def same_packed(found: PackedTensor, expected: PackedTensor) -> bool:
    return (
        found.format == expected.format
        and found.shape == expected.shape
        and all(
            torch.equal(plane, expected.planes()[name]) for name, plane in found.planes().items()
        )
    )


# Accumulators as groups


def test_every_half_significand_is_a_sum_of_products() -> None:
    doubled = [0, 1, 2, 3, 4, 6, 8, 12]
    for number in range(1 << 12):
        lanes = _lanes(number)
        assert sum(doubled[a] * doubled[b] for a, b in lanes) == number
        assert len(lanes) <= 32


def test_seeds_make_every_accumulator() -> None:
    rng = np.random.default_rng(0)
    patterns = [
        *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF),
        *(0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x3F800000, 0x3F800FFF, 0xBF801000),
        *rng.integers(0, 1 << 32, 300).tolist(),
    ]
    for pattern in patterns:
        acc = np.zeros(1, np.uint32)
        pairs = seed_pairs(pattern)
        assert len(pairs) <= 2
        for pair in pairs:
            act, weight = np.frombuffer(pair, np.uint8).reshape(2, 1, 1, 18)
            acc = dot_bits(ACT, WEIGHT, act, weight, "fp32", acc)
        nan = pattern & 0x7FFFFFFF > 0x7F800000
        assert int(acc[0]) == (0x7FC00000 if nan else pattern), hex(pattern)


# Values


@pytest.mark.parametrize(
    "shape", [(1, 32), (70, 32), (3, 5, 40), (7,), (2, 0), (0, 32), (1, 1, 1, 100)]
)
def test_quantize(device: Device, shape: tuple[int, ...]) -> None:
    x = random_values(shape, seed=sum(shape))
    assert same_packed(device.quantize(x), ACT.quantize(x))


def test_quantize_of_special_values(device: Device) -> None:
    """NaN, infinities, zeros of both signs, subnormals, ties."""
    special = [0x7FC0, 0x7F80, 0xFF80, 0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x7F7F, 0x3FE0]
    raw = np.zeros((len(special) + 1, 32), np.uint16)
    raw[:-1, 5] = special
    raw[-1] = 0x8001
    raw[3:5, 9] = 0x3F80
    x = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    assert same_packed(device.quantize(x), ACT.quantize(x))


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (40, 2), (1, 53), (2, 54), (2, 2, 60), (1, 0)])
def test_dot(device: Device, shape: tuple[int, ...]) -> None:
    """Within one request, and over several: 53 pairs fit."""
    qa = random_groups("m2xfp-act", shape, seed=sum(shape))
    qw = random_groups("m2xfp-weight", shape, seed=sum(shape) + 1)
    assert same_bits(device.dot(qa, qw), dot(qa, qw))


def test_dot_over_requests_with_any_running_sum(device: Device) -> None:
    """A sum that is NaN, infinite, subnormal or negative zero goes on in the next request."""
    depth = 60
    rng = np.random.default_rng(7)
    cases = []
    for scale in (0, 1, 60, 127, 200, 254, 255):
        data = rng.integers(0, 256, (2, 1, depth, 18), np.uint8)
        data[..., 16] = scale
        data[:, :, 55:, 16] = min(scale, 130)
        cases.append(data)
    tiny = np.zeros((2, 1, depth, 18), np.uint8)
    tiny[0, 0, 0, 0], tiny[1, 0, 0, 0] = 0x01, 0x09  # a negative product that rounds to -0
    cases.append(tiny)
    acts, weights = (torch.from_numpy(x) for x in np.concatenate(cases, axis=1))
    qa, qw = PackedTensor.from_groups(ACT, acts), PackedTensor.from_groups(WEIGHT, weights)
    expected = dot(qa, qw)
    assert same_bits(device.dot(qa, qw), expected)
    kinds = expected.view(torch.int32)
    assert int(kinds[-1]) == -(1 << 31)
    assert expected.isnan().any()
    assert expected.isinf().any()


def test_every_accumulator_is_reported(device: Device) -> None:
    pairs = np.random.default_rng(3).integers(0, 256, (120, 36), np.uint8)
    pairs[:, [16, 34]] = 127
    first = np.zeros(120, bool)
    first[[10, 11, 70]] = True
    acc, expected = np.zeros(1, np.uint32), []
    for pair, clear in zip(pairs, first, strict=True):
        start = np.zeros(1, np.uint32) if clear else acc
        acc = dot_bits(ACT, WEIGHT, pair[None, None, :18], pair[None, None, 18:], "fp32", start)
        expected.append(int(acc[0]))
    assert device.accumulate(pairs, first).tolist() == expected


@pytest.mark.parametrize("most", [1 << 16, 30, 1])
def test_matmul_by_dot_products(device: Device, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2xfp.fpga.host.device.MOST_PAIRS", most)
    x = torch.randn(2, 3, 70, generator=torch.Generator().manual_seed(1))
    w = torch.randn(4, 70, generator=torch.Generator().manual_seed(2))
    qa, qw = ACT.quantize(x), WEIGHT.quantize(w)
    assert same_bits(device.matmul(qa, qw), matmul(qa, qw))
    none = ACT.quantize(x[:0])
    assert same_bits(device.matmul(none, qw), matmul(none, qw))


@pytest.mark.slow
def test_weights_by_the_encoder(sim_dir: Path) -> None:
    design = Design(CLOCK, BAUD, board_instances(["encoder"]))
    with (
        SimulatedLine(design, build_dir=sim_dir) as line,
        Device(SimulatedPort(line)) as device,
    ):
        x = random_values((100, 50), seed=4)
        assert same_packed(device.quantize_weights(x), WEIGHT.quantize(x))
        assert device.self_test().groups == {"encoder": 256}


@pytest.mark.parametrize(
    "unit",
    [
        "minifloat",
        *(
            pytest.param(unit, marks=pytest.mark.slow)
            for unit in sorted({*board_units()} - {"quantizer", "dot", "minifloat"})
        ),
    ],
)
def test_every_unit_of_boards(unit: str, sim_dir: Path) -> None:
    """Rows by themselves, groups of several beats, and work that one request must hold."""
    design = Design(CLOCK, BAUD, board_instances([unit]))
    with (
        SimulatedLine(design, build_dir=sim_dir) as line,
        Device(SimulatedPort(line)) as device,
    ):
        assert device.self_test(groups=60).groups[unit] >= 4


def test_what_does_not_fit_a_request() -> None:
    (instance,) = board_instances(["mixed_gemm"])
    remote = RemoteUnit(cast(HostLink, None), 0, instance, 512)
    arrays = remote.sample(np.random.default_rng(0), 1)
    with pytest.raises(InputError, match=r"mixed_gemm: the arrays take \d+ bytes, .* holds 512"):
        remote.run(arrays)


# What is refused before anything is sent


@pytest.mark.parametrize(
    ("unit", "spoilt", "message"),
    [
        ("switching", {"a_formats": 7, "w_formats": 7}, r"a_formats\[0\] = 7 .*multiplies 0 a"),
        ("switching", {"a_formats": 9, "w_formats": 200}, "= 200 are no pair of micromix-8"),
        ("mixed_gemm", {"segments": 9}, "has the formats 9 and 0; m2xfp-1x2 multiplies"),
        ("permuter", {"order": 64}, "channel 64 is not one of 0 to"),
    ],
)
def test_numbers_that_the_unit_has_not(
    unit: str, spoilt: dict[str, int], message: str, tmp_path: Path
) -> None:
    """By the command's file and by a program's arrays: the link, which is none, is not used."""
    (instance,) = board_instances([unit])
    remote = RemoteUnit(cast(HostLink, None), 0, instance, 2048)
    arrays = remote.sample(np.random.default_rng(0), 1)
    for name, value in spoilt.items():
        arrays[name].reshape(-1)[0] = value
    with pytest.raises(InputError, match=message):
        remote.run(arrays)
    np.savez(tmp_path / "x.npz", **arrays)
    device = cast(Device, SimpleNamespace(unit=lambda _: remote, units={unit: remote}))
    for name in (unit, None):
        with pytest.raises(InputError, match=message):
            loaded(tmp_path / "x.npz", device, name)


@pytest.fixture
def mute(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose port must not be used."""

    def no_request(*_: object) -> bytes:
        raise AssertionError("something was sent")

    monkeypatch.setattr(device._link, "request", no_request)
    return device


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d, a, w: d.quantize(torch.zeros(32)), InputError, r"float32.*takes bfloat16"),
        (lambda d, a, w: d.quantize([1.0]), TypeError, "pass a torch.bfloat16 tensor"),
        (lambda d, a, w: d.quantize(torch.zeros((), dtype=torch.bfloat16)), InputError, "no dim"),
        (
            lambda d, a, w: d.quantize_weights(torch.zeros(32, dtype=torch.bfloat16)),
            MissingUnitError,
            "no unit encoder; it has: quantizer, dot",
        ),
        (lambda d, a, w: d.dot(a, torch.zeros(32)), TypeError, "qw is Tensor; pass a PackedTensor"),
        (lambda d, a, w: d.dot(w, a), InputError, "qa is in m2xfp-weight.*in m2xfp-act"),
        (lambda d, a, w: d.dot(a, _packed("m2xfp-weight", (2, 64))), InputError, "one shape"),
        (lambda d, a, w: d.matmul(a, _packed("m2xfp-weight", (2, 64))), InputError, "one K"),
        (lambda d, a, w: d.matmul(a, _packed("m2xfp-weight", (32,))), InputError, r"\[N, K\]"),
        (lambda d, a, w: d.dot(_packed("mxfp4", (2, 32)), w), InputError, "qa is in mxfp4"),
        (lambda d, a, w: d.self_test(groups=0), InputError, "at least 1"),
    ],
)
def test_operands_that_are_refused(
    mute: Device, call: Callable[..., object], error: type[Exception], message: str
) -> None:
    a, w = _packed("m2xfp-act", (2, 32)), _packed("m2xfp-weight", (2, 32))
    with pytest.raises(error, match=message):
        call(mute, a, w)


def _packed(name: str, shape: tuple[int, ...]) -> PackedTensor:
    return get_format(name).quantize(torch.ones(shape))


@pytest.mark.parametrize("options", [{"baud": 0}, {"timeout": 0}, {"retries": -1}])
def test_parameters_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        Device("/dev/null", **options)


# Self-test


def test_self_test(device: Device) -> None:
    passed = device.self_test(groups=40, seed=5)
    assert passed.echoed == 2048
    assert passed.groups == {"quantizer": 40, "dot": 40}


@pytest.mark.parametrize("unit", ["quantizer", "dot"])
def test_self_test_finds_a_wrong_bit(
    device: Device, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one group, as a fault in the unit would make it."""
    play = RemoteUnit.play
    left = [5]

    def faulty(self: RemoteUnit, inputs: Any, pieces: int = 1) -> Any:
        found = play(self, inputs, pieces)
        if self.name == unit:
            left[0] -= 1
            found["o"].data[-1, 2] ^= left[0] == 4
        return found

    monkeypatch.setattr(RemoteUnit, "play", faulty)
    with pytest.raises(FaultError, match=f"self-test: unit {unit} gives .* 1 of "):
        device.self_test(groups=8)


@pytest.mark.parametrize(
    ("unit", "config"),
    [
        *(("quantizer", kind) for kind in (None, "fp16x8", "fp32x8")),
        ("encoder", None),
    ],
)
def test_samples_have_every_kind_of_nan(unit: str, config: str | None) -> None:
    """NaN is an OR over the fraction: each of its bits alone, with both signs."""
    facts = board_instance(unit, config).facts
    host = importlib.import_module(f"m2xfp.fpga.host.{find_board_unit(unit).board.host}")
    kind = input_type(facts.parameters["input_type"])
    rng = np.random.default_rng(0)
    raw = np.concatenate([host.sample(rng, 400, facts)["x"].ravel() for _ in range(20)])
    nan = raw[from_bits(kind.name, raw).isnan().numpy()].tolist()
    payloads = {pattern & (1 << kind.mantissa_bits) - 1 for pattern in nan}
    assert {1 << bit for bit in range(kind.mantissa_bits)} <= payloads
    assert {pattern >> kind.width - 1 for pattern in nan} == {0, 1}


@pytest.mark.parametrize(("unit", "side"), list(product(("dot", "accelerator"), "aw")))
def test_samples_have_any_codes_and_metadata(unit: str, side: str) -> None:
    """What no quantizer writes is sent too: every byte of the planes."""
    facts = board_instance(unit).facts
    host = importlib.import_module(f"m2xfp.fpga.host.{find_board_unit(unit).board.host}")
    rng = np.random.default_rng(0)
    samples = [host.sample(rng, 20, facts) for _ in range(1500)]
    for plane in ("codes", "meta"):
        found = np.concatenate([arrays[f"{side}_{plane}"].ravel() for arrays in samples])
        assert len(set(found.tolist())) == 256, plane


def test_self_test_finds_a_wrong_echo(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    request = device._link.request
    monkeypatch.setattr(
        device._link, "request", lambda command, sent: request(command, sent[:-1] + b"\0")
    )
    with pytest.raises(FaultError, match="echo differs"):
        device.self_test()


# Devices that are none


class Wire:
    """A port at whose other end a function makes the answers."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer, self.received, self.writes = answer, b"", 0
        self.timeout: float | None = None

    @property
    def in_waiting(self) -> int:
        return len(self.received)

    def write(self, sent: bytes) -> int:
        self.writes += 1
        self.received += self.answer(sent)
        return len(sent)

    def read(self, size: int = 1) -> bytes:
        taken, self.received = self.received[:size], self.received[size:]
        return taken

    def flush(self) -> None:
        pass

    def reset_input_buffer(self) -> None:
        self.received = b""

    def close(self) -> None:
        pass


def served(serve: Callable[[Frame], Frame]) -> Wire:
    """A port at whose other end a function answers intact requests."""

    def answer(sent: bytes) -> bytes:
        frames = Decoder().feed(sent)
        return b"".join(encode(serve(frame)) for frame in frames if frame is not None)

    return Wire(answer)


def test_silence() -> None:
    wire = Wire(lambda sent: b"")
    with pytest.raises(NoAnswerError, match=r"no answer in 3 attempts of 1 s.*power"):
        Device(wire, retries=2)
    assert wire.writes == 3


def test_babble() -> None:
    """Another thing on the line, or another rate: bytes, and no answer in them."""
    rng = np.random.default_rng(1)
    for noise in (rng.bytes(1 << 18), b"\x7e" * (1 << 18), b"hello\r\n"):
        with pytest.raises(NoAnswerError, match="no intact answer in 4 attempts"):
            Device(Wire(lambda sent, noise=noise: noise))


def test_an_echoing_line() -> None:
    """A cable whose ends are joined returns the request, which is no identification."""
    with pytest.raises(WrongBuildError, match="no identification of an m2xfp design"):
        Device(Wire(lambda sent: sent))


def test_late_answers_are_passed_over(line: SimulatedLine) -> None:
    """Answers to other requests, and each answer twice."""

    def answer(sent: bytes) -> bytes:
        (frame,) = (frame for frame in Decoder().feed(sent) if frame is not None)
        other = Frame(frame.command, (frame.sequence - 1) % 65536, b"wrong")
        another = Frame(frame.command ^ 1, frame.sequence, b"wrong")
        return encode(other) + encode(another) + 2 * line.exchange(sent)

    with Device(Wire(answer)) as device:
        assert device.self_test(groups=4).groups["dot"] == 4


@pytest.mark.parametrize("status", [Status.UNKNOWN_COMMAND, Status.STALLED, Status.OVERFLOW, 77])
def test_refusals_are_told(status: int) -> None:
    wire = served(lambda frame: Frame(frame.command, frame.sequence, b"", status))
    name = Status(status).name if status < 5 else "77"
    with pytest.raises(FaultError, match=f"refused command 0 with status {name}"):
        Device(wire)
    assert wire.writes == 1


def test_another_build(line: SimulatedLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2xfp.fpga.gateware.design.__version__", "9.9")
    with pytest.raises(WrongBuildError, match=r"version '0\.\S*' instead of '9\.9'.*build"):
        Device(SimulatedPort(line))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"lanes=8", b"lanes=16", "units .*lanes=16.*i:128.* instead of .*lanes=16.*i:256"),
        (b'"build":"', b'"build":"0', "build '0"),
        (b"activation_quantizer", b"divider", "unknown unit 'divider'"),
        (b'"quantizer"', b'"divider"', "units .*'divider'.* instead of .*'quantizer'"),
        (b"lanes=8", b"lanes=4", "lanes=4: must divide the group"),
        (b"lanes=8", b"lines=8", "unknown parameter 'lines'"),
        (b"activation_quantizer", b"group_dot", "group_dot has no board row"),
        (b'"protocol":1', b'"protocol":2', "protocol 2; this version of m2xfp speaks 1"),
    ],
)
def test_an_identity_that_differs(old: bytes, new: bytes, message: str) -> None:
    payload = Design(CLOCK, BAUD, board_instances(["quantizer"])).identity.payload()
    assert old in payload
    wire = served(lambda frame: Frame(frame.command, frame.sequence, payload.replace(old, new)))
    with pytest.raises(WrongBuildError, match=message):
        Device(wire)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "0 results came back, 1 were due"),
        (b"\x05", "makes no sense"),
        (b"\x00" * 38, "2 res"),
    ],
)
def test_answers_that_cannot_be(payload: bytes, message: str) -> None:
    identity = Design(CLOCK, BAUD, board_instances(["quantizer"])).identity.payload()
    wire = served(
        lambda frame: Frame(
            frame.command, frame.sequence, identity if frame.command == 0 else payload
        )
    )
    with Device(wire) as device, pytest.raises(FaultError, match=message):
        device.quantize(torch.ones(32, dtype=torch.bfloat16))


# Faults on the line


class Cable:
    """Loses, changes, doubles and invents bytes, each with the same probability."""

    def __init__(self, rate: float, seed: int) -> None:
        self.rate, self.rng, self.faults = rate, np.random.default_rng(seed), 0

    def __call__(self, sent: bytes) -> bytes:
        arriving = bytearray()
        for byte in sent:
            if self.rng.random() >= self.rate:
                arriving.append(byte)
                continue
            self.faults += 1
            other = int(self.rng.integers(256))
            arriving += [b"", bytes([other]), bytes([byte, byte]), bytes([byte, other])][
                self.rng.integers(4)
            ]
        return bytes(arriving)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))]
)
@pytest.mark.parametrize("rate", [0.0005, 0.004])
def test_right_or_an_error_over_a_bad_cable(line: SimulatedLine, rate: float, seed: int) -> None:
    """Faults in both directions, without retries and with them; then a good cable, no trace."""
    cables = Cable(rate, seed), Cable(rate, seed + 100)
    port = SimulatedPort(line)
    device = Device(port, retries=0)
    port._to_device, port._from_device = cables
    right = wrong = 0
    for number in range(50):
        device._link._retries = 0 if number % 2 else 3
        x = random_values((3, 32), seed=1000 * seed + number)
        qa = random_groups("m2xfp-act", (2, 2), seed=number)
        qw = random_groups("m2xfp-weight", (2, 2), seed=number + 1)
        try:
            assert same_packed(device.quantize(x), ACT.quantize(x)), (rate, seed, number)
            assert same_bits(device.dot(qa, qw), dot(qa, qw)), (rate, seed, number)
            right += 1
        except DeviceError:
            wrong += 1
    assert right > 10
    assert wrong > 1 or rate < 0.001
    assert min(cable.faults for cable in cables) > 0
    port._to_device = port._from_device = bytes
    device._link._retries = 3
    assert device.self_test(groups=4).groups["dot"] == 4


def test_right_or_an_error_with_noise_on_the_pin(line: SimulatedLine) -> None:
    """Pulses of up to two bits at any time: bits flip, bytes shift, stop bits fall."""
    rng = np.random.default_rng(11)
    right = wrong = 0

    def exchange(sent: bytes) -> bytes:
        toggles = line_toggles(sent, line.divisor)
        starts = rng.uniform(0, toggles[-1], rng.poisson(0.7))
        pulses = np.concatenate([starts, starts + rng.uniform(1, 16, len(starts))])
        return line_bytes(line.run([*toggles, *pulses]), line.divisor)

    device = Device(SimulatedPort(line))
    device._link._port = Wire(exchange)  # type: ignore[assignment]
    device._link._retries = 0
    for number in range(60):
        x = random_values((2, 32), seed=number)
        try:
            assert same_packed(device.quantize(x), ACT.quantize(x)), number
            right += 1
        except DeviceError:
            wrong += 1
    assert right > 10
    assert wrong > 10
    assert Device(SimulatedPort(line)).self_test(groups=4).groups["quantizer"] == 4


def test_without_the_checks_faults_would_give_wrong_results(
    line: SimulatedLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same damage to an answer, with and without the host's checks."""

    def trusting(body: bytes) -> Frame:
        clear = body.replace(b"\x7d\x5e", b"\x7e").replace(b"\x7d\x5d", b"\x7d")
        return Frame(clear[0], int.from_bytes(clear[2:4], "little"), clear[6:-4], clear[1])

    rng = np.random.default_rng(5)

    def flip(answer: bytes) -> bytes:
        at = int(rng.integers(12, len(answer) - 8))
        return answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]

    port = SimulatedPort(line)
    device = Device(port, retries=0)
    port._from_device = flip
    x = random_values((3, 32), seed=1)
    expected = ACT.quantize(x)
    for _ in range(10):
        with pytest.raises(NoAnswerError):
            device.quantize(x)
    monkeypatch.setattr("m2xfp.fpga.protocol._decode", trusting)
    results = []
    for _ in range(10):
        with contextlib.suppress(FaultError):  # a record's tag was hit
            results.append(same_packed(device.quantize(x), expected))
    assert len(results) > 5
    assert not any(results)


# A real port


class Pty:
    """A pseudo-terminal whose other end is the simulated board."""

    def __init__(self, line: SimulatedLine) -> None:
        self.controller, self.board = os.openpty()
        tty.setraw(self.board)
        self.name = os.ttyname(self.board)
        self.line = line
        self.mangle: Callable[[bytes], bytes] = bytes
        self.open = True
        self.thread = threading.Thread(target=self.pump, daemon=True)
        self.thread.start()

    def pump(self) -> None:
        """Hand what comes to the simulation, in whatever pieces it comes."""
        while self.open:
            if select.select([self.controller], [], [], 0.02)[0]:
                sent = os.read(self.controller, 1 << 16)
                os.write(self.controller, self.mangle(self.line.exchange(sent)))

    def close(self) -> None:
        """Unplug the board."""
        if self.open:
            self.open = False
            self.thread.join()
            os.close(self.board)
            os.close(self.controller)


@pytest.fixture
def pty(line: SimulatedLine) -> Iterator[Pty]:
    pty = Pty(line)
    yield pty
    pty.close()


def test_over_a_port(pty: Pty) -> None:
    with Device(pty.name, timeout=5) as device:
        assert device.identity.names == ("quantizer", "dot")
        assert device.self_test(groups=8).groups == {"quantizer": 8, "dot": 8}
        with pytest.raises(NoDeviceError, match="no device at port"):
            Device(pty.name)


def test_over_a_port_with_faults(pty: Pty) -> None:
    """The first answer gets lost, the next one is damaged, the third comes."""
    with Device(pty.name, timeout=0.5) as device:
        damage = iter([lambda data: b"", lambda data: data[:-3] + b"\x00" + data[-3:]])
        pty.mangle = lambda data: next(damage, bytes)(data)
        x = random_values((3, 32), seed=1)
        assert same_packed(device.quantize(x), ACT.quantize(x))
        pty.mangle = lambda data: b""
        device._link._retries = 0
        with pytest.raises(NoAnswerError, match=r"no answer in 1 attempt of 0\.5 s"):
            device.quantize(x)


def test_a_port_that_goes_away(pty: Pty) -> None:
    with Device(pty.name, timeout=1) as device:
        pty.close()
        with pytest.raises(NoDeviceError, match="the device has gone"):
            device.self_test()


def test_no_such_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serial.tools import list_ports

    monkeypatch.setattr(list_ports, "comports", list)
    with pytest.raises(NoDeviceError, match=r"nothing': No such file.*ports here: none"):
        Device(str(tmp_path / "nothing"))

    class Found:
        device = "/dev/ttyUSB7"

    monkeypatch.setattr(list_ports, "comports", lambda: [Found()])
    with pytest.raises(NoDeviceError, match="ports here: /dev/ttyUSB7"):
        Device(str(tmp_path / "nothing"))
    with pytest.raises(NoDeviceError, match="no device at port"):
        Device("/dev/null")


def test_without_pyserial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(MissingToolError, match=r"pyserial is missing.*m2xfp\[fpga\]"):
        Device("/dev/ttyUSB0")


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["fpga", "run", *map(str, arguments)])


def test_command_quantizes(pty: Pty, tmp_path: Path) -> None:
    x = np.random.default_rng(1).integers(0, 1 << 16, (9, 32), np.uint16)
    np.save(tmp_path / "x.npy", x)
    result = run(
        "--port",
        pty.name,
        "--timeout",
        5,
        "--self-test",
        tmp_path / "x.npy",
        "-o",
        tmp_path / "y.npz",
    )
    assert result.exit_code == 0, result.output
    assert "self-test passed: 2048 bytes" in result.output
    assert "quantizer: 9 groups" in result.output
    expected = ACT.quantize(torch.from_numpy(x.view(np.int16)).view(torch.bfloat16))
    with np.load(tmp_path / "y.npz") as found:
        assert sorted(found) == ["codes", "meta", "scales"]
        for name, plane in expected.planes().items():
            assert np.array_equal(found[name].reshape(plane.shape), plane.numpy())


def test_command_accumulates(pty: Pty, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pairs = rng.integers(0, 256, (6, 36), np.uint8)
    pairs[:, [16, 34]] = 120
    fields = {
        "a_codes": pairs[:, :16],
        "a_scales": pairs[:, 16],
        "a_meta": pairs[:, 17],
        "w_codes": pairs[:, 18:34],
        "w_scales": pairs[:, 34],
        "w_meta": pairs[:, 35],
        "first": np.array([True, False, False, True, False, False]),
    }
    np.savez(tmp_path / "pairs.npz", **fields)
    result = run(
        "--port", pty.name, "--timeout", 5, tmp_path / "pairs.npz", "-o", tmp_path / "a.npz"
    )
    assert result.exit_code == 0, result.output
    expected = [
        dot_bits(ACT, WEIGHT, pairs[None, a:b, :18], pairs[None, a:b, 18:])[0]
        for a, b in ((0, 1), (0, 2), (0, 3), (3, 4), (3, 5), (3, 6))
    ]
    with np.load(tmp_path / "a.npz") as found:
        assert found["acc"].tolist() == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing.npy", [], "there is no such file"),
        ("x.txt", [], "no unit of the device takes .*x.txt; quantizer: .*; dot: "),
        ("x.npy", ["--unit", "dot"], "holds one array without a name; give .* .npz file"),
        ("x.npy", ["--unit", "weight_encoder"], "no unit encoder; it has: quantizer, dot"),
        ("x.npy", ["--unit", "adder"], "unknown unit of a board 'adder'"),
        ("x.npy", ["--port", "/dev/nothing"], "no device at port"),
    ],
)
def test_command_errors(
    pty: Pty, tmp_path: Path, name: str, options: list[str], message: str
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 32), np.uint16))
    (tmp_path / "x.txt").write_text("1 2 3")
    target = tmp_path / "y.npz"
    result = run("--port", pty.name, tmp_path / name, "-o", target, "--timeout", 5, *options)
    assert isinstance(result.exception, M2xfpError)
    assert re.search(message, str(result.exception))
    assert not target.exists()


def test_command_keeps_its_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 32), np.uint16))
    result = run("--port", "x", tmp_path / "x.npy", "-o", tmp_path / "x.npy")
    assert "must not be the input" in str(result.exception)
