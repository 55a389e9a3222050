"""Print rooms, floors, arrows and circles of the package, and draw docs/images/house.svg.

python docs/house.py            # --check writes nothing and says whether the picture is stale

All numbers come from the imports, by way of tests/test_arrows.py. The scripts of experiments/
count as one room; the files that any room may import are left out. Fails where the house outgrows
its limits.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_arrows import FLOORS, GROUND, PACKAGE, circles, graph, imports  # noqa: E402

FILE = ROOT / "docs" / "images" / "house.svg"
SCRIPTS = "experiments"
LIMITS = {"rooms": 20, "floors": 8, "arrows": 80, "circles": 0}

Arrows = dict[str, set[str]]


def rooms(files: Arrows) -> Arrows:
    """Room -> other rooms that it imports; the package itself (its version) is not a room."""
    arrows: Arrows = {}
    for name, targets in files.items():
        _, *inside = name.split(".")
        if inside and inside[0] not in GROUND:
            there = {target.split(".")[1] for target in targets if "." in target}
            arrows.setdefault(inside[0], set()).update(there - {inside[0], *GROUND})
    used: set[str] = set()
    for script in (ROOT / SCRIPTS).rglob("*.py"):
        names = imports(ast.parse(script.read_text()), ())
        used |= {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}
    return arrows | {SCRIPTS: used & arrows.keys()}


def needed(arrows: Arrows) -> Arrows:
    """The arrows without those that a longer way implies, which would hide the others."""

    def below(room: str) -> set[str]:
        return arrows[room].union(*(below(one) for one in arrows[room]))

    return {
        room: {one for one in targets if not any(one in below(o) for o in targets)}
        for room, targets in arrows.items()
    }


def draw(arrows: Arrows, floors: list[set[str]], caption: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "house", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(figsize=(9, 6.2))
    places = {
        room: ((index + 0.5) / len(floor), level)
        for level, floor in enumerate(floors)
        for index, room in enumerate(sorted(floor))
    }
    for room, targets in sorted(needed(arrows).items()):
        for target in sorted(targets):
            (x, y), (to_x, to_y) = places[room], places[target]
            style = {"arrowstyle": "-|>", "color": "#9aa5b1", "lw": 0.8, "shrinkB": 0}
            axes.annotate("", (to_x, to_y + 0.2), (x, y - 0.2), arrowprops=style, zorder=1)
    for room, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.35", "fc": "#e8eaf6", "ec": "#3f51b5", "lw": 0.8}
        axes.text(x, y, room, ha="center", va="center", bbox=box, zorder=2)
    for level in range(len(floors)):
        axes.text(-0.03, level, str(level + 1), color="#3f51b5", ha="right", va="center")
    axes.set(xlim=(-0.04, 1.02), ylim=(-0.9, len(floors) - 0.5))
    axes.text(0.5, -0.75, caption, ha="center", fontsize=8, color="#555555")
    axes.axis("off")
    figure.tight_layout(pad=0.3)
    FILE.parent.mkdir(exist_ok=True)
    figure.savefig(FILE, metadata={"Date": None})


def main() -> int:
    files = graph()
    arrows = rooms(files)
    floors = [set(floor) for floor in FLOORS]
    counts = {
        "rooms": len(arrows),
        "floors": len(floors),
        "arrows": sum(map(len, arrows.values())),
        "circles": len(circles(files)) + len(circles(arrows)),
    }
    for number, floor in reversed(list(enumerate(floors, start=1))):
        print(f"floor {number}")
        for room in sorted(floor):
            print(f"  {room:<16}-> {', '.join(sorted(arrows[room])) or '-'}")
    print(f"beside the package\n  {SCRIPTS:<16}-> {', '.join(sorted(arrows[SCRIPTS]))}\n")
    for name, count in counts.items():
        print(f"{name:<8}{count:>4}   at most {LIMITS[name]}")
    shown = {room: targets for room, targets in arrows.items() if room != SCRIPTS}
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    if not counts["circles"]:  # an arrow that longer ways imply is defined without circles alone
        if "--check" not in sys.argv:
            draw(shown, floors, f"{words}; arrows that longer ways imply are not drawn")
        current = FILE.is_file() and words in FILE.read_text()
        print(f"\n{'drawn' if current else 'stale'}: {FILE.relative_to(ROOT)}")
    return int(any(count > LIMITS[name] for name, count in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
