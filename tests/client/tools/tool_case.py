"""Tools of `nibble` run in a temporary folder, as main() would run them."""

import contextlib
import io
import os
import tempfile
import unittest
from importlib import import_module
from pathlib import Path

from nibble_tools.failure import Failure


class ToolCase(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def run_tool(self, tool, *words):
        """What it prints; its progress is dropped."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            import_module(f"nibble_tools.{tool}").main(list(map(str, words)))
        return printed.getvalue()

    def refused(self, tool, *words):
        """The sentence that it fails with."""
        with self.assertRaises(Failure) as refusal:
            self.run_tool(tool, *words)
        return str(refusal.exception)

    def help_of(self, tool):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), self.assertRaises(SystemExit) as ended:
            import_module(f"nibble_tools.{tool}").main(["--help"])
        self.assertEqual(ended.exception.code, 0)
        return printed.getvalue()
