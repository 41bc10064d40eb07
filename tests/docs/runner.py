"""Carries out what stands in the pages; `run` calls it, in namespaces of its own. Standard library only."""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import languages
import pages
import stage

ROOT = Path(__file__).resolve().parent.parent.parent
# Longest time of one block, but for what a compiler takes.
SECONDS = 60


class Wrong(Exception):
    """What a block did otherwise than it should."""


class Report:
    def __init__(self, verbose):
        self.verbose = verbose
        self.passed = self.left = 0
        self.failed = []

    def passes(self, name):
        self.passed += 1
        print(f"ok   {name}", flush=True)

    def fails(self, name, why):
        self.failed.append(name)
        print(f"FAIL {name}\n     " + "\n     ".join(str(why).rstrip().splitlines()), flush=True)

    def judge(self, name, mistakes):
        mistakes = list(mistakes)
        if mistakes:
            self.fails(name, "\n".join(mistakes))
        else:
            self.passes(name)


def ci_lines():
    text = (ROOT / ".ci/run").read_text().replace("\\\n", " ")
    # A command is what a step names, or a line of its own, in the background perhaps.
    return [" " + " ".join(line.removesuffix("&").split()) for line in text.splitlines()]


def in_ci(block):
    steps = ci_lines()
    for line in block.text.splitlines():
        command = " ".join(line.split("#")[0].split())
        if command and not any(step.endswith(f" {command}") for step in steps):
            raise Wrong(f".ci/run has no step \"{command}\"")


def split_console(text):
    """The commands of a console block, and the patterns of what is printed."""
    commands, patterns = [], []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append(line[2:])
        elif commands and commands[-1].endswith("\\"):
            commands[-1] += "\n" + line.removeprefix("> ")
        elif line.strip() and line.strip() != "...":
            patterns.append(line)
    return "\n".join(commands) + "\n", patterns


def compare(output, patterns):
    """Each pattern is found in a line of its own, in their order; `...` stands for anything, and blanks for blanks."""
    lines = iter(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).splitlines())
    for pattern in patterns:
        parts = (r"\s+".join(map(re.escape, part.split())) for part in pattern.split("..."))
        wanted = re.compile(r".*?".join(r"\s*" + part + r"\s*" for part in parts))
        if not any(wanted.fullmatch(line.strip()) for line in lines):
            raise Wrong(f"it does not print (or not in this order): {pattern}")


def carry_out(block, directory, environment, proxy):
    """Returns what it printed."""
    background = "background" in block.words
    if background or "alone" in block.words:
        proxy.leave()
    else:
        proxy.stand()
    patterns = []
    if block.language == "console":
        block.text, patterns = split_console(block.text)
    command = languages.COMMAND[block.language](block, directory, environment)
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=printed, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )
        mistake = None
        try:
            process.stdin.write(block.words["stdin"] + "\n" if "stdin" in block.words else "")
            process.stdin.close()
            if background:
                stage.await_url(f"{stage.ADMIN}/readyz", process, SECONDS)
                for pid in stage.mongomux_processes():
                    os.kill(pid, signal.SIGTERM)
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            mistake = f"it has not ended after {SECONDS} s"
        except (BrokenPipeError, stage.Trouble) as error:
            mistake = str(error)
        finally:
            # Whatever it has left behind goes as well, or the next block would meet it.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        printed.seek(0)
        output = printed.read()
    expected = int(block.words.get("exit", 0))
    if mistake is None and process.returncode != expected:
        mistake = f"it ended with code {process.returncode}, not {expected}"
    if mistake is None:
        try:
            compare(output, patterns)
        except Wrong as error:
            mistake = str(error)
    if mistake:
        raise Wrong(f"{mistake}; it printed:\n{output[-4000:]}")
    return output


def run_page(page, wanted, report):
    directory = stage.fresh_directory(page.name)
    environment = stage.environment()
    proxy = stage.Proxy()
    try:
        for block in page.blocks:
            if block.act == "file":
                target = directory / block.words["name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text)
                target.chmod(0o600)
            if block.act not in ("run", "ci") or not wanted(block):
                report.left += block.act == "not run"
                continue
            try:
                output = in_ci(block) if block.act == "ci" else carry_out(block, directory, environment, proxy)
                report.passes(block.name)
                if report.verbose and output:
                    print(output, flush=True)
            except (Wrong, languages.Compiler, stage.Trouble, subprocess.SubprocessError) as error:
                report.fails(block.name, error)
    finally:
        proxy.leave()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("-v", dest="verbose", action="store_true")
    arguments = parser.parse_args()
    report = Report(arguments.verbose)

    ours = pages.of_the_program(ROOT)
    for page in ours:
        report.judge(f"{page.name} is marked", page.mistakes)
    report.judge("links", pages.broken_links(ROOT, ours + pages.others(ROOT)))
    report.judge("alerts", pages.unanswered_alerts(ROOT, ours))

    if not arguments.check:
        stage.loopback_up()
        stage.own_etc()
        stage.start_mongod()
        for page in ours:
            run_page(page, lambda block: arguments.only in block.name, report)

    if report.failed:
        print("failed:", *report.failed, sep="\n  ")
    print(f"{report.passed} passed, {len(report.failed)} failed, {report.left} not run for a reason that is told")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
