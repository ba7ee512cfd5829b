"""One cold start in steps of 100 ms: bytes on the wire, spans that readers wait for, spans present, CPU."""

import json
import os
import threading
import time
from contextlib import contextmanager
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


# Columns of the samples: the whole machine, the snapshotter's daemon, containerd, and registry and link.
WHO = ("machine", "daemon", "containerd", "link")


@dataclass
class Samples:
    """CPU seconds that each of WHO had used until a time."""
    rows: list = field(default_factory=list)
    began: float = 0.0

    def used(self, who, begin, end):
        """CPU seconds between two times, in seconds since `began`."""
        column = 1 + WHO.index(who)
        return self.at(column, self.began + end) - self.at(column, self.began + begin)

    def at(self, column, when):
        """Interpolated between two samples."""
        earlier = next((row for row in reversed(self.rows) if row[0] <= when), self.rows[0])
        later = next((row for row in self.rows if row[0] > when), self.rows[-1])
        share = (when - earlier[0]) / (later[0] - earlier[0]) if later[0] > earlier[0] else 0
        return earlier[column] + (later[column] - earlier[column]) * min(max(share, 0), 1)


def sampler(samples, link):
    """Returns what cold_start calls with the node: it samples until the start is over, or has failed."""
    @contextmanager
    def watch(node):
        over = threading.Event()
        trees = [[node.snapshotter.process.pid], [node.containerd.process.pid], link]

        def sample():
            while not over.wait(SAMPLE):
                used = [sum(cpu(pid) for root in roots for pid in tree(root)) for roots in trees]
                samples.rows.append((time.time(), machine(), *used))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return watch


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
        figures = cold_start(site, peer, workload, f"{site.relay}/demo:{INDEXED}", watch=sampler(samples, site.link))
    finally:
        del os.environ["SUITE_DEBUG"]
    samples.began = figures["began"]
    with open(site.path("snapshotter.log"), errors="replace") as file:
        stored, waits = spans(file, samples.began)
    rows = steps(site.wire(), samples, stored, waits, figures)
    with open(os.path.join(out, "timeline.svg"), "w") as file:
        file.write(draw(rows, figures))
    clocks = ", ".join(f"{label} {figures[key]:.2f} s" for label, key in CLOCKS if key in figures)
    note = (f"The demo image, lazy, one run with the debug log: {clocks}; load {figures['load']:.1f}. 100 % of CPU is one core; "
            f"\"rest\" is the program, runc, the kernel, and other work on the machine.\n\n![Timeline of a cold start](timeline.svg)\n\n")
    text = note + table(PHASES, phases(site.wire(), samples, waits, figures)) + "\n" + table(STEPS, [shown(row) for row in rows
                                                                                         if row["at"] < figures["ready"]])
    results.save(out, "timeline", {"title": "timeline of one cold start", "figures": figures, "table": text})


CLOCKS = [("pull", "pull"), ("started", "started"), ("READY", "ready"), ("complete", "complete")]
PHASES = ["", "s", "MB received", "s in which a read waited", "CPU s: daemon", "containerd", "registry and link", "rest", "idle"]
STEPS = ["ms", "MB received", "spans stored", "reads that wait", "CPU %: daemon", "containerd", "registry and link", "rest"]


def phases(wire, samples, waits, figures):
    """Rows of the table of pull, container start, and the time until READY."""
    rows, begin = [], 0.0
    for name in ("pull", "started", "ready"):
        end = figures[name]
        used = {who: samples.used(who, begin, end) for who in WHO}
        rest = used["machine"] - used["daemon"] - used["containerd"] - used["link"]
        idle = (end - begin) * os.cpu_count() - used["machine"]
        waited = union([(max(first, begin), min(last, end)) for first, last in waits if first < end and last > begin])
        received = wire.between(samples.began + begin, samples.began + end) / 1e6
        cells = (end - begin, received, waited, used["daemon"], used["containerd"], used["link"], rest, idle)
        rows.append([name, *(f"{max(cell, 0):.2f}" for cell in cells)])
        begin = end
    return rows


def shown(row):
    rest = row["machine"] - row["daemon"] - row["containerd"] - row["link"]
    return [f"{row['at'] * 1000:.0f}", f"{row['bytes'] / 1e6:.1f}", row["stored"], row["waiting"],
            *(f"{max(value, 0) * 100:.0f}" for value in (row["daemon"], row["containerd"], row["link"], rest))]


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
            waits.append((at - float(said["took_us"]) / 1e6, at))
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
        received = wire.between(samples.began + at, samples.began + at + STEP)
        row = {"at": at, "bytes": received, "stored": sum(at <= when < at + STEP for when in stored),
               "waiting": sum(first < at + STEP and last > at for first, last in waits)}
        row |= {who: samples.used(who, at, at + STEP) / STEP for who in WHO}
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
                if high >= 0.5:
                    shapes.append(rect(LEFT + row["at"] * scale, y + PANEL - high, scale * STEP - 0.5, f"{high:.1f}", color))
        shapes.append(rect(LEFT, y + PANEL, WIDTH - LEFT - RIGHT, 1, "#d0d7de"))
        y += PANEL + 14
    for place, name in enumerate(("pull", "started", "ready", "complete")):
        if name in figures:
            x = LEFT + figures[name] * scale
            shapes += [rect(x, 92, 1, y - 92, "#1f2328"), text(x, y + 12 + 13 * (place % 2), name, 11, ' text-anchor="middle"')]
    return "\n".join([*shapes, "</svg>", ""])
