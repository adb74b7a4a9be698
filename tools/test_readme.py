"""README.md: its links, its commands, its snippets."""

import functools
import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import acl
import exits
import train
from tools import angles_command, exits_command
from tools.testing import call_train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = []
for kind, block in BLOCKS:
    for line in block.replace("\\\n", "").splitlines():
        line = line.removeprefix("$ ").split(" && ")[-1]
        if kind == "" and line.startswith(("python ", "torchrun ")):
            COMMANDS.append(line)


def test_links_point_to_what_they_name():
    """[`acl.acl_embed_loss`](acl.py#L12): that line defines it; other links: the file is there."""
    links = re.findall(r"\[([^\]]*)\]\(([^)#]+)(?:#L(\d+))?\)", README)
    assert len(links) > 10
    for text, file, line in links:
        assert (ROOT / file).exists(), file
        if line:
            name = text.strip("`").split(".")[-1]
            source = (ROOT / file).read_text(encoding="utf-8").splitlines()
            assert source[int(line) - 1].startswith(f"def {name}("), (text, line)


def test_readme_is_short():
    assert len(README.encode()) < 11_000


@pytest.fixture(scope="module")
def demo_runs(tmp_path_factory):
    """The demo of the first command, made short; its folder stands for runs/."""
    folder = tmp_path_factory.mktemp("readme")
    options = ["--task", "demo", "--method", "acl-cl", "--max-steps", "4"]
    assert call_train([*options, "--output", folder]) == 0
    return folder


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_commands_run(command, demo_runs, capsys):
    """What needs no download runs, a few steps of it; the options of the rest are understood."""
    words = shlex.split(command.split("#")[0])
    script = next(word for word in words if word.endswith(".py"))
    options = words[words.index(script) + 1:]
    if script == "train.py":
        args = train.parse_args(options)
        assert (demo_runs / "demo_acl-cl_1").exists() or args.task == "demo"
    elif script in ("exits.py", "grad_surgery.py"):
        assert re.fullmatch(r"runs/\w+_acl-cl_1", options[0])
        options[0] = str(demo_runs / "demo_acl-cl_1")
        if "--predict" in options:
            sentences = demo_runs / "new.tsv"
            sentences.write_text("sentence1\tsentence2\nanna helped boris\tboris helped anna\n")
            options[options.index("--predict") + 1] = str(sentences)
        main = exits_command.main if script == "exits.py" else angles_command.main
        assert main(options) == 0
        assert capsys.readouterr().out
    else:
        assert (ROOT / script).is_file()


def added(diff):
    """What a diff leaves: its lines with + and with a space, without the mark."""
    lines = [line[1:] for line in diff.splitlines() if line[:1] in ("+", " ")]
    return "\n".join(lines)


DIFFS = [block for kind, block in BLOCKS if kind == "diff"]


def test_acl_grad_in_a_cnns_loop():
    """The diff, run: the same gradient as by hand where both agree."""
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 4, 3)
            self.classifier = torch.nn.Linear(4, 2)

        def forward(self, images):
            features = self.convolution(images).relu().mean(dim=(2, 3))  # (N, 4)
            return features, self.classifier(features)

    cnn = Net()
    names = {
        "F": F,
        "cnn": cnn,
        "images": torch.randn(6, 1, 8, 8),
        "labels": torch.tensor([0, 1, 0, 1, 1, 0]),
        "optimizer": torch.optim.SGD(cnn.parameters(), 0.1),
    }
    before = cnn.classifier.weight.clone()
    exec(added(DIFFS[0]), names)
    assert -1 <= names["cosine"] <= 1
    assert not torch.equal(before, cnn.classifier.weight)


def test_a_rule_and_keys_of_ones_own():
    """The rule answers like any other; the keys' diff applies to acl_cl_loss as it stands."""
    rule_part, keys_part = DIFFS[1:]
    function, setting = added(rule_part).split(" # tools/exits_command.py, EXIT_RULES\n".lstrip())
    names = {"torch": torch}
    exec(function, names)
    assert eval("{" + setting + "}") == {"margin": ("threshold",)}
    logits = torch.tensor([[[0.2, 0.0], [5.0, 0.0]], [[0.0, 3.0], [5.0, 0.0]]])
    rule = functools.partial(names["margin"], threshold=2.0)
    assert exits.exit_indices(logits, rule).tolist() == [1, 0]

    source = inspect.getsource(acl.acl_cl_loss)
    lines = keys_part.split("\n", 1)[1].splitlines()
    removed = "\n".join(line[1:] for line in lines if line[:1] in ("-", " "))
    assert removed in source
    changed = source.replace(removed, added("\n".join(lines)))
    names = {"torch": torch, "check": acl.check, "contrastive_loss": acl.contrastive_loss}
    exec(changed, names)
    torch.manual_seed(0)
    h, teacher, label_embeddings = torch.randn(5, 3), torch.randn(5, 3), torch.randn(2, 3)
    labels = torch.tensor([0, 1, 1, 0, 1])
    loss = names["acl_cl_loss"](h, teacher, labels, label_embeddings, 0.5)
    cosines = F.normalize(h, dim=1) @ F.normalize(label_embeddings, dim=1).T
    assert torch.allclose(loss, F.cross_entropy(cosines / 0.5, labels))
