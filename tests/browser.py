"""Pages in headless Chromium: their elements once scripts have run, and what looks wrong."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

from m2xfp.processes import run

__all__ = ["faults_of", "in_browser"]

# What leaves its page on the right without a bar to scroll by, letters of drawings that are too
# small to read, and text too faint on its ground (WCAG's ratio of luminances below 3), in the light
# theme and in the dark one.
_LOOK = """
<pre id="faults"></pre><script>
const channel = (c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const rgb = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const clear = (c) => c.length > 3 && c[3] < 0.5;
function ground(element) {
  for (let e = element; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (!clear(c)) return c;
  }
  return [255, 255, 255];
}
function scrolls(element) {
  for (let e = element; e; e = e.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX)) return true;
  return false;
}
window.addEventListener("load", () => {
  const faults = new Set();
  const main = document.querySelector("article") || document.body;
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) faults.add("the page is wider than its window");
  for (const e of main.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !scrolls(e.parentElement))
      faults.add(`wide: <${e.tagName}> ${e.textContent.slice(0, 40)}`);
    if (e.tagName === "text" && box.height && box.height < 12)
      faults.add(`small: ${e.textContent.slice(0, 40)}`);
    if (e.tagName === "IMG" && !e.naturalWidth) faults.add(`no picture: ${e.src}`);
  }
  for (const theme of ["light", "dark"]) {
    document.body.dataset.theme = theme;
    const texts = "p, li, td, th, h1, h2, h3, code, span, a, text, tspan";
    for (const e of main.querySelectorAll(texts)) {
      if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
      const style = getComputedStyle(e);
      const ink = rgb(e instanceof SVGElement ? style.fill : style.color);
      if (clear(ink) || style.visibility === "hidden" || style.opacity < 0.5) continue;
      const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 3)
        faults.add(`faint (${theme}): ${e.textContent.slice(0, 40)}`);
    }
  }
  document.getElementById("faults").textContent = JSON.stringify([...faults]);
});
</script>
"""


def in_browser(page: Path, fragment: str = "", seconds: int = 60, width: int = 1280) -> str:
    """Return the page's elements as text once its scripts have run."""
    browser = shutil.which("chromium")
    assert browser, "apt-get install chromium"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},900"]
    command += [f"--virtual-time-budget={1000 * seconds}", page.as_uri() + fragment]
    done = run(command, merged=False, seconds=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def faults_of(page: Path, width: int = 1280) -> list[str]:
    """Return what a look at a page finds wrong, in a window of that width."""
    copy = page.with_name(f"look-{page.name}")
    copy.write_text(page.read_text().replace("</body>", f"{_LOOK}</body>"))
    said = re.search(r'<pre id="faults">(.*?)</pre>', in_browser(copy, seconds=5, width=width))
    copy.unlink()
    assert said, page
    return [str(fault) for fault in json.loads(unescape(said[1]))]
