"""The explorer page, in headless Chromium: numbers of the golden model, commands that work."""

import json
import re
import shlex
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote
from zlib import crc32

import click
import numpy as np
import pytest
import torch
from browser import faults_of, in_browser

from m2xfp.cli import cli
from m2xfp.golden import computing, get_format
from m2xfp.manual.explorer import VARIANTS, described, explorer_page, points
from m2xfp.tb.parts import value_stimulus

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    path = folder / "explorer.html"
    path.write_text(explorer_page(RESULTS, ROOT / "build" / "site-cache"))
    return path


def stimulus(count: int) -> torch.Tensor:
    """Return groups of 32 float32 values of all distributions."""
    names = list(value_stimulus.DISTRIBUTIONS)
    each = -(-count // len(names))
    found = [value_stimulus.groups(name, "fp32", each, 7, 32) for name in names]
    return torch.from_numpy(np.concatenate(found)[:count].view(np.float32).copy())


CHECK = """
<script type="application/octet-stream" id="input">{input}</script><pre id="found"></pre><script>
ready.then((quantize) => {{
  const text = atob(document.getElementById("input").textContent);
  const x = new Float32Array(Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer);
  const table = Uint32Array.from({{ length: 256 }}, (_, n) => {{
    for (let k = 0; k < 8; ++k) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  }});
  const crc = (bytes) => {{
    let c = -1;
    for (const byte of bytes) c = table[(c ^ byte) & 255] ^ (c >>> 8);
    return (c ^ -1) >>> 0;
  }};
  const [first] = data.formats;
  const broken = {{ ...first, plan: first.plan.map((n, i) => (i === {emax} ? n + 1 : n)) }};
  const found = [...data.formats, broken].map((format) => {{
    const {{ codes, scales, meta, values }} = quantize(format, x);
    return [codes, scales, meta, new Uint8Array(values.buffer)].map(crc);
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}}).catch((error) => {{ document.getElementById("found").textContent = String(error.stack); }});
</script>"""


def checksums(name: str, options: dict[str, object], x: torch.Tensor) -> list[int]:
    """Return those of codes, scales, metadata and values by the plain golden model."""
    fmt = get_format(name, **options)
    with computing("plain"):
        packed = fmt.quantize(x)
        values = fmt.fake_quantize(x)
    count = x.numel() // fmt.block.group
    data = packed.groups().reshape(count, -1).split(list(fmt.block.group_bytes), dim=1)
    planes = [plane.contiguous().numpy().tobytes() for plane in data]
    return [crc32(part) for part in (*planes, values.contiguous().numpy().tobytes())]


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_arithmetic_is_the_golden_models(page: Path, count: int) -> None:
    """Planes and values of all groups; a plan that is changed gives others."""
    x = stimulus(count)
    emax = described()[0]["plan"]
    changed = next(i for i, value in enumerate(emax) if value == 2.0 and i > 30)
    text = b64encode(x.numpy().tobytes()).decode()
    path = page.with_name("check.html")
    path.write_text(page.read_text() + CHECK.format(input=text, emax=changed))
    said = re.search(r'<pre id="found">(.*?)</pre>', in_browser(path), re.DOTALL)
    assert said
    assert said[1].startswith("["), said[1]
    *found, broken = json.loads(said[1])
    wanted = [checksums(name, options, x) for name, options in VARIANTS]
    for (name, options), here, there in zip(VARIANTS, found, wanted, strict=True):
        assert here == there, (name, options)
    assert broken != wanted[0]


class Table(HTMLParser):
    """The cells of the table, row by row, and texts of elements with an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.names: dict[str, str] = {}
        self._name = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._name = dict(attrs).get("id") or ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, text: str) -> None:
        if self._name:
            self.names[self._name] = self.names.get(self._name, "") + text
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += text + " "


def test_values_from_the_address_in_every_format(page: Path) -> None:
    """Bits, values, scales and errors in the table are those of the golden model."""
    x = torch.tensor([6.5, -1.25, 0.0, 2.0**-130, *(0.3 * n for n in range(-14, 14))])
    table = Table(in_browser(page, "#values=" + quote(",".join(repr(float(v)) for v in x))))
    head, *rows, foot = table.rows
    assert len(rows) == 32
    for column, (name, options) in enumerate(VARIANTS, start=2):
        fmt = get_format(name, **options)
        with computing("plain"):
            values = fmt.fake_quantize(x)
            packed = fmt.quantize(x)
        codes, scales, _ = fmt.unpack(*packed.groups().split(list(fmt.block.group_bytes), dim=-1))
        assert head[column].split(" ")[0].strip(",") == name
        if fmt.block.scale.bits == 8 and fmt.block.scaling != "affine":
            for scale in scales.reshape(-1).tolist():
                assert f"(0x{int(scale):x})" in head[column], (name, head[column])
        for lane, row in enumerate(rows):
            *bits, value = row[column].split()
            assert "".join(bits) == f"{int(codes.reshape(-1)[lane]):0{fmt.block.element.bits}b}"
            assert float(value) == pytest.approx(float(values[lane]), rel=1e-5), (name, lane)
        error = float(((values.double() - x.double()) ** 2).sum())
        assert float(foot[column].split(",")[0]) == pytest.approx(error, rel=1e-4), name


@pytest.mark.parametrize(
    ("text", "message", "rows"),
    [
        ("1 2 three", '"three" is no number', 0),
        ("1 2", "2 values; the others are 0.", 34),
        ("inf nan -inf", "3 values; the others are 0.", 34),
        (" ".join(["1"] * 40), "40 values; the first 32 are shown.", 34),
        (" ", "Type a value.", 0),
    ],
)
def test_odd_input(page: Path, text: str, message: str, rows: int) -> None:
    table = Table(in_browser(page, "#values=" + quote(text), seconds=10))
    assert table.names["message"].strip() == message
    assert len(table.rows) == rows


def test_it_looks_as_it_should(page: Path) -> None:
    assert faults_of(page) == []
    assert faults_of(page, 700) == []


def test_points_are_the_results_with_their_commands(page: Path) -> None:
    """Every accepted row is a point; its command is one of this program, with its options."""
    found = points(RESULTS)
    accepted = [
        row for path in RESULTS.glob("synth-*.json") for row in json.loads(path.read_text())["rows"]
    ]
    assert len(found) == len(accepted)
    assert sorted(point["area"] for point in found) == sorted(row["area_um2"] for row in accepted)
    assert {point["unit"] for point in found if point["loss"] is not None} >= {
        "dot_product", "activation_quantizer", "gemm_core"
    }  # fmt: skip
    for command in {point["command"] for point in found}:
        name, *words = shlex.split(command)[1:]
        command_of = cli.get_command(click.Context(cli), name)
        assert command_of is not None, command
        command_of.make_context(name, words)
    text = in_browser(page, seconds=10)
    here = [point for point in found if point["library"] == "asap7" and point["energy"] is not None]
    assert f'id="command">{len(here)} points<' in text
    for unit in {point["unit"] for point in here}:
        assert f">{unit}</text>" in text
    assert "http" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page.read_text()[:4000]))
