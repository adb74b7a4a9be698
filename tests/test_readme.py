"""README.md: its links point to what is there, its commands understand their options."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands():
    """Every `python ..` and `torchrun ..` of README, in a block of code or within a line."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]+)`", README)
    found = [line.split("&&")[-1].split("#")[0].strip(" $") for line in lines]
    return [line for line in dict.fromkeys(found) if line.startswith(("python ", "torchrun "))]


@pytest.mark.parametrize("command", commands())
def test_commands_understand_their_options(command):
    words = shlex.split(command)
    if "-c" in words or "venv" in words:  # a line of Python, a module of Python's own
        return
    [place] = [i for i, word in enumerate(words) if re.match(r"[\w/]+\.py$|tools\.\w+$", word)]
    name = words[place].removesuffix(".py").replace("/", ".")
    source = ROOT / (name.replace(".", "/") + ".py")
    assert 'if __name__ == "__main__":' in source.read_text(encoding="utf-8")
    if name == "train" or name.startswith("tools."):
        importlib.import_module(name).parse_args(words[place + 1:])


def test_links_point_to_what_is_there():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert len(links) > 10
    for file in links:
        assert (ROOT / file).exists(), file
