"""The report page."""

import base64
import re
from html.parser import HTMLParser
from types import SimpleNamespace

from lightning_topo.verdict import Findings, verdict, write_page


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.sources, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_it_is_whole_and_needs_nothing_else(course, findings, tmp_path):
    records = course(0.1, 0.2, 0.4, 0.2, 0.1, 0.1) + course(*[0.3] * 6, group="<fc2>")
    rows = [SimpleNamespace(group="fc1", step=step, distinct=64 - step, drift=(0.0,)) for step in range(3)]
    made = findings(records, topology=rows, sizes={"fc1": 64})
    page = read(write_page(made, tmp_path / "new" / "report.html", about="A network & more."))
    text = " ".join(page.text)
    for line in verdict(made).lines:
        assert line in text
    assert "A network & more." in text
    assert "<fc2>" in text
    assert len(page.sources) == 4
    for source in page.sources:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert not re.search(r"https?://", (tmp_path / "new" / "report.html").read_text(encoding="utf-8"))


def test_nothing_measured_is_a_page_that_says_why(tmp_path):
    page = read(write_page(Findings(nothing_because="No update was measured: why."), tmp_path / "report.html"))
    assert "No update was measured: why." in page.text
    assert page.sources == []
