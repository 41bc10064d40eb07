"""What a page can do wrong is found: `run` asks this first, since a checker that finds nothing looks like pages without mistakes."""

import tempfile
import unittest
from pathlib import Path

import pages
import runner


class Pages(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)

    def page(self, text, name="page.md"):
        (self.root / name).write_text(text)
        return pages.read(self.root, name)

    def test_each_mistake_is_told(self):
        for text, told in [
            ("```\nls\n```\n", "without a language"),
            ("```sh\nls\n```\n", "does not say whether it is run"),
            ("<!-- whatever -->\n```sh\nls\n```\n", "does not say whether it is run"),
            ("<!-- run -->\ntext\n```sh\nls\n```\n", "does not say whether it is run"),
            ("<!-- run -->\n\ntext\n", "stands before no block"),
            ("<!-- run: exits=1 -->\n```sh\nls\n```\n", "there is no \"exits\""),
            ("<!-- run -->\n```toml\na = 1\n```\n", "cannot be run"),
            ("<!-- not run: -->\n```sh\nls\n```\n", "does not say whether it is run"),
            ("Do\n\n    curl -s http://x\n", "indented"),
            ("```text\nls\n", "does not end"),
        ]:
            with self.subTest(text):
                mistakes = self.page(text).mistakes
                self.assertTrue(any(told in mistake for mistake in mistakes), mistakes)

    def test_marks_are_understood(self):
        page = self.page(
            '<!-- run: exit=2 stdin="a b" -->\n\n```sh\nls\n```\n\n* item\n\n  <!-- not run: why -->\n  ```sh\n  rm\n  ```\n'
            "<!-- file: a/b.toml -->\n```toml\n# not a heading\n```\n<!-- ci -->\n```bash\ncargo test\n```\n```text\n[x](gone.md)\n```\n"
        )
        self.assertEqual(page.mistakes, [])
        run, left, file, ci, plain = page.blocks
        self.assertEqual((run.act, run.words, run.line, run.text), ("run", {"exit": "2", "stdin": "a b"}, 3, "ls\n"))
        self.assertEqual((left.act, left.reason, left.text), ("not run", "why", "rm\n"))
        self.assertEqual((file.act, file.words, ci.act, plain.act), ("file", {"name": "a/b.toml"}, "ci", ""))
        self.assertEqual((page.links, page.anchors), ([], set()))

    def test_links_lead_to_files_and_headings(self):
        first = self.page("# A `b`, [c](second.md): d?\n## Twice\n## Twice\n[1](#a-b-c-d) [2](second.md#twice-1) `[3](no.md)`\n")
        second = self.page("## Twice\n## Twice\n[w](https://example.org/x)\n", "second.md")
        self.assertEqual(list(pages.broken_links(self.root, [first, second])), [])
        bad = self.page("[a](none.md) [b](second.md#never)\n[c](#nowhere)\n![d](none.svg)\n", "bad.md")
        told = list(pages.broken_links(self.root, [first, second, bad]))
        self.assertEqual([line.split(":")[1] for line in told], ["1", "1", "2", "3"])

    def test_alerts_lead_to_the_runbook(self):
        (self.root / "docs").mkdir()
        (self.root / "deploy/helm/mongomux/files").mkdir(parents=True)
        rules = "runbook_url: docs/runbook.md#there\nrunbook_url: docs/runbook.md#not-there\n"
        (self.root / "deploy/helm/mongomux/files/alerts.yml").write_text(rules)
        told = list(pages.unanswered_alerts(self.root, [self.page("## There\n", "docs/runbook.md")]))
        self.assertEqual(len(told), 1)
        self.assertIn("#not-there", told[0])

    def test_what_is_printed_is_compared(self):
        commands, patterns = runner.split_console("$ one \\\n> two\nsize 4 ... ok\n...\nlast\n$ three\n")
        self.assertEqual((commands, patterns), ("one \\\ntwo\nthree\n", ["size 4 ... ok", "last"]))
        runner.compare("first\n  size  4 of 9 ok\nlast\n", patterns)
        for output in ["last\nsize 4 of 9 ok\n", "size 5 of 9 ok\nlast\n", "size 4 of 9 okay\nlast\n", ""]:
            with self.assertRaises(runner.Wrong):
                runner.compare(output, patterns)

    def test_steps_of_ci_are_known(self):
        block = self.page("<!-- ci -->\n```sh\ncargo test      # all\n```\n").blocks[0]
        runner.in_ci(block)
        block.text = "cargo test --nonsense\n"
        with self.assertRaises(runner.Wrong):
            runner.in_ci(block)


if __name__ == "__main__":
    unittest.main()
