"""The table of `tests/drivers/expectations`, whose head explains its notation."""

import pathlib
import re
import sys
from collections import namedtuple

PATH = pathlib.Path(__file__).parent.parent / "expectations"
DURATIONS = {"once", "always", "until told", "until queued"}
DRIVERS = {"pymongo", "pymongo46", "node"}
# Both halves of the overload pair become "B".
LETTERS = {
    "RetryableWriteError": "R",
    "TransientTransactionError": "T",
    "ResumableChangeStreamError": "C",
    "NoWritesPerformed": "W",
    "SystemOverloadedError": "o",
    "RetryableError": "r",
}
PAIR = "or"


# One cell: what the driver is told about the command in trouble, attempt by attempt; what the application sees, when
# that is not the last of them; how often the callback of a transaction runs, and how often a write is done, where only
# the table can tell.
class Cell(namedtuple("Cell", "attempts seen runs done")):
    def of(self, argument):
        """With the code of this trouble in it."""
        return self._replace(attempts=[it.replace("CODE", argument or "") for it in self.attempts])


# One line of the table: of all drivers, and of those that differ.
Line = namedtuple("Line", "operation cell others")
Section = namedtuple("Section", "trouble arguments duration lines")


def read():
    """All sections, in the order of the file."""
    sections = []
    for number, line in enumerate(PATH.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].rstrip()
        indent, words = len(text) - len(text.lstrip()), text.replace(":", " : ").replace(",", " , ").split()
        try:
            if not words:
                continue
            if indent == 0:
                comma, colon = words.index(","), words.index(":")
                duration = " ".join(words[comma + 1 : colon])
                assert duration in DURATIONS, f"nothing lasts {duration!r}"
                sections.append(Section(words[0], words[1:comma], duration, []))
            elif indent == 4:
                sections[-1].lines.append(Line(words[0], read_cell(words), {}))
            else:
                assert words[0] in DRIVERS, "no such driver"
                sections[-1].lines[-1].others[words[0]] = read_cell(words)
        except (AssertionError, ValueError, IndexError) as error:
            sys.exit(f"{PATH.name}:{number}: {line.strip()!r} is no line of the table: {error}")
    return sections


def read_cell(words):
    """`NAME : ATTEMPT... [, seen OUTCOME] [, runs N] [, done N]`"""
    attempts, *rest = " ".join(words[words.index(":") + 1 :]).split(" , ")
    extra = dict(it.split() for it in rest)
    assert extra.keys() <= {"seen", "runs", "done"}, f"{rest} means nothing"
    return Cell(attempts.split(), extra.get("seen"), extra.get("runs"), extra.get("done"))


def matches(attempts, told):
    """`6B*` stands for one or more of `6B`."""
    pattern = "".join(
        f"(?:{re.escape(it[:-1])} )+" if it.endswith("*") else re.escape(it) + " " for it in attempts
    )
    return re.fullmatch(pattern, "".join(f"{it} " for it in told)) is not None


def letters(labels):
    """Labels in short, in the order of the table; one that it does not know as it is."""
    known = "".join(letter for label, letter in LETTERS.items() if label in labels)
    return known.replace(PAIR, "B") + "".join(f"<{label}>" for label in labels if label not in LETTERS)


def labels(short):
    """The other way round."""
    wanted = short.replace("B", PAIR)
    return [label for label, letter in LETTERS.items() if letter in wanted]


def attempt(event):
    """An answer in short: its code, then the letters of its labels."""
    if event["kind"] == "ok":
        return "ok" + letters(event["labels"])
    code = "net" if event["code"] is None else str(event["code"])
    return ("concern" if event["kind"] == "concern" else "") + code + letters(event["labels"])
