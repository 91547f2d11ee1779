"""Commands of `nibble` that are written in Python: report, sweep, corpora prepare."""
