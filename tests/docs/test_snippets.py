"""The snippets of the README and of the documentation run as they stand, and print what is written below them.

A page's blocks run one after the other in one namespace; each of the README's starts with a new model. What a reader
brings along (``model``, ``train_dataloader``, ``val_dataloader``) is the network of ``examples/digits.py``.
"""

import contextlib
import io
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytorch_lightning as pl
from lightning_utilities.core import rank_zero

import lightning_topo

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
# Rates that are far too high, so that there is something to control and to clip.
LEARNING_RATES = {"docs/tutorials/no-learning-rate.md": 0.1, "docs/tutorials/clip-steps.md": 0.03}
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
# What a reader is told, too.
_ADVICE = ".*(does not have many workers|logging interval|no `val_data|were scaled back)"
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Snippet:
    code: str
    expected: str
    line: int


@contextlib.contextmanager
def screen():
    """What a reader sees: standard output, and what Lightning's logger tells."""
    text = io.StringIO()
    logger, handler = rank_zero.log, logging.StreamHandler(text)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(text):
            yield text
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def snippets(page):
    text = (ROOT / page).read_text("utf-8")
    return [Snippet(m[1], m[2] or "", text[: m.start()].count("\n") + 2) for m in _BLOCK.finditer(text)]


def agrees(expected, printed):
    """Whether two texts are the same but for numbers, and these within a fifth: processors round differently."""
    if _NUMBER.sub("#", expected).split() != _NUMBER.sub("#", printed).split():
        return False
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(printed), strict=True)
    return all(float(p) == pytest.approx(float(e), rel=0.2) for e, p in pairs)


def shows(expected, printed):
    """Whether a text stands somewhere on the screen, amid progress bars, as lines that follow each other."""
    lines, n = printed.splitlines(), len(expected.splitlines())
    return any(agrees(expected, "\n".join(lines[start : start + n])) for start in range(len(lines) - n + 1))


@pytest.fixture
def reader(monkeypatch, tmp_path):
    """What a reader brings along."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    digits = __import__("digits")

    def at(lr):
        pl.seed_everything(0, verbose=False)
        train, val = digits.loaders()
        brought = {"model": digits.Digits(lr), "train_dataloader": train, "val_dataloader": val}
        return brought | {"lt": lightning_topo, "Trainer": pl.Trainer}

    return at


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)])
def test_snippets_run_and_print_what_they_say(page, reader):
    namespace = reader(LEARNING_RATES.get(page, 1e-3))
    for snippet in snippets(page):
        if page == "README.md":
            namespace |= reader(1e-3)
        code = compile("\n" * (snippet.line - 1) + snippet.code, page, "exec")
        with warnings.catch_warnings(), screen() as printed:
            warnings.filterwarnings("ignore", message=_ADVICE)
            exec(code, namespace)
        assert shows(snippet.expected, printed.getvalue()), f"{page}:{snippet.line} printed\n{printed.getvalue()}"


def test_readme_is_short_and_has_three_snippets():
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count("\n") <= 120
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 3
    assert len(snippets("README.md")) >= 3


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("η* = 0.10, 3 trials\n", "η* = 0.11, 3 trials\n", True),
        ("η* = 0.10, 3 trials\n", "η* = 0.20, 3 trials\n", False),
        ("η* = 0.10\n", "η* = 0.10 s\n", False),
        ("1e-3", "1.1e-3", True),
    ],
)
def test_comparison_of_what_is_printed(expected, printed, same):
    assert agrees(expected, printed) == same
    assert shows(expected, f"Epoch 1\n{printed.strip()}\nEpoch 2\n") == same


def test_nothing_is_shown_by_an_empty_screen():
    assert shows("", "")
    assert not shows("η* = 0.1\n", "")
    assert not shows("a\nb\n", "a\nEpoch 1\nb\n")
