"""The pages say what the code does: numbers, names, options, columns, and code to paste."""

import doctest
import functools
import importlib
import io
import re
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path

import pandas
import pytest
import torch
import torch.nn.functional as F

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import acl
import exits
import glue
import grad_surgery
import train
from results import tables, variants
from tools import angles_command, exits_command
from tools.files import read_csv, read_json
from tools.small_runs import call, small_task
from tools.testing import gradients_of, small_batch, small_model

torch.set_num_threads(1)

PAGES = ("walkthrough.md", "coursework.md", "metrics.md")
TEXTS = {name: (DOCS / name).read_text(encoding="utf-8") for name in PAGES}
FILES = ("py", "csv")  # exits.py and exits.csv are no functions
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


# --------------------------------------------------------------------------- walkthrough


def test_walkthrough_runs():
    path = str(DOCS / "walkthrough.md")
    result = doctest.testfile(path, module_relative=False, encoding="utf-8")
    assert result.attempted > 50
    assert result.failed == 0


# ------------------------------------------------------------------- what the pages name


def spans(page):
    """What stands in backticks in a page's prose, not in its blocks of code."""
    prose = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    return re.findall("`([^`]+)`", prose)


@pytest.mark.parametrize("page", PAGES)
def test_functions_named_are_there(page):
    """`train.second_loss`, `exits.MultiExitBert.represent`, .."""
    modules = ("acl", "exits", "glue", "grad_surgery", "train")
    named = []
    for span in spans(page):
        module, _, path = span.partition(".")
        if module in modules and re.fullmatch("[A-Za-z_.]+", path) and path not in FILES:
            functools.reduce(getattr, path.split("."), importlib.import_module(module))
            named.append(span)
    assert named or page == "metrics.md"


@functools.cache
def known_options():
    """Every option of the commands that the pages speak of, from their --help."""
    text = io.StringIO()
    for main in (train.parse_args, exits_command.parse_args, angles_command.main, tables.main):
        with redirect_stdout(text), pytest.raises(SystemExit):
            main(["--help"])
    return set(re.findall(r"--[a-z][a-z-]*", text.getvalue()))


@pytest.mark.parametrize("page", PAGES)
def test_options_named_are_there(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXTS[page]))
    assert named
    assert named - known_options() <= {"--help"}


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", TEXTS[page]):
        assert (DOCS / target).exists()
    for file in re.findall(r"[\w/]+\.py", TEXTS[page]):
        assert (ROOT / file).exists() or file == "change.py"


def test_changes_named_are_there():
    named = re.findall(r"results/variants\.py ([a-z-]+)", "".join(TEXTS.values()))
    assert set(named) == {"detached", "conflict-groups"}
    assert set(named) <= set(variants.CHANGES)


# --------------------------------------------------------------------------- coursework


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], flags=re.DOTALL)


def changes():
    """{function: (what it stands in for, source)} of the blocks `# in place of ..`."""
    found = {}
    for block in blocks("coursework.md", "python"):
        place = re.match(r"# in place of ([\w.]+)\n", block)
        if place:
            name = re.search(r"def (\w+)\(", block)[1]
            found[name] = (place[1], block)
    return found


def template():
    """The lines of change.py: (imports, the rest)."""
    [block] = [block for block in blocks("coursework.md", "python") if "import sys" in block]
    imports, _, rest = block.partition("# the exercise's function here")
    return imports, rest.partition("\n")[2]


def original(place):
    module, *path = place.split(".")
    return functools.reduce(getattr, path, importlib.import_module(module))


def step(method):
    """Gradients of one training step, with whatever stands in the modules now."""
    model = small_model(pooling="cls", dropout=0.0)
    batch = small_batch(6, 9)
    batch["label"] = LABELS
    words = f"--task rte --method {method} --exits all --conflict none --weight 0.5"
    args = train.parse_args(words.split())
    weight = train.weight_at(args, 3)
    train.training_step(args, model, batch, weight, bf16=False)
    return gradients_of(model)


def same(some, others):
    """Whether two {name: gradient} are equal up to rounding."""
    for name, g in some.items():
        if (g is None) != (others[name] is None):
            return False
        if g is not None and not torch.allclose(g, others[name], atol=1e-6):
            return False
    return True


@pytest.mark.parametrize("name", changes())
def test_a_change_does_what_the_tested_one_does(name, monkeypatch):
    place, block = changes()[name]
    path, _, replaced = place.rpartition(".")
    owner = original(path) if "." in path else importlib.import_module(path)
    tested = getattr(variants, name)
    method = "acl-embed" if name == "detached" else "acl-cl"

    # Pasted where the page says.
    space = {}
    exec(template()[0] + block, space)
    before = step(method)
    monkeypatch.setattr(owner, replaced, space[name])
    pasted = step(method)

    # And as results/variants.py has it.
    monkeypatch.setattr(owner, replaced, tested)
    assert same(pasted, step(method))
    if name != "best_teacher":  # whose choice may be the deepest exit
        assert not same(pasted, before)


def test_a_change_in_a_file_of_its_own(tmp_path, monkeypatch):
    """change.py as shown, with the function put in: a whole run, with another result."""
    _, block = changes()["detached"]
    imports, rest = template()
    options = small_task(tmp_path, dropout=0.0) + ["--method", "acl-embed", "--max-steps", "3"]
    monkeypatch.setattr(acl, "acl_embed_loss", acl.acl_embed_loss)  # put back afterwards
    losses = []
    without = "\n".join(rest.splitlines()[1:])
    sources = {"itself": imports + without, "changed": imports + block + rest}
    for name, source in sources.items():
        output = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["change.py", *options, "--output", str(output)])
        with pytest.raises(SystemExit) as stop:
            exec(source, {})
        assert stop.value.code in (None, 0)
        config = read_json(output / "mine_acl-embed_1/config.json")
        assert config["change"] == "detached"  # or it would pass for the unchanged method's run
        losses.append([row["acl_loss"] for row in read_csv(output / "mine_acl-embed_1/steps.csv")])
    assert losses[0][0] == losses[1][0]
    assert losses[0] != losses[1]


def test_best_teacher_is_the_best():
    _, block = changes()["best_teacher"]
    space = {"F": F}
    exec(block, space)
    logits = torch.zeros(3, 6, 2)
    logits[1, torch.arange(6), LABELS] = 5.0
    assert space["best_teacher"](logits, LABELS) == 1


def test_every_change_is_spoken_of():
    text = TEXTS["coursework.md"]
    for name, places in variants.CHANGES.items():
        function = places[0][2].__name__
        assert f"`{name}`" in text or function in text, name


def test_measured_rows_are_those_of_the_tables(capsys):
    tables.main(["--block", "tries", "ablate", "multi"])
    printed = capsys.readouterr().out.splitlines()
    lines = TEXTS["coursework.md"].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        assert row in printed
    [acl_cl] = [line for line in printed if line.startswith("| acl-cl | -0.30 [-0.83")]
    assert acl_cl.split(" | ")[2].startswith("-0.30 ")
    assert any("| ce, depth, layer-wise |  | -1.41 | -1.02 |" in line for line in printed)


def test_the_angles_report_prints_the_shares(capsys):
    command = re.search(r"python grad_surgery.py (\S+)`", TEXTS["coursework.md"])[1]
    assert angles_command.main([str(ROOT / command)]) in (None, 0)
    printed = capsys.readouterr().out
    assert "39.7" in printed
    assert "2.6" in printed


def test_the_groups_snippet_prints_its_numbers(capsys, monkeypatch):
    [snippet] = [block for block in blocks("coursework.md", "python")
                 if block.startswith("# where they conflict")]
    monkeypatch.chdir(ROOT)
    exec(snippet, {"pandas": pandas})
    printed = capsys.readouterr().out
    assert re.search(r"^embeddings +0\.14", printed, flags=re.MULTILINE)
    assert re.search(r"^layer 6 +0\.44", printed, flags=re.MULTILINE)


# Solutions, so that the checks of the page are known to pass, and to fail for the unsolved.


def gate_per_group(ce_loss, acl_loss, groups, weight):
    parameters = [p for group in groups for p in group]
    g_ce = torch.autograd.grad(ce_loss, parameters, retain_graph=True)
    g_acl = torch.autograd.grad(acl_loss, parameters)
    both = dict(zip(parameters, zip(g_ce, g_acl)))
    for group in groups:
        dot = sum((both[p][0] * both[p][1]).sum() for p in group)
        for p in group:
            p.grad = both[p][0] + weight * both[p][1] * (dot >= 0)


def gate_for_all(ce_loss, acl_loss, groups, weight):
    grad_surgery.acl_grad(ce_loss, acl_loss, sum(groups, []), weight)


def deeper_teachers(args, m, h, label_embeddings, logits, labels):
    own = acl.acl_embed_loss(h[m], labels, label_embeddings[m], args.temperature)
    guided = []
    for t in range(m + 1, len(h)):
        keys = (h[t], labels, label_embeddings[t])
        guided.append(acl.acl_cl_loss(h[m], *keys, args.temperature))
    return sum(guided) / len(guided) + own if guided else own


def nearest(h, label_embeddings, threshold):
    cosines = acl.unit(h) @ acl.unit(label_embeddings).T
    return cosines.amax(dim=1) >= threshold


def nearest_by_product(h, label_embeddings, threshold):
    return (h @ label_embeddings.T).amax(dim=1) >= threshold


def losses_of_projected(args, model, h, logits, labels):
    """train.losses with the projection head of exercise C."""
    W = model.projection
    ce_loss, _ = train_losses(args, model, h, logits, labels)
    label_embeddings = [W(classifier.weight) for classifier in model.classifiers]
    projected = [W(h_m) for h_m in h]
    acl_losses = []
    for m in range(len(h)):
        acl_losses.append(train.second_loss(args, m, projected, label_embeddings, logits, labels))
    return ce_loss, acl_losses


train_losses = train.losses

CHECKS = [
    ("gate_per_group", gate_per_group, True),
    ("gate_per_group", gate_for_all, False),
    ("deeper_teachers", deeper_teachers, True),
    ("deeper_teachers", train.second_loss, False),
    ("nearest", nearest, True),
    ("nearest", nearest_by_product, False),
    ("projection", losses_of_projected, True),
    ("projection", train.losses, False),
]


@pytest.mark.parametrize("name, solution, right", CHECKS)
def test_checks_of_the_exercises(name, solution, right, monkeypatch):
    [check] = [block for block in blocks("coursework.md", "python")
               if block.startswith("# check") and name in block.splitlines()[0]]
    model = small_model(dropout=0.0)
    model.projection = torch.nn.Linear(16, 8, bias=False)
    batch = small_batch(6, 9)
    args = train.parse_args(["--task", "rte", "--method", "acl-cl"])
    h, logits = model(batch)
    space = {
        "acl": acl,
        "train": train,
        "torch": torch,
        "args": args,
        "model": model,
        "batch": batch,
        "h": list(h),
        "logits": logits,
        "labels": LABELS,
        "label_embeddings": [classifier.weight for classifier in model.classifiers],
        name: solution,
    }
    if name == "projection":
        monkeypatch.setattr(train, "losses", solution)
    if right:
        exec(check, space)
    else:
        with pytest.raises((AssertionError, RuntimeError)):
            exec(check, space)


def test_three_lines_log_every_step_elsewhere(tmp_path, monkeypatch):
    """The diff fits into train.py, and a run with it sends the numbers of steps.csv."""
    [diff] = blocks("coursework.md", "diff")
    source = with_diff((ROOT / "train.py").read_text(encoding="utf-8"), diff.splitlines())
    sent = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda project, name, config: sent.append(name)
    wandb.log = sent.append
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    space = {"__name__": "train_with_wandb"}
    exec(compile(source, "train.py", "exec"), space)

    argv = small_task(tmp_path) + ["--output", str(tmp_path / "runs"), "--method", "acl-cl"]
    assert space["main"](space["parse_args"](argv)) == 0
    name, *rows = sent
    logged = read_csv(tmp_path / "runs" / name / "steps.csv")
    assert [str(row["step"]) for row in rows] == [row["step"] for row in logged]
    assert set(rows[0]) == set(logged[0])


def with_diff(source, lines):
    """The source with a diff's lines put in: below the line above them, else above the next."""
    assert sum(line.startswith("+") for line in lines) == 3
    for number, line in enumerate(lines):
        if not line.startswith("+"):
            assert line == "..." or source.count(f"{line[1:]}\n") == 1, line
            continue
        is_below = number > 0 and lines[number - 1].startswith(" ")
        anchor = lines[number - 1 if is_below else number + 1][1:] + "\n"
        new = line[1:] + "\n"
        both = anchor + new if is_below else new + anchor
        source = source.replace(anchor, both)
    return source


# ----------------------------------------------------------------------------- metrics


def documented():
    """{file: names in the first column of its table} of metrics.md."""
    found = {}
    for section in TEXTS["metrics.md"].split("\n## ")[1:]:
        title, *lines = section.splitlines()
        names = []
        for line in lines:
            if line.startswith("| `"):
                names += re.findall("`([^`]+)`", line.split("|")[1])
        assert len(set(names)) == len(names)
        found[re.match("`([^`]+)`", title)[1]] = names
    return found


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """{file: its columns, or keys} of one run and everything that the reports add to it."""
    folder = tmp_path_factory.mktemp("docs")
    argv = small_task(folder) + ["--output", str(folder / "runs"), "--predict"]
    with pytest.MonkeyPatch.context() as patch:
        for where, what, function in variants.CHANGES["conflict-groups"]:
            patch.setattr(where, what, function)
        assert call(*argv, "--method", "acl-cl") == 0
    run = folder / "runs" / "mine_acl-cl_1"
    (folder / "FILE.tsv").write_text("first\tsecond\nanna\tboris\n")
    report = exits_command.main
    assert report([str(run), "--examples", "--clock"]) == 0
    assert report([str(run), "--predict", str(folder / "FILE.tsv")]) == 0

    files = [*run.iterdir(), folder / "FILE_predictions.tsv"]
    found = {}
    for path in files:
        if path.suffix in (".csv", ".tsv"):
            separator = "," if path.suffix == ".csv" else "\t"
            found[path.name] = path.read_text().splitlines()[0].split(separator)
        if path.suffix == ".json":
            found[path.name] = list(read_json(path))
    return found


def test_every_file_is_documented(written):
    theirs = {"mine.tsv" if name == "RTE.tsv" else name for name in documented()}
    assert theirs == set(written)


@pytest.mark.parametrize("name", documented())
def test_columns_are_those_that_are_written(name, written):
    columns = set(written["mine.tsv" if name == "RTE.tsv" else name])
    listed = set(documented()[name])
    if name in ("examples.tsv", "FILE_predictions.tsv"):
        columns -= {"first", "second"}  # the data's own
    if name == "exits.csv":
        assert set(glue.METRICS) <= listed
        columns |= set(glue.METRICS)  # each task has some of them
    assert listed == columns


def test_committed_runs_have_no_other_columns():
    for name in ("steps.csv", "exits.csv", "tradeoff.csv", "clock.csv", "groups.csv"):
        paths = list((ROOT / "results" / "runs").rglob(name))
        assert paths
        for path in paths:
            with open(path, encoding="utf-8") as file:
                columns = file.readline().strip().split(",")
            assert set(columns) <= set(documented()[name]), path
    for name in ("config.json", "result.json"):
        for path in (ROOT / "results" / "runs").rglob(name):
            for key in set(read_json(path)) - set(documented()[name]):
                assert f"`{key}`" in TEXTS["metrics.md"].split("Committed runs")[1], path
