"""The page in a browser: nothing sticks out at phone and desktop width, in light and in dark, and nothing is fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluation.evaluate import evaluate
from polyp_difom.pipeline.report.comparison import compare
from polyp_difom.pipeline.report.page import write_report

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
PROBE = """<iframe width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement, wide = [];
  for (const part of page.querySelectorAll("body *:not(svg *)"))
    if (part.getBoundingClientRect().right > root.clientWidth + 1 && !part.closest("thead")) wide.push(part.tagName);
  const fetched = page.defaultView.performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:"));
  document.title = `${{root.clientWidth}} ${{root.scrollWidth}} ${{wide.join(",")}} ${{fetched.length}}`;
}};
</script>"""
"""Shows the page in a frame, which may be narrower than a browser's window, and measures it."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@pytest.fixture(scope="module")
def page(distilling: Callable[..., DistillConfig], frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Taught runs and controls of two seeds with names that do not break, and a folder of masks."""
    folder = tmp_path_factory.mktemp("page")
    paths = []
    for seed in (0, 1):
        for objective in ("multiscale", "none"):
            paths.append(folder / f"{objective}_{'unbroken' * 6}_{seed}")
            distill(distilling(epochs=2, objective=objective, seed=seed), paths[-1])
            evaluate(paths[-1], (Source(frames),), split="all", overlays=0, device="cpu")
    (folder / "maps").mkdir()
    for path in (frames / "masks").iterdir():
        shutil.copyfile(path, folder / "maps" / path.name)
    evaluate(folder / "maps", (Source(frames),), split="all", overlays=0, out=folder / "record")
    write_report(folder / "page.html", compare([*paths, folder / "record"]), "A page")
    return folder / "page.html"


def browse(folder: Path, page: Path, width: int, *flags: str) -> str:
    assert CHROMIUM is not None
    words = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", *flags, page.as_uri()]
    return subprocess.run([CHROMIUM, *words], check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_and_nothing_is_fetched(page: Path, tmp_path: Path, width: int) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(f"<!doctype html><title></title>{PROBE.format(width=width, page=escape(page.read_text()))}")
    title = re.search("<title>(.*?)</title>", browse(tmp_path, probed, 1400, "--dump-dom"))
    assert title is not None
    inner, scroll, wide, fetched = re.fullmatch(r"(\d+) (\d+) (\S*) (\d+)", title[1]).groups()  # type: ignore[union-attr]
    assert int(inner) == width
    assert int(scroll) <= width
    assert wide == ""
    assert fetched == "0"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_follows_the_system_into_the_dark(page: Path, tmp_path: Path, width: int) -> None:
    corners = []
    for scheme in (0, 1):
        shot = tmp_path / f"{scheme}.png"
        browse(tmp_path, page, width, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}")
        pixels = np.asarray(Image.open(shot).convert("L"))
        assert pixels.shape == (900, width)
        assert pixels.std() > 5  # something is drawn
        corners.append(int(pixels[2, 2]))
    assert corners[0] < 40
    assert corners[1] > 240
