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
RUNS = DATA.runs.fillna({"setting": ""}).to_dict("records")
ROWS = {kind: dict(list(getattr(DATA, kind).groupby("run"))) for kind in ("tradeoff", "exits")}
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # by the number of differences


def cells_of(text):
    """{(title, caption, row, column): cell} of the tables in a Markdown text; no empty cells."""
    cells = {}
    title = caption = header = None
    for line in text.splitlines():
        if line.startswith("### "):
            title = line[4:]
        elif line.startswith("|"):
            row = [cell.strip() for cell in line[1:-1].split("|")]
            header = header or row
            name = re.sub(r" \(\d\)$", "", row[0])  # without the number of seeds
            for column, cell in zip(header, row):
                if column and cell and name not in ("", "---"):
                    cells[title, caption, name, column] = cell
        elif line:
            caption, header = line, None
    return cells


CELLS = cells_of((ROOT / "results" / "tables.md").read_text(encoding="utf-8"))


def measure(run, name):
    """A run's number for a table, from its rows of the packed files."""
    scores = run["exit_scores"]
    if name.startswith("exit "):
        return scores[run["exit_layers"].index(int(name[5:]))]
    if name in ("shallow", "Mean over the lower half of the exits"):
        return statistics.mean(scores[:max(1, len(scores) // 2)])
    if name.startswith("Score at twice"):
        return at_speedup(ROWS["tradeoff"][run["run"]], "entropy", 2).score
    if name == "over epochs":
        rows = ROWS["exits"][run["run"]]
        return rows[rows.exit_layer == run["exit_layers"][-1]].accuracy.mean()
    return scores[-1] if name in ("deepest", "score") else statistics.mean(scores)


def values(block, task, name, of):
    """{seed: number}; of the task "all" means over the block's tasks, where none is missing."""
    tasks = {run["task"] for run in RUNS if run["block"] == block} if task == "all" else [task]
    found = {}
    for run in RUNS:
        words = [run["method"], *filter(None, run["setting"].split("_"))]
        if (run["block"], ", ".join(words)) == (block, name) and run["task"] in tasks:
            found.setdefault(run["seed"], []).append(measure(run, of))
    return {seed: statistics.mean(v) for seed, v in found.items() if len(v) == len(tasks)}


def mean_sd(numbers):
    sd = f"±{statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{sd}"


def interval(ours, theirs):
    """Mean and 95 % t-interval of the differences over the common seeds."""
    d = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    cell = f"{statistics.mean(d):+.2f}"
    if len(d) > 1:
        half = T[len(d)] * statistics.stdev(d) / len(d) ** 0.5
        cell += f" [{statistics.mean(d) - half:.2f}, {statistics.mean(d) + half:.2f}]"
    return cell


def expected(block, caption, row, column):
    """A cell of any table of scores or differences, or None where it is of another kind."""
    if row == "majority class":
        return None
    if caption.startswith("**") and column in ("mean", "shallow", "deepest", "score",
                                               "over epochs") or column.startswith("exit "):
        return mean_sd(list(values(block, caption.split("**")[1], row, column).values()))
    if caption.startswith("Score at twice") and caption.endswith("entropy:"):
        return mean_sd(list(values(block, column, row, caption).values()))
    if ", difference to " not in caption:
        return None
    of, to = caption.rstrip(":").split(", difference to ")
    beside = {"ablate": "multi_lr1e-4", "tries": "tries"}.get(block, block.split("_")[0])
    if block in ("mpnet_cpu", "multi_lr1e-4"):
        beside = block
    other = row if to.startswith("the same") else to.strip("`")
    return interval(values(block, column, row, of), values(beside, column, other, of))


@pytest.mark.parametrize("block", tables.BLOCKS)
def test_scores_and_differences(block):
    """Every mean, sd and t-interval over seeds, but for those that the tests below look at."""
    checked = 0
    for (title, caption, row, column), cell in CELLS.items():
        if title == tables.BLOCKS[block][0] and block not in ("speeds", "geometry"):
            want = expected(block, caption, row, column)
            assert want in (cell, None), (caption, row, column)
            checked += want is not None
    assert checked or block in ("speeds", "geometry", "tune", "tune_vanilla")


def of(start):
    """The runs whose name starts so."""
    return [run for run in RUNS if run["run"].startswith(start)]


def test_cells_of_other_kinds():
    """Early exit, geometry, conflicts, tuning: each from the packed rows of its runs."""
    runs = of("multi/mrpc_acl-cl")
    at = [at_speedup(ROWS["tradeoff"][run["run"]], "patience", 1.5) for run in runs]
    own = statistics.mean(row.speedup for row in at)  # over 5 % more than 1.5
    twice = [100 * measure(run, "Score at twice") / run["score"] for run in runs]
    clock = DATA.clock.set_index(["run", "batch_size"]).clocked
    last = [ROWS["exits"][run["run"]].iloc[-1].label_cosine for run in runs]
    shares = [run["conflict_share"] for run in of("gate/weigh/rte_scl")]
    kept = [run["kept"] for run in of("gate/weigh/rte_scl")]
    tuned = [run["mean_exit_score"] for run in of("tune/lr2e-4/") if run["method"] == "kd"]
    speeds = ("Early exit, every rule", "**mrpc**, 5 seeds")
    gate = (tables.BLOCKS["gate"][0], "**rte**")
    tuning = ("Tuning", "Mean over exits:")
    for key, want in {
        (*speeds, "patience, acl-cl", "1.5x"): f"{mean_sd([r.score for r in at])} ({own:.2f}x)",
        (*speeds, "patience, acl-cl", "3x"): "-",
        (*speeds, "entropy, acl-cl", "% of full, 2x"): mean_sd(twice),
        (*speeds, "entropy, acl-cl", "clocked"): f"{clock['multi/mrpc_acl-cl_3', 32]:.2f}x",
        ("Did it align?", "Mean over seeds:", "mrpc, acl-cl", "label cosine, deepest"):
            f"{statistics.mean(last):.2f}",
        (*gate, "scl, weigh", "conflicts (kept)"):
            f"{100 * statistics.mean(shares):.0f} % ({100 * statistics.mean(kept):.0f} %)",
        (*tuning, "kd, lr2e-4", "all"): f"{statistics.mean(tuned):.2f}",
        (*tuning, "ce, lr5e-5", "all"): "58.38",  # without rte
    }.items():
        assert CELLS[key] == want


def test_the_committed_tables_are_what_the_script_makes(tmp_path, monkeypatch, capsys):
    """Written between the markers; no table has more than eight columns."""
    committed = {}
    (tmp_path / "results").mkdir()
    for page in ("results/tables.md", "README.md"):
        committed[page] = (ROOT / page).read_text(encoding="utf-8")
        above, lines = committed[page].split(tables.BEGIN)
        lines, below = lines.split(tables.END)
        assert max(line.count("|") for line in lines.splitlines()) <= 9
        (tmp_path / page).write_text(f"{above}{tables.BEGIN}old\n{tables.END}{below}")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert answer(capsys, tables.main, "--write")[0] == 0
    for page, text in committed.items():
        assert (tmp_path / page).read_text(encoding="utf-8") == text


def test_the_summary():
    """Means over all tasks and exits, seed by seed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(tables.BEGIN)[1]
    cells = {key[2:]: cell for key, cell in cells_of("### \n" + text).items()}
    for column, block in (("six exits", "multi"), ("one exit", "vanilla")):
        ours, ce = (values(block, "all", name, "mean") for name in ("acl-grad", "ce"))
        assert cells["acl-grad", column] == interval(ours, ce)
        assert cells["ce", column] == mean_sd(list(ce.values()))


def test_the_majority_class_is_glues():
    """RTE 146 of 277, MRPC 279 of 408, SST-2 444 of 872; a constant has no correlation."""
    known = {"rte": 146 / 277, "mrpc": 279 / 408, "sst2": 444 / 872, "cola": 0}
    for run in of("multi/"):
        assert run["majority_score"] == pytest.approx(100 * known[run["task"]])


@pytest.mark.parametrize("argv, word", [
    (["--block", "nothing"], "nothing"),
    (["--packed", "nowhere"], "nowhere/runs.csv is missing"),
])
def test_bad_input(argv, word, capsys):
    """One line and status 2."""
    status, _, error = answer(capsys, tables.main, *argv)
    assert status == 2 and word in error and error.count("\n") == 1
