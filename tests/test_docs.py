"""The pages say what the code does: numbers, names, options, columns, and code to paste."""

import copy
import doctest
import json
import pydoc
import re
import sys
import types
from pathlib import Path

import pandas
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import acl
import exercises
import glue
import train
from benchmarks import surgery
from results import run as results_run
from results import variants
from tests.small import answer, call, make_run, small_batch, small_model, small_task
from tools import predict, report, run, tradeoff

torch.set_num_threads(1)

PAGES = ["docs/walkthrough.md", "docs/coursework.md", "docs/metrics.md", "docs/details.md",
         "docs/recipes.md", "benchmarks/README.md"]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
COURSEWORK = TEXTS["docs/coursework.md"]


def blocks(start):
    """The blocks of code of coursework.md that start with the comment `# start`."""
    found = re.findall(r"```python\n(.*?)```", COURSEWORK, flags=re.DOTALL)
    return [block for block in found if block.startswith(f"# {start}")]


# ------------------------------------------------------------------- names and numbers


def test_walkthrough_runs():
    path = str(ROOT / "docs/walkthrough.md")
    result = doctest.testfile(path, module_relative=False, encoding="utf-8")
    assert result.attempted > 50
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page, capsys):
    """`train.second_loss`, tools/processes.py, [a link](metrics.md), --options, commands."""
    text = TEXTS[page]
    prose = re.sub("```.*?```", "", text, flags=re.DOTALL)
    for name in re.findall(r"`((?:acl|exits|glue|grad_surgery|train|tools)\.[\w.]+)`", prose):
        assert name.endswith((".py", ".csv")) or pydoc.locate(name), name
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for file in set(re.findall(r"\w[\w/]*\.py\b", text)) - {"change.py", "watch.py"}:
        assert list(ROOT.rglob(file)), file
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert pydoc.locate(module), module

    helps = [answer(capsys, main, "--help")[1] for main in (
        train.main, report.main, predict.main, results_run.main, surgery.main
    )]
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help", "--nproc-per-node"}
    assert options <= set(re.findall("--[a-z][a-z-]*", "".join(helps)))


def test_measured_rows_are_those_of_the_tables():
    tables = (ROOT / "results/tables.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in COURSEWORK.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert set(rows) <= set(tables)


@pytest.mark.parametrize("start, group, number", [
    ("when they conflict", "1", "0.397"),
    ("when they conflict", "2", "0.026"),
    ("where they conflict", "embeddings", "0.14"),
    ("where they conflict", "layer 6", "0.44"),
])
def test_snippets_print_the_numbers_beside_them(start, group, number, capsys, monkeypatch):
    [snippet] = blocks(start)
    monkeypatch.chdir(ROOT)
    exec(snippet, {})
    printed = capsys.readouterr().out
    assert re.search(rf"^{group} +{number}", printed, flags=re.MULTILINE)
    assert f"{100 * float(number):g} %" in COURSEWORK


# ----------------------------------------------------------------------- changes to paste


def changes():
    """{function: (what it stands in for, source)} of the blocks `# in place of ..`."""
    found = {}
    for block in blocks("in place of "):
        place = re.match(r"# in place of ([\w.]+)\n", block)[1]
        found[re.search(r"def (\w+)\(", block)[1]] = (place, block)
    return found


def template():
    """The lines of change.py: (imports, the rest)."""
    [block] = blocks("python change.py")
    imports, _, rest = block.partition("# the exercise's function here")
    return imports, rest.partition("\n")[2]


def step(method):
    """Gradients of one training step, with whatever stands in the modules now."""
    model = small_model(dropout=0.0)
    model.run = types.SimpleNamespace(logs={"steps.csv": []})  # warm_up in variants.py looks there
    batch = small_batch(6, 9) | {"label": torch.tensor([0, 1, 1, 0, 1, 0])}
    options = "--task rte --exits all --conflict none --method"
    [args] = train.parse_args([*options.split(), method])
    train.training_step(args, model, batch, bf16=False)
    return torch.nn.utils.parameters_to_vector(p.grad for p in model.parameters())


@pytest.mark.parametrize("name", changes())
def test_a_change_does_what_the_tested_one_does(name, monkeypatch):
    place, block = changes()[name]
    owner, _, replaced = place.rpartition(".")
    method = "acl-embed" if name == "detached" else "acl-cl"
    before = step(method)

    space = {}
    exec(template()[0] + block, space)
    monkeypatch.setattr(pydoc.locate(owner), replaced, space[name])
    pasted = step(method)
    monkeypatch.undo()

    where, what, function = variants.CHANGES[name.replace("_", "-")][0]
    monkeypatch.setattr(where, what, function)
    torch.testing.assert_close(step(method), pasted, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before, pasted, atol=1e-4)


def test_a_change_in_a_file_of_its_own(tmp_path, monkeypatch):
    """change.py as shown, with the function put in: a whole run."""
    imports, rest = template()
    options = small_task(tmp_path) + ["--method", "acl-embed", "--output", str(tmp_path)]
    monkeypatch.setattr(acl, "acl_embed_loss", acl.acl_embed_loss)  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["change.py", *options])
    space = {}
    exec(imports + changes()["detached"][1] + rest, space)
    assert acl.acl_embed_loss is space["detached"]
    config = json.loads((tmp_path / "mine_acl-embed_1/config.json").read_text())
    assert config["change"] == "detached"


def test_a_run_is_watched_elsewhere(tmp_path, monkeypatch):
    """watch.py as shown sends the numbers of steps.csv."""
    [watch] = blocks("python watch.py")
    sent = []
    wandb = types.SimpleNamespace(init=lambda project: None, log=sent.append)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(run.Run, "log_step", run.Run.log_step)  # put back afterwards
    argv = small_task(tmp_path) + ["--output", str(tmp_path), "--method", "acl-cl"]
    monkeypatch.setattr(sys, "argv", ["watch.py", *argv])
    exec(watch, {})
    logged = pandas.read_csv(tmp_path / "mine_acl-cl_1/steps.csv")
    assert [row["step"] for row in sent] == logged.step.tolist()
    assert list(sent[0]) == list(logged)


# ------------------------------------------------------- the exercises, and their solutions


def gate_per_group(ce_loss, acl_loss, groups, weight):
    for group in groups:
        g_ce = torch.autograd.grad(ce_loss, group, retain_graph=True)
        g_acl = torch.autograd.grad(acl_loss, group, retain_graph=True)
        dot = sum((a * b).sum() for a, b in zip(g_ce, g_acl))
        for p, a, b in zip(group, g_ce, g_acl):
            p.grad = a + weight * b if dot >= 0 else a


def gate_for_all(ce_loss, acl_loss, groups, weight):
    gate_per_group(ce_loss, acl_loss, [sum(groups, [])], weight)


def deeper_teachers(args, h, label_embeddings, logits, labels):
    losses = acl.acl_embed_loss(h, labels, label_embeddings, args.temperature)
    for m in range(len(h) - 1):
        deeper = range(m + 1, len(h))
        for t in deeper:
            keys = (h[t], labels, label_embeddings[t])
            losses[m] += acl.acl_cl_loss(h[m], *keys, args.temperature) / len(deeper)
    return losses


def projected_losses(args, model, h, logits, labels):
    projected = copy.copy(model)
    l = model.projection(model.label_embeddings())
    projected.label_embeddings = lambda: l
    return train.losses(args, projected, model.projection(h), logits, labels)


def nearest(h, label_embeddings, threshold):
    cosines = acl.unit(h) @ acl.unit(label_embeddings).T
    return cosines.amax(dim=1) >= threshold


def nearest_by_product(h, label_embeddings, threshold):
    return (h @ label_embeddings.T).amax(dim=1) >= threshold


@pytest.mark.parametrize("name, solution, wrong", [
    ("gate_per_group", gate_per_group, gate_for_all),
    ("deeper_teachers", deeper_teachers, train.second_loss),
    ("projected_losses", projected_losses, train.losses),
    ("nearest", nearest, nearest_by_product),
])
def test_solutions_pass_and_what_is_wrong_does_not(name, solution, wrong, monkeypatch):
    check = getattr(exercises, f"test_{name}")
    assert f"`{name}`" in COURSEWORK
    with pytest.raises(NotImplementedError):
        check()
    monkeypatch.setattr(exercises, name, solution)
    check()
    monkeypatch.setattr(exercises, name, wrong)
    with pytest.raises((AssertionError, RuntimeError)):
        check()


# ----------------------------------------------------------------------------- metrics


def documented():
    """{file: names in the first column of its table} of metrics.md."""
    found = {}
    for section in TEXTS["docs/metrics.md"].split("\n## ")[1:]:
        title, *lines = section.splitlines()
        names = set()
        for line in lines:
            if line.startswith("| `"):
                names |= set(re.findall("`([^`]+)`", line.split("|")[1]))
        found[title.replace("`", "").replace(" and so on", "")] = names
    return found


def columns(path):
    """The columns of a table, or the keys of a .json."""
    if path.suffix == ".json":
        return set(json.loads(path.read_text()))
    return set(pandas.read_csv(path, sep="\t" if path.suffix == ".tsv" else ","))


def test_columns_are_those_that_are_written(tmp_path):
    """One run, everything that the reports add to it, and the packed runs."""
    folder = make_run(tmp_path, "acl-cl", "--predict")
    (tmp_path / "FILE.csv").write_text("first,second\nanna,boris\n")
    assert call(report.main, folder, "--examples", "--clock") == 0
    assert call(predict.main, folder, tmp_path / "FILE.csv") == 0

    texts = {"first", "second"}  # the data's own columns
    answers = tmp_path / "FILE_predictions.tsv"
    written = {path.name: columns(path) - texts for path in [answers, *folder.glob("*.?s*")]}
    written["RTE.tsv"] = written.pop("mine.tsv")
    written["exits.csv"] |= set(glue.METRICS)  # each task has some of them
    trade_off = tradeoff.trade_off(torch.randn(3, 5, 2), torch.tensor([0, 1, 1, 0, 1]), [1, 2, 3],
                                   "accuracy")
    written["The trade-off"] = set(trade_off)
    packed = {}
    for name in ("steps", "exits", "groups"):
        packed[name] = set(pandas.read_parquet(ROOT / f"results/{name}.parquet")) - {"run"}
    written["groups.csv"] = packed["groups"]

    listed = documented()
    of_packed_runs = listed.pop("results/runs.csv")
    assert listed == written
    assert packed["steps"] == listed["steps.csv"]
    assert packed["exits"] <= listed["exits.csv"]
    known = listed["config.json"] | listed["result.json"] | of_packed_runs
    assert columns(ROOT / "results/runs.csv") <= known
