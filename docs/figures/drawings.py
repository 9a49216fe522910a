"""
The drawings of README and documentation that need nothing but Python: the schematic and the badges, as SVG.

    python docs/figures/drawings.py

What the badges say is read from pyproject.toml and setup.cfg. A test compares the files with what this script draws.
"""

import configparser
import math
import random
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\""
INK, GRAY, BLUE, ORANGE, GREEN = "#1f2937", "#6b7280", "#2563eb", "#d97706", "#059669"


def text(x: float, y: float, content: str, size: float = 13, color: str = INK, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}" {more}>{content}</text>'


def path(points: list[tuple[float, float]], color: str, width: float = 1.5, more: str = "") -> str:
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{where}" fill="none" stroke="{color}" stroke-width="{width:g}" {more}/>'


def box(x: float, title: str, call: str) -> str:
    return (
        f'<rect x="{x:g}" y="48" width="220" height="184" rx="10" fill="#f8fafc" stroke="#cbd5e1"/>'
        + text(x + 110, 74, title, 14, more='font-weight="600"')
        + text(x + 110, 218, call, 12, GRAY, more="font-family=\"ui-monospace, 'DejaVu Sans Mono', monospace\"")
    )


def arrow(x: float, y: float, length: float) -> str:
    end = x + length
    line = f'<line x1="{x:g}" y1="{y:g}" x2="{end - 6:g}" y2="{y:g}" stroke="{GRAY}" stroke-width="2"/>'
    return line + f'<path d="M{end:g},{y:g} l-10,-5 v10 z" fill="{GRAY}"/>'


def demonstrations(x: float) -> str:
    """Recorded episodes: three noisy curves of an action over time."""
    shapes = []
    for row, color in enumerate((BLUE, "#60a5fa", "#93c5fd")):
        steps = range(41)
        curve = [(x + 25 + 4.25 * k, 112 + 34 * row - 11 * math.sin(0.22 * k + 1.3 * row)) for k in steps]
        shapes += [path(curve, color, 2), f'<circle cx="{curve[-1][0]:.1f}" cy="{curve[-1][1]:.1f}" r="3.5" fill="{color}"/>']
    return "".join(shapes)


def flow(x: float) -> str:
    """Noise on the left moves to two kinds of action on the right, in four steps."""
    draw, shapes = random.Random(0), []
    for k in range(5):
        shapes.append(path([(x + 35 + 37.5 * k, 92), (x + 35 + 37.5 * k, 186)], "#e2e8f0", 1))
    for _ in range(16):
        start = max(-1.9, min(draw.gauss(0, 1), 1.9))
        goal = (1 if start > 0 else -1) + draw.gauss(0, 0.12)
        points = [(x + 35 + 37.5 * k, 139 + 24 * (start + (goal - start) * (k / 4) ** 1.3)) for k in range(5)]
        shapes.append(path(points, BLUE if start > 0 else GREEN, 1, 'opacity="0.75"'))
        shapes += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="1.8" fill="{INK}"/>' for px, py in (points[0], points[-1])]
    return "".join(shapes) + text(x + 35, 200, "noise", 11, GRAY) + text(x + 185, 200, "actions", 11, GRAY)


def fine_tuning(x: float) -> str:
    """The loop of policy and simulator, and a return that rises above the clone's."""
    curve = [(x + 30 + 4 * k, 180 - 74 / (1 + math.exp(-(k - 18) / 5))) for k in range(41)]
    axes = path([(x + 30, 92), (x + 30, 190), (x + 195, 190)], GRAY, 1)
    clone = path([(x + 30, 178), (x + 195, 178)], GRAY, 1.5, 'stroke-dasharray="4 3"') + text(
        x + 193, 171, "clone", 11, GRAY, "end"
    )
    return axes + clone + path(curve, ORANGE, 2.5) + text(x + 42, 102, "return", 11, GRAY, "start")


def schematic() -> str:
    left, middle, right = 20, 290, 560
    shapes = [
        '<rect width="800" height="282" rx="12" fill="white"/>',
        text(400, 30, "From demonstrations to a policy that is better than they are", 16, more='font-weight="600"'),
        box(left, "Demonstrations", "load_demonstrations(...)"),
        box(middle, "Flow-matching policy", "pretrain_bc(model, ...)"),
        box(right, "Fine-tuning in simulation", "model.learn(...)"),
        demonstrations(left),
        flow(middle),
        fine_tuning(right),
        arrow(left + 224, 140, 42),
        arrow(middle + 224, 140, 42),
        text(left + 110, 256, "D4RL, Minari, robomimic,", 12, GRAY)
        + text(left + 110, 272, "LeRobot, Meta-World, arrays", 12, GRAY),
        text(middle + 110, 256, "behavior cloning", 12, GRAY) + text(middle + 110, 272, "(optional)", 12, GRAY),
        text(right + 110, 256, "ScoReFlowPPO, RLDT or FPO:", 12, GRAY),
        text(right + 110, 272, "Stable-Baselines3 algorithms", 12, GRAY),
    ]
    label = "Demonstrations are cloned into a flow-matching policy, which is then fine-tuned in simulation"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 282" width="800" role="img" aria-label="{label}" {FONT}>'
    return "\n".join([head, *shapes, "</svg>"]) + "\n"


def badge(label: str, value: str, color: str) -> str:
    left, right = (6.6 * len(part) + 14 for part in (label, value))
    width = f"{left + right:.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img"'
        f' aria-label="{label}: {value}" {FONT}>\n'
        f'<clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>\n'
        f'<g clip-path="url(#r)"><rect width="{left:.0f}" height="20" fill="#555"/>'
        f'<rect x="{left:.0f}" width="{right:.0f}" height="20" fill="{color}"/></g>\n'
        + text(left / 2, 14, label, 11, "white")
        + text(left + right / 2, 14, value, 11, "white")
        + "\n</svg>\n"
    )


def badges() -> dict[str, str]:
    project, settings = (ROOT / "pyproject.toml").read_text(), configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")

    def found(pattern: str) -> tuple[str, ...]:
        match = re.search(pattern, project)
        assert match, f"pyproject.toml has nothing like {pattern}."
        return match.groups()

    first, after = found(r'requires-python = ">=3\.(\d+),<3\.(\d+)"')
    covered = math.floor(float(settings["coverage:report"]["fail_under"]))
    return {
        "badge_python.svg": badge("python", f"3.{first} to 3.{int(after) - 1}", "#2563eb"),
        "badge_sb3.svg": badge("stable-baselines3", f"{found('stable-baselines3>=([0-9.]+)')[0]} or later", "#2563eb"),
        "badge_coverage.svg": badge("branch coverage", f"over {covered}%", "#059669"),
        "badge_license.svg": badge("license", found('license = "([^"]+)"')[0], "#6b7280"),
    }


def drawings() -> dict[str, str]:
    """:return: name of the file -> what is in it"""
    return {"schematic.svg": schematic(), **badges()}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, drawing in drawings().items():
        (folder / name).write_text(drawing)
