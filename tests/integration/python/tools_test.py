"""nibble sweep, report and corpora prepare, as commands. NIBBLED and NIBBLE are paths."""

import csv
import os
import re
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from nibble_client import Client
from tiny_daemon import TinyDaemon

SCHEMES = """
[defaults]
activations = "e4m3"
group_size = 32
[[scheme]]
name = "W16A16"
[[scheme]]
name = "FP4 M2"
weights = "e2m1"
lorc_rank = 2
[[scheme]]
name = "FP4 M1"
weights = "e2m1"
scale = "m1"
[[scheme]]
name = "W8A8"
weights = "e4m3"
scale = "none"
"""


class ToolsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = TinyDaemon()
        cls.addClassCleanup(cls.daemon.stop)
        text = bytes(97 + i * i % 26 for i in range(3000))
        (cls.daemon.data_root / "corpora/text.txt").write_bytes(text)
        (cls.daemon.data_root / "corpora/other.txt").write_bytes(text[::-1])
        cls.client = cls.enterClassContext(Client(cls.daemon.address))

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def command(self, *words):
        return [os.environ["NIBBLE"], "--server", self.daemon.address, *map(str, words)]

    def nibble(self, *words):
        done = subprocess.run(self.command(*words), cwd=self.folder, capture_output=True, text=True,
                              timeout=240)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def sweep(self, output):
        return ("sweep", "tiny", "--schemes", "s.toml", "--corpus", "text.txt", "--corpus",
                "other.txt", "--window", 64, "--calibration", "text.txt", "--calibration-windows",
                8, "--calibration-window", 64, "--compute", "f32", "--output", output)

    def rows(self, output):
        """All but times, which report.json holds too, and so its bytes."""
        with (self.folder / f"{output}.csv").open() as file:
            return [{name: value for name, value in row.items()
                     if name not in ("job_seconds", "bytes")} for row in csv.DictReader(file)]

    def test_an_interrupted_sweep_goes_on_to_the_same_table(self):
        (self.folder / "s.toml").write_text(SCHEMES)
        process = subprocess.Popen(self.command(*self.sweep("cut")), cwd=self.folder,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with process:
            for line in process.stderr:
                if line.startswith("FP4 M2  text.txt"):  # the third cell of eight is known
                    process.send_signal(signal.SIGINT)
                    break
            rest = process.stderr.read()
        self.assertEqual(process.returncode, 130, rest)
        state = (self.folder / "cut.state.json").read_text()
        self.assertEqual(state.count('"perplexity"'), 3)

        again = subprocess.run(self.command(*self.sweep("cut")), cwd=self.folder, timeout=240,
                               capture_output=True, text=True, check=True)
        self.assertNotIn("W16A16  text.txt", again.stderr)  # kept, not found again
        self.assertEqual(len(re.findall(r"^\S.*  (text|other)\.txt  [\d.]+$", again.stderr,
                                        re.MULTILINE)), 5)
        self.assertIn("| FP4 M2 |", again.stdout)
        self.nibble(*self.sweep("whole"))
        self.assertEqual(self.rows("cut"), self.rows("whole"))

        # The model's own rows are what an evaluation says, and what was made is gone.
        row = self.rows("cut")[0]
        for corpus in ("text.txt", "other.txt"):
            evaluation = self.client.evaluate_perplexity("tiny", corpus, window=64, compute="f32")
            self.assertEqual(float(row[f"perplexity {corpus}"]), evaluation.result.perplexity)
        self.assertEqual([model.name for model in self.client.models()], ["tiny"])
        self.assertEqual(list(self.client.jobs()), [])

    def test_a_report_of_a_job_and_its_profile(self):
        job = self.client.submit(model="tiny", output="made", weights="e2m1", activations="e4m3",
                                 group_size=32, corpus="text.txt", windows=8, window=64)
        self.client.wait(job.id, timeout=120)
        self.addCleanup(self.client.delete_model, "made")
        self.addCleanup(self.client.delete, job.id)
        self.nibble("report", job.id, "--html", "job.html", "--profile", "text.txt", "--windows", 2,
                    "--window", 64)
        page = (self.folder / "job.html").read_text()
        self.assertEqual(page.count("data:image/png;base64,"), 7)
        for text in ("tiny to made", "model.layers.1.mlp.down_proj", "128 tokens"):
            self.assertIn(text, page)
        profile = self.nibble("evaluate", "profile", "--model", "made", "--corpus", "text.txt",
                              "--windows", 2, "--window", 64, "--token", 3, "--json")
        (self.folder / "p.jsonl").write_text(profile)
        self.nibble("report", "made", "--html", "model.html", "--profile-json", "p.jsonl")
        page = (self.folder / "model.html").read_text()
        self.assertEqual(page.count("data:image/png;base64,"), 7)
        self.assertIn("<td>kind</td><td>artifact</td>", page)

    def test_prepared_texts_are_corpora(self):
        (self.folder / "ptb.test.txt").write_text(" a rose \n is a rose \n")
        self.nibble("corpora", "prepare", "ptb", "ptb.test.txt", "--output", "ptb-made.txt")
        self.nibble("corpora", "push", "ptb-made.txt")
        self.addCleanup(self.client.delete_corpus, "ptb-made.txt")
        self.assertEqual((self.daemon.data_root / "corpora/ptb-made.txt").read_text(),
                         "a rose is a rose")


if __name__ == "__main__":
    unittest.main()
