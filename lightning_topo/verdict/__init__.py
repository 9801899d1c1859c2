"""What a fit did to the neurons, in a few sentences and on one page."""

from lightning_topo.verdict.findings import Findings, worst_of_each_step
from lightning_topo.verdict.page import write_page
from lightning_topo.verdict.words import Verdict, verdict

__all__ = ["Findings", "Verdict", "verdict", "worst_of_each_step", "write_page"]
