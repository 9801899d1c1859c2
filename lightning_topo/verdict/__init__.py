"""What a fit did to the neurons, in a few sentences and on one page."""

from lightning_topo.verdict.findings import Findings
from lightning_topo.verdict.page import write_page
from lightning_topo.verdict.words import Verdict, verdict

__all__ = ["Findings", "Verdict", "verdict", "write_page"]
