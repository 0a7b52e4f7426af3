"""Pages and summaries in which others chose the names: nothing of them is run or taken for a tag."""

from html.parser import HTMLParser

import pytest
from browser import chromium, open_page
from skimage.data import coffee

from paperlib.reporting import figures
from paperlib.reporting.report import write_report, write_summary
from paperlib.reporting.viewer import save_comparison
from paperlib.run import measured_row, open_run


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))


EVIL = "<script>window.taken=1</script><img src=x onerror=window.taken=2>"


def page_of(run, photograph: str, words: str) -> tuple[_Tags, str, str]:
    """A report with these words wherever others choose them: tags, text, the summary's text."""
    image = coffee()[:30, :30]
    save_comparison(run, photograph, {"bicubic": image, "original": image})
    run.record("03_teacher", [measured_row("B", words, "fp32", "psnr", 30.0, words, note=words)], teacher=words)
    run.figure(f"02_{photograph}", figures.curves([{"step": step, "loss": 0.1, "psnr_rgb": 26.0} for step in (1, 2)]))
    tags, text = _Tags(), write_report(run).read_text(encoding="utf-8")
    tags.feed(text)
    return tags, text, write_summary(run).read_text(encoding="utf-8")


def test_names_in_pages_are_inert(tmp_path):
    evil = page_of(open_run("demo", tmp_path / "evil", {"data.train": [EVIL], "quant.start": EVIL}), EVIL, EVIL)
    plain = page_of(open_run("demo", tmp_path / "plain", {"data.train": ["a"], "quant.start": "a"}), "a", "a")
    active = [[(tag, names) for tag, names in page.tags if tag in ("script", "iframe", "object", "embed")
               or any(name.startswith("on") for name in names)] for page, _, _ in (evil, plain)]
    assert active[0] == active[1]
    assert sum(tag == "script" for tag, _ in active[0]) == 1
    assert evil[1].count("&lt;script&gt;window.taken") >= 3
    assert "&lt;script&gt;window.taken" in evil[2]
    for text in evil[1:]:
        assert "<script>window.taken" not in text
        assert "<img src=x" not in text


def test_a_report_in_a_real_browser_runs_no_name_fits_a_phone_and_knows_the_dark(tmp_path):
    if chromium() is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    pytest.importorskip("websocket")
    run = open_run("demo", tmp_path / "out", {"data.train": [EVIL], "quant.start": EVIL})
    page_of(run, EVIL, EVIL)
    with open_page() as page:
        page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
        ink = {}
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.open(run.out / "report.html")
            assert page.run("document.documentElement.scrollWidth") <= 390
            ink[scheme] = page.run("getComputedStyle(document.body).color + getComputedStyle(document.body).background")
        assert page.run("typeof window.taken") == "undefined"
        assert "window.taken=1" in page.run("document.body.textContent")
        assert ink["light"] != ink["dark"]
        assert [address for address in page.requests if not address.startswith("file:")] == []
