"""Published results as scenarios, scaled to the disk and the link of the suite."""

from dataclasses import dataclass

from . import images, recipes, results
from .peers import BY_NAME
from .publish import publish
from .recipes import LARGE
from .report import number, table
from .site import FAILURES
from .start import Workload, cold_start

PYTHON = "python3"
NOTEBOOK = ("env", "PYTHONPATH=/opt/notebook", "HOME=/tmp", PYTHON, "-m", "notebook", "--allow-root", "--no-browser", "--ip=127.0.0.1",
            "--port=18888", "--ServerApp.token=", "--ServerApp.password=", "--ServerApp.root_dir=/tmp")


@dataclass(frozen=True)
class Scenario:
    workload: Workload
    published: str
    scaled: str

    def notes(self):
        return [f"Published: {self.published}.", f"Here: {self.scaled}."]


SCENARIOS = {scenario.workload.name: scenario for scenario in [
    Scenario(Workload("remainder", "small application, large unused remainder", "remainder", (PYTHON, "/srv/suite/hello.py")),
             "a vLLM image of 9.72 GB compressed on g5.2xlarge, 6 min 59 s to 21.1 s (20 x); the clock stops when the container has started",
             f"a small Python program beside four layers of {LARGE // 4} MiB of random bytes, which it does not read"),
    Scenario(Workload("eks", "EKS demonstration image, sleeping start", "remainder", ("sleep", "infinity"), sleeps=True),
             "an image of 6 GB with four files of random bytes, whose program sleeps; no figure of its own",
             f"four files of {LARGE // 4} MiB; only \"started\" counts"),
    Scenario(Workload("fargate", "five tasks at once", "demo", (PYTHON, "/opt/app/workload.py"), count=5),
             "about 50 % less from created to started on Fargate, images above 250 MB",
             "five containers of the demo image at once after one pull on one node; on Fargate each task has a machine. The times are those of "
             "the last task"),
    Scenario(Workload("studio", "notebook server until it answers HTTP", "notebook", NOTEBOOK, http="18888/tree"),
             "35 to 70 % less until a notebook runs in SageMaker Studio",
             "Jupyter Notebook in Debian with Python; READY is the first 200 of /tree"),
]}

# Connections of one image, and chunk sizes. The first row uses the defaults. 3 connections would mean the default as well, and larger
# chunks are divided into requests of 4 MiB.
GRID = [("default", "default")] + [(connections, chunk) for connections in (1, 2, 4, 8, 16) for chunk in ("256kb", "1mb", "4mb")]


def grid(site, out, runs):
    """Pulls one image whole with several settings of the parallel mode, and with containerd."""
    layout = recipes.layout(site, "learn")
    workload = Workload("grid", "", "learn", (PYTHON, "-c", "print('READY')"))
    publish(site, "learn", layout, ["plain"])
    size, layers = images.size(layout)
    points = [(BY_NAME[name], None, name) for name in ("containerd", "tuned")]
    points += [(BY_NAME["parallel"], settings(*point), point) for point in GRID]
    points = [point for point in points if not point[0].lacks(site)]
    raw = {label: [] for _, _, label in points}
    for _ in range(runs):
        for peer, config, label in points:
            try:
                pull = cold_start(site, peer, workload, f"{site.relay}/learn:plain", config)["pull"]
            except FAILURES as failure:
                print(f"{label}: {failure}", flush=True)
                continue
            raw[label].append(pull)
            print(f"{label}: pull {pull}", flush=True)
    base = min((results.statistics.median(raw[name]) for name in ("containerd", "tuned") if raw.get(name)), default=None)
    rows = []
    for label, pulls in raw.items():
        median = results.statistics.median(pulls) if pulls else None
        text = label if isinstance(label, str) else "soci-rs, {} connections, chunks {}".format(*label)
        failed = f" ({runs - len(pulls)} failed)" if len(pulls) < runs else ""
        rows.append([text, number(median) or "failed", number(median and base and median / base), " ".join(map(number, pulls)) + failed])
    note = (f"Published: an SGLang image of 19.3 GB on g5.4xlarge, 4 min 44 s to 2 min 12.8 s (2.1 x). Here: the TensorFlow image "
            f"({size / 1e6:.0f} MB, {layers} layers) over the link of the suite.\n\n")
    if why := BY_NAME["parallel"].lacks(site):
        note += f"soci-rs was not run: {why}.\n\n"
    raw = {str(label): pulls for label, pulls in raw.items()}
    results.save(out, "grid", {"title": "grid: a whole image in parallel, connections and chunk sizes", "raw": raw, "table": note + table(["", "pull, s", "ratio", "raw"], rows)})


def settings(connections, chunk):
    if connections == "default":
        return ""
    return (f"[pull_modes.parallel_pull_unpack]\nmax_concurrent_downloads_per_image = {connections}\n"
            f'concurrent_download_chunk_size = "{chunk}"\n')
