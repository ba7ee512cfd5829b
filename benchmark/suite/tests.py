"""Tests of what the suite computes. Run with `python3 -m unittest suite.tests` in benchmark/."""

import io
import os
import tarfile
import tempfile
import threading
import unittest
from types import SimpleNamespace

from . import report, results
from .bars import draw
from .fleet import Fleet, Registry, Way
from .node import last_complete
from .recipes import RECIPES, archive
from .results import Runs
from .site import Failure, Wire
from .timeline import Samples, sampler, union

RUNS = [{"peer": "containerd", "pull": 4.0, "started": 4.2, "ready": 6.0}, {"peer": "tuned", "pull": 3.0, "started": 3.2, "ready": 5.0},
        {"peer": "lazy", "pull": 0.5, "started": 0.7, "ready": 2.0, "peak_snapshotter_end": 70.0, "wire": 5e7},
        {"peer": "lazy", "pull": 0.6, "started": 0.8, "ready": 3.0}]
GO = {"peer": "reference", "pull": 1.0, "started": 1.2, "ready": 5.5}
DOCUMENT = {"title": "demo", "image": {"megabytes": 176, "layers": 4}, "runs": RUNS, "failures": {"reference": "it hangs"},
            "absent": {"record": "not in this build"}}


def written(document):
    """The page of a folder with these results."""
    with tempfile.TemporaryDirectory() as folder:
        results.save(folder, "demo", document)
        report.write(folder)
        with open(f"{folder}/README.md") as file:
            return file.read()


class Archive(unittest.TestCase):
    def test_tar_reads_what_archive_writes(self):
        large = b"x" * ((2 << 20) + 1)
        data = b"".join(archive([("a/small", 5, [b"small"]), ("a/large", len(large), [large[:7], large[7:]]), ("b", 0, [])]))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            self.assertEqual([(entry.name, tar.extractfile(entry).read()) for entry in tar], [("a/small", b"small"), ("a/large", large), ("b", b"")])

    def test_images_have_as_many_layers_as_they_are_named_after(self):
        for count in (1, 10, 40, 120):
            layers = [getattr(step, "keywords", {}).get("count", 1) for step in RECIPES[f"layers{count}"]]
            self.assertEqual(sum(layers), count)


class Figures(unittest.TestCase):
    def test_ratios_refer_to_the_faster_containerd(self):
        runs = Runs(DOCUMENT)
        self.assertEqual(runs.baseline(), ("tuned", 5.0))
        self.assertEqual(runs.ratio("lazy"), 0.5)
        self.assertIsNone(runs.ratio("reference"))

    def test_the_table_reports_failures_and_invents_no_figure(self):
        page = written(DOCUMENT)
        self.assertIn("failed: it hangs", page)
        self.assertIn("not run: not in this build", page)
        self.assertIn("2.50 (0.50 x)", page)
        rows = {cells[0]: cells for line in page.splitlines() if len(cells := line.strip("| ").split(" | ")) > 8}
        self.assertEqual(rows["containerd overlayfs, defaults"][5:9], [""] * 4)
        self.assertEqual(rows["soci-rs, lazy"][5:9], ["", "50", "", "70, -"])

    def test_a_peer_that_never_ran_has_a_column(self):
        head, _, cells = report.summary({"demo": DOCUMENT}).splitlines()[2:5]
        column = head.split(" | ").index("soci-snapshotter 0.4.1 (Go), lazy")
        self.assertEqual(cells.split(" | ")[column], "failed")

    def test_the_dates_are_those_of_the_runs(self):
        began = [{"peer": "lazy", "ready": 1.0, "began": seconds} for seconds in (86_400.0, 0.0)]
        self.assertIn("1970-01-01 00:00 UTC to 1970-01-02 00:00 UTC", written({**DOCUMENT, "runs": began}))
        self.assertEqual(Runs({"runs": began[1:]}).dates(), "1970-01-01 00:00 UTC")

    def test_a_page_gets_the_table_between_its_marks(self):
        with tempfile.TemporaryDirectory() as folder:
            results.save(folder, "demo", DOCUMENT)
            page = f"{folder}/page.md"
            for old in ("", "old\n"):
                with open(page, "w") as file:
                    file.write(f"before\n{report.BEGIN}{old}{report.END}after\n")
                report.insert(folder, page)
                with open(page) as file:
                    text = file.read()
                self.assertTrue(text.startswith(f"before\n{report.BEGIN}|  | containerd") and text.endswith(f"{report.END}after\n"))
                self.assertNotIn("old", text)

    def test_a_page_gets_the_picture_with_every_peer_in_words(self):
        with tempfile.TemporaryDirectory() as folder:
            results.save(folder, "demo", {**DOCUMENT, "runs": [*RUNS[:2], GO, *RUNS[2:]], "failures": {}, "picture": "demo.svg"})
            page = f"{folder}/page.md"
            for mark, rest in ((report.PICTURE + "earlier\n" + report.PICTURE_END, "after\n"), ("", "")):
                with open(page, "w") as file:
                    file.write(f"before\n{mark}{report.BEGIN}{report.END}{rest}")
                report.insert(folder, page)
                with open(page) as file:
                    text = file.read()
                self.assertEqual(text.count("](demo.svg)"), 1 if mark else 0)
                self.assertNotIn("earlier", text)
                self.assertTrue(text.endswith(report.END + rest))
                if mark:
                    words = text.partition("](demo.svg)")[0]
                    self.assertIn("containerd overlayfs, best settings 5.00 s; soci-snapshotter 0.4.1 (Go), lazy 5.50 s; soci-rs, lazy 2.50 s", words)

    def test_new_runs_of_one_peer_replace_only_its_own(self):
        new = {**DOCUMENT, "runs": [{"peer": "lazy", "ready": 9.0}], "failures": {}, "absent": {}}
        old = {**DOCUMENT, "machine": results.machine()}
        merged = results.merge(old, new, ["lazy", "reference"])
        self.assertEqual([(run["peer"], run["ready"]) for run in merged["runs"]], [("containerd", 6.0), ("tuned", 5.0), ("lazy", 9.0)])
        self.assertEqual((merged["failures"], merged["absent"]), ({}, {"record": "not in this build"}))
        self.assertIs(results.merge({**old, "machine": "another one"}, new, ["lazy", "reference"]), new)

    def test_a_picture_has_a_bar_for_each_peer_that_ran(self):
        picture = draw(DOCUMENT)
        self.assertEqual(picture.count("2.50 s"), 1)
        self.assertNotIn("0.4.1", picture)

    def test_the_picture_includes_the_reference_implementation(self):
        picture = draw({**DOCUMENT, "runs": [*RUNS, GO]})
        self.assertIn("soci-snapshotter 0.4.1 (Go), lazy", picture)
        self.assertEqual(picture.count("5.50 s"), 1)

    def test_overlapping_waits_count_once(self):
        self.assertEqual(union([(0, 2), (1, 3), (5, 6)]), 4)

    def test_an_image_is_complete_at_the_time_of_the_last_line_about_a_layer(self):
        line = '{{"layer":"sha256:1","level":"info","msg":"{}","time":"1970-01-01T00:00:{:02}.500000005Z"}}\n'
        log = line.format("layer is complete", 7) + line.format("layer is complete", 9) + line.format("another message", 11)
        self.assertEqual(last_complete(log), 9.5)
        self.assertIsNone(last_complete(line.format("trying again when the layer is complete", 1)))

    def test_a_start_that_fails_ends_the_sampling(self):
        process = SimpleNamespace(process=SimpleNamespace(pid=os.getpid()))
        before, watch = threading.active_count(), sampler(Samples(), [os.getpid()])
        with self.assertRaises(Failure), watch(SimpleNamespace(snapshotter=process, containerd=process)):
            self.assertEqual(threading.active_count(), before + 1)
            raise Failure("the start")
        self.assertEqual(threading.active_count(), before)

    def test_bytes_between_two_times(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("1.0 10\n2.0 30\n3.0 70\n3.5 1")
            file.flush()
            wire = Wire(file.name)
        self.assertEqual((wire.between(0, 2.5), wire.between(2.5, 9)), (30, 40))


class FleetTests(unittest.TestCase):
    REGISTRY = Registry("", rate=100e6, requests=1000, client=90e6)
    WAY = Way("", 4, 176_000_000, 1.0)

    def test_one_node_gets_what_one_link_carries(self):
        fleet = Fleet(self.WAY, self.REGISTRY, False, nodes=1).run()
        self.assertAlmostEqual(fleet.ready[0], 176 / 100 + 1, delta=0.1)
        self.assertEqual(fleet.requests, 4)

    def test_without_p2p_the_registry_sends_every_copy(self):
        fleet = Fleet(self.WAY, self.REGISTRY, False, nodes=5).run()
        self.assertAlmostEqual(fleet.sent, 5 * 176e6, delta=1e6)

    def test_with_p2p_the_registry_sends_two_copies_at_most(self):
        fleet = Fleet(self.WAY, self.REGISTRY, True, nodes=5).run()
        self.assertLessEqual(fleet.sent, 2 * 176e6 + 1e6)


if __name__ == "__main__":
    unittest.main()
