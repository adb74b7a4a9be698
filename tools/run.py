"""A run's folder: who may write it, its config, its logs, its checkpoint, its result.

    planned = plan(args)          before anything else: which runs are new, unfinished, finished
    run = Run(folder, config)     takes the lock, writes config.json
    step = run.restore(..)        0, or where the run's checkpoint stands
    run.log_step(row)             a line of steps.csv, as it goes
    run.save(..)                  the checkpoint
    run.finish(..)                logits, model and, last of all, result.json: "finished"
    read_run(folder)              what a finished run left, for reports

Of several processes only the first writes.
"""

import contextlib
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import filelock
import pandas
import safetensors.torch
import torch
import transformers

import exits
import glue
from tools import data, machine, models, processes
from tools.errors import InputError, reading

# Everything else in config.json must be equal where a run is resumed or shown again.  The data
# are compared by their fingerprint, not by where they lie.
MAY_DIFFER = ("seeds", "output", "resume", "save_steps", "predict", "data", "device_name")

STEP_FORMATS = {
    "ce_loss": "{:.6f}",
    "acl_loss": "{:.6f}",
    "cosine": "{:.6f}",
    "angle": "{:.3f}",
    "kept": "{:.4f}",
    "lr": "{:.4g}",
}


# ---------------------------------------------------------------------------- before training


def plan(args):
    """[(seed, folder, state)] of the runs that the options ask for.

    state: "new"; "unfinished", which goes on from its checkpoint; "finished".  Raises InputError
    for a folder that another process writes, that holds another run, or that only --resume may
    go on with.
    """
    planned = []
    for seed in args.seeds:
        folder = Path(args.output) / f"{args.task}_{args.method}_{seed}"
        state = "new"
        if folder.exists():
            take_lock(folder).release()
            check_same(folder, options_of(args, seed))
            state = "finished" if (folder / "result.json").exists() else "unfinished"
        if state == "unfinished" and not args.resume:
            raise InputError(f"{folder} is unfinished; use --resume to go on with it, remove it, "
                             "or choose another --output")
        planned.append((seed, folder, state))
    return planned


def take_lock(folder):
    """Make the run's folder and lock it.  InputError where another process has the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(f"{folder}: another process is writing this run; wait for it or choose "
                         "another --output") from None
    return lock


def options_of(args, seed):
    """The part of config.json that is known before data and model are loaded."""
    options = dict(vars(args))
    options["model"] = "demo" if args.task == "demo" else absolute(args.model)
    options["data"] = absolute(args.data)
    options.setdefault("change", None)  # one of results/variants.py
    options["seed"] = seed
    options["processes"] = processes.count()
    options["versions"] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return options


def config_of(args, seed, task, tokens, model, device):
    """config.json: every option, and what they came to on this machine and with these data."""
    fingerprints = {name: data.fingerprint(split) for name, split in tokens.items()
                    if not name.startswith("test")}  # no run is made of it
    found = {
        "exit_layers": model.exit_layers,
        "num_labels": len(task.labels),
        "labels": list(task.labels),
        "metrics": list(task.metrics),
        "text_columns": list(task.text_columns),
        "data_fingerprint": fingerprints,
        "bf16": machine.use_bf16(args.precision, device),
        "device_name": machine.device_name(device),
    }
    return {**options_of(args, seed), **found}


def absolute(name):
    """A path as it is found from any folder; a hub id as it is."""
    path = Path(name)
    return str(path.absolute()) if path.exists() else name


def check_same(folder, config):
    """InputError where the run in `folder` was made otherwise, so that nobody mixes two runs.

    config: the whole of it, or the part that is known so far.
    """
    path = folder / "config.json"
    if not path.exists():  # killed before it began
        return
    theirs = read_json(path)
    for name, ours in config.items():
        if name not in MAY_DIFFER and theirs.get(name) != ours:
            raise InputError(f"{folder} was made with another {name}: {theirs.get(name)}, now "
                             f"{ours}; repeat its options or choose another --output")


# --------------------------------------------------------------------------------- files


@contextlib.contextmanager
def whole(path):
    """A file that is whole or not there: yields another name to write to, then renames it."""
    new = path.with_name(path.name + ".new")
    yield new
    new.replace(path)


def write_json(content, path):
    with whole(path) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path):
    with reading(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


class FinishedRun(NamedTuple):
    """What a finished run left, of its first dev split (MNLI has two)."""

    folder: Path
    config: dict  # config.json
    result: dict  # result.json
    steps: pandas.DataFrame  # steps.csv
    exits: pandas.DataFrame  # exits.csv
    logits: torch.Tensor  # (M, R, K) float32, each exit's after the last epoch
    labels: torch.Tensor  # (R,) int64


def run_folders(paths):
    """The folders of runs; a folder that holds runs stands for all of them."""
    folders = []
    for path in map(Path, paths):
        inside = []
        if not (path / "config.json").exists():  # a run has one, and one in its model/
            inside = sorted(file.parent for file in path.glob("*/config.json"))
        folders += inside or [path]
    return folders


def read_run(folder):
    """A finished run's folder -> FinishedRun.  Raises InputError."""
    folder = Path(folder)
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder} is no finished run: it has no result.json (train.py --resume "
                         "goes on with an unfinished one)")
    result = read_json(folder / "result.json")
    with reading(folder):
        stored = safetensors.torch.load_file(folder / "dev_logits.safetensors")
        split = next(iter(result["dev"]))
        return FinishedRun(
            folder,
            read_json(folder / "config.json"),
            result,
            steps=pandas.read_csv(folder / "steps.csv"),
            exits=pandas.read_csv(folder / "exits.csv"),
            logits=stored[f"{split}.logits"],
            labels=stored[f"{split}.labels"],
        )


# ------------------------------------------------------------------------------ while it runs


class Run:
    """One run's folder, as long as it is being written."""

    def __init__(self, folder, config):
        """Take the lock, write config.json.  Raises InputError."""
        self.folder = folder
        self.seconds = 0.0  # of training, without evaluation
        self.logs = {"steps.csv": [], "exits.csv": []}
        self.steps_file = None
        processes.from_first(lambda: self.open_folder(config))

    def open_folder(self, config):
        self.lock = take_lock(self.folder)
        # Since the plan, which may be hours ago, another process may have been here.
        if (self.folder / "result.json").exists():
            self.lock.release()
            raise InputError(f"{self.folder} was finished by another process; the same command "
                             "shows it")
        write_json(config, self.folder / "config.json")

    def restore(self, model, optimizer, schedule):
        """Put everything back from the checkpoint.  Returns the number of steps done."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return 0
        with reading(path):
            # Tensors and plain values, no code; a GPU's checkpoint goes on anywhere.
            state = torch.load(path, weights_only=True, map_location="cpu")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            self.seconds = state["seconds"]
            self.logs = state["logs"]
            return state["step"]

    def start_clock(self):
        self.started = time.perf_counter() - self.seconds

    def log_step(self, row):
        """A step's numbers, unrounded: {column: number}, None where there is none."""
        self.seconds = time.perf_counter() - self.started
        rows = self.logs["steps.csv"]
        rows.append(row)
        if not processes.is_first():
            return
        # A resumed run writes the lines up to its checkpoint again, and drops those after it.
        lines = [row]
        if self.steps_file is None:
            self.steps_file = open(self.folder / "steps.csv", "w", encoding="utf-8")
            print(*row, sep=",", file=self.steps_file)
            lines = rows
        for line in lines:
            print(*cells_of(line), sep=",", file=self.steps_file, flush=True)

    def log_exits(self, rows):
        """After an epoch: a dict for each exit and dev split."""
        self.logs["exits.csv"] += rows
        self.write_log("exits.csv")

    def write_log(self, name):
        """A log as a whole file, which replaces that of the last epoch."""
        if processes.is_first():
            table = pandas.DataFrame(self.logs[name])
            with whole(self.folder / name) as new:
                table.to_csv(new, index=False, float_format="%.4f", na_rep="nan")

    def save(self, model, optimizer, schedule, step):
        """Everything that the rest of the run depends on, in one file that replaces the last."""
        if not processes.is_first():
            return
        state = {
            "step": step,
            "seconds": self.seconds,
            "logs": self.logs,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        with whole(self.folder / "checkpoint.pt") as new:
            torch.save(state, new)

    def finish(self, model, tokenizer, dev, result):
        """dev_logits, the model and, last of all, result.json, whose presence says "finished"."""
        if processes.is_first():
            safetensors.torch.save_file(dev, self.folder / "dev_logits.safetensors")
            models.save_model(model, tokenizer, self.folder)
            result["seconds"] = round(self.seconds, 2)
            result["examples_per_second"] = round(result.pop("examples") / self.seconds, 2)
            write_json(result, self.folder / "result.json")
            (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        processes.wait()

    def close(self):
        """Give the folder free, finished or not."""
        if self.steps_file:
            self.steps_file.close()
        if processes.is_first():
            self.lock.release()


def cells_of(row):
    """A step's numbers as steps.csv shows them; an empty cell where there is none."""
    cells = []
    for name, value in row.items():
        form = STEP_FORMATS.get(name, "{}")
        cells.append("" if value is None else form.format(value))
    return cells


# ----------------------------------------------------------------------------- at the end


def summary(logs, task, args, seed, dev, exit_layers, examples):
    """result.json but for its times: what the last epoch scored, how often the gate closed.

    dev: train.evaluate's tensors; examples: the number of samples seen in training.
    """
    metric = task.metrics[0]
    table = pandas.DataFrame(logs["exits.csv"])
    last = table[table.epoch == table.epoch.max()]
    deepest = last[last.exit_layer == exit_layers[-1]].set_index("split")
    split = deepest.index[0]  # MNLI has two; the first one counts
    by_exit = last[last.split == split][metric].tolist()
    steps = pandas.DataFrame(logs["steps.csv"])
    has_gate = args.conflict != "none"
    return {
        "task": task.name,
        "method": args.method,
        "seed": seed,
        "metric": metric,
        "score": by_exit[-1],
        "dev": deepest[list(task.metrics)].to_dict("index"),
        "exit_layers": exit_layers,
        "exit_scores": by_exit,
        "mean_exit_score": statistics.mean(by_exit),
        "steps": len(steps),
        "conflict_share": in_conflict(steps).mean() if has_gate else None,
        "kept": statistics.mean(steps.kept.tolist()) if has_gate else None,
        "examples": examples,
        "majority_score": glue.majority_score(dev[f"{split}.labels"], metric),
    }


def in_conflict(steps):
    """A bool for each row of steps.csv, where a gate looked: is the angle over 90 degrees?

    A gradient that is not finite has no angle, and counts as a conflict.
    """
    return ~(steps.angle <= 90)


def write_submission(model, task, tokens, tokenizer, device, folder):
    """GLUE's files: the deepest exit's prediction for every sample of the test splits.

    All processes compute, since they share each batch; the first writes.
    """
    endings = {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}  # MNLI has two
    for split, ending in endings.items():
        if split not in tokens:
            continue
        _, logits = exits.all_exits(model, tokens[split], tokenizer, device)
        names = [task.labels[k] for k in logits[-1].argmax(dim=-1)]
        table = pandas.DataFrame({"prediction": names})
        if processes.is_first():
            with whole(folder / f"{task.folder}{ending}.tsv") as new:
                table.to_csv(new, sep="\t", index_label="index")


def show_finished(planned):
    """Print where the runs of one method are and what they scored."""
    for _, folder, state in planned:
        result = read_json(folder / "result.json")
        when = f"{result['seconds']:.0f} s of training"
        if state == "finished":
            when = "finished before"
        processes.say(f"{folder}: {result['metric']} {result['score']:.2f} (majority class "
                      f"{result['majority_score']:.2f}), {when}")


def show_next(folders):
    """Print what to type now."""
    names = shlex.join(map(str, folders))
    last = shlex.quote(str(folders[-1]))
    processes.say(f"next: python -m tools.report {names}   # scores, speed-ups, angles")
    processes.say(f"      python -m tools.predict {last} -   # classify what you type")
