"""What stands in the pages: fenced blocks and what is to be done with them, headings, links.

What is to be done with a block is said in a comment right before it, which readers do not see:

    <!-- run -->                     it is carried out and must succeed
    <!-- run: exit=2 -->             ... must end with that code
    <!-- run: alone -->              ... without the proxy that otherwise stands at the default addresses
    <!-- run: background -->         ... alone, until it is ready; then mongomux gets SIGTERM, and the code counts
    <!-- run: stdin=TEXT -->         ... and reads this line
    <!-- run: with=mongosh -->       JavaScript is for this shell, not for node
    <!-- file: NAME -->              it is written to a file in the directory of the page
    <!-- ci -->                      each line of it is a step of .ci/run
    <!-- not run: REASON -->

In a `console` block lines that begin with `$ ` are commands, and the others what is printed, where `...` stands for anything.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

# Languages of which each block has to say what is to be done with it.
RUNNABLE = {"sh", "bash", "console", "python", "js", "go", "java", "rust", "c"}
WORDS = {"exit", "alone", "background", "stdin", "with"}

FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*(\S*)\s*$")
COMMENT = re.compile(r"^\s*<!--\s*(.*?)\s*-->\s*$")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|!\[[^\]]*\]\(([^()\s]+)\)")
# A command that no fence marks would be missed.
INDENTED = re.compile(r"^ {4}(?:\$ |mongomux |cargo |curl |tests/)")


@dataclass
class Block:
    page: str
    line: int
    language: str
    text: str
    # "run", "file", "ci", "not run", or "" where nothing is said.
    act: str = ""
    words: dict = field(default_factory=dict)
    reason: str = ""

    @property
    def name(self):
        return f"{self.page}:{self.line} {self.language}"


@dataclass
class Page:
    name: str
    path: Path
    blocks: list
    anchors: set
    links: list
    mistakes: list


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def read(root, name):
    path = root / name
    page = Page(name, path, [], set(), [], [])
    fence = said = None
    text, begun, language = [], 0, ""
    seen = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        matched = FENCE.match(line)
        if fence is not None:
            if matched and matched[2].startswith(fence) and not matched[3]:
                page.blocks.append(annotated(page, begun, language, "\n".join(text) + "\n", said))
                fence = said = None
            else:
                text.append(line.removeprefix(indent))
            continue
        if matched:
            indent, fence, language = matched[1], matched[2], matched[3]
            text, begun = [], number
            if not language:
                page.mistakes.append(f"{name}:{number}: a fence without a language; say text where it is none")
            continue
        if comment := COMMENT.match(line):
            said = comment[1]
            continue
        if line.strip():
            if said is not None and re.match(r"(not )?run\b|ci$|file:", said):
                page.mistakes.append(f"{name}:{number}: \"{said}\" stands before no block")
            said = None
        if INDENTED.match(line):
            page.mistakes.append(f"{name}:{number}: a command that is indented is not run: put it into a fence")
        if heading := HEADING.match(line):
            anchor = slug(heading[2])
            times = seen.get(anchor, 0)
            seen[anchor] = times + 1
            page.anchors.add(f"{anchor}-{times}" if times else anchor)
        code_away = re.sub(r"`[^`]*`", lambda code: " " * len(code[0]), line)
        page.links += [(number, a or b) for a, b in LINK.findall(code_away)]
    if fence is not None:
        page.mistakes.append(f"{name}:{begun}: a fence that does not end")
    return page


def annotated(page, line, language, text, said):
    block = Block(page.name, line, language, text)
    where = f"{page.name}:{line}"
    if said is None:
        if language in RUNNABLE:
            page.mistakes.append(f"{where}: a block of {language} that does not say whether it is run")
        return block
    if match := re.fullmatch(r"not run:\s*(.+)", said):
        block.act, block.reason = "not run", match[1]
    elif said == "ci":
        block.act = "ci"
    elif match := re.fullmatch(r"file:\s*(\S+)", said):
        block.act, block.words = "file", {"name": match[1]}
    elif match := re.fullmatch(r"run(?::\s*(.+))?", said):
        block.act = "run"
        for word in shlex.split(match[1] or ""):
            key, _, value = word.partition("=")
            if key not in WORDS:
                page.mistakes.append(f"{where}: \"{said}\": there is no \"{key}\", only {', '.join(sorted(WORDS))}")
            block.words[key] = value
        if language not in RUNNABLE:
            page.mistakes.append(f"{where}: a block of {language or 'no language'} cannot be run")
    elif language in RUNNABLE:
        page.mistakes.append(f"{where}: \"{said}\" does not say whether it is run")
    return block


def found(root, *patterns):
    return [read(root, name) for name in sorted(str(p.relative_to(root)) for pattern in patterns for p in root.glob(pattern))]


def of_the_program(root):
    """Pages whose blocks are carried out."""
    return found(root, "README.md", "ARCHITECTURE.md", "docs/**/*.md")


def others(root):
    """Pages whose links have to lead somewhere, and no more: what they tell of takes what a page cannot have."""
    return found(root, "tests/*/README.md", "deploy/**/*.md", "docker/**/*.md")


def broken_links(root, pages):
    """Relative links to what is not there, or to headings that are not there."""
    known = {page.path.resolve(): page for page in pages}
    for page in pages:
        for line, target in page.links:
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.path.parent / path).resolve() if path else page.path.resolve()
            if not file.exists():
                yield f"{page.name}:{line}: {target}: there is no such file"
            elif anchor and file.suffix == ".md":
                anchors = known[file].anchors if file in known else read(root, file.relative_to(root)).anchors
                if anchor not in anchors:
                    yield f"{page.name}:{line}: {target}: there is no such heading"


def unanswered_alerts(root, pages):
    """Alerts that send their reader to a heading of the runbook that is not there."""
    rules = root / "deploy/helm/mongomux/files/alerts.yml"
    if not rules.exists():
        return
    runbook = next(page for page in pages if page.name == "docs/runbook.md")
    for anchor in re.findall(r"runbook_url:.*runbook\.md#([\w-]+)", rules.read_text()):
        if anchor not in runbook.anchors:
            yield f"deploy/helm/mongomux/files/alerts.yml: docs/runbook.md#{anchor}: there is no such heading"
