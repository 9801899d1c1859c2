"""The progress bar of a search."""

from __future__ import annotations

from types import TracebackType

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_topo.finder.search import SearchState


class SearchProgress:
    """Counts trials and shows the bracket so far.

    Args:
        shown: Whether to show anything.
    """

    def __init__(self, shown: bool) -> None:
        self._bar = tqdm(desc="Critical learning rate", unit=" trials", disable=not shown, leave=False)

    def __enter__(self) -> SearchProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def trying(self, state: SearchState) -> None:
        """Show where the search stands before its next trial."""
        above = f"{state.broken.lr:.3g}" if state.broken else "?"
        below = f"{state.held:.3g}" if state.held else "?"
        self._bar.n = len(state.trials)
        self._bar.set_postfix_str(f"held {below}, broke {above}, trying {state.next_lr:.3g}")

    def trying_share(self, lr: float, trials: int) -> None:
        """Show which share of the critical rate is tried next, after so many trials."""
        self._bar.n = trials
        self._bar.set_postfix_str(f"losses at {lr:.3g}")
