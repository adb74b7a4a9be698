"""Every finished run of results/, packed into six files; `run` is a run's name in each of them.

    runs.csv          a row a run: its settings, its scores        multi/rte_acl-cl_1, ..
    exits.parquet     a row an epoch and exit: scores, geometry    every run
    tradeoff.parquet  a row a rule and setting: speed-up, score    runs of several exits
    steps.parquet     a row a step: both losses, the angle ..      every run
    groups.parquet    a row a step and group of parameters         variants.py conflict-groups
    clock.csv         counted and clocked speed-up                 a few runs, by hand

A name is block/task_method_seed, or block/setting/task_method_seed.  docs/metrics.md explains the
columns.  Numbers are stored as they were computed, to the last bit.  pandas reads each file alone;
read() reads all but clock.csv.
"""

from pathlib import Path

import filelock
import pandas

from tools.errors import reading
from tools.run import read_run, whole
from tools.tradeoff import trade_off_of

FOLDER = Path(__file__).parent

# The columns of runs.csv that come from config.json and from result.json.
SETTINGS = ("model", "epochs", "lr", "head_lr", "weight", "temperature", "conflict", "conflict_at",
            "exit_weights", "students_embed", "change", "limit_train", "holdout")
SCORES = ("metric", "score", "mean_exit_score", "majority_score", "conflict_share", "kept",
          "exit_layers", "exit_scores", "steps", "seconds", "examples_per_second")
COLUMNS = ("run", "block", "setting", "task", "method", "seed", *SETTINGS, *SCORES, "device_name")


def read(folder=FOLDER):
    """The files of a folder -> {"runs": frame, "exits": frame, ..}.

    exit_layers and exit_scores are lists of numbers.
    """
    converters = {
        "exit_layers": lambda text: [int(word) for word in text.split()],
        "exit_scores": lambda text: [float(word) for word in text.split()],
    }
    with reading(folder / "runs.csv"):
        frames = {"runs": pandas.read_csv(folder / "runs.csv", converters=converters)}
    for path in FOLDER.glob("*.parquet"):
        # Without any such run there is no file, and the committed one's columns stay empty.
        ours = folder / path.name
        rows = pandas.read_parquet(ours) if ours.exists() else pandas.read_parquet(path)[:0]
        frames[path.stem] = rows
    return frames


def names(folder=FOLDER):
    """The names of the runs that are packed already; none where there is no runs.csv yet."""
    path = folder / "runs.csv"
    return set(pandas.read_csv(path).run) if path.exists() else set()


def pack(run_folder, name, folder=FOLDER):
    """Add a finished run to the packed files, unless it is there.  Raises InputError.

    Other processes wait meanwhile.  runs.csv comes last: a run whose row is there is whole.
    """
    frames = frames_of(run_folder, name)
    row = frames.pop("runs")
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        if name in names(folder):
            return
        for kind, frame in frames.items():
            path = folder / f"{kind}.parquet"
            if path.exists():
                before = pandas.read_parquet(path)
                # An earlier process may have been killed before it came to runs.csv.
                frame = pandas.concat([before[before.run != name], frame])
            with whole(path) as new:
                frame.to_parquet(new, index=False, compression="zstd", compression_level=12)

        # Lists become numbers with spaces between them.
        for column in ("exit_layers", "exit_scores"):
            row[column] = [" ".join(map(str, numbers)) for numbers in row[column]]
        path = folder / "runs.csv"
        if path.exists():
            # What is there stays as it is, letter for letter.
            row = pandas.concat([pandas.read_csv(path, dtype=str, na_filter=False), row])
        with whole(path) as new:
            row.to_csv(new, index=False)


def frames_of(run_folder, name):
    """A finished run's rows of the packed files: {"runs": frame, "exits": frame, ..}."""
    run = read_run(run_folder)
    block, *setting, _ = name.split("/")
    place = {"run": name, "block": block, "setting": "/".join(setting)}
    row = run.config | run.result | place
    row["model"] = Path(run.config["model"]).name  # where it lay on this machine is left out
    frames = {
        "runs": pandas.DataFrame([{column: row[column] for column in COLUMNS}]),
        "exits": run.exits,
        "steps": run.steps,
    }
    if len(run.logits) > 1:
        frames["tradeoff"] = trade_off_of(run)
    groups = run_folder / "groups.csv"
    if groups.exists():
        frames["groups"] = pandas.read_csv(groups)
    return {kind: frame.assign(run=name) for kind, frame in frames.items()}
