"""What the site makes from the code: log keys, the rooms, the paper's page, and MathML."""

from __future__ import annotations

import html
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
LOG_KEYS = "<!-- log keys -->"
_NAMES = re.compile(r"<!-- names of (\w+) -->")
_KEYS = ROOT / "lightning_topo" / "callbacks" / "log_keys.py"
_STARS = re.compile(r"(?<=η)<em>(.*?)</em>", re.DOTALL)  # of two η* in one paragraph
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Add the pages of a folder that its section does not list, at the end: a page that is there is shown."""
    docs = Path(config.docs_dir)
    for section in config.nav:
        for pages in section.values() if isinstance(section, dict) else ():
            folder = docs / Path(pages[0]).parent
            found = sorted(path.relative_to(docs).as_posix() for path in folder.glob("*.md"))
            pages += [page for page in found if page not in pages]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Show the paper's page, which `make paper` writes, among the evidence, and draw the rooms."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "contributing/rooms.svg", content=_module(ROOT / "docs" / "rooms.py").svg()))
    for path in sorted((ROOT / "examples" / "paper").glob("*")):
        if path.suffix in (".png", ".md"):
            name = "paper.md" if path.name == "README.md" else path.name
            files.append(File.generated(config, f"evidence/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables of log keys, and the public names of a room, where a page asks for them."""
    markdown = _NAMES.sub(_entries, markdown)
    return markdown.replace(LOG_KEYS, log_key_tables()) if LOG_KEYS in markdown else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw themselves: no script is loaded."""
    return _STARS.sub(r"*\1*", _FORMULA.sub(_mathml, content))


def _entries(found: re.Match[str]) -> str:
    names = _module(ROOT / "docs" / "public_names.py").of_room(found[1])
    return "\n\n".join(f"::: {name}" for name in names)


def _mathml(found: re.Match[str]) -> str:
    inline, display = found[2], found[3]
    return convert(html.unescape(inline or display), display="inline" if inline else "block")


def log_key_tables() -> str:
    """One table a callback, from the declarations in ``callbacks/log_keys.py``."""
    declared = [(name, keys) for name, keys in vars(_module(_KEYS)).items() if type(keys).__name__ == "LogKeys"]
    return "\n\n".join(_table(keys) for _, keys in declared)


def _table(keys: Any) -> str:
    rows = [(f"{keys.prefix}/{name}", text) for name, text in keys.overall.items()]
    rows += [(f"{keys.prefix}/<group>/{name}", text) for name, text in keys.group.items()]
    rows += [(f"{keys.prefix}/<group>/{name}_<k>", text) for name, text in keys.dimension.items()]
    lines = [f"## `{keys.prefix}/`", "", "| key | what it is |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {text.replace('|', chr(92) + '|')} |" for key, text in rows)])


def _module(path: Path) -> ModuleType:
    """One file as a module by itself, so that building the site needs no torch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
