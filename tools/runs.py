"""A run's folder behind a few calls: may it be written, lock, logs, checkpoint, result.

    plan(args)                    before anything else: which runs are new, unfinished, finished
    run = Run(folder, config)     takes the lock, writes config.json
    step = run.restore(..)        0, or where its checkpoint stands
    run.log_step(row)             a line of steps.csv, as it goes
    run.save(..)                  the checkpoint, whole
    run.finish(..)                logits, model, and last of all result.json: "finished"

Only the first of several processes writes; what is read, it reads for all.
"""

import contextlib
import csv
import math
import statistics
import sys
import time
import zipfile
from pathlib import Path

import filelock
import safetensors.torch
import torch
import transformers

import glue
from tools import comparison, data_files, machine, processes, submission
from tools.closing import closing_lines
from tools.command_line import InputError, is_out_of_memory
from tools.files import (
    errors_that_name,
    read_json,
    save_whole,
    unfinished,
    write_json,
    write_table,
)
from tools.models import load_run, save_model
from tools.tradeoff import majority_score

STEP_FORMATS = {
    "ce_loss": "{:.6f}",
    "acl_loss": "{:.6f}",
    "cosine": "{:.6f}",
    "angle": "{:.3f}",
    "kept": "{:.4f}",
    "lr": "{:.4g}",
}

# What may differ between two calls that make the same run.  The data are compared by content.
NOT_THE_RUN = ("seeds", "output", "resume", "save_steps", "predict", "data", "device_name")

# What may differ besides where a finished run is shown, predicted from or joined by other seeds.
# A run that goes on must not change them: it has to end with the bytes of a run without a break.
OF_THE_MACHINE = ("device", "processes", "versions")

# What is known only after the data and the model are loaded.
FOUND_LATER = ("exit_layers", "num_labels", "labels", "metrics", "text_columns",
               "data_fingerprint", "bf16")


def plan(args):
    """[(seed, folder, state)], state "new", "unfinished" or "finished".  Raises InputError for a
    folder that holds another run, or one that only --resume may go on with."""
    return processes.from_first(lambda: look(args))


def look(args):
    runs = []
    for seed in args.seeds:
        folder = Path(args.output) / f"{args.task}_{args.method}_{seed}"
        check_name(folder)
        try:
            state = state_of(folder)
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from None
        options = options_of(args, seed)
        if state == "finished":
            check_same_run(folder, options, (*OF_THE_MACHINE, *FOUND_LATER))
            read_result(folder)
        if state == "unfinished":
            check_same_run(folder, options, FOUND_LATER)
        if state in ("unfinished", "begun") and not args.resume:
            raise InputError(f"{folder} is unfinished; use --resume to go on with it, remove it, "
                             "or choose another --output")
        runs.append((seed, folder, "new" if state == "begun" else state))
    return runs


def check_name(folder):
    """InputError for bytes in a folder's name that are no UTF-8: Python keeps them as halves of
    surrogate pairs, and the tokenizer's library could not write there after all the training."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"--output {str(folder)!r}: the name is not UTF-8; choose another "
                         "--output") from None


def state_of(folder):
    """finished, unfinished, new, or begun: the folder is there, but no checkpoint yet."""
    if (folder / "result.json").exists():
        return "finished"
    if (folder / "checkpoint.pt").exists():
        return "unfinished"
    return "begun" if folder.exists() else "new"


def options_of(args, seed):
    """What a run's numbers depend on and is known before it starts, for config.json."""
    options = {name: value for name, value in vars(args).items() if name not in NOT_THE_RUN}
    options["model"] = "demo" if args.task == "demo" else absolute(args.model)
    options.setdefault("change", None)  # one of results/variants.py
    versions = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    others = {"seed": seed, "processes": processes.count(), "versions": versions}
    return {**options, **others}


def read(path):
    """A run's JSON file as a dict.  Raises InputError."""
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; choose another --output") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        problem = type(error).__name__
        raise InputError(f"{path} is torn or no run's ({problem}); choose another --output"
                         ) from None


def read_result(folder):
    """(metric, score, seconds of training) of a finished run.  Raises InputError."""
    path = folder / "result.json"
    result = read(path)
    try:
        return result["metric"], float(result["score"]), float(result["seconds"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is no run's result; choose another --output") from None


def check_same_run(folder, ours, but_for=()):
    """InputError if the run in `folder` was made with other options, so that --resume neither
    mixes nor repeats it; an option that only one of both knows makes another run, too."""
    theirs = read(folder / "config.json")
    without_effect = comparison.WITHOUT_EFFECT.get(ours.get("method"), ())
    for name in {**ours, **theirs}:
        if name in NOT_THE_RUN or name in but_for or name in without_effect:
            continue
        was, now = theirs.get(name), ours.get(name)
        if was != now:
            raise InputError(f"{folder} was made with another {name}: {was}, now {now}; repeat "
                             "its options or choose another --output")


def check_planned(planned, config):
    """Before the first run starts: InputError where one of the others that are there was made
    from other data or in another precision.  config: of any of the runs planned."""
    processes.from_first(lambda: compare(planned, config))


def compare(planned, config):
    for seed, folder, state in planned:
        if state == "unfinished":
            check_same_run(folder, {**config, "seed": seed})
        if state == "finished":
            check_same_run(folder, {**config, "seed": seed}, OF_THE_MACHINE)


class Run:
    """One run's folder, as long as it is being written."""

    def __init__(self, folder, config):
        self.folder = folder
        self.is_writer = processes.is_first()
        self.seconds = 0.0  # of training, without evaluation
        self.clock_started = None
        self.logs = {"steps.csv": [], "exits.csv": []}
        self.steps_file = None
        processes.from_first(lambda: self.open(config))

    def open(self, config):
        """Make the folder, refuse a second process on it, compare with what is there."""
        self.lock = lock(self.folder)
        try:
            # Between the plan and the lock another process may have been here.
            if (self.folder / "result.json").exists():
                raise InputError(f"{self.folder} was finished by another process meanwhile; the "
                                 "same command shows it")
            if (self.folder / "checkpoint.pt").exists():
                check_same_run(self.folder, config)
            write_json(config, self.folder / "config.json")
        except Exception:
            self.lock.release()
            raise

    def restore(self, model, optimizer, schedule, total_steps):
        """Put everything back from the checkpoint.  Returns the number of steps done."""
        state = processes.from_first(lambda: load_checkpoint(self.folder, total_steps))
        if state is None:
            return 0
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            self.seconds = float(state["seconds"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"{self.folder / 'checkpoint.pt'} does not fit this model "
                             f"({type(error).__name__}); choose another --output") from None
        self.logs = state["logs"]
        return state["step"]

    def start_clock(self):
        self.clock_started = time.perf_counter()

    def stop_clock(self):
        self.seconds = self.seconds_now()
        self.clock_started = None

    def seconds_now(self):
        if self.clock_started is None:
            return self.seconds
        return self.seconds + time.perf_counter() - self.clock_started

    def log_step(self, row):
        """A step's numbers, unrounded: {column: number}, None where there is none."""
        self.logs["steps.csv"].append(row)
        if self.is_writer:
            if self.steps_file is None:
                self.start_steps_file(row)
            self.write_step(row)

    def start_steps_file(self, row):
        """After a resume the lines past the checkpoint are written again, so drop them."""
        path = self.folder / "steps.csv"
        with errors_that_name(path):
            self.steps_file = open(path, "w", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.steps_file, row, lineterminator="\n")
        self.writer.writeheader()
        for earlier in self.logs["steps.csv"][:-1]:
            self.write_step(earlier)

    def write_step(self, row):
        cells = {}
        for name, value in row.items():
            form = STEP_FORMATS.get(name, "{}")
            cells[name] = "" if value is None else form.format(value)
        with errors_that_name(self.folder / "steps.csv"):
            self.writer.writerow(cells)
            self.steps_file.flush()

    def log_exits(self, rows):
        """After an epoch: a dict for each exit and dev split."""
        self.logs["exits.csv"] += rows

    def save(self, model, optimizer, schedule, step):
        """Everything the rest of the run depends on, in one file that replaces the last one.

        The tables come first: after a kill between them and it their epoch is done again, but
        nobody would write the last epoch's lines again.
        """
        if not self.is_writer:
            return
        for name, rows in self.logs.items():
            if rows and name != "steps.csv":  # which grows as it goes
                write_table(rows, self.folder / name, float_format="%.4f", na_rep="nan")
        state = {
            "step": step,
            "seconds": self.seconds_now(),
            "logs": self.logs,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        save_whole(save_state, state, self.folder / "checkpoint.pt")

    def finish(self, model, tokenizer, dev, result):
        """dev_logits, the model and, last of all, result.json, whose presence says "finished"."""
        if self.is_writer:
            logits = self.folder / "dev_logits.safetensors"
            save_whole(safetensors.torch.save_file, dev, logits)
            save_model(model, tokenizer, self.folder)
            labels = dev[f"{next(iter(result['dev']))}.labels"]  # of the first dev split
            result["majority_score"] = majority_score(labels, result["metric"])
            result["seconds"] = round(self.seconds, 2)
            result["examples_per_second"] = round(result["examples"] / self.seconds, 2)
            del result["examples"]
            write_json(result, self.folder / "result.json")
            checkpoint = self.folder / "checkpoint.pt"
            for file in (checkpoint, unfinished(checkpoint)):
                file.unlink(missing_ok=True)
        self.close()
        processes.wait()

    def close(self):
        """Give the folder free, finished or not."""
        if self.is_writer:
            self.lock.release()
        if self.steps_file:
            with contextlib.suppress(OSError):  # a full disk has been told of before
                self.steps_file.close()


def lock(folder):
    """Make the run's folder and refuse a second process on it, until the lock is released."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(folder / ".lock").acquire(blocking=False).lock
    except filelock.Timeout:
        raise InputError(f"{folder}: another process is writing this run; wait for it or choose "
                         "another --output") from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        where = getattr(error, "filename", None) or folder
        problem = getattr(error, "strerror", None) or error
        raise InputError(f"--output: cannot write {where} ({problem}); choose another "
                         "--output") from None


def save_state(state, path):
    """torch.save, by Python's own file: torch's says "unexpected pos" of a full disk."""
    with open(path, "wb") as file:
        torch.save(state, file)


def load_checkpoint(folder, total_steps):
    """checkpoint.pt as it was saved, on the CPU, or None without one.  Raises InputError."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        # torch.load itself does not look at the checksums.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        # Tensors and plain values, no code; a GPU's checkpoint goes on anywhere.
        state = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torn in one of too many ways to list
        if is_out_of_memory(error):
            raise
        problem = type(error).__name__
        raise InputError(f"{path} is torn ({problem}); remove that file to start this run from "
                         "its beginning") from None

    # It can be read, so nobody shall be told to remove it.
    try:
        step, logged = state["step"], len(state["logs"]["steps.csv"])
    except (KeyError, IndexError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is of another program or version ({problem}); choose another "
                         "--output") from None
    if not 0 < step == logged <= total_steps:
        raise InputError(f"{path} is not this run's: it has done {step} of {total_steps} steps; "
                         "choose another --output")
    return state


def summary(run, task, args, seed, exit_layers, examples):
    """result.json but for its times: what the last epoch scored, and how often the gate closed."""
    rows = run.logs["exits.csv"]
    metric = task.metrics[0]
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    split = last[0]["split"]
    by_exit = [row[metric] for row in last if row["split"] == split]
    deepest = [row for row in rows if row["split"] == split]
    deepest = [row for row in deepest if row["exit_layer"] == exit_layers[-1]]
    best = max(deepest, key=lambda row: row[metric])
    scores = {}
    for row in last:
        scores[row["split"]] = {name: row[name] for name in task.metrics}  # the deepest comes last

    # A NaN angle is no agreement, so it counts as a conflict.
    measured = [row for row in run.logs["steps.csv"] if row["angle"] is not None]
    conflicts = [not row["angle"] <= 90 for row in measured]
    kept = [row["kept"] for row in measured]
    return {
        "task": task.name,
        "method": args.method,
        "seed": seed,
        "metric": metric,
        "score": by_exit[-1],
        "dev": scores,  # the deepest exit's
        "exit_layers": exit_layers,
        "exit_scores": by_exit,
        "mean_exit_score": statistics.mean(by_exit),
        "best_epoch_picked_on_dev": {"epoch": best["epoch"], "score": best[metric]},
        "steps": len(run.logs["steps.csv"]),
        "conflict_share": statistics.mean(conflicts) if conflicts else None,
        "non_finite": sum(math.isnan(row["angle"]) for row in measured),
        "kept": statistics.mean(kept) if kept else None,
        "examples": examples,
    }


def config_of(args, seed, task, splits, model, device):
    """config.json: every option, and what they came to on this machine and with these data."""
    fingerprints = {}
    for name, split in splits.items():
        if not name.startswith("test"):  # no run is made of it
            fingerprints[name] = data_files.fingerprint(split)
    found = {
        "exit_layers": model.exit_layers,
        "num_labels": len(task.labels),
        "labels": list(task.labels),
        "metrics": list(task.metrics),
        "text_columns": list(task.text_columns),
        "data_fingerprint": fingerprints,
        "bf16": machine.use_bf16(args.precision, device),
        "data": absolute(args.data),
        "device_name": machine.device_name(device),
    }
    return {**options_of(args, seed), **found}


def absolute(name):
    """A path as it is found from any folder; a hub id as it is."""
    path = Path(name)
    return str(path.resolve()) if path.exists() else name


def add_submission(args, folder, task, splits, device):
    """--predict for a run that is finished: its model is still there."""
    if not args.predict:
        return
    loaded = processes.on_each(lambda: load_run(folder))
    model, tokenizer = loaded.model.to(device), loaded.tokenizer
    tokenised = glue.tokenize_all(splits, tokenizer, loaded.config["max_length"])

    # The same data, or its classes could have other names.
    config = config_of(args, loaded.config["seed"], task, tokenised, model, device)
    may_differ = (*OF_THE_MACHINE, "bf16")
    processes.from_first(lambda: check_same_run(folder, config, may_differ))
    model = processes.share(model)
    submission.write(model, task, tokenised, tokenizer, device, folder)


def show_finished(planned):
    """Where the runs are and what they scored; of several seeds mean and sd."""
    if not processes.is_first():
        return
    scores = []
    for _, folder, state in planned:
        metric, score, seconds = read_result(folder)
        scores.append(score)
        was = ", finished before" if state == "finished" else ""
        print(f"{folder}: {metric} {scores[-1]:.2f}, {seconds:.0f} s of training{was}")
    _, folder, state = planned[-1]
    if state != "finished":
        result, config = read_json(folder / "result.json"), read_json(folder / "config.json")
        print("\n".join(closing_lines(folder, result, config)))
    if len(scores) > 1:
        mean, sd = statistics.mean(scores), statistics.stdev(scores)
        print(f"{metric} {mean:.2f}, sd {sd:.2f} ({len(scores)} seeds)")
