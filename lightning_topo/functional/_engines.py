"""The programs that compute persistence diagrams, of which two are extras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Engine = Literal["auto", "ripser", "gudhi", "redzed"]
ENGINES: tuple[str, ...] = get_args(Engine)

# Symmetric matrix of distances and highest dimension -> diagrams of dimensions 1 to that, births and deaths up to the
# enclosing radius, beyond which the complex is a cone.
Diagrams = Callable[[NDArray[np.float64], int], list[NDArray[np.float64]]]


def engine_function(engine: Engine) -> Diagrams:
    """The engine's function; ``"auto"`` is the fastest that is installed.

    Raises:
        ImportError: When the engine is not installed.
    """
    if engine == "auto":
        return _fastest()
    if engine == "ripser":
        return _ripser
    try:
        _EXTRAS[engine][0]()
    except ImportError as error:
        raise ImportError(f"engine={engine!r} needs {_EXTRAS[engine][2]}, or choose engine='ripser'.") from error
    return _EXTRAS[engine][1]


def _fastest() -> Diagrams:
    for load, function, _ in _EXTRAS.values():
        try:
            load()
        except ImportError:
            continue
        return function
    return _ripser


def _load_redzed() -> None:
    import redzed_tda  # noqa: F401


def _load_gudhi() -> None:
    from gudhi.sklearn.rips_persistence import RipsPersistence  # noqa: F401


def _ripser(matrix: NDArray[np.float64], top: int) -> list[NDArray[np.float64]]:
    from ripser import ripser

    result = ripser(matrix, maxdim=top, thresh=_enclosing(matrix), coeff=2, distance_matrix=True)
    return list(result["dgms"][1:])


def _gudhi(matrix: NDArray[np.float64], top: int) -> list[NDArray[np.float64]]:
    from gudhi.sklearn.rips_persistence import RipsPersistence

    engine = RipsPersistence(
        homology_dimensions=list(range(1, top + 1)),
        threshold=_enclosing(matrix),
        input_type="full distance matrix",
        homology_coeff_field=2,
    )
    return [np.asarray(diagram).reshape(-1, 2) for diagram in engine.fit_transform([matrix])[0]]


def _redzed(matrix: NDArray[np.float64], top: int) -> list[NDArray[np.float64]]:
    from redzed_tda import rips

    diagrams = rips(matrix, maxdim=top, threshold=_enclosing(matrix))[1:]
    return [np.asarray(diagram, dtype=np.float64).reshape(-1, 2) for diagram in diagrams]


def _enclosing(matrix: NDArray[np.float64]) -> float:
    return float(matrix.max(axis=1).min())


# The fastest first: what imports it, its function, and how it is installed.
_EXTRAS: dict[str, tuple[Callable[[], None], Diagrams, str]] = {
    "redzed": (_load_redzed, _redzed, "redzed-tda: run `pip install redzed-tda`"),
    "gudhi": (_load_gudhi, _gudhi, "gudhi >= 3.11 and scikit-learn: run `pip install gudhi scikit-learn`"),
}
