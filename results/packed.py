"""Every finished run of results/, packed into six files; `run` is a run's name in each of them.

    runs.csv          a row a run: its settings, its scores        multi/rte_acl-cl_1, ..
    exits.parquet     a row an epoch and exit: scores, geometry    every run
    tradeoff.parquet  a row a rule and setting: speed-up, score    runs of several exits
    steps.parquet     a row a step: both losses, the angle ..      every run
    groups.parquet    a row a step and group of parameters         variants.py conflict-groups
    clock.csv         counted and clocked speed-up                 a few runs, by hand

A name is block/task_method_seed, or block/setting/task_method_seed.  docs/metrics.md explains the
columns.  Numbers are stored as they were computed, to the last bit.

    packed = read()
    steps = packed.steps[packed.steps.run == "multi/rte_acl-cl_1"]
"""

from pathlib import Path
from typing import NamedTuple

import filelock
import pandas

from tools.errors import reading
from tools.run import read_run, whole
from tools.tradeoff import trade_off

FOLDER = Path(__file__).parent

# The columns of runs.csv beside the name's parts.
SCORES = ("metric", "score", "mean_exit_score", "majority_score", "conflict_share", "kept",
          "exit_layers", "exit_scores")
SETTINGS = ("model", "epochs", "lr", "head_lr", "weight", "temperature", "conflict", "conflict_at",
            "exit_weights", "students_embed", "change", "limit_train", "holdout")
REST = ("steps", "seconds", "examples_per_second", "device_name")


class Packed(NamedTuple):
    """The six files as pandas frames."""

    runs: pandas.DataFrame
    exits: pandas.DataFrame
    tradeoff: pandas.DataFrame
    steps: pandas.DataFrame
    groups: pandas.DataFrame
    clock: pandas.DataFrame


def read(folder=FOLDER):
    """The six files of a folder -> Packed.  exit_layers and exit_scores are lists of numbers."""
    lists = {"exit_layers": numbers, "exit_scores": numbers}
    with reading(folder):
        # By default pandas may miss a number's last bit.
        runs = pandas.read_csv(
            folder / "runs.csv", converters=lists
        )
        frames = {}
        for name in ("exits", "tradeoff", "steps", "groups"):
            frames[name] = pandas.read_parquet(folder / f"{name}.parquet")
        clock = pandas.read_csv(folder / "clock.csv", float_precision="round_trip")
    return Packed(runs=runs, **frames, clock=clock)


def numbers(text):
    """'70.1 72.8' -> [70.1, 72.8]"""
    return [float(word) for word in text.split()]


def names(folder=FOLDER):
    """The names of the runs that are packed already; none where there is no runs.csv yet."""
    path = folder / "runs.csv"
    return set(pandas.read_csv(path).run) if path.exists() else set()


def pack(run_folder, name, folder=FOLDER):
    """Add a finished run to the packed files, unless it is there.  Raises InputError.

    Other processes wait meanwhile.  runs.csv comes last: a run whose row is there is whole.
    """
    finished = read_run(run_folder)
    frames = {"exits": finished.exits, "steps": finished.steps}
    layers = finished.result["exit_layers"]
    if len(layers) > 1:
        frames["tradeoff"] = trade_off(
            finished.logits, finished.labels, layers, finished.result["metric"]
        )
    groups = run_folder / "groups.csv"
    if groups.exists():
        frames["groups"] = pandas.read_csv(groups)

    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        if name in names(folder):
            return
        for kind, frame in frames.items():
            path = folder / f"{kind}.parquet"
            frame = frame.assign(run=name)
            if path.exists():
                before = pandas.read_parquet(path)
                # An earlier process may have been killed before it came to runs.csv.
                frame = pandas.concat([before[before.run != name], frame])
            write_parquet(frame, path)
        add_row(row_of(name, finished.config, finished.result), folder / "runs.csv")


def write_parquet(frame, path):
    with whole(path) as new:
        frame.to_parquet(new, index=False, compression="zstd", compression_level=12)


def row_of(name, config, result):
    """A run's row of runs.csv."""
    block, *setting, _ = name.split("/")
    row = {"run": name, "block": block, "setting": "/".join(setting)}
    for column in ("task", "method", "seed"):
        row[column] = config[column]
    for column in SCORES:
        row[column] = result[column]
    for column in ("exit_layers", "exit_scores"):
        row[column] = " ".join(map(str, result[column]))
    for column in SETTINGS:
        row[column] = config[column]
    row["model"] = Path(config["model"]).name  # where it lay on this machine is nobody's business
    for column in REST:
        row[column] = result.get(column, config.get(column))
    return row


def add_row(row, path):
    """Append to runs.csv; what is there stays as it is, letter for letter."""
    table = pandas.DataFrame([row])
    if path.exists():
        before = pandas.read_csv(path, dtype=str, na_filter=False)
        table = pandas.concat([before, table])
    with whole(path) as new:
        table.to_csv(new, index=False)
