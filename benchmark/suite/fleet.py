"""A simulation of many nodes that start the same image at once, against the limits of one registry.

Deterministic; nothing is measured here. Assumptions:
* Time advances in steps of 10 ms. All nodes begin at the same time. Latency counts as one step per request.
* An image is a list of pieces that a node fetches in order, WINDOW at a time. containerd fetches layers with one request each,
  the others ranges of 4 MiB.
* The registry starts at most `requests` transfers a second, and sends at most `rate` bytes a second, shared equally, and at most
  `client` bytes a second to one connection. A node receives, and with P2P sends, at most NETWORK bytes a second, shared equally.
* With P2P, a node that has a piece sends it to others, SLOTS transfers at a time; the least busy node is asked. If PROBE nodes asked
  the registry for a piece, or all nodes that have it are busy, the others wait. Finding a node costs nothing.
* A node is ready `after` seconds after it has the bytes that it needs: 1.2 s for the program, and for containerd 3 s for unpacking.
  Lazy loading needs half of the image, and 0.4 s more for reads that wait one after another.
* The image has the size of the demo image. These shares and seconds are assumptions of that order, not results.
"""

from dataclasses import dataclass

from . import results
from .report import table

STEP, WINDOW, PROBE, SLOTS = 0.01, 4, 2, 4
IMAGE = 176_000_000


@dataclass(frozen=True)
class Way:
    title: str
    # Pieces of the image, how many of its bytes the program needs, and the seconds from then until READY.
    pieces: int
    needs: int
    after: float


@dataclass(frozen=True)
class Registry:
    title: str
    rate: float
    requests: float
    client: float = 90e6


WAYS = [Way("containerd overlayfs", 4, IMAGE, 4.2), Way("soci-rs, parallel", 42, IMAGE, 1.2), Way("soci-rs, lazy", 42, IMAGE // 2, 1.6)]
REGISTRIES = [Registry("10 Gbit/s, 2,000 requests/s", 1.25e9, 2000), Registry("100 Gbit/s, 200 requests/s", 12.5e9, 200)]
NODES, NETWORK = 100, 125e6


class Transfer:
    __slots__ = ("node", "piece", "left", "sender")

    def __init__(self, node, piece, left, sender):
        self.node, self.piece, self.left, self.sender = node, piece, left, sender


class Fleet:
    def __init__(self, way, registry, p2p, nodes=NODES):
        self.way, self.registry, self.p2p = way, registry, p2p
        self.size = IMAGE / way.pieces
        self.have = [set() for _ in range(nodes)]
        self.next = [list(range(way.pieces)) for _ in range(nodes)]
        self.flight, self.ready = [], {}
        self.tokens = self.now = 0.0
        self.requests = self.sent = 0
        self.asked = [0] * way.pieces
        self.holders = [[] for _ in range(way.pieces)]
        self.uploads = [0] * nodes

    def run(self):
        while len(self.ready) < len(self.have) or self.flight:
            self.tokens = min(self.tokens + self.registry.requests * STEP, max(self.registry.requests * STEP, 1))
            counts = [0] * len(self.have)
            for transfer in self.flight:
                counts[transfer.node] += 1
            for node in range(len(self.have)):
                self.demand(node, counts[node])
            self.move()
            self.now += STEP
        return self

    def demand(self, node, running):
        """Starts transfers of a node while its window has room."""
        for piece in list(self.next[node][:WINDOW - running]):
            sender = self.sender(node, piece)
            if sender == "wait":
                continue
            if sender is None:
                if self.tokens < 1:
                    return
                self.tokens -= 1
                self.requests += 1
                self.asked[piece] += 1
            else:
                self.uploads[sender] += 1
            self.next[node].remove(piece)
            self.flight.append(Transfer(node, piece, self.size, sender))

    def sender(self, node, piece):
        """The node that sends the piece, None for the registry, or "wait"."""
        if not self.p2p:
            return None
        if self.holders[piece]:
            other = min(self.holders[piece], key=lambda other: (self.uploads[other], (other - node) % len(self.have)))
            return other if self.uploads[other] < SLOTS else "wait"
        return "wait" if self.asked[piece] >= PROBE else None

    def move(self):
        """Moves bytes for one step."""
        own = [0] * len(self.have)
        for transfer in self.flight:
            own[transfer.node] += 1
        share = self.registry.rate / max(sum(transfer.sender is None for transfer in self.flight), 1)
        kept = []
        for transfer in self.flight:
            rate = NETWORK / own[transfer.node]
            if transfer.sender is None:
                rate = min(rate, share, self.registry.client)
                self.sent += min(rate * STEP, transfer.left)
            else:
                rate = min(rate, NETWORK / self.uploads[transfer.sender])
            transfer.left -= rate * STEP
            if transfer.left > 0:
                kept.append(transfer)
        for transfer in [transfer for transfer in self.flight if transfer.left <= 0]:
            self.arrived(transfer)
        self.flight = kept

    def arrived(self, transfer):
        if transfer.sender is not None:
            self.uploads[transfer.sender] -= 1
        node = transfer.node
        self.have[node].add(transfer.piece)
        self.holders[transfer.piece].append(node)
        if node not in self.ready and len(self.have[node]) * self.size >= self.way.needs - 1:
            self.ready[node] = self.now + self.way.after


def measure(_site, out, _runs):
    rows = []
    for registry in REGISTRIES:
        for p2p in (False, True):
            for way in WAYS:
                fleet = Fleet(way, registry, p2p).run()
                times = sorted(fleet.ready.values())
                rows.append([registry.title, "yes" if p2p else "no", way.title, f"{times[len(times) // 2]:.1f}", f"{times[-1]:.1f}",
                             f"{fleet.sent / 1e9:.1f}", f"{fleet.requests:,}"])
                print(*rows[-1], sep="; ", flush=True)
    head = ["registry", "P2P", "", "READY, median s", "READY, last s", "GB from the registry", "requests to the registry"]
    results.save(out, "fleet", {"title": f"fleet: {NODES} nodes at once (simulated)",
                                "table": f"The assumptions are in `benchmark/suite/fleet.py`.\n\n{table(head, rows)}"})
