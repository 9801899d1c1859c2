"""One self-contained HTML page on a fit: the verdict, the figures and a table of the groups."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_topo.plots import (
    counts_distinct,
    plot_criticality,
    plot_learning_rates,
    plot_neurons_left,
    plot_sharpness,
    plot_stretch,
)
from lightning_topo.plots.picture import png
from lightning_topo.verdict.findings import Findings, group_summaries
from lightning_topo.verdict.words import verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --paper: #ffffff; --soft: #5c6470; --line: #d9dde3; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --paper: #14171c; --soft: #9aa3b0; --line: #343a44; --card: #1d2128; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.about { color: var(--soft); margin: 0 0 1.4rem; }
.verdict { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1.2rem; }
.verdict p { margin: .45rem 0; } .verdict p:last-child { font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card); }
figure img { display: block; background: #fff; width: 100%; height: auto; }
figcaption { background: var(--card); color: var(--soft); font-size: .87rem; padding: .55rem .8rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td { font-variant-numeric: tabular-nums; }
"""

_CAPTIONS = {
    "criticality": "κ = |difference of two neurons' updates| / their distance, at its largest in each group. Below the "
    "dashed line an update keeps all neurons apart; above it neurons can merge.",
    "rates": "The learning rate η beside the critical rate η*, above which an update can merge neurons, and, where it "
    "was measured, η_c, above which an update no longer lowers the batch's loss.",
    "sharpness": "The learning rate η beside the critical rate η_c, above which an update no longer lowers the batch's "
    "loss, and, where it was measured, 2/λmax, up to which gradient descent is stable.",
    "stretch": "By how much of their distance an update brought two neurons nearer, or took them apart, at the most.",
    "distinct": "How many neurons are left, as a share of those of the first measurement, when neurons that have come "
    "close to each other count as one.",
    "drift": "How far the persistence diagrams of the neurons have moved since the first measurement.",
}


def write_page(
    findings: Findings, path: str | Path, about: str = "", more: Iterable[tuple[str, str, Axes]] = ()
) -> Path:
    """Write the page.

    Args:
        findings: What the monitors have measured.
        path: Where to, a file; folders that are missing are made.
        about: What the run was, in one line.
        more: Further figures: a title for who cannot see it, a caption, and the axes.

    Returns:
        The path.
    """
    figures = [*_figures(findings), *more]
    shown = "".join(_figure(title, caption, axes) for title, caption, axes in figures)
    parts = [
        "<h1>What this fit did to the neurons</h1>",
        f'<p class="about">{html.escape(about)}</p>' if about else "",
        '<div class="verdict">' + "".join(f"<p>{html.escape(line)}</p>" for line in verdict(findings).lines) + "</div>",
        f'<h2>Course of the fit</h2><div class="figures">{shown}</div>' if shown else "",
        _table(findings),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>lightning_topo: report</title><style>{_STYLE}</style>'
        f"</head><body><main>{''.join(parts)}</main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _figures(findings: Findings) -> list[tuple[str, str, Axes]]:
    figures: list[tuple[str, str, Axes]] = []
    if findings.updates:
        figures += [
            ("criticality over the steps", _CAPTIONS["criticality"], plot_criticality(findings.updates)),
            (
                "learning rate and critical rates over the steps",
                _CAPTIONS["rates"],
                plot_learning_rates(findings.updates, findings.sharpness),
            ),
            ("change of distances over the steps", _CAPTIONS["stretch"], plot_stretch(findings.updates)),
        ]
    elif findings.sharpness:
        figures.append(("sharpness over the steps", _CAPTIONS["sharpness"], plot_sharpness(findings.sharpness)))
    if findings.topology:
        shown = "distinct" if counts_distinct(findings.topology) else "drift"
        figures.append(("neurons over the steps", _CAPTIONS[shown], plot_neurons_left(findings.topology)))
    return figures


def _figure(title: str, caption: str, axes: Axes) -> str:
    data = base64.b64encode(png(axes.figure, dpi=150)).decode("ascii")
    image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _table(findings: Findings) -> str:
    summaries = group_summaries(findings)
    if not summaries:
        return ""
    titles = ("group", "neurons", "largest κ", "at step", "median κ", "κ ≥ 1", "median η*", "lower", "upper")
    rows = [
        (
            one.group,
            "" if one.n_neurons is None else f"{one.n_neurons:,}",
            f"{one.largest:.3g}",
            f"{one.at_step:,}",
            f"{one.median:.3g}",
            f"{one.broken:,} of {one.measured:,}",
            f"{one.critical_lr:.3g}",
            f"{one.lower:.3g}",
            f"{one.upper:.3g}",
        )
        for one in summaries
    ]
    body = _row("th", titles) + "".join(_row("td", row) for row in rows)
    return f'<h2>Neuron groups</h2><div class="wide"><table>{body}</table></div>'


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
