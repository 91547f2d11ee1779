"""What the importer's tests share."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path


class ImporterCase(unittest.TestCase):
    """Runs the importer in a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.out = self.root / "models" / "tiny"

    def run_import(self, kind, source):
        return subprocess.run([sys.executable, "-m", "nibble_import", kind, source, self.out],
                              capture_output=True, text=True)

    def assert_refused(self, result, *words):
        self.assertEqual(result.returncode, 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        models = self.root / "models"
        self.assertEqual(list(models.iterdir()) if models.exists() else [], [])
