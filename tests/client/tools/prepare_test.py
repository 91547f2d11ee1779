"""Evaluation texts on small made copies of the datasets."""

import gzip
import json
import unittest

from tool_case import ToolCase


class PrepareTest(ToolCase):
    def write(self, name, text):
        data = text.encode()
        (self.folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return name

    def prepare(self, *words):
        self.run_tool("prepare", *words)
        made = words[words.index("--output") + 1] if "--output" in words else None
        names = [made] if made else ["wikitext2-raw.txt", "ptb.txt", "c4.jsonl"]
        return next((self.folder / name).read_text() for name in names
                    if (self.folder / name).exists())

    def test_wikitext_rows_keep_their_ends_and_are_joined_by_two(self):
        """The dataset's rows of this file are "", " = A = \\n", "", " Bé . \\n"."""
        self.write("wiki.test.raw", " \n = A = \n \n Bé . \n")
        self.assertEqual(self.prepare("wikitext2-raw", "wiki.test.raw"),
                         "\n\n = A = \n\n\n\n\n Bé . \n")

    def test_wikitext_rows_as_json_lines_are_the_same(self):
        rows = ["", " = A = \n", "", " Bé . \n"]
        self.write("rows.jsonl.gz", "".join(json.dumps({"text": row}) + "\n" for row in rows))
        self.assertEqual(self.prepare("wikitext2-raw", "rows.jsonl.gz"), "\n\n".join(rows))

    def test_ptb_lines_are_stripped_and_joined_by_one_space(self):
        self.write("ptb.test.txt", " no it was n't <unk> \n but N \n")
        self.assertEqual(self.prepare("ptb", "ptb.test.txt"), "no it was n't <unk> but N")
        self.write("rows.json", '{"sentence": " a b "}\n{"sentence": "c"}\n')
        self.assertEqual(self.prepare("ptb", "rows.json", "--output", "p.txt"), "a b c")

    def test_c4_takes_the_first_texts_over_all_files(self):
        texts = [f"text {i} — \"q\"\nsecond line" for i in range(1300)]
        lines = [json.dumps({"url": "u", "text": text}) + "\n" for text in texts]
        self.write("a.json.gz", "".join(lines[:900]))
        self.write("b.json", "".join(lines[900:]))
        made = self.prepare("c4", "a.json.gz", "b.json").splitlines()
        self.assertEqual([json.loads(line) for line in made],
                         [{"text": text} for text in texts[:1100]])

    def test_too_few_texts_are_refused(self):
        self.write("a.json", '{"text": "a"}\n' * 1099)
        self.assertEqual(self.refused("prepare", "c4", "a.json").split(",")[0],
                         "found 1099 texts")
        self.assertFalse((self.folder / "c4.jsonl").exists())

    def test_bad_inputs_are_named(self):
        self.write("a.json", '{"text": "a"}\n{"url": "b"}\n')
        self.assertIn("a.json line 2: found no text", self.refused("prepare", "c4", "a.json"))
        self.write("b.json", '{"text": "a"}\n{"text"\n')
        self.assertIn("b.json line 2", self.refused("prepare", "c4", "b.json"))
        (self.folder / "c.txt").write_bytes(b"\xff\xfe")
        self.assertIn("c.txt: found", self.refused("prepare", "ptb", "c.txt"))
        (self.folder / "d.txt.gz").write_bytes(b"plain")
        self.assertIn("d.txt.gz: found", self.refused("prepare", "ptb", "d.txt.gz"))
        self.write("e.txt", " \n\n")
        self.assertIn("found no text", self.refused("prepare", "ptb", "e.txt"))
        with self.assertRaises(FileNotFoundError):
            self.run_tool("prepare", "ptb", "none.txt")
        self.assertEqual(sorted(path.suffix for path in self.folder.iterdir()),
                         [".gz", ".json", ".json", ".txt", ".txt"])

    def test_nothing_is_overwritten_and_the_name_says_what_it_is(self):
        self.write("in.txt", "a\n")
        self.write("out.txt", "kept")
        self.assertIn("expected a new file",
                      self.refused("prepare", "ptb", "in.txt", "--output", "out.txt"))
        self.assertIn("ends in .txt",
                      self.refused("prepare", "ptb", "in.txt", "--output", "out.jsonl"))
        self.assertEqual((self.folder / "out.txt").read_text(), "kept")

    def test_help_has_examples(self):
        self.assertIn("examples:\n  nibble corpora prepare", self.help_of("prepare"))


if __name__ == "__main__":
    unittest.main()
