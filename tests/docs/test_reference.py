"""Each public name has an entry in the reference, each log key a row, and formulas are written in one way."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import lightning_topo as lt
from lightning_topo import callbacks, functional, metrics, neurons, plots
from lightning_topo.callbacks import log_keys

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PUBLIC = {
    lt: lt.__all__,
    functional: functional.__all__,
    metrics: metrics.__all__,
    plots: plots.__all__,
    callbacks: callbacks.__all__,
    neurons: ["discover_neurons", "Discovery", "UncoveredAxis"],
}
ROOMS = ("functional", "metrics", "plots")  # sub-packages have a page, not an entry


def resolved(identifier):
    """The object of a dotted name; a module where a function in it has its name is passed through."""
    parts = identifier.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(identifier)


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    yield importlib.import_module("hooks")
    for name in ("hooks", "log_keys", "rooms", "public_names"):
        sys.modules.pop(name, None)


@pytest.fixture
def entries(hooks):
    """The identifiers that the pages of the reference have mkdocstrings show."""
    pages = [hooks.on_page_markdown(page.read_text("utf-8")) for page in sorted((DOCS / "reference").glob("*.md"))]
    return [name for page in pages for name in re.findall(r"^::: (\S+)", page, re.MULTILINE)]


def test_every_public_name_has_an_entry(entries):
    documented = {id(resolved(entry)) for entry in entries}
    missing = {
        f"{room.__name__}.{name}"
        for room, names in PUBLIC.items()
        for name in names
        if name not in ROOMS and id(getattr(room, name)) not in documented
    }
    assert missing == set(), "add '<!-- names of ROOM -->' or '::: NAME' to a page of docs/reference"


def test_no_name_has_two_entries(entries):
    objects = [resolved(entry) for entry in entries]
    assert len({id(found) for found in objects}) == len(objects) >= 40


def test_every_log_key_has_a_row(hooks):
    tables = hooks.log_key_tables()
    declared = [keys for keys in vars(log_keys).values() if isinstance(keys, log_keys.LogKeys)]
    assert len(declared) >= 6
    for keys in declared:
        for name in keys.overall:
            assert f"| `{keys.of_run(name)}` | " in tables
        for name in keys.group:
            assert f"| `{keys.of_group('<group>', name)}` | " in tables
        for name in keys.dimension:
            assert f"| `{keys.of_dimension('<group>', name, '<k>')}` | " in tables
    assert hooks.on_page_markdown(f"a\n{hooks.LOG_KEYS}\nb") == f"a\n{tables}\nb"


def test_formulas_become_mathml(hooks):
    page = '<p><span class="arithmatex">\\(\\kappa &lt; 1\\)</span> <code>\\(x\\)</code></p>'
    shown = hooks.on_page_content(page)
    assert "<math" in shown
    assert "&#x003BA;" in shown
    assert "\\(x\\)" in shown
    assert "arithmatex" not in shown


def docstrings():
    for path in sorted((ROOT / "lightning_topo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}", text


def test_formulas_and_names_have_one_markup():
    """Between dollar signs, and in backticks: no directives and roles of another language."""
    strange = [where for where, text in docstrings() if re.search(r"^\s*\.\. \w+::|:\w+:`", text, re.MULTILINE)]
    assert strange == []
