#!/usr/bin/env python3
"""Draw the output of `benchmark/run start` as a bar chart (SVG).

  benchmark/run start 2>&1 | tee start.txt
  benchmark/svg.py start.txt -o docs/cold-start.svg

The input is the text that the benchmark prints. The chart uses the lines of the first program (up to `workload:`):

  overlayfs (auto): pulled 5.29 6.56 6.79  ready 5.86 7.12 7.32

Both columns are seconds since the pull began, one value per run. Each bar is the median over the runs:
pull = pulled, start = ready - pulled of the same run, ready = ready. The first line of each snapshotter counts.
A line of the released Go snapshotter (`peer` or `reference`) is optional.
"""
import argparse
import re
import statistics
import sys
from xml.sax.saxutils import escape

LINE = re.compile(r"^(\S+) \(\w+\): pulled ([\d. ]+)ready ([\d. ]+)$")
END = re.compile(r"^workload: ")
HEADING = re.compile(r"^== (.+)$")

# Snapshotter in the input: label and color of its bars. Others are drawn under their own name.
GO = "SOCI snapshotter (Go)"
KNOWN = {
    "overlayfs": ("containerd overlayfs", "#8c959f"),
    "soci": ("soci-rs", "#0969da"),
    "peer": (GO, "#bf8700"),
    "reference": (GO, "#bf8700"),
}
OTHER = "#8250df"
PHASES = [("pull", "Pull"), ("start", "Start"), ("ready", "Ready (total)")]

WIDTH, LEFT, RIGHT, TOP = 760, 132, 84, 96
BAR, GAP, GROUP_GAP, BOTTOM = 22, 4, 20, 20


def parse(lines):
    """Return the heading, and for each snapshotter its input line and the median of each phase."""
    heading, series = "", {}
    for line in map(str.strip, lines):
        if END.match(line):
            break
        if not heading and (found := HEADING.match(line)):
            heading = found[1]
        if not (found := LINE.match(line)) or found[1] in series:
            continue
        pulled, ready = ([float(value) for value in text.split()] for text in found.groups()[1:])
        if not pulled or len(pulled) != len(ready):
            raise ValueError(f"expected as many `pulled` as `ready` values: {line}")
        start = [end - begin for begin, end in zip(pulled, ready)]
        medians = map(statistics.median, (pulled, start, ready))
        series[found[1]] = line, dict(zip(("pull", "start", "ready"), medians))
    if not series:
        raise ValueError("no line of the form `NAME (MODE): pulled SECONDS... ready SECONDS...`")
    return heading, series


def text(x, y, content, size=13, extra=""):
    return f'<text x="{x}" y="{y}" font-size="{size}"{extra}>{escape(content)}</text>'


def rect(x, y, width, height, color):
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" rx="2" fill="{color}"/>'


def look(name):
    return KNOWN.get(name, (name, OTHER))


def legend(series):
    x, shapes = LEFT, []
    for name in series:
        label, color = look(name)
        shapes += [rect(x, 66, 12, 12, color), text(x + 18, 77, label)]
        x += 18 + 8 * len(label) + 20
    return shapes


def bars(series):
    """Return the shapes of all groups and the y coordinate below the last one."""
    scale = (WIDTH - LEFT - RIGHT) / max(max(medians.values()) for _, medians in series.values())
    y, shapes = TOP, []
    for phase, title in PHASES:
        height = len(series) * (BAR + GAP) - GAP
        shapes.append(text(LEFT - 14, y + height / 2 + 5, title, 14, ' text-anchor="end" font-weight="600"'))
        for name, (_, medians) in series.items():
            length = medians[phase] * scale
            shapes.append(rect(LEFT, y, length, BAR, look(name)[1]))
            shapes.append(text(f"{LEFT + length + 8:.1f}", y + 16, f"{medians[phase]:.2f} s"))
            y += BAR + GAP
        y += GROUP_GAP - GAP
    return shapes, y - GROUP_GAP


def draw(heading, series):
    shapes, y = bars(series)
    height = y + BOTTOM
    description = "\n".join([heading, *(line for line, _ in series.values())])
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' role="img" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" fill="#1f2328">',
        "<title>Cold start in seconds; shorter is better</title>",
        f"<desc>{escape(description)}</desc>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        text(20, 28, "Cold start in seconds; shorter is better", 17, ' font-weight="600"'),
        text(20, 48, heading, 12, ' fill="#59636e"'),
        *legend(series),
        *shapes,
        "</svg>",
        "",
    ])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="?", default="-", help="output of `benchmark/run start` (default: standard input)")
    parser.add_argument("-o", "--output", default="-", help="SVG to write (default: standard output)")
    args = parser.parse_args()
    try:
        with open(0 if args.figures == "-" else args.figures, encoding="utf-8") as file:
            svg = draw(*parse(file))
        with open(1 if args.output == "-" else args.output, "w", encoding="utf-8") as file:
            file.write(svg)
    except (OSError, ValueError) as error:
        sys.exit(f"svg.py: {error}")


if __name__ == "__main__":
    main()
