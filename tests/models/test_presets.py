"""The formats of other libraries by our names, against those libraries where they are installed."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.golden import get_format
from m2xfp.models import library_presets
from m2xfp.presets import PRESETS

# What differs on the sample; why is in docs/formats-conformance.md.
KNOWN = {("compressed-tensors", "nvfp4"), ("modelopt", "NVFP4")}


@pytest.mark.parametrize("library", PRESETS)
def test_presets_are_formats_and_are_printed(library: str) -> None:
    done = CliRunner().invoke(cli, ["formats", "--like", library])
    assert done.exit_code == 0, done.output
    for preset in PRESETS[library]:
        assert get_format(preset.ours).fake_quantize(torch.ones(1, 64)).sub(1).abs().max() < 0.1
        assert f" {preset.ours} " in done.stdout


@pytest.mark.parametrize("library", library_presets.CHECKS)
def test_presets_are_what_the_libraries_compute(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, quantize, groups = library_presets.CHECKS[library]
    pytest.importorskip(package)
    monkeypatch.setitem(library_presets.CHECKS, library, (package, quantize, min(groups, 600)))
    for preset, found in zip(PRESETS[library], library_presets.compared(library), strict=True):
        _, subject, different, *_ = found
        assert subject == f"{preset.theirs} = {preset.ours}"
        if (library, preset.theirs) not in KNOWN:
            assert not different.any(), subject
    # Another convention is noticed.
    wrong = tuple(
        replace(p, ours=f"{p.ours.partition(':')[0]}:ties=away") for p in PRESETS[library]
    )
    monkeypatch.setitem(library_presets.PRESETS, library, wrong[:1])
    (found,) = library_presets.compared(library)
    assert found[2].any() or library == "compressed-tensors"  # which gives scales alone there
