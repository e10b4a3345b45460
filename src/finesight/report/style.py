"""The look that all figures share: palette, sizes, and names that fit. Imports matplotlib lazily."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

WIDTH = 10.0
"""Inches of the widest figure: the report shows it 960 pixels wide, so that 9 pt reads as 12 px."""

# Okabe & Ito, "Color Universal Design" (2008): told apart with every common colour vision deficiency.
BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7"
INK, QUIET, GRID = "#1f2328", "#59636e", "#d8dde3"
SKY = "#56b4e9"
SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN} | {
    "source train": BLUE,
    "source validation": ORANGE,
    "source test": SKY,
    "target train": PURPLE,
    "target validation": ORANGE,
    "target test": GREEN,
}

# Paul Tol, "Colour Schemes" (SRON 2021), muted: nine classes and, for the tenth, black.
CLASS_COLOURS = (
    "#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677", "#aa4499", "#44aa99", "#882255", "#999933", "#000000",
)  # fmt: skip

_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function that builds or draws figures under the shared style."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with look():
            return function(*args, **kwargs)

    return wrapper


def look() -> AbstractContextManager[None]:
    """The shared style as a context: on top of matplotlib's defaults, whatever the user's matplotlibrc says."""
    import matplotlib

    own: dict[Any, Any] = {
        "font.family": _fonts(),
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9.5,
        "axes.labelcolor": INK,
        "axes.edgecolor": QUIET,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.color": INK,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "savefig.facecolor": "white",
        "svg.fonttype": "path",
        "svg.hashsalt": "finesight",
    }
    defaults: dict[Any, Any] = {
        key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")
    }
    return matplotlib.rc_context({**defaults, **own})


def figure(width: float, height: float) -> "Figure":
    """An empty figure of the given size in inches, drawn by Agg, unknown to pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def shorten(names: Sequence[str], limit: int) -> list[str]:
    """Class names for a figure: those longer than `limit` lose their middle, and stay different.

    Where one is too long, all first lose the beginning that they share ("Tomato___healthy" becomes
    "…healthy"): it tells nothing apart. Where two cut names would be equal, they keep more letters until
    they differ. Control characters become spaces, and dollar signs are escaped, which matplotlib would
    read as formulas.
    """
    whole = ["".join(letter if letter.isprintable() else " " for letter in name) for name in names]
    if max(map(len, whole), default=0) > limit:
        start = _shared_start(whole)
        whole = [f"…{name[start:]}" if start else name for name in whole]
    cut = [_cut(name, limit) for name in whole]
    while len(set(cut)) < len(set(whole)):
        limit += 4
        seen: dict[str, set[str]] = {}
        for name, short in zip(whole, cut, strict=True):
            seen.setdefault(short, set()).add(name)
        cut = [_cut(name, limit) if len(seen[short]) > 1 else short for name, short in zip(whole, cut, strict=True)]
    return [name.replace("$", r"\$") for name in cut]


def _shared_start(names: Sequence[str]) -> int:
    """Length of the beginning that all names share, up to its last separator; 0 where one name begins another."""
    first, last = min(names), max(names)
    same = [x == y for x, y in zip(first, last, strict=False)]
    shared = first[: same.index(False)] if False in same else ""
    while shared and shared[-1].isalnum():
        shared = shared[:-1]
    return len(shared) if len(shared) > 3 else 0


def _cut(name: str, limit: int) -> str:
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def empty(axes: "Axes", text: str) -> None:
    """Say in the middle of the axes why there is nothing to see."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=QUIET, wrap=True)


def ticks_fit(count: int, inches: float) -> float:
    """Font size in points for `count` labels along `inches`, between 4.5 and 9."""
    return max(4.5, min(9.0, 72 * inches / max(count, 1) * 0.82))


@functools.cache
def _fonts() -> list[str]:
    """DejaVu Sans, then the installed fonts that hold scripts it lacks."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]
