"""The same figures as pictures: for each column a bar of how many times stanchion's it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.machine import installed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STANCHION = "stanchion"
OURS, THEIRS = "#1f6f8b", "#b8c4cc"
WIDTH, DOTS = 7.5, 110  # inches, and dots an inch
BAR, AROUND = 0.26, 0.75  # inches


def missing() -> str | None:
    """Get what to say where there is nothing to draw with."""
    if installed("matplotlib"):
        return None
    return "--plot needs matplotlib: pip install 'stanchion[bench]'"


def draw(path: Path, document: Mapping[str, Any]) -> None:
    """Draw what `--json` writes: to the file, or in a directory to the question's own."""
    from matplotlib.figure import Figure

    if path.is_dir():
        path /= f"{document['question']}.png"
    panels = [
        (table["title"], bars)
        for table in document["tables"]
        for bars in table["bars"]
        if bars["names"]
    ]
    if not panels:
        return
    heights = [BAR * len(bars["names"]) + AROUND for _, bars in panels]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), dpi=DOTS, layout="constrained")
    axes = figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
    for axis, (title, bars) in zip(axes, panels, strict=True):
        _panel(axis, title, bars)
    machine = document["machine"]
    figure.supxlabel(
        f"{machine['cpu']}, {machine['cores']} cores; {machine['python']}, {machine['loop']}; "
        f"{machine['server']}; medians of {document['rounds']} rounds",
        fontsize=7,
        color="#555555",
    )
    figure.savefig(path, metadata={"Software": None})


def _panel(axis: Any, title: str, bars: Mapping[str, Any]) -> None:
    names, figures, shown = bars["names"], bars["figures"], bars["shown"]
    ours = figures[names.index(STANCHION)] if STANCHION in names else 0.0
    lengths = [figure / ours for figure in figures] if ours else figures
    places = range(len(names))
    colours = [OURS if name.startswith(STANCHION) else THEIRS for name in names]
    axis.barh(places, lengths, color=colours, height=0.72)
    for place, length, text in zip(places, lengths, shown, strict=True):
        ratio = f"  ({length:.2f}x)" if ours else ""
        axis.text(length, place, f" {text}{ratio}", va="center", fontsize=8)
    axis.set_yticks(places, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(lengths) * 1.28)
    better = "more" if bars["head"].endswith("/s") else "less"
    axis.set_title(f"{title}: {bars['head']} ({better} is better)", fontsize=9, loc="left")
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
