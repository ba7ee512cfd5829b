"""The programs that are compared. One row of TABLE is one way to pull and start an image."""

import os
import shutil
from dataclasses import dataclass

# The tags under which `publish` stores an image.
PLAIN, INDEXED, RECORDED = "plain", "soci", "recorded"


@dataclass(frozen=True)
class Peer:
    name: str
    title: str
    # Tag of the image, and the snapshotter that containerd uses.
    tag: str
    snapshotter: str
    # Whose daemon serves the snapshotter: "", "ours" or "reference", and its configuration.
    daemon: str = ""
    config: str = ""
    # Settings of containerd's transfer service.
    transfer: str = ""
    # Whether containerd finds igzip, which it prefers to its own decompression.
    igzip: bool = False

    def lacks(self, site):
        """Why this machine or build cannot run the peer. None if it can."""
        if self.igzip and not site.igzip:
            return "igzip is not available"
        if self.daemon == "reference" and not os.path.exists(reference(site)):
            return "the reference implementation is not in target/tools"
        if self.tag == RECORDED and "--prefetch-record" not in site.command("soci", "convert", "--help"):
            return "this build of soci has no --prefetch-record"
        if self.name == "parallel" and not has_parallel(site):
            return "this build of soci-snapshotter-grpc has no parallel mode"
        return None

    def command(self, site, socket, root, config):
        """The command line of the daemon. None if containerd serves the snapshotter itself."""
        if not self.daemon:
            return None
        program = "soci-snapshotter-grpc" if self.daemon == "ours" else reference(site)
        return [program, "--address", socket, "--root", root, "--config", config, "--log-level", "debug" if
                os.environ.get("SUITE_DEBUG") else "info"]


def reference(site):
    return os.path.join(site.root, "target/tools/bin/reference/soci-snapshotter-grpc")


def has_parallel(site):
    """A binary with the mode has its log line."""
    program = shutil.which("soci-snapshotter-grpc")
    if not program:
        return False
    with open(program, "rb") as file:
        return b"preparing snapshot with parallel pull/unpack" in file.read()


TUNED = """max_concurrent_downloads = 8
concurrent_layer_fetch_buffer = 8388608
"""

TABLE = [
    Peer("containerd", "containerd overlayfs, defaults", PLAIN, "overlayfs"),
    Peer("tuned", "containerd overlayfs, best settings", PLAIN, "overlayfs", transfer=TUNED, igzip=True),
    Peer("reference", "soci-snapshotter 0.4.1 (Go), lazy", PLAIN, "soci", "reference"),
    Peer("lazy", "soci-rs, lazy", INDEXED, "soci", "ours"),
    Peer("record", "soci-rs, lazy with a recorded start", RECORDED, "soci", "ours"),
    Peer("parallel", "soci-rs, parallel, no index", PLAIN, "soci", "ours"),
]
BY_NAME = {peer.name: peer for peer in TABLE}
# What ratios refer to: the faster one of these.
BASELINE = ("containerd", "tuned")
ABSENT = {
    "stargz": "Debian's package stargz-snapshotter contains only ctr-remote, not the snapshotter",
    "containerd 2.2": "parallel unpack needs containerd 2.2; Debian has 2.1",
}
