"""The fused paths against the plain path, and how one of them is chosen."""

import re
import sys
import types
import warnings
from functools import partial

import pytest
import torch
from fused_checks import (
    CASES,
    FORMATS,
    KINDS,
    MAXIMA,
    OPTION_SETS,
    case_differences,
    differences,
    plain_differences,
    product_differences,
)

from m2xfp.errors import InputError, NoFusedPathError
from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import computing, get_format
from m2xfp.golden.kernels import fused, native
from m2xfp.golden.kernels.fused import kernels
from m2xfp.golden.kernels.threads import share

CPU = torch.device("cpu")


@pytest.fixture
def fresh_native(monkeypatch, tmp_path):
    """Forget the loaded library and the warnings given, and use an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.forget()
    fused._warn.cache_clear()
    yield tmp_path
    native.forget()
    fused._warn.cache_clear()


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_native_equals_plain_on_all_patterns(name, options):
    assert case_differences(name, options, "cpu", 12, seed=61, maxima=(1.75,)) == []


@pytest.mark.parametrize("index", range(len(OPTION_SETS)))
def test_native_equals_plain_with_every_option(index):
    """One input type each; `make test-slow` has all of them."""
    kinds = (KINDS[index % len(KINDS)],)
    assert case_differences(*OPTION_SETS[index], "cpu", 5, seed=62, kinds=kinds) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), OPTION_SETS)
def test_native_equals_plain_with_every_option_and_type(name, options):
    assert case_differences(name, options, "cpu", 40, seed=63, maxima=MAXIMA) == []


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 4, 5, 4097, 8193])
def test_any_number_of_groups_and_threads(groups):
    threads = torch.get_num_threads()
    x = torch.randn(groups, 32, generator=torch.Generator().manual_seed(groups))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert not differences("m2xfp-act", {}, x)
    finally:
        torch.set_num_threads(threads)


def test_shapes_on_the_fused_path():
    x = torch.randn(3, 5, 70, generator=torch.Generator().manual_seed(1))
    shapes = (x, x.transpose(0, 2), x[..., ::3], x.expand(2, 3, 5, 70), x[:0], x[..., :0], x[0, 0])
    for tensor in (*shapes, x.bfloat16().flatten()[1:]):
        for name, options in (*FORMATS, ("nvfp4", {"tensor_scale": "auto"})):
            assert not differences(name, options, tensor), (name, tensor.shape)


def test_more_than_2_to_31_values_are_counted_in_64_bits():
    """Offsets of the last groups; the tensor itself would not fit a small machine."""
    x = torch.zeros(1).expand(1 << 20, 4096)
    assert x.numel() > 1 << 31
    assert share(x.numel() // 32, lambda start, stop: stop)[-1] == x.numel() // 32


def test_every_format_has_a_fused_path():
    for name, options in (*FORMATS, *OPTION_SETS):
        for kind in (torch.bfloat16, torch.float16, torch.float32):
            with computing("fused"):
                assert kernels(get_format(name, **options), CPU, kind) is not None
    with computing("plain"):
        assert kernels(get_format("mxfp4"), CPU, torch.float32) is None
    meta = torch.device("meta")
    assert kernels(get_format("mxfp4"), meta, torch.float32) is None
    with computing("fused"), pytest.raises(InputError, match="cpu and cuda, not on meta"):
        kernels(get_format("mxfp4"), meta, torch.float32)


def test_planes_put_together_by_hand():
    """A tensor scale beside a format without one, and the other way round."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    for level, scale in ((None, torch.tensor(0.3)), ("auto", None)):
        packed = get_format("nvfp4", tensor_scale=level).quantize(x)
        with pytest.raises(InputError, match=r"tensor_scale is (given|missing)|tensor scale"):
            type(packed)(packed.format, packed.codes, packed.scales, None, x.shape, scale)


def test_the_environment_chooses(monkeypatch):
    fmt = get_format("mxfp4")
    monkeypatch.setenv("M2XFP_PATH", "plain")
    assert kernels(fmt, CPU, torch.float32) is None
    with computing("fused"):
        assert kernels(fmt, CPU, torch.float32).name == "native"
    monkeypatch.setenv("M2XFP_PATH", "quick")
    with pytest.raises(InputError, match="M2XFP_PATH='quick'; choose one of: auto"):
        kernels(fmt, CPU, torch.float32)
    with pytest.raises(InputError, match="path='quick'"), computing("quick"):
        pass


def check_fallback(message: str) -> None:
    """The plain path serves with one warning, and ``fused`` is an error, for the same reason."""
    fmt = get_format("m2xfp-act")
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    with computing("plain"):
        wanted = fmt.fake_quantize(x)
    with pytest.warns(RuntimeWarning, match=message):
        assert torch.equal(fmt.fake_quantize(x), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fmt.fake_quantize(x), wanted)
    with computing("fused"), pytest.raises(NoFusedPathError, match=message):
        fmt.fake_quantize(x)


def test_without_a_compiler_the_plain_path_serves(fresh_native, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_fallback(r"lacks a C\+\+ compiler \(no program 'no-such-compiler' is found\)")


def test_a_compiler_that_fails_leaves_nothing_behind(fresh_native, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    check_fallback(r"C\+\+ compiler that builds it")
    assert not list(fresh_native.rglob("*.so"))


def test_a_cache_folder_that_cannot_be_written(fresh_native, monkeypatch):
    (fresh_native / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh_native / "file"))
    check_fallback("cache folder that can be written")


def test_a_truncated_library_is_built_again(fresh_native):
    size = 20000
    native.LIBRARY.load()
    (library,) = fresh_native.rglob("*.so")
    whole = library.read_bytes()
    library.unlink()  # a new file: this process has the old one mapped
    library.write_bytes(whole[:size])
    native.forget()
    native.LIBRARY.load()
    assert len(library.read_bytes()) > size


def test_the_cuda_path_says_what_it_lacks(monkeypatch):
    """No Triton, an old GPU, a Triton that cannot compile: each once as a warning, or an error."""
    module, cuda = "m2xfp.golden.kernels.triton_kernels", torch.device("cuda", 7)
    capability, kernel = [8, 0], types.ModuleType(module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: tuple(capability))

    def check(message: str) -> None:
        fused.cuda_trouble.cache_clear()
        fused._warn.cache_clear()
        fmt = get_format("nvfp4")
        with computing("fused"), pytest.raises(NoFusedPathError, match=message):
            kernels(fmt, cuda, torch.float32)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                assert kernels(fmt, cuda, torch.float32) is None
        (warning,) = said
        assert re.search(message, str(warning.message))

    monkeypatch.setitem(sys.modules, module, None)
    check("the fused CUDA path lacks Triton")
    monkeypatch.setitem(sys.modules, module, kernel)
    monkeypatch.setattr("m2xfp.golden.kernels.triton_kernels", kernel, raising=False)
    kernel.probe = partial(_raise, RuntimeError("Failed to find C compiler.\nmore"))
    check(r"lacks a Triton that compiles \(Failed to find C compiler.\)")
    capability[:] = [7, 0]
    check(r"lacks a GPU of compute capability 8.0 \(this one has 7.0\)")
    fused.cuda_trouble.cache_clear()


def _raise(error: Exception, device: torch.device) -> None:
    raise error


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), CASES)
def test_cuda_equals_plain_on_the_cpu(name, options):
    pytest.importorskip("triton")
    assert case_differences(name, options, "cuda", 200, seed=77, maxima=MAXIMA) == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_plain_on_cuda_equals_plain_on_the_cpu(name):
    assert plain_differences(name, "cuda") == []


@pytest.mark.gpu
def test_products_on_cuda_equal_those_on_the_cpu():
    assert product_differences("cuda") == 0
