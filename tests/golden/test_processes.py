"""Forks, threads, signals, other processes, and packed tensors that travel between them."""

import copy
import ctypes
import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from m2xfp.errors import InputError, NoFusedPathError
from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import PackedTensor, computing, get_format, matmul
from m2xfp.golden.bits import from_bits, quantize_bits, to_bits
from m2xfp.golden.formats.mixed import Calibration, Split, mixed_matmul
from m2xfp.golden.formats.parallel import Share
from m2xfp.golden.formats.products import group_sums, packed_linear, running_exact, running_fp32
from m2xfp.golden.formats.rotation import Rotation, rotate_blocks
from m2xfp.golden.formats.stacked import StackedTensor
from m2xfp.golden.kernels import fused, library, native, threads
from m2xfp.golden.units.hadamard import hadamard

FORMATS = (*BLOCK_FORMATS, "nvfp4:tensor_scale=auto", "mxfp4:group=64,scale_rule=ceil")
SECONDS = 60  # a child that takes longer hangs


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def large(seed: int = 0) -> Tensor:
    """Return enough values for two threads."""
    return torch.randn(1 << 12, 128, generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, without PyTorch's threads, which hang in a forked child."""
    return np.array_equal(a.numpy(), b.numpy())


def in_a_fork(check: Callable[[], bool]) -> bool:
    """Return what ``check`` gives in a forked child; False if that hangs or fails."""
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- forks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["plain", "fused"])
def test_a_forked_child_computes(two_threads: None, path: str) -> None:
    """The threads of the parent, ours and PyTorch's, are not there in a child."""
    act, weight, x = get_format("m2xfp-act"), get_format("m2xfp-weight"), large()
    few = x[:8]
    with computing(path):
        values, packed = act.fake_quantize(x), act.quantize(few)
        weights = weight.quantize(large(1)[:20])
        product = matmul(packed, weights)
        assert (x + 1).sum().isfinite()  # PyTorch's own threads are there

        def check() -> bool:
            right = same(act.fake_quantize(x), values)
            for _ in range(2):
                right = right and same(act.quantize(few).dequantize(), packed.dequantize())
                right = right and same(matmul(packed, weights), product)
            return right and torch.get_num_threads() == 2

        for _ in range(2):
            assert in_a_fork(check)
        assert torch.equal(act.fake_quantize(x), values)  # and so does the parent
        assert in_a_fork(lambda: in_a_fork(check))


WIDE = torch.randn(512, 1024, generator=torch.Generator().manual_seed(5))
ACT, WEIGHT = get_format("m2xfp-act"), get_format("m2xfp-weight")
SPLIT = Split(torch.arange(1024), (512, 256, 256))
SPREAD = WIDE.bfloat16().reshape(-1, 128)  # as rotations read it


def gradient(x: Tensor) -> Tensor:
    given = x.clone().requires_grad_() if not threads.is_forked() else TRACKED
    (found,) = torch.autograd.grad(ACT.fake_quantize(given), given, WIDE)
    return found


def calibrated(x: Tensor) -> Tensor:
    seen = Calibration()
    seen.add(x)
    return seen.order


TRACKED = WIDE.clone().requires_grad_()  # made by the parent: `clone` is PyTorch's own
PACKED, FEW = ACT.quantize(WIDE), WEIGHT.quantize(WIDE[:16])
MIXED = SPLIT.quantize(WIDE)
SCALED = get_format("nvfp4:tensor_scale=auto")
STACK = StackedTensor((SCALED.quantize(WIDE), SCALED.quantize(2 * WIDE)))
PATTERNS = to_bits(SPREAD)
# Every operation that is no operator of the dispatcher, and the derivative of the one that has one.
OPERATIONS: dict[str, Callable[[], Any]] = {
    "clipped": lambda: ACT.clipped(WIDE),
    "dequantize": lambda: PACKED.dequantize(torch.float64),
    "gradient": lambda: gradient(WIDE),
    "packed_linear": lambda: packed_linear(WIDE, FEW),
    "mixed quantize": lambda: SPLIT.quantize(WIDE).dequantize(),
    "mixed dequantize": lambda: MIXED.dequantize(),
    "mixed_matmul": lambda: mixed_matmul(MIXED, MIXED),
    "calibration": lambda: calibrated(WIDE),
    "rotation": lambda: Rotation(1024)(WIDE),
    "inverse rotation": lambda: Rotation(1024).inverse(WIDE),
    "rotate_blocks": lambda: rotate_blocks(SPREAD, torch.tensor(False)),
    "unpack": lambda: PACKED.unpack(),
    "groups": lambda: PACKED.groups(),
    "from_groups": lambda: PackedTensor.from_groups(ACT, PACKED.groups()).codes,
    "share": lambda: Share(512, 0, 1).take(PACKED).codes,
    "stack": lambda: [STACK.dequantize(), *STACK.planes().values()],
    "from stack": lambda: (
        StackedTensor.from_planes(SCALED, STACK.planes(), STACK.shape).parts[0].codes
    ),
    "group_sums": lambda: group_sums(PACKED, PACKED),
    "running_fp32": lambda: running_fp32(PACKED, PACKED),
    "running_exact": lambda: running_exact(PACKED, PACKED),
    "bits": lambda: [
        to_bits(from_bits("bf16", PATTERNS)),
        *quantize_bits(ACT, "bf16", PATTERNS.reshape(-1, 32)),
    ],
    "unit": lambda: hadamard(PATTERNS, PATTERNS > 0, bits=12)["y"],
}


def raw(found: Any) -> list[bytes]:
    """Return the bytes of tensors and arrays, without PyTorch's threads."""
    if isinstance(found, (list, tuple)):
        return [each for part in found for each in raw(part)]
    if isinstance(found, Tensor):
        found = found.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return [found.tobytes()]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_in_a_forked_child(two_threads: None, name: str) -> None:
    """Each works on enough values for PyTorch to take two threads, which are not there."""
    act = OPERATIONS[name]
    assert (large() + 1).sum().isfinite()  # PyTorch's own threads are there
    right = raw(act())
    assert in_a_fork(lambda: raw(act()) == right and torch.get_num_threads() == 2)


def test_a_fork_while_threads_work(two_threads: None) -> None:
    fmt, x, stop = get_format("m2xfp-act"), large(), threading.Event()
    wanted = fmt.fake_quantize(x)

    def work() -> None:
        while not stop.is_set():
            fmt.fake_quantize(x)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            for _ in range(5):
                assert in_a_fork(lambda: same(fmt.fake_quantize(x), wanted))
    finally:
        stop.set()
        for worker in workers:
            worker.join()


class Rows(Dataset[Tensor]):
    """Quantizes in the worker that loads, with as many threads as one may ask for."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(2)
        return get_format("m2xfp-act").fake_quantize(large(index))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(two_threads: None, start: str) -> None:
    fmt = get_format("m2xfp-act")
    wanted = [fmt.fake_quantize(large(index)) for index in range(4)]
    loader: Any = DataLoader(
        Rows(), batch_size=None, num_workers=2, multiprocessing_context=start, timeout=SECONDS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# --- threads and signals --------------------------------------------------------------------------


def test_threads_at_the_same_time(two_threads: None) -> None:
    fmt = get_format("m2xfp-act")
    wanted = [fmt.fake_quantize(large(seed)) for seed in range(4)]
    found: dict[int, bool] = {}

    def work(seed: int) -> None:
        x = large(seed)
        found[seed] = all(torch.equal(fmt.fake_quantize(x), wanted[seed]) for _ in range(10))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    assert found == dict.fromkeys(range(4), True)


def test_shares_cover_everything_once(two_threads: None) -> None:
    for count, least, most, unit in (
        (0, 1, None, 1),
        (7, 1, 2, 1),
        (1000, 10, 128, 64),
        (5, 9, 1, 4),
    ):
        ranges = threads.share(count, lambda start, stop: (start, stop), least, most, unit)
        seen = [i for start, stop in ranges for i in range(start, stop)]  # type: ignore[misc]
        assert seen == list(range(count))
        assert all(start % unit == 0 for start, _ in ranges)  # type: ignore[misc]


def test_an_error_in_a_thread_is_raised(two_threads: None) -> None:
    def part(start: int, stop: int) -> None:
        raise ValueError(f"at {start}")

    with pytest.raises(ValueError, match="at 0"):
        threads.share(10, part, most=1)
    assert threads.share(2, lambda start, stop: start) == [0, 1]


def test_an_interrupt_leaves_things_healthy(two_threads: None) -> None:
    """It comes in the middle, ends the work soon, and the next call is right."""
    calls: list[int] = []

    def part(start: int, stop: int) -> None:
        calls.append(start)
        time.sleep(0.02)

    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        threads.share(4000, part, most=1)
    timer.join()
    time.sleep(0.2)
    seen = len(calls)
    time.sleep(0.2)
    assert len(calls) == seen < 400
    fmt, x = get_format("m2xfp-act"), large()
    with computing("plain"):
        wanted = fmt.fake_quantize(x[:64])
    assert torch.equal(fmt.fake_quantize(x)[:64], wanted)


@pytest.mark.slow
def test_an_interrupt_during_a_long_native_call(two_threads: None) -> None:
    fmt = get_format("m2xfp-weight")
    x = large().repeat(256, 1)
    wanted = fmt.fake_quantize(x[:4096])
    for delay in (0.05, 0.2, 0.5):
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            [fmt.fake_quantize(x[:, :64]) for _ in range(50)]
        timer.join()
        assert time.monotonic() - start < 30
        assert torch.equal(fmt.fake_quantize(x[:4096]), wanted)


# --- the cache of compiled code -------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, in which nothing has been looked for, and a compiler that is quick."""
    compiler = tmp_path / "quick++"
    compiler.write_text('#!/bin/sh\nexec g++ -O0 "$@" -O0\n')
    compiler.chmod(0o755)
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("CXX", str(compiler))
    native.forget()
    fused._warn.cache_clear()
    yield folder
    native.forget()
    fused._warn.cache_clear()


X = torch.randn(6, 70, generator=torch.Generator().manual_seed(3))


def wanted() -> Tensor:
    with computing("plain"):
        return get_format("m2xfp-act").fake_quantize(X)


def check_fused() -> None:
    with computing("fused"):
        assert torch.equal(get_format("m2xfp-act").fake_quantize(X), wanted())


def check_plain(*words: str) -> None:
    """The plain path serves, with one warning that says why; demanded, the fused one says so."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(get_format("m2xfp-act").fake_quantize(X), wanted())
    (warning,) = said
    with computing("fused"), pytest.raises(NoFusedPathError) as error:
        get_format("m2xfp-act").fake_quantize(X)
    for word in words:
        assert word in str(warning.message)
        assert word in str(error.value)


def entry(cache: Path) -> Path:
    (found,) = (cache / "m2xfp").iterdir()
    return found


def test_damaged_entries_are_built_again(cache: Path) -> None:
    check_fused()
    path = entry(cache)
    whole = path.read_bytes()
    assert ctypes.CDLL(str(path))
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for damaged in (whole[:20000], whole[:100], b"", flipped, whole[:-32]):
        path.unlink()  # this process has the old one mapped
        path.write_bytes(damaged)
        native.forget()
        check_fused()
        assert entry(cache).read_bytes() == whole


def test_a_library_for_another_machine_is_built_again(cache: Path) -> None:
    """In a new process: this one does not open twice what it has loaded."""
    check_fused()
    path = entry(cache)
    whole = path.read_bytes()
    other = bytearray(whole[:-32])
    other[18] = 0x28  # ARM, in the head of an ELF file
    path.unlink()
    path.write_bytes(bytes(other) + hashlib.sha256(other).digest())
    process = start()
    out, err = process.communicate(timeout=5 * SECONDS)
    assert (process.returncode, err) == (0, "")
    assert float(out) > 0
    assert entry(cache).read_bytes() == whole


def test_an_entry_that_cannot_be_replaced(cache: Path) -> None:
    check_fused()
    path = entry(cache)
    path.unlink()
    path.mkdir()
    (path / "file").touch()
    native.forget()
    check_plain("cache folder that can be written", "XDG_CACHE_HOME")


def test_what_killed_builds_leave_is_removed(cache: Path) -> None:
    folder = cache / "m2xfp"
    folder.mkdir(parents=True)
    old, fresh = folder / ".old.so", folder / ".fresh.so"
    for path in (old, fresh):
        path.touch()
    os.utime(old, (1, 1))
    check_fused()
    assert not old.exists()
    assert fresh.exists()


def test_neither_home_nor_a_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(library.Path, "home", home)
    check_plain("cache folder that can be written (Could not determine home directory.)")


@pytest.mark.parametrize("place", ["/proc/m2xfp", "/dev/null"])
def test_folders_that_cannot_be_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    check_plain("cache folder that can be written", "set XDG_CACHE_HOME to a folder with room")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'ld: final link failed: No space left on device' >&2; exit 1", "a cache folder"),
        (
            "case $1 in --version) ;; *) echo oops >&2; exit 1;; esac",
            "C++ compiler that builds it (oops)",
        ),
        ("exit 0", "a compiled library that loads"),
        ("kill -9 $$", "C++ compiler that builds it"),
        ("printf '\\377\\376' >&2; exit 1", "C++ compiler that builds it"),
    ],
)
def test_compilers_that_fail(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    check_plain(words)
    left = [path.name for path in cache.rglob("*") if path.is_file()]
    assert left == [] or script == "exit 0"


@pytest.mark.parametrize("name", ["no-such-compiler", "'", "text"])
def test_compilers_that_are_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    monkeypatch.setenv("CXX", str(text) if name == "text" else name)
    check_plain("the fused CPU path lacks a C++ compiler")


def test_a_compiler_with_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -DSOMETHING=1")
    check_fused()


PROGRAM = """
import torch, sys
from m2xfp.golden import computing, get_format
x = torch.arange(64.0).reshape(2, 32)
with computing("fused"):
    print(get_format("m2xfp-act").fake_quantize(x).sum().item())
"""


def start() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_processes_from_a_cold_start(cache: Path) -> None:
    """Both build, or one finds what the other has built; nothing but the entry is left."""
    both = [start(), start()]
    ends = [process.communicate(timeout=5 * SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    with computing("plain"):
        values = get_format("m2xfp-act").fake_quantize(torch.arange(64.0).reshape(2, 32))
    assert [out for out, _ in ends] == [f"{values.sum().item()}\n"] * 2
    assert entry(cache).suffix == ".so"


@pytest.mark.slow
def test_processes_killed_while_they_build(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for delay in (1.5, 2.5, 3.5, 4.5):
        process = start()
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        native.forget()
        check_fused()
        entries = [path for path in (cache / "m2xfp").iterdir() if path.name[0] != "."]
        for path in entries:
            path.unlink()


# --- packed tensors that travel -------------------------------------------------------------------


def packed_of(name: str) -> PackedTensor:
    return get_format(name).quantize(X)


def expect_equal(found: PackedTensor, packed: PackedTensor) -> None:
    assert type(found) is PackedTensor
    assert found.format == packed.format
    assert found.shape == packed.shape
    assert found.planes().keys() == packed.planes().keys()
    for name, plane in packed.planes().items():
        assert torch.equal(found.planes()[name], plane), name
    assert torch.equal(found.dequantize(), packed.dequantize())


def saved(value: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", FORMATS)
def test_packed_tensors_are_saved_and_copied(name: str) -> None:
    packed = packed_of(name)
    expect_equal(torch.load(saved(packed), weights_only=True), packed)
    (found,) = torch.load(saved({"layer": packed}), weights_only=True, map_location="cpu").values()
    expect_equal(found, packed)
    expect_equal(pickle.loads(pickle.dumps(packed)), packed)
    twin = copy.deepcopy(packed)
    expect_equal(twin, packed)
    assert twin.codes.data_ptr() != packed.codes.data_ptr()
    expect_equal(copy.copy(packed), packed)
    assert torch.load(saved(packed.format), weights_only=True) == packed.format


def test_mixed_tensors_are_saved() -> None:
    split = Split(torch.arange(256), (128, 128, 0))
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    mixed, other = split.quantize(x), split.quantize(2 * x)
    found, again = torch.load(saved([mixed, other]), weights_only=True)
    assert torch.equal(mixed_matmul(found, again), mixed_matmul(mixed, other))


def test_what_is_read_is_checked() -> None:
    """A file whose planes do not fit is refused, as the constructor refuses them."""
    packed = packed_of("mxfp4")
    object.__setattr__(packed, "scales", packed.scales[:, :1])
    with pytest.raises(InputError, match="scales has shape"):
        torch.load(saved(packed), weights_only=True)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("module", [multiprocessing, torch.multiprocessing])
def test_packed_tensors_pass_through_queues(module: Any, start: str) -> None:
    packed = packed_of("nvfp4:tensor_scale=auto")
    context = module.get_context(start)
    queue, back = context.Queue(), context.Queue()
    process = context.Process(target=exchange, args=(queue, back, packed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    try:
        found, values = queue.get(timeout=SECONDS)
        expect_equal(found, packed)
        assert torch.equal(values, packed.dequantize())
    finally:
        back.put(None)
        process.join(SECONDS)
    assert process.exitcode == 0


def exchange(queue: Any, back: Any, packed: PackedTensor) -> None:
    """Send a packed tensor and its values, and wait until they have come: memory is shared."""
    queue.put((packed, packed.dequantize()))
    back.get(timeout=SECONDS)
