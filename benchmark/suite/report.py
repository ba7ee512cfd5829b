"""Tables of medians and ratios, from the results of a folder."""

import os

from . import results
from .peers import ABSENT, BY_NAME
from .results import Runs
from .site import Failure

HEAD = """# Results of the benchmark suite

Written by `benchmark/run suite`. Seconds since the pull began, medians of all runs; [README.md](../README.md#the-suite) says how they
are measured. Ratios refer to the faster one of containerd's two rows of the same workload and machine. "started" is the time at which
containerd had started the container, READY the time at which the program in it was ready. A figure that was not measured is left out.
"""
COLUMNS = ["", "pull", "started", "READY", "ratio", "image complete", "MB until READY", "CPU s: daemon, containerd",
           "peak MiB: daemon, containerd", "READY of each run"]


def write(folder):
    found = results.load(folder)
    parts = [HEAD, summary(found), reach(found)]
    parts += [workload(name, document) for name, document in found.items() if "runs" in document]
    parts += [f"## {document['title']}\n\n{document['table']}" for document in found.values() if "table" in document]
    parts.append("## Not compared\n\n" + "\n".join(f"* {name}: {why}." for name, why in ABSENT.items()))
    with open(os.path.join(folder, "README.md"), "w") as file:
        file.write("\n".join(part.rstrip() + "\n" for part in parts if part))


BEGIN, END = "<!-- suite: begin -->\n", "<!-- suite: end -->\n"
PICTURE, PICTURE_END = "<!-- suite picture: begin -->\n", "<!-- suite picture: end -->\n"
# The workload whose picture a page shows.
PICTURED = "demo"


def insert(folder, path):
    """Replaces what is between the two marks of a page by the first table of the results, and the picture if it has marks for it."""
    with open(path) as file:
        page = file.read()
    found = results.load(folder)
    changed = between(page, BEGIN, END, summary(found).partition("\n\n")[2])
    if changed is None:
        raise Failure(f"{path} has no lines `{BEGIN.strip()}` and `{END.strip()}`")
    if picture := found.get(PICTURED, {}).get("picture"):
        link = os.path.relpath(os.path.join(folder, picture), os.path.dirname(path) or ".")
        changed = between(changed, PICTURE, PICTURE_END, f"![{caption(found[PICTURED])}]({link})\n") or changed
    with open(path, "w") as file:
        file.write(changed)


def between(page, begin, end, text):
    """The page with this text between two marks. None if it does not have them."""
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    return before + begin + text + end + after if found and ended else None


def caption(document):
    """What the picture of a workload shows, for readers who do not see it."""
    runs = Runs(document)
    bars = [f"{title(peer)} {median:.2f} s" for peer in runs.peers() if (median := runs.median(peer, "ready")) is not None]
    return f"Cold start ({document['title']}), pull until READY. {'; '.join(bars)}."


def table(head, rows):
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def number(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"


def pair(first, second, digits=2):
    """Two figures. Empty if none of them was measured."""
    return "" if first is None and second is None else f"{number(first, digits) or '-'}, {number(second, digits) or '-'}"


def title(peer):
    return BY_NAME[peer].title if peer in BY_NAME else peer


def summary(found):
    """READY of every peer for every workload, as seconds and ratio."""
    known = {name: Runs(document) for name, document in found.items() if "runs" in document}
    peers = [name for name in BY_NAME if any(name in runs.peers() or name in runs.failures for runs in known.values())]
    rows = []
    for name, runs in known.items():
        key = "ready" if any(runs.raw(peer, "ready") for peer in peers) else "started"
        cells = [cell(runs, peer, key) for peer in peers]
        rows.append([found[name]["title"] + ("" if key == "ready" else " (started)"), *cells])
    return "## Pull and READY, s\n\n" + table(["", *map(title, peers)], rows) if rows else ""


def cell(runs, peer, key):
    if peer in runs.failures:
        return "failed" if peer not in runs.peers() else number(runs.median(peer, key)) + " (some runs failed)"
    if (median := runs.median(peer, key)) is None:
        return ""
    ratio = runs.ratio(peer, key)
    return number(median) + (f" ({ratio:.2f} x)" if ratio and peer != runs.baseline(key)[0] else "")


def workload(name, document):
    runs, image = Runs(document), document["image"]
    lines = [f"## {name}: {document['title']}", "",
             f"{image['megabytes']:.0f} MB compressed, {image['layers']} layers. {document['machine']}; "
             f"{runs.dates() or document['when']}; load at the start of a run {load(runs)}.", ""]
    lines += [f"{note}\n" for note in document.get("notes", [])]
    lines.append(table(COLUMNS, [row(runs, peer) for peer in runs.peers()]))
    lines += [f"* {title(peer)}: failed: {why}" for peer, why in runs.failures.items()]
    lines += [f"* {title(peer)}: not run: {why}" for peer, why in document.get("absent", {}).items()]
    if document.get("picture"):
        lines.append(f"\n![{document['title']}]({document['picture']})")
    return "\n".join(lines)


def row(runs, peer):
    key = "ready" if runs.raw(peer, "ready") else "started"
    cpu, peak = ([runs.median(peer, f"{what}_{who}_end") for who in ("snapshotter", "containerd")] for what in ("cpu", "peak"))
    wire = runs.median(peer, "wire")
    return [title(peer), number(runs.median(peer, "pull")), number(runs.median(peer, "started")), number(runs.median(peer, "ready")),
            number(runs.ratio(peer, key)), number(runs.median(peer, "complete")), number(wire and wire / 1e6, 0),
            pair(*cpu), pair(*peak, digits=0), " ".join(map(number, runs.raw(peer, key)))]


def load(runs):
    loads = [run["load"] for run in runs.runs if "load" in run]
    return f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"


# Workload, peer, the figure, what it is divided by (peer and figure; None for the baseline), and the aim.
REACH = [
    ("lazy: pull and READY, against overlayfs", ("demo", "learn"), "lazy", "ready", None, 0.34),
    ("lazy with record: the same", ("demo", "learn"), "record", "ready", None, 0.28),
    ("parallel without index: the same", ("demo", "learn"), "parallel", "ready", None, 0.55),
    ("start that reads every file: lazy against parallel", ("everything",), "lazy", "ready", "parallel", 1.05),
    ("small application, large image: container start, lazy against overlayfs", ("remainder",), "lazy", "started", None, 0.05),
    ("one large layer: parallel against overlayfs", ("weights",), "parallel", "pull", None, 0.55),
]
CPU, MEMORY = 0.45, 96


def reach(found):
    rows = []
    for what, names, peer, key, against, aim in REACH:
        for name in names:
            if name not in found:
                continue
            runs = Runs(found[name])
            mine = runs.median(peer, key)
            base = runs.median(against, key) if against else runs.baseline(key)[1]
            rows.append([what, name, number(mine), number(base), number(mine / base) + " x" if mine and base else "", f"{aim} x"])
    rows += costs(found)
    return "## Aims\n\n" + table(["", "workload", "soci-rs", "compared with", "measured", "aim"], rows) if rows else ""


def costs(found):
    rows, peaks = [], []
    for name, document in found.items():
        runs = Runs(document) if "runs" in document else None
        if not runs:
            continue
        base, _ = runs.baseline("pull")
        for peer in ("lazy", "parallel"):
            mine = runs.median(peer, "cpu_snapshotter_end")
            theirs = runs.median(base, "cpu_containerd_end") if base else None
            if mine and theirs and name in ("demo", "learn", "weights"):
                rows.append([f"CPU s of the daemon for the whole image, {peer}, against containerd", name, number(mine), number(theirs),
                             number(mine / theirs) + " x", f"{CPU} x"])
        peaks += [(peak, name, peer) for peer in ("lazy", "record", "parallel") for peak in runs.raw(peer, "peak_snapshotter_end")]
    if peaks:
        peak, name, peer = max(peaks)
        what = f"highest peak RSS of the daemon, MiB (keeper and worker, {peer})"
        rows.append([what, name, number(peak, 0), "", number(peak, 0), MEMORY])
    return rows
