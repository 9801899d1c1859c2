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
_KEYS = ROOT / "lightning_topo" / "callbacks" / "log_keys.py"
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)


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
    """Put the tables of log keys where a page asks for them."""
    return markdown.replace(LOG_KEYS, log_key_tables()) if LOG_KEYS in markdown else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw themselves: no script is loaded."""
    return _FORMULA.sub(_mathml, content)


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
