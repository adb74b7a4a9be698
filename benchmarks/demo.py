"""The demo's scores over seeds and methods, as two Markdown tables, from finished runs.

    python train.py --task demo --method ce --seeds 1 2 3 4 5 6 7 8 9 10 --output runs/demo
    python benchmarks/demo.py runs/demo/demo_*

The first table has a line for each kind of run, the second one for each run.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.command_line import InputError, Parser, run_command
from tools.files import read_csv, read_json

# The papers' order.
METHODS = ["ce", "scl", "acl-embed", "acl-grad", "acl-cl", "kd"]


def read_run(folder):
    """A finished run of the demo as a dict of what the tables need.  Raises InputError."""
    try:
        result = read_json(folder / "result.json")
        rows = read_csv(folder / "exits.csv")
        config = read_json(folder / "config.json")
    except OSError:
        raise InputError(f"{folder} is no finished run: train it first") from None
    if config["task"] != "demo":
        raise InputError(f"{folder} is a run of {config['task']}, not of the demo")
    deepest = str(result["exit_layers"][-1])
    by_epoch = [float(row["accuracy"]) for row in rows if row["exit_layer"] == deepest]
    return {
        "method": config["method"],
        "seed": config["seed"],
        "by_epoch": by_epoch,
        "by_exit": result["exit_scores"],
        "conflict": result["conflict_share"],
        "seconds": result["seconds"],
    }


def place_of(run):
    """Where a run stands in the tables."""
    return METHODS.index(run["method"]), len(run["by_exit"]), run["seed"]


def numbers(scores):
    """'56.4 61.6 94.4'"""
    return " ".join(f"{score:.1f}" for score in scores)


def print_kinds(runs):
    """A line for each method and number of exits."""
    kinds = {}
    for run in runs:
        kinds.setdefault((run["method"], len(run["by_exit"])), []).append(run)
    print("| method | exits | seeds | deepest, mean | min | first, mean | % in conflict, "
          "mean (min to max) |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for (method, exits), some in kinds.items():
        deepest = [run["by_exit"][-1] for run in some]
        first = "-"
        if exits > 1:
            first = f"{statistics.mean(run['by_exit'][0] for run in some):.1f}"
        print(f"| {method} | {exits} | {len(some)} | {statistics.mean(deepest):.1f} "
              f"| {min(deepest):.1f} | {first} | {conflicts_of(some)} |")


def conflicts_of(runs):
    """'9.6 (5.1 to 14.0)', a dash where no gate looked."""
    shares = [100 * run["conflict"] for run in runs if run["conflict"] is not None]
    if not shares:
        return "-"
    return f"{statistics.mean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"


def print_runs(runs):
    """A line for each run."""
    print("| method | seed | deepest exit by epoch | by exit at the end | % in conflict "
          "| s of training |")
    print("|---|---:|---|---|---:|---:|")
    for run in runs:
        print(f"| {run['method']} | {run['seed']} | {numbers(run['by_epoch'])} "
              f"| {numbers(run['by_exit'])} | {conflict_of(run)} | {run['seconds']:.1f} |")


def conflict_of(run):
    """'9.6', or a dash."""
    return "-" if run["conflict"] is None else f"{100 * run['conflict']:.1f}"


def main(argv=None):
    p = Parser("benchmarks/demo.py", description="The demo's scores, from finished runs.")
    p.add_argument("runs", nargs="+", type=Path, help="folders of finished runs of the demo")
    args = p.parse_args(argv)

    def report():
        runs = sorted([read_run(folder) for folder in args.runs], key=place_of)
        print_kinds(runs)
        print()
        print_runs(runs)

    return run_command("benchmarks/demo.py", report)


if __name__ == "__main__":
    sys.exit(main())
