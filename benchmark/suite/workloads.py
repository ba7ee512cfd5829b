"""Real programs, each started cold by every peer."""

from .peers import TABLE
from .recipes import LARGE
from .start import Workload

PYTHON = "python3"
TABLE_OF_WORKLOADS = [
    Workload("demo", "data science: numpy, pandas, scipy, scikit-learn", "demo", (PYTHON, "/opt/app/workload.py")),
    Workload("everything", "the demo image, every file read", "demo", (PYTHON, "/opt/app/read-everything.py")),
    Workload("learn", "TensorFlow (CPU), first training step", "learn", (PYTHON, "/srv/suite/learn.py")),
    Workload("node", "Node.js web service, first answer", "node", ("node", "/srv/service/service.js")),
    Workload("busybox", "busybox, echo", "busybox", ("sh", "-c", "echo READY")),
    Workload("layers40", "40 layers of 1 MB, one file read", "layers40", ("sh", "-c", "cat /srv/7/3 >/dev/null; echo READY")),
    Workload("weights", f"one layer with a file of {LARGE:,} MiB, read at start", "weights", (PYTHON, "/srv/suite/weights.py")),
    Workload("weights-direct", "the same, read with O_DIRECT", "weights", (PYTHON, "/srv/suite/weights.py", "direct")),
]
WORKLOADS = {workload.name: workload for workload in TABLE_OF_WORKLOADS}
PEERS = [peer.name for peer in TABLE]
