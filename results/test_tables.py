"""Tests of tables.py: cells by hand, shapes, run folders of one's own, and README's tables."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from results import tables
from tools.testing import run_main

ROOT = Path(__file__).resolve().parents[1]


def run(task, method, seed, *scores):
    """A run as read_run gives it, as far as the cells need it."""
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "exit_scores": list(scores),
        "exit_layers": list(range(1, len(scores) + 1)),
        "mean_exit_score": sum(scores) / len(scores),
        "shallow": scores[0],
        "twice": scores[-1],
        "majority": 50.0 if task == "rte" else 68.0,
    }


RUNS = [
    run("rte", "ce", 1, 50, 60),
    run("mrpc", "ce", 1, 70, 80),
    run("rte", "ce", 2, 52, 62),
    run("mrpc", "ce", 2, 70, 80),
    run("rte", "kd", 1, 52, 60),
    run("mrpc", "kd", 1, 72, 84),
    run("rte", "kd", 2, 52, 66),
]


def write_run(folder, task, method, seed, scores, **config):
    """The small files of a finished run, without a trade-off."""
    folder = folder / f"{task}_{method}_{seed}"
    folder.mkdir(parents=True)
    layers = list(range(1, len(scores) + 1))
    result = run(task, method, seed, *scores)
    result |= {"metric": "accuracy", "score": scores[-1], "dev": {"dev": {}},
               "conflict_share": 0.25 if method == "acl-grad" else None,
               "kept": 0.75 if method == "acl-grad" else None}
    for name in ("shallow", "twice", "majority"):
        del result[name]
    config = {"task": task, "method": method, "seed": seed, "model": "/x/minilm", "lr": 1e-4,
              "weight": 0.1, "temperature": 0.5, "limit_train": None, "holdout": None,
              "num_labels": 2, "exit_layers": layers, **config}
    rows = [f"1,dev,{layer},{score},0.1,0.2,-0.3" for layer, score in zip(layers, scores)]
    header = "epoch,split,exit_layer,accuracy,label_cosine,alignment,uniformity"
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "exits.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def printed(capsys, *argv):
    capsys.readouterr()
    assert tables.main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


def columns_of(text):
    """The number of columns of every table row in a Markdown text."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [line.count("|") - 1 for line in rows]


# ------------------------------------------------------------------------------ the cells


def test_means_over_tasks_by_hand():
    """Seed by seed, and only where no task is missing."""
    means = tables.averaged(RUNS)
    ce, kd = (tables.select(means, method=method) for method in ("ce", "kd"))
    assert [mean["exit_scores"] for mean in ce] == [[60, 70], [61, 71]]
    assert [mean["twice"] for mean in ce] == [70, 71] and ce[0]["majority"] == 59
    assert [(m["seed"], m["shallow"], m["mean_exit_score"]) for m in kd] == [(1, 62, 67)]
    assert tables.averaged(tables.select(RUNS, task="rte")) == []  # nothing to average


def test_differences_by_hand():
    means = tables.averaged(RUNS)
    ce, kd = (tables.select(means, method=method) for method in ("ce", "kd"))
    assert tables.difference(kd, ce, "shallow") == "+2.00"

    # Differences 1 and 2: mean 1.5, sd 0.7071, standard error 0.5, t(1) 12.706.
    ce, kd = (tables.select(RUNS, task="rte", method=method) for method in ("ce", "kd"))
    assert tables.difference(kd, ce, "mean_exit_score") == "+1.50 [-4.85, 7.85]"
    assert tables.difference(ce, ce, "shallow") == ""
    assert tables.difference(kd, ce[:1], "shallow") == "+2.00 (1 common)"
    assert tables.difference(kd, [], "shallow") == ""


def test_cells_by_hand():
    assert tables.show([1.0, 3.0]) == "2.0±1.4" and tables.show([]) == ""
    assert tables.show([1.0, None]) == "-"
    some = [{"kept": 0.5, "conflict_share": 0.1}, {"kept": None, "conflict_share": None}]
    assert tables.conflicts(some) == "10 % (50 %)" and tables.conflicts(some[1:]) == ""
    clock = [{"rule": "entropy", "batch_size": size, "clocked": clocked}
             for size, clocked in (("1", "9"), ("32", "1.5"), ("32", "2.5"))]
    assert tables.clocked([{"clock": clock}], "entropy") == "2.00x"
    assert tables.clocked([{"clock": clock}], "patience") == ""


def test_speeds_by_hand():
    """The slowest setting at least that fast; its own speed-up where that is over 5 % more."""
    def with_rows(score, *rows):
        rows = [{"rule": "entropy", "speedup": speed, "score": s} for speed, s in rows]
        return {"tradeoff": rows, "score": score}

    runs = [with_rows(80, (1.2, 79), (2.02, 72), (3.5, 60)), with_rows(100, (2.0, 90), (4.5, 50))]
    assert tables.at_speed(runs, "entropy", 2) == "81.0±12.7"
    assert tables.at_speed(runs, "entropy", 3) == "55.0±7.1 (4.00x)"
    assert tables.at_speed(runs, "entropy", 4) == "-"
    assert tables.kept_at(runs, "entropy", 2) == "90.0±0.0"
    assert tables.kept_at([with_rows(0, (2, 5))], "entropy", 2) == "-"  # no share of nothing


def test_tuning_chooses_the_setting_first_then_each_tasks_rate():
    a, b = (1e-4, 0.1, 0.5), (1e-4, 0.5, 0.5)
    scores = {
        a: {"rte": 50, "mrpc": 70, "all": 60},
        b: {"rte": 54, "mrpc": 68, "all": 61},
        (2e-4, 0.5, 0.5): {"rte": 53, "mrpc": 69},
        (2e-4, 0.1, 0.5): {"rte": 99, "mrpc": 99, "all": 99},  # not the setting chosen
    }
    chosen = tables.choose(scores, ["rte", "mrpc"])
    assert chosen == {(b, "all"), (b, "rte"), ((2e-4, 0.5, 0.5), "mrpc")}


# --------------------------------------------------------------------------- whole tables


def test_committed_tables(capsys):
    """Everything there is, in one call: README's text, at most eight columns, the majority class
    in every table of exits."""
    text = printed(capsys)
    readme = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert f"<!-- results -->\n{text}<!-- /results -->\n" in readme
    assert max(columns_of(text)) <= 8 and max(columns_of(readme)) <= 8
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|  | exit "):
            assert lines[number + 2].startswith("| majority class | "), line
    for run_folder in (ROOT / "results" / "runs").rglob("result.json"):
        block = run_folder.relative_to(ROOT / "results" / "runs").parts[0]
        assert block in tables.BLOCKS, block


def test_readmes_table(capsys):
    text = printed(capsys, "--block", "summary")
    assert 0 < max(columns_of(text)) <= 7
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- results -->\n{text}<!-- /results -->\n" in readme


def test_the_summary_of_a_task_that_is_begun(tmp_path, capsys):
    """mrpc has one seed: scores and differences are of rte, which has three."""
    for task, seeds in (("rte", (1, 2, 3)), ("mrpc", (1,))):
        for seed in seeds:
            for method, more in (("ce", 0), ("acl-cl", seed)):
                scores = [53 + more + layer for layer in range(12)]
                write_run(tmp_path / "mpnet", task, method, seed, scores, model="/y/mpnet")
                write_run(tmp_path / "multi", task, method, seed, scores[:6])
    text = printed(capsys, "--runs", tmp_path, "--block", "summary")
    assert "| ce |  | 55.5±0.0 | 58.5±0.0 |" in text
    assert "| acl-cl |  | +2.00 [-0.48, 4.48] | +2.00 [-0.48, 4.48] |" in text
    assert "**all**" not in printed(capsys, "--runs", tmp_path, "--block", "mpnet")


def test_the_summary_is_of_the_means_over_tasks(tmp_path, capsys):
    """Seed by seed: ce 55 and 65, 60 and 70; scl is 2 above it on one task, 4 below on another."""
    for seed in (1, 2):
        for task, more in (("rte", 2), ("mrpc", -4)):
            score = 50 + 5 * seed + 10 * (task == "mrpc")
            write_run(tmp_path / "vanilla", task, "ce", seed, [score])
            write_run(tmp_path / "vanilla", task, "scl", seed, [score + more])
    text = printed(capsys, "--runs", tmp_path, "--block", "summary")
    assert "| ce | 62.5±3.5 |  |  |" in text
    assert "| scl | -1.00 [-1.00, -1.00] |  |  |" in text
    assert "| majority class | 60.5 |  |  |" in text  # of rte's 52.7 and mrpc's 68.4


def test_twelve_exits_take_two_tables(tmp_path, capsys):
    """The base-size encoder: 12 exits and a mean, majority class in both parts."""
    for seed in (1, 2, 3):
        for method, more in (("ce", 0), ("acl-cl", 1), ("kd", seed)):
            scores = [53 + more + layer for layer in range(12)]
            write_run(tmp_path / "mpnet", "rte", method, seed, scores, model="/y/mpnet")
    text = printed(capsys, "--runs", tmp_path, "--block", "mpnet")
    assert max(columns_of(text)) <= 8
    assert text.count("| majority class | 52.7 |") == 2
    deeper = [61, 62, 63, 64, 65, 59.5]  # exits 8 to 12, and the mean of all
    assert "| acl-cl (3) | " + " | ".join(f"{score:.1f}±0.0" for score in deeper) + " |" in text
    assert "| acl-cl | +1.00 [1.00, 1.00] | +1.00 [1.00, 1.00] |" in text
    assert "| kd | +2.00 [-0.48, 4.48] |" in text  # 1, 2, 3: standard error 0.577, t(2) 4.303


def test_a_change_stands_beside_the_block_it_changes(tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / "multi", "rte", "ce", seed, [50, 60])
        write_run(tmp_path / "multi", "rte", "acl-cl", seed, [51, 61])
        write_run(tmp_path / "multi_nt-xent", "rte", "acl-cl", seed, [53, 63 + seed])
    text = printed(capsys, "--runs", tmp_path, "--block", "multi_nt-xent")
    to_ce, to_itself = text.split("Difference to the same method there:")
    # Means over exits differ by 3.5 and 4, standard error 0.25, t(1) 12.706.
    assert "| acl-cl | +3.75 [0.57, 6.93] | +3.00 [3.00, 3.00] |" in to_ce
    assert "| acl-cl | +2.75 [-0.43, 5.93] | +2.00 [2.00, 2.00] |" in to_itself


def test_ones_own_runs(tmp_path, capsys):
    """runs/ as train.py leaves it, other depths of folders, any task, several encoders."""
    own = write_run(tmp_path, "mine", "ce", 1, [50, 60], num_labels=5)
    labels = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])
    stored = {"dev.labels": labels, "dev.logits": torch.zeros(2, 8, 5)}
    safetensors.torch.save_file(stored, own / "dev_logits.safetensors")
    write_run(tmp_path, "rte", "acl-grad", 1, [70], model="google-bert/bert-base-uncased")
    write_run(tmp_path / "again", "rte", "ce", 1, [65])
    write_run(tmp_path / "again" / "lr1e-4_wide", "rte", "ce", 1, [66])
    text = printed(capsys, "--runs", tmp_path)
    assert "### Your runs" in text and "#### bert-base-uncased, exits 1" in text
    assert "**mine** (seeds)" in text and "| majority class | 37.5 | 37.5 | 37.5 |" in text
    assert "| acl-grad | 25 % (75 %) |" in text
    assert "### again" in text and "| ce, lr1e-4, wide (1) | 66.0 | 66.0 |" in text


def test_bad_input(tmp_path, capsys):
    """One line and status 2, nothing written."""
    (tmp_path / "empty").mkdir()
    torn = write_run(tmp_path / "torn", "rte", "ce", 1, [50])
    (torn / "config.json").write_text("{")
    foreign = write_run(tmp_path / "foreign", "rte", "ce", 1, [50])
    (foreign / "result.json").write_text("[]")
    logits = write_run(tmp_path / "logits", "rte", "ce", 1, [50])
    (logits / "dev_logits.safetensors").write_text("no")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results -->\n")
    cases = [
        (["--runs", tmp_path / "nowhere"], "no such folder"),
        (["--runs", tmp_path / "empty"], "no finished run"),
        (["--runs", tmp_path / "torn"], "rte_ce_1 is no whole run"),
        (["--runs", tmp_path / "foreign"], "rte_ce_1 is no whole run"),
        (["--runs", tmp_path / "logits"], "rte_ce_1 is no whole run"),
        (["--block", "nothing"], "nothing"),
        (["--block", "few", "--write", readme], "<!-- /results -->"),
        (["--block", "few", "--write", tmp_path / "none.md"], "none.md"),
    ]
    for argv, word in cases:
        status, error = run_main(tables.main, argv, capsys)
        assert status == 2 and word in error and error.count("\n") == 1, (argv, error)
    assert readme.read_text() == "<!-- results -->\n"


def test_write_replaces_what_stands_between_the_markers(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- results -->\nold\n<!-- /results -->\nbelow\n")
    text = printed(capsys, "--block", "few")
    assert tables.main(["--block", "few", "--write", str(readme)]) == 0
    want = f"above\n<!-- results -->\n{text}<!-- /results -->\nbelow\n"
    assert readme.read_text(encoding="utf-8") == want


def test_majority(tmp_path, capsys, monkeypatch):
    """From the data, for every dev split the runs were scored on; the last of the first rows."""
    data = tmp_path / "data" / "RTE"
    data.mkdir(parents=True)
    labels = ["entailment", "not_entailment", "entailment", "entailment", "not_entailment"]
    lines = [f"{i}\tA {i}\tB\t{label}" for i, label in enumerate(labels)]
    for name in ("train", "dev"):
        text = "index\tsentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n"
        (data / f"{name}.tsv").write_text(text)
    write_run(tmp_path / "runs", "rte", "ce", 1, [50])
    write_run(tmp_path / "runs" / "tune", "rte", "ce", 2, [50], limit_train=4, holdout=1)
    monkeypatch.setattr(tables, "MAJORITY", tmp_path / "majority.csv")
    data_root = tmp_path / "data"
    assert tables.main(["--runs", str(tmp_path / "runs"), "--majority", str(data_root)]) == 0
    assert (tmp_path / "majority.csv").read_text() == (
        "task,limit_train,holdout,samples,metric,score\n"
        "rte,,,5,accuracy,60.0000\n"
        "rte,4,1,1,accuracy,100.0000\n"
    )
    assert tables.read_majority() == {("rte", "", ""): 60.0, ("rte", "4", "1"): 100.0}


def test_committed_majority_is_glues():
    """GLUE's dev splits as everybody knows them: RTE 146 of 277, MRPC 279 of 408, SST-2 444 of
    872; a constant answer has no correlation."""
    majority = tables.read_majority()
    known = {"rte": 146 / 277, "mrpc": 279 / 408, "cola": 0}
    for task, share in known.items():
        assert majority[task, "", ""] == pytest.approx(100 * share, abs=1e-3)
    assert majority["sst2", "6000", ""] == pytest.approx(100 * 444 / 872, abs=1e-3)


def test_readme_of_results_names_what_there_is():
    """Files and pictures it links to exist, as do the blocks of its commands."""
    readme = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert (ROOT / "results" / link).exists(), link
    for name in re.findall(r"--block ([a-z_0-9-]+)", readme):
        assert name == "summary" or name in tables.BLOCKS


def test_heads_rate_of_run_sh():
    """The shell function that fills in --head-lr: 20 times --lr, wherever that stands."""
    script = (ROOT / "results" / "run.sh").read_text(encoding="utf-8")
    functions = re.search(r"^scaled\(\).*?^heads_rate\(\).*?^}$", script, re.DOTALL | re.MULTILINE)
    cases = {
        "--exits last --lr 1e-4 --weight 0.5": "--head-lr 0.002",
        "--lr 2e-4": "--head-lr 0.004",
        "--lr 1e-4 --head-lr 1": "",
        "--conflict observe": "",
    }
    for options, expected in cases.items():
        command = f"{functions[0]}\nheads_rate {options}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.stdout.strip() == expected
