"""Stores an image in the registry as each peer needs it: as it is, with an index, with a recorded start."""

import os

from .node import Node, STATUS
from .peers import BY_NAME, INDEXED, PLAIN, RECORDED
from .site import drop_caches
from .start import LIMIT, answers, container


def publish(site, name, layout, tags, workload=None):
    """Stores the missing tags of an image. The reference implementation finds its index beside PLAIN."""
    reference = f"{site.registry}/{name}"
    missing = [tag for tag in tags if (name, tag) not in site.published]
    for tag in missing:
        if tag == PLAIN:
            site.command("crane", "push", layout, f"{reference}:{PLAIN}")
        elif tag == "v1":
            site.command("soci", "create", "--standalone", *small(layout), f"docker://{reference}:{PLAIN}")
        elif tag == INDEXED:
            convert(site, reference, layout, INDEXED)
        elif tag.startswith(RECORDED):
            convert(site, reference, layout, tag, "--prefetch-record", record(site, name, workload))
        site.published.add((name, tag))


def convert(site, reference, layout, tag, *options):
    site.command("soci", "convert", "--standalone", *small(layout), *options, f"docker://{reference}:{PLAIN}",
                 f"docker://{reference}:{tag}")


def small(layout):
    """Layers below 10 MB get an index only in images that have no larger ones."""
    blobs = os.path.join(layout, "blobs/sha256")
    largest = max(os.path.getsize(os.path.join(blobs, blob)) for blob in os.listdir(blobs))
    return () if largest >= 10 << 20 else ("--min-layer-size", "0")


def record(site, name, workload):
    """Starts the workload once with a lazy image, and returns the file with what it read first."""
    path = site.path(f"{name}-{workload.name}.record")
    reference = f"{site.relay}/{name}:{INDEXED}"
    with Node(site, BY_NAME["lazy"]) as node:
        drop_caches()
        node.pull(reference)
        started = container(node, workload, reference)
        started.wait("the start", started.started, LIMIT)
        if not workload.sleeps:
            answers(workload, [started])
        site.command("soci", "prefetch", "record", "--socket", STATUS, reference, "-o", path)
        started.stop()
    return path
