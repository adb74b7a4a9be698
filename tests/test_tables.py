"""results/tables.py: the committed tables' numbers from the packed files, a cell at a time."""

import re
import statistics
from pathlib import Path

import pytest

from results import packed, tables
from tests.small import answer
from tools.tradeoff import at_speedup

ROOT = Path(__file__).resolve().parents[1]
DATA = packed.read()
FRAME = tables.frame_of(DATA)
ROWS = {kind: dict(list(DATA[kind].groupby("run"))) for kind in ("tradeoff", "exits")}
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # by the number of differences

# {(block, name in the tables): runs}
RUNS = {}
for record in DATA["runs"].fillna({"setting": ""}).to_dict("records"):
    words = [record["method"], *filter(None, record["setting"].split("_"))]
    RUNS.setdefault((record["block"], ", ".join(words)), []).append(record)


def cells_of(lines):
    """{(caption, row, column): cell} of the tables among Markdown lines; no empty cells."""
    cells = {}
    caption = header = None
    for line in lines:
        if line.startswith("|"):
            row = [cell.strip() for cell in line[1:-1].split("|")]
            header = header or row
            name = re.sub(r" \(\d\)$", "", row[0])  # without the number of seeds
            for column, cell in zip(header, row):
                if column and cell and name not in ("", "---"):
                    cells[caption, name, column] = cell
        elif line:
            caption, header = line, None
    return cells


def committed(page):
    """The lines that the script wrote into a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(tables.BEGIN)[1].split(tables.END)[0].splitlines()


def measure(run, what):
    """A run's number for a table, from its rows of the packed files."""
    scores = run["exit_scores"]
    if what.startswith("exit "):
        return scores[run["exit_layers"].index(int(what[5:]))]
    if what == "half":
        return statistics.mean(scores[:len(scores) // 2])
    if what == "2x":
        return at_speedup(ROWS["tradeoff"][run["run"]], "entropy", 2).score
    if what == "over epochs":
        rows = ROWS["exits"][run["run"]]
        return rows[rows.exit_layer == run["exit_layers"][-1]].accuracy.mean()
    shares = {"% conflicts": "conflict_share", "% kept": "kept"}
    return 100 * run[shares[what]] if what in shares else statistics.mean(scores)


def tasks_of(block, task):
    """[task], or for the task "all" those on which each of a block's methods was trained."""
    if task != "all":
        return [task]
    runs = [run for key, runs in RUNS.items() if key[0] == block for run in runs]
    trained = {(run["task"], run["method"]) for run in runs}
    methods = {method for _, method in trained}
    return {task for task, _ in trained if {(task, m) for m in methods} <= trained}


def values(block, tasks, name, what, exits=None):
    """{seed: mean over the tasks}, where none is missing.  exits: only runs with so many."""
    found = {}
    for run in RUNS.get((block, name), []):
        if run["task"] in tasks and exits in (None, len(run["exit_layers"])):
            found.setdefault(run["seed"], []).append(measure(run, what))
    return {seed: statistics.mean(v) for seed, v in found.items() if len(v) == len(tasks)}


def mean_sd(numbers):
    """What a cell like 71.3±0.8 shows; of one value the mean alone."""
    numbers = list(numbers)
    return [statistics.mean(numbers), *([statistics.stdev(numbers)] if len(numbers) > 1 else [])]


def interval(ours, theirs):
    """Of the differences over the common seeds: their mean and the ends of the 95 % t-interval."""
    d = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    middle = statistics.mean(d)
    if len(d) == 1:
        return [middle]
    half = T[len(d)] * statistics.stdev(d) / len(d) ** 0.5
    return [middle, middle - half, middle + half]


def shows(cell, numbers):
    """Whether a cell shows these numbers, rounded."""
    shown = re.findall(r"(?<!\d)[+-]?\d+\.\d+", cell)
    tolerance = 0.501 * 0.1 ** len(shown[0].split(".")[1])
    return [float(word) for word in shown] == pytest.approx(numbers, abs=tolerance)


def difference(block, tasks, row, what, to):
    """The interval of a difference to `ce` or to the same method."""
    shown = tables.BLOCKS[block]
    method, *setting = row.split(", ")
    theirs = {}
    exits = len(RUNS[block, row][0]["exit_layers"])
    for words in [word.split("_") for word in shown.unchanged] or [setting]:
        name = ", ".join(filter(None, ["ce" if to == "`ce`" else method, *words]))
        has_own = to == "`ce`" and (block, name) in RUNS
        there = block if has_own else shown.beside or block
        assert (there, name) != (block, row)  # nothing is compared with itself
        theirs |= values(there, tasks, name, what, exits)
    return interval(values(block, tasks, row, what), theirs)


@pytest.mark.parametrize("block", tables.BLOCKS)
def test_every_cell(block):
    """Scores, what the gate did, differences: means, sd and t-intervals over seeds."""
    titles = {title: what for what, title in tables.MEASURES.items()}
    cells = cells_of(tables.text_of(block, FRAME).splitlines())
    for (caption, row, column), cell in cells.items():
        if caption.startswith("**"):
            tasks = tasks_of(block, caption.split("**")[1])
            numbers = mean_sd(values(block, tasks, row, column).values())
        else:
            title, to = caption.rstrip(":").split(", difference to ")
            numbers = difference(block, tasks_of(block, column), row, titles[title], to)
        assert shows(cell, numbers), (caption, row, column)


@pytest.mark.parametrize("block, caption, row, column, cell", [
    ("tune", "**all**, majority class 42.0", "ce, lr5e-5", "mean", "58.4"),  # without rte
    ("gate", "**rte**, majority class 52.7", "scl, weigh", "% kept", "4.8±0.9"),
    ("gate", "Mean over the epochs of the deepest exit's score, difference to `ce`:",
     "acl-cl, discard", "demo", "-6.90 [-10.20, -3.60]"),
    ("tries", "Mean over exits, difference to `ce`:", "acl-cl, depth", "cola",
     "+1.30 [0.54, 2.06]"),
    ("multi_best-teacher", "Mean over exits, difference to the same method, unchanged:",
     "acl-cl", "rte", "-0.26 [-0.49, -0.03]"),
])
def test_numbers_of_the_pages(block, caption, row, column, cell):
    cells = cells_of(tables.text_of(block, FRAME).splitlines())
    assert cells[caption, row, column] == cell


def test_the_committed_tables_are_what_the_script_makes(tmp_path, monkeypatch, capsys):
    """Written between the markers; no table has more than ten columns."""
    (tmp_path / "results").mkdir()
    pages = ("results/tables.md", "README.md")
    for page in pages:
        assert max(line.count("|") for line in committed(page)) <= 11
        (tmp_path / page).write_text(f"above{tables.BEGIN}old\n{tables.END}below")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert answer(capsys, tables.main, "--write")[0] == 0
    for page in pages:
        text = "\n".join(committed(page))
        assert (tmp_path / page).read_text(encoding="utf-8") == (
            f"above{tables.BEGIN}{text}\n{tables.END}below"
        )


def test_the_summary():
    """Means over all tasks and exits, seed by seed."""
    cells = {key[1:]: cell for key, cell in cells_of(committed("README.md")).items()}
    for column, block in (("six exits", "multi"), ("one exit", "vanilla")):
        tasks = tasks_of(block, "all")
        ours, ce = (values(block, tasks, name, "mean") for name in ("acl-grad", "ce"))
        assert shows(cells["acl-grad", column], interval(ours, ce))
        assert shows(cells["ce", column], mean_sd(ce.values()))


@pytest.mark.parametrize("argv, word", [
    (["--block", "nothing"], "nothing"),
    (["--packed", "nowhere"], "nowhere/runs.csv is missing"),
])
def test_bad_input(argv, word, capsys):
    """One line and status 2."""
    status, _, error = answer(capsys, tables.main, *argv)
    assert status == 2 and word in error and error.count("\n") == 1
