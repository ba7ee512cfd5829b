"""Draws the medians of one workload: a bar per peer, divided into pull, start and READY."""

from xml.sax.saxutils import escape

from .peers import BY_NAME
from .results import LINK, Runs
from .report import title

WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 760, 250, 90, 88, 22, 8
PHASES = (("pull", "#0969da"), ("started", "#54aeff"), ("ready", "#bf8700"))
LABELS = {"pull": "Pull", "started": "Container start", "ready": "Program until READY"}
FRAME = ('<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
         'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" fill="#1f2328">')


def text(x, y, content, size=13, extra=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}"{extra}>{escape(content)}</text>'


def rect(x, y, width, height, color):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height}" fill="{color}"/>'


def frame(width, height, heading, second):
    return [FRAME.format(w=width, h=height), f"<title>{escape(heading)}</title>",
            f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
            text(20, 28, heading, 16, ' font-weight="600"'), text(20, 47, second, 12, ' fill="#59636e"')]


def legend(entries, x, y):
    shapes = []
    for label, color in entries:
        shapes += [rect(x, y, 12, 12, color), text(x + 18, y + 11, label, 12)]
        x += 34 + 7 * len(label)
    return shapes


def draw(document):
    """The SVG of a workload, or None if nothing ran."""
    runs = Runs(document)
    peers = [peer for peer in runs.peers() if runs.median(peer, "started") is not None]
    if not peers:
        return None
    ends = {peer: runs.median(peer, "ready") or runs.median(peer, "started") for peer in peers}
    scale = (WIDTH - LEFT - RIGHT) / max(ends.values())
    shapes, y = [], TOP
    for peer in peers:
        weight = ' font-weight="600"' if BY_NAME[peer].daemon == "ours" else ""
        shapes.append(text(LEFT - 10, y + 15, title(peer), 12, f' text-anchor="end"{weight}'))
        x = 0.0
        for phase, color in PHASES:
            if (end := runs.median(peer, phase)) is not None:
                shapes.append(rect(LEFT + x * scale, y, (end - x) * scale, BAR, color))
                x = max(x, end)
        shapes.append(text(LEFT + ends[peer] * scale + 6, y + 16, f"{ends[peer]:.2f} s"))
        y += BAR + GAP
    second = f"Seconds, medians of {max(len(runs.raw(peer, 'started')) for peer in peers)} runs; {LINK}"
    return "\n".join([*frame(WIDTH, y + 12, f"Cold start: {document['title']}", second),
                      *legend([(LABELS[phase], color) for phase, color in PHASES], LEFT, 62), *shapes, "</svg>", ""])
