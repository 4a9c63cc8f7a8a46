"""The documentation site: its drawings are the unit's, its links lead somewhere, it builds."""

import os
import re
import socket
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import faults_of

from m2xfp.errors import InputError
from m2xfp.manual import site, unit_page
from m2xfp.manual.datapaths import accelerator, dot_product, gemm_core
from m2xfp.manual.drawings import block, counted, packet
from m2xfp.manual.pictures import PICTURES
from m2xfp.manual.waves import waves_of
from m2xfp.processes import run
from m2xfp.rtl.catalog import UNITS, Instance, find_unit
from m2xfp.tb.bench import find_bench, random_operands

ROOT = Path(__file__).parent.parent
CLOCKED = [unit.instance() for unit in UNITS.values() if unit.instance().facts.clock]


def texts(svg: str) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("unit", UNITS.values(), ids=list(UNITS))
def test_drawings_say_what_the_facts_say(unit: Any) -> None:
    facts = unit.instance().facts
    drawn = texts(block(facts))
    for stream in facts.streams:
        assert f"{stream.prefix} [{counted(stream.data_width, 'bit')}]" in drawn
        fields = texts(packet(stream.prefix, stream.fields, stream.tdata_width))
        widest = re.search(r'viewBox="0 0 ([\d.]+) ', packet("x", stream.fields, 0))
        assert widest is not None
        assert float(widest[1]) <= 740  # as wide as a page: nothing is shrunk
        for field in stream.fields:
            assert field.title in fields
            places = (f"{field.last_bit}:{field.offset}", str(field.offset), field.formula[1:-1])
            assert set(places) & set(fields), field.title
        assert ("zero" in fields) == (stream.data_width < stream.tdata_width)


def beats(waves: dict[str, Any], port: str) -> list[int]:
    """Return the clocks in which a port's data is taken."""
    groups = [each for each in waves["signal"] if isinstance(each, list)]
    (signal,) = (x for group in groups for x in group[1:] if x["name"] == port)
    return [clock for clock, letter in enumerate(signal["wave"]) if letter == "="]


@pytest.mark.parametrize(
    "instance",
    [
        pytest.param(
            each,
            id=each.top,
            marks=[] if each.unit.name == "fp32_accumulator" else [pytest.mark.slow],
        )
        for each in CLOCKED
    ],
)
def test_timing_is_the_units(instance: Instance) -> None:
    """The first result comes the stated latency after its last beat; beats are those that went."""
    waves: Any = waves_of(instance)
    facts, bench = instance.facts, find_bench(instance.unit)
    vectors = bench.vectors(bench.sample(random_operands(1, 4, 1), facts), facts)
    if len(facts.inputs) > 1:  # which moves when follows from the sizes in the data
        assert all(beats(waves, f"{x.prefix}_tdata") for x in facts.inputs)
        return
    went, came = (beats(waves, f"{x.prefix}_tdata") for x in facts.streams)
    shown = len(waves["signal"][0]["wave"])
    assert len(went) <= len(vectors.inputs["i"])
    assert len(came) <= len(vectors.outputs["o"])
    assert came[0] - went[facts.beats_per_group - 1] == facts.latency
    if shown < 24:
        assert len(came) == len(vectors.outputs["o"])


def test_a_datapath_has_the_widths_of_its_unit() -> None:
    """Those of another unit where another is drawn: NVFP4 has no decoders, and other sums."""
    for config, wanted, other in (
        ("m2xfp-fp32", "D = sum of 4 (4 + k) P: 19 bits", "4 top-1 decoders"),
        ("nvfp4-fp32", "D = sum of 1 P: 20 bits", None),
        ("m2xfp-fp32-single", "1 accumulator of 32 bits in the ring, each of a dot", None),
    ):
        unit: Any = find_unit("dot_product").instance(config).component
        drawn = texts(dot_product(unit))
        assert any(text.startswith(wanted) for text in drawn), drawn
        assert other is None or other in drawn
        assert ("4 top-1 decoders" in drawn) == unit.pair.refined
        assert f"{counted(unit.latency, 'clock')} behind the group" in drawn
    core: Any = find_unit("gemm_core").instance("mxfp4-2x2").component
    assert "row by row, 139 bits a beat" in texts(gemm_core(core))
    chip: Any = find_unit("accelerator").instance("m2xfp-2x2").component
    assert "AXI4, 128 bits" in texts(accelerator(chip))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_as_drawn(name: str) -> None:
    """A picture in the repository is what it shows as it is now; each stands in a page."""
    path = ROOT / "docs" / "pictures" / f"{name}.svg"
    assert path.read_text() == PICTURES[name](), "run: m2xfp docs --pictures"
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"pictures/{name}.svg)" in page.read_text() for page in pages)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names.add(given.get("id") or "")
        self.loaded += [given.get("src") or ""] if tag in ("script", "img") else []
        self.loaded += [given.get("href") or ""] if tag == "link" else []
        if tag == "a" and given.get("href"):
            self.targets.append(given["href"] or "")


def built(folder: Path) -> Path:
    return site.build(ROOT, folder / "site").parent


OFFLINE = """
import socket

def refused(*arguments, **keywords):
    raise OSError("no network here")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused
"""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection, here and in each Python that is started."""
    folder = tmp_path / "offline"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OFFLINE)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("a connection was tried"))
    asked = "import socket; socket.create_connection(('127.0.0.1', 9))"
    assert "no network here" in run([sys.executable, "-c", asked]).stdout


@pytest.mark.usefixtures("offline")
def test_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds without a warning, and every link within it leads to a file and a place there.

    No network is needed, neither to build it nor to look at it. Diagrams are left out, since each
    is a simulation: the slow set has them.
    """
    monkeypatch.setattr(unit_page, "timing_diagram", lambda _: "<svg></svg>")
    folder = built(tmp_path)
    pages = {path: Links() for path in folder.rglob("*.html")}
    for path, page in pages.items():
        page.feed(path.read_text())
    assert {f"{name}.html" for name in UNITS} < {path.name for path in folder.glob("units/*")}
    count = 0
    loaded = [name for page in pages.values() for name in page.loaded]
    assert loaded
    assert not [name for name in loaded if re.match(r"(https?:)?//", name)]
    for path, page in pages.items():
        for target in page.targets:
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target) or "_modules" in path.parts or "genindex" in path.name:
                continue
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), f"{path}: {target}"
            if anchor and there in pages:
                assert anchor in pages[there].names, f"{path}: {target}"
            count += 1
    assert count > 500
    for name in ("index", "status", "mac", "units/dot_product"):
        assert faults_of(folder / f"{name}.html") == []
    text = (folder / "commands.html").read_text()
    assert all(f"m2xfp {name}" in text for name in ("verilog", "vectors", "check", "docs"))
    assert "get_format" in (folder / "api.html").read_text()


@pytest.mark.slow
def test_site_with_diagrams(tmp_path: Path) -> None:
    folder = built(tmp_path)
    for instance in CLOCKED:
        assert "WaveDrom" in (folder / "units" / f"{instance.unit.name}.html").read_text()
    for path in [*folder.glob("*.html"), *folder.glob("units/*.html")]:
        for width in (1280, 900):
            assert faults_of(path, width) == [], path


def test_what_looks_wrong_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    body = (
        '<div style="width: 3000px">broad</div><p style="color: #eee; background: #fff">faint</p>'
        '<img src="nowhere.png"><svg width="50" viewBox="0 0 500 50"><text y="20">tiny</text></svg>'
    )
    page.write_text(f"<html><body><article>{body}</article></body></html>")
    found = faults_of(page)
    for word in ("wider than its window", "broad", "faint (light)", "no picture", "small: tiny"):
        assert any(word in fault for fault in found), (word, found)
    page.write_text("<html><body><article><p>sound</p></article></body></html>")
    assert faults_of(page) == []


def copy_of_docs(folder: Path) -> Path:
    for name in ("docs", "README.md", "m2xfp", "rtl", "CHANGELOG.md"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_a_page_in_no_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for path in (ROOT / "docs").glob("*"):
        (tmp_path / "docs" / path.name).symlink_to(path)
    (tmp_path / "README.md").write_text("")
    (tmp_path / "docs" / "odd.md").write_text("# Odd\n")
    with pytest.raises(InputError, match="odd must stand both"):
        site.assemble(tmp_path, tmp_path / "source")
    (tmp_path / "docs" / "odd.md").unlink()
    (tmp_path / "docs" / "mac.md").unlink()
    (tmp_path / "docs" / "mac.md").write_text("[there](nowhere.py)\n")
    with pytest.raises(InputError, match=r"nowhere.py leads nowhere|leads nowhere"):
        site.assemble(tmp_path, tmp_path / "source")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clone of m2xfp"):
        site.assemble(tmp_path, tmp_path / "source")


def test_a_warning_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "UNITS", {"pe_tile": find_unit("pe_tile")})
    monkeypatch.setattr(site, "_MODULES", ())
    monkeypatch.setattr(
        unit_page, "timing_diagram", lambda _: "```\n\n[there](nowhere.md)\n\n```{raw} html"
    )
    with pytest.raises(Exception, match="sphinx failed"):
        site.build(ROOT, tmp_path / "site")
