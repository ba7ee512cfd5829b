"""Command line of the suite; see `benchmark/run suite --help`."""

import argparse
import os
import sys

from . import bars, fleet, images, profile, recipes, report, results, scale, timeline
from .peers import BY_NAME, INDEXED, PLAIN, RECORDED
from .publish import publish
from .scenarios import SCENARIOS, grid
from .site import FAILURES, Site
from .start import cold_start
from .workloads import PEERS, WORKLOADS

OTHER = {"grid": grid, **scale.PARTS, "timeline": timeline.measure, "profile": profile.measure, "fleet": fleet.measure}
GROUPS = {"workloads": list(WORKLOADS), "scenarios": [*SCENARIOS, "grid"], "scale": list(scale.PARTS)}

EVERYTHING = ["workloads", "scenarios", "scale", "timeline", "profile", "fleet"]


def main():
    known = [*WORKLOADS, *SCENARIOS, *OTHER, *GROUPS]
    parser = argparse.ArgumentParser(prog="benchmark/run suite", description="Starts real images cold, with several snapshotters in turn.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to run, default all: {' '.join(known)}; `report` runs nothing")
    parser.add_argument("--runs", type=int, default=int(os.environ.get("RUNS", "3")), help="cold starts of each peer (RUNS, 3)")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"comma separated; default {','.join(PEERS)}")
    parser.add_argument("--out", default="target/results", help="folder of the results (target/results)")
    parser.add_argument("--page", action="append", default=[], help="page whose table of the suite is replaced; may be repeated")
    given = parser.parse_args()
    names = [name for group in given.names or EVERYTHING for name in GROUPS.get(group, [group])]
    if wrong := [name for name in names if name not in known and name != "report"]:
        parser.error(f"unknown: {' '.join(wrong)}")
    if wrong := [name for name in given.peers.split(",") if name not in BY_NAME]:
        parser.error(f"unknown peer: {' '.join(wrong)}")
    site = Site()
    os.makedirs(given.out, exist_ok=True)
    failed = False
    for name in names:
        try:
            run(site, name, given)
        except FAILURES as failure:
            failed = True
            print(f"suite: {name}: {failure}", file=sys.stderr, flush=True)
        report.write(given.out)
    for page in given.page:
        try:
            report.insert(given.out, page)
        except FAILURES as failure:
            failed = True
            print(f"suite: {failure}", file=sys.stderr, flush=True)
    print(f"suite: the tables are in {os.path.join(given.out, 'README.md')}")
    sys.exit(1 if failed else 0)


def run(site, name, given):
    if name in OTHER:
        print(f"== {name}", flush=True)
        return OTHER[name](site, given.out, given.runs)
    if name == "report":
        return None
    scenario = SCENARIOS.get(name)
    workload = scenario.workload if scenario else WORKLOADS[name]
    print(f"== {name}: {workload.title}", flush=True)
    document = compare(site, workload, [BY_NAME[peer] for peer in given.peers.split(",")], given.runs)
    document = results.merge(results.read(given.out, name), document, given.peers.split(","))
    if scenario:
        document["notes"] = scenario.notes()
    if svg := bars.draw(document):
        document["picture"] = f"{name}.svg"
        with open(os.path.join(given.out, document["picture"]), "w") as file:
            file.write(svg)
    return results.save(given.out, name, document)


def compare(site, workload, peers, runs):
    """Starts a workload with every peer in turn. A peer that fails is reported and left out from then on."""
    layout = recipes.layout(site, workload.image)
    size, layers = images.size(layout)
    document = {"title": workload.title, "image": {"megabytes": size / 1e6, "layers": layers}, "runs": [], "failures": {}, "absent": {}}
    references = {}
    for peer in peers:
        try:
            if why := peer.lacks(site):
                document["absent"][peer.name] = why
                continue
            references[peer.name] = prepare(site, peer, workload, layout)
        except FAILURES as failure:
            document["failures"][peer.name] = str(failure)
            print(f"{peer.name}: {failure}", flush=True)
    for number in range(runs):
        for peer in peers:
            if peer.name not in references or peer.name in document["failures"]:
                continue
            try:
                figures = cold_start(site, peer, workload, references[peer.name])
            except FAILURES as failure:
                document["failures"][peer.name] = str(failure)
                print(f"{peer.name}: {failure}", flush=True)
                continue
            document["runs"].append({"peer": peer.name, "run": number, **figures})
            clocks = [f"{key} {figures[key]}" for key in ("pull", "started", "ready", "complete") if key in figures]
            print(f"{peer.name}: {', '.join(clocks)}", flush=True)
    return document


def prepare(site, peer, workload, layout):
    """Stores what the peer needs in the registry, and returns the reference that it pulls."""
    tag = f"{RECORDED}-{workload.name}" if peer.tag == RECORDED else peer.tag
    needed = [PLAIN] + (["v1"] if peer.daemon == "reference" else []) + ([INDEXED] if peer.tag == RECORDED else [])
    publish(site, workload.image, layout, list(dict.fromkeys([*needed, tag])), workload)
    return f"{site.relay}/{workload.image}:{tag}"


if __name__ == "__main__":
    main()
