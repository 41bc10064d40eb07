"""How a block of each language is carried out: the command that does it, after whatever has to be written or compiled."""

import os
import re
import shutil
import subprocess
from pathlib import Path

DRIVERS = Path(__file__).resolve().parent.parent / "drivers"
COMPILE_SECONDS = 600


class Compiler(Exception):
    """What a compiler said."""


def compiled(command, directory, environment):
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=COMPILE_SECONDS
    )
    if done.returncode:
        raise Compiler(f"{command[0]} ended with code {done.returncode}:\n{done.stdout}")


def shell(block, directory, environment):
    return ["bash", "-euo", "pipefail", "-c", block.text]


def python(block, directory, environment):
    (directory / "app.py").write_text(block.text)
    return ["python3", "app.py"]


def js(block, directory, environment):
    if block.words.get("with") == "mongosh":
        (directory / "app.js").write_text(block.text)
        return ["mongosh", "--quiet", "--file", "app.js", "mongodb://127.0.0.1:27016/"]
    modules = directory / "node_modules"
    if not modules.exists():
        modules.symlink_to(os.environ["DOCS_NODE_MODULES"])
    (directory / "app.mjs").write_text(block.text)
    return ["node", "app.mjs"]


def go(block, directory, environment):
    package = directory / "go"
    package.mkdir(exist_ok=True)
    for name in ("go.mod", "go.sum"):
        shutil.copy(DRIVERS / "go" / name, package)
    (package / "main.go").write_text(block.text)
    compiled(["go", "build", "-o", "app", "."], package, environment)
    return ["go/app"]


def java(block, directory, environment):
    name = re.search(r"\bclass (\w+)", block.text)[1]
    (directory / f"{name}.java").write_text(block.text)
    path = os.environ["DOCS_JAVA_CP"]
    compiled(["javac", "-cp", path, f"{name}.java"], directory, environment)
    return ["java", "-XX:TieredStopAtLevel=1", "-cp", f".:{path}", name]


def rust(block, directory, environment):
    """In the target directory of the driver matrix, where the driver is compiled already, under a name of its own."""
    package = directory / "rust"
    (package / "src").mkdir(parents=True, exist_ok=True)
    for name in ("Cargo.toml", "Cargo.lock"):
        text = (DRIVERS / "rust" / name).read_text()
        (package / name).write_text(text.replace('name = "drivers-rust"', 'name = "drivers-docs"'))
    (package / "src/main.rs").write_text(block.text)
    cache = Path(os.environ["DOCS_CARGO_TARGET"])
    compiled(
        ["flock", str(cache.parent / "fetch.lock"), "cargo", "build", "--release", "--quiet"], package, environment
    )
    shutil.copy(cache / "release/drivers-docs", package / "app")
    return ["rust/app"]


def c(block, directory, environment):
    (directory / "app.c").write_text(block.text)
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libmongoc-1.0"], check=True, capture_output=True, text=True
    ).stdout.split()
    compiled(["cc", "-Wall", "-Wextra", "-Werror", "-o", "app-c", "app.c", *flags], directory, environment)
    return ["./app-c"]


COMMAND = {"sh": shell, "bash": shell, "console": shell, "python": python, "js": js, "go": go, "java": java, "rust": rust, "c": c}
