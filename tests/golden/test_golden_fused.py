"""The fused paths against the plain path, and how one of them is chosen."""

import pytest
import stimulus
import torch
from fused_checks import FUSED, KINDS, all_stimulus, check_device, decode_differences, differences

from m2xfp.errors import InputError, MissingToolError
from m2xfp.golden import computing, get_format
from m2xfp.golden.bits import from_bits
from m2xfp.golden.kernels import native
from m2xfp.golden.kernels.fused import kernels

CPU = torch.device("cpu")


@pytest.fixture
def fresh_native(monkeypatch, tmp_path):
    """Forget the loaded library and use an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load.cache_clear()
    yield tmp_path
    native.load.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "options"), FUSED)
def test_native_equals_plain(name, options, kind):
    for label, x in all_stimulus(kind, 803, seed=61).items():
        print(f"{label}: seed 61")
        assert not differences(name, options, x), label


@pytest.mark.parametrize(("name", "options"), FUSED)
def test_native_decodes_any_bytes_like_plain(name, options):
    assert not decode_differences(name, options, count=500)


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
    for tensor in (x, x.transpose(0, 2), x[..., ::3], x.expand(2, 3, 5, 70)):
        for name, options in FUSED:
            assert not differences(name, options, tensor)


def test_which_path_serves():
    def fused(name, dtype=torch.float32, **options):
        return kernels(get_format(name, **options), CPU, dtype) is not None

    for name, options in FUSED:
        assert fused(name, **options)
    assert fused("m2xfp-weight", search="fixed")
    assert fused("m2xfp-weight", torch.bfloat16, search="fixed", fraction_bits=10)
    assert not fused("m2xfp-weight", search="fixed", fraction_bits=10)
    for name, options in (
        ("nvfp4", {}),
        ("amxfp4", {}),
        ("mxfp8-e4m3", {}),
        ("mxfp4", {"scale_rule": "ceil"}),
        ("mxfp4", {"ties": "away"}),
        ("mxfp4", {"group": 16}),
        ("mxfp4", {"scale_mode": "e5m2"}),
        ("m2xfp-act", {"subgroup": 4}),
    ):
        assert not fused(name, **options), (name, options)
    with computing("plain"):
        assert not fused("mxfp4")
    assert kernels(get_format("mxfp4"), torch.device("meta"), torch.float32) is None


def test_fixed_search_on_the_fused_path():
    for kind in KINDS:
        x = from_bits(kind, stimulus.groups("edges", kind, 500, seed=62))
        assert not differences("m2xfp-weight", {"search": "fixed"}, x)


def test_the_environment_chooses(monkeypatch):
    fmt = get_format("mxfp4")
    monkeypatch.setenv("M2XFP_PATH", "plain")
    assert kernels(fmt, CPU, torch.float32) is None
    with computing("fused"):
        assert kernels(fmt, CPU, torch.float32) is native
    monkeypatch.setenv("M2XFP_PATH", "quick")
    with pytest.raises(InputError, match="M2XFP_PATH='quick'; choose one of: auto"):
        kernels(fmt, CPU, torch.float32)
    with pytest.raises(InputError, match="path='quick'"), computing("quick"):
        pass


def test_without_a_compiler_the_plain_path_serves(fresh_native, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    fmt = get_format("m2xfp-act")
    x = torch.randn(4, 32)
    with computing("plain"):
        wanted = fmt.fake_quantize(x)
    assert torch.equal(fmt.fake_quantize(x), wanted)
    with computing("fused"), pytest.raises(MissingToolError, match=r"apt-get install g\+\+"):
        fmt.fake_quantize(x)


def test_a_compiler_that_fails_leaves_nothing_behind(fresh_native, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(MissingToolError, match=r"native\.cpp"):
        native.load()
    assert not list(fresh_native.rglob("*.so"))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    pytest.importorskip("triton")
    assert check_device("cuda") == []
