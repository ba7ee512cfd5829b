"""One cold start in steps of 100 ms: bytes on the wire, spans that readers wait for, spans present, CPU."""

import json
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime

from . import recipes, results
from .bars import frame, legend, rect, text
from .peers import BY_NAME, INDEXED, PLAIN
from .process import TICK, cpu, tree
from .publish import publish
from .report import table
from .start import cold_start
from .workloads import WORKLOADS

STEP, SAMPLE = 0.1, 0.02


@dataclass
class Samples:
    """CPU seconds used until each time: of the machine, the snapshotter's daemon and containerd."""
    rows: list = field(default_factory=list)

    def used(self, column, begin, end):
        return self.at(column, end) - self.at(column, begin)

    def at(self, column, when):
        """Interpolated between two samples."""
        earlier = next((row for row in reversed(self.rows) if row[0] <= when), self.rows[0])
        later = next((row for row in self.rows if row[0] > when), self.rows[-1])
        share = (when - earlier[0]) / (later[0] - earlier[0]) if later[0] > earlier[0] else 0
        return earlier[column] + (later[column] - earlier[column]) * min(max(share, 0), 1)


def sampler(samples):
    """Returns what cold_start calls with the node: it samples until the start is over."""
    def begin(node):
        over = threading.Event()

        def sample():
            while not over.wait(SAMPLE):
                samples.rows.append((time.time(), machine(), *(sum(map(cpu, tree(daemon.process.pid)))
                                                               for daemon in (node.snapshotter, node.containerd))))

        thread = threading.Thread(target=sample)
        thread.start()

        def end(figures):
            samples.began = figures["began"]
            over.set()
            thread.join()

        return end

    return begin


def machine():
    with open("/proc/stat") as file:
        fields = list(map(int, file.readline().split()[1:8]))
    return (sum(fields) - fields[3] - fields[4]) / TICK


def measure(site, out, _runs):
    """Starts the demo image once with the daemon's debug log."""
    workload, peer, samples = WORKLOADS["demo"], BY_NAME["lazy"], Samples()
    publish(site, "demo", recipes.layout(site, "demo"), [PLAIN, INDEXED])
    os.environ["SUITE_DEBUG"] = "1"
    try:
        figures = cold_start(site, peer, workload, f"{site.relay}/demo:{INDEXED}", watch=sampler(samples))
    finally:
        del os.environ["SUITE_DEBUG"]
    with open(site.path("snapshotter.log"), errors="replace") as file:
        stored, waits = spans(file, samples.began)
    rows = steps(site.wire(), samples, stored, waits, figures)
    with open(os.path.join(out, "timeline.svg"), "w") as file:
        file.write(draw(rows, figures))
    head = ["ms", "MB received", "spans stored", "reads that wait", "CPU %: machine", "daemon", "containerd"]
    shown = [[f"{row['at'] * 1000:.0f}", f"{row['bytes'] / 1e6:.1f}", row["stored"], row["waiting"],
              *(f"{row[who] * 100:.0f}" for who in ("machine", "daemon", "containerd"))] for row in rows]
    note = (f"The demo image, lazy, one run with the debug log: pull {figures['pull']:.2f} s, started {figures['started']:.2f} s, READY "
            f"{figures['ready']:.2f} s, complete {figures.get('complete', 0):.2f} s. {len(waits)} reads waited for missing bytes, "
            f"{union(waits):.2f} s in total (overlapping waits count once). 100 % of CPU is one core.\n\n"
            "![Timeline of a cold start](timeline.svg)\n\n")
    results.save(out, "timeline", {"title": "timeline of one cold start", "figures": figures, "table": note + table(head, shown)})


def spans(lines, began):
    """Times at which spans were stored, and reads that waited as (begin, end), in seconds since `began`."""
    stored, waits = [], []
    for line in lines:
        if "stored a span" not in line and "a read waited for bytes" not in line:
            continue
        said = json.loads(line)
        at = datetime.fromisoformat(said["time"]).timestamp() - began
        if said["msg"] == "stored a span":
            stored.append(at)
        else:
            waits.append((at - said["took_us"] / 1e6, at))
    return stored, waits


def union(waits):
    """Seconds during which at least one read waited."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(waits):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def steps(wire, samples, stored, waits, figures):
    rows, at = [], 0.0
    while at < max(figures["ready"], figures.get("complete", 0)):
        begin, end = samples.began + at, samples.began + at + STEP
        row = {"at": at, "bytes": wire.between(begin, end), "stored": sum(at <= when < at + STEP for when in stored),
               "waiting": sum(first < at + STEP and last > at for first, last in waits)}
        row |= {who: samples.used(column, begin, end) / STEP for column, who in enumerate(("machine", "daemon", "containerd"), 1)}
        rows.append(row)
        at = round(at + STEP, 3)
    return rows


WIDTH, LEFT, RIGHT, PANEL = 760, 150, 30, 84
PANELS = [("MB/s on the wire", [("bytes", "#0969da")], 1 / STEP / 1e6), ("spans stored", [("stored", "#1a7f37")], 1),
          ("reads that wait", [("waiting", "#cf222e")], 1),
          ("CPU, cores", [("machine", "#8c959f"), ("daemon", "#0969da"), ("containerd", "#bf8700")], 1)]


def draw(rows, figures):
    scale = (WIDTH - LEFT - RIGHT) / (len(rows) * STEP)
    height = 92 + len(PANELS) * (PANEL + 14) + 30
    shapes = frame(WIDTH, height, "One cold start of the demo image, lazy", f"Steps of 100 ms; {results.LINK}")
    shapes += legend([("machine", "#8c959f"), ("daemon", "#0969da"), ("containerd", "#bf8700")], LEFT, 62)
    y = 92
    for label, series, factor in PANELS:
        top = max(max(row[key] for row in rows) * factor for key, _ in series) or 1
        shapes += [text(LEFT - 10, y + 18, label, 12, ' text-anchor="end"'), text(LEFT - 10, y + 34, f"max {top:.3g}", 11,
                                                                                ' text-anchor="end" fill="#59636e"')]
        for key, color in series:
            for row in rows:
                high = row[key] * factor / top * PANEL
                shapes.append(rect(LEFT + row["at"] * scale, y + PANEL - high, scale * STEP - 0.5, f"{max(high, 0):.1f}", color))
        shapes.append(rect(LEFT, y + PANEL, WIDTH - LEFT - RIGHT, 1, "#d0d7de"))
        y += PANEL + 14
    for name in ("pull", "started", "ready", "complete"):
        if name in figures:
            x = LEFT + figures[name] * scale
            shapes += [rect(x, 92, 1, y - 92, "#1f2328"), text(x, y + 12, name, 11, ' text-anchor="middle"')]
    return "\n".join([*shapes, "</svg>", ""])
