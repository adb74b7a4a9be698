"""Score against speed-up from the dev logits that a finished run stored: no model is run again.

    config, result, logits, labels = load_run("runs/rte_acl-cl_1")
    rows = trade_off(logits, labels, config["exit_layers"], result["metric"])
    at_speedup(rows, "entropy", 2)["score"]

Speed-up is counted, layers / mean exit layer; `clock` measures it.  The tables of
`python exits.py RUN ..` are in exits_report.py.
"""

import functools
import math
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

import glue
import exits
from exits import early_exit, exit_indices, normalised_entropy
from tools.command_line import InputError, is_out_of_memory, reason
from tools.exits_command import EXIT_RULES
from tools.files import read_csv, read_json
from tools.progress import Progress, waiting

SPEEDS = (1.5, 2, 3)

NO_LOGITS = "dev_logits.safetensors is not there: committed runs keep only the small files"


def make_rule(rule, threshold=None, patience=None):
    """A rule of exits.py with its settings filled in: logits (m, n, K) -> (n,) bool.  Raises
    InputError for settings that make no sense."""
    if rule not in EXIT_RULES:
        raise InputError(f"unknown rule {rule!r}; choose one of {', '.join(EXIT_RULES)}")
    given = {"threshold": threshold, "patience": patience}
    for name, value in given.items():
        if value is not None and name not in EXIT_RULES[rule]:
            raise InputError(f"rule {rule} has no {name}, it takes {', '.join(EXIT_RULES[rule])}; "
                             "choose another --rule")
    settings = {name: given[name] for name in EXIT_RULES[rule]}
    for name, value in settings.items():
        if value is None:
            raise InputError(f"rule {rule} needs a {name}")
    if not hasattr(exits, rule):
        raise InputError(f"exits.py has no function {rule}, which EXIT_RULES names")

    # The rule itself knows which settings make sense: it says so of any logits.
    filled_in = functools.partial(getattr(exits, rule), **settings)
    try:
        filled_in(torch.zeros(1, 1, 2))
    except ValueError as error:
        raise InputError(f"rule {rule}: {error}") from None
    return filled_in


def check_early(rule, num_exits):
    """InputError where even a sample of which every exit is sure could not leave early."""
    if num_exits == 1:
        return
    sure = torch.tensor([1e4, -1e4]).expand(num_exits - 1, 1, 2)
    if not rule(sure).item():
        raise InputError(f"with this setting no sample can leave before the last of the run's "
                         f"{num_exits} exits; choose a smaller --patience")


# ------------------------------------------------------------------------- a run's files


class FinishedRun(NamedTuple):
    """What a finished run says of itself."""

    config: dict  # config.json
    result: dict  # result.json
    logits: torch.Tensor | None  # (M, R, K) of its first dev split, None without the file
    labels: torch.Tensor | None  # (R,)


def load_run(folder):
    """A finished run's folder -> FinishedRun, checked to belong together.  Raises InputError."""
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{folder} is no finished run: there is no such folder")
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder} is no finished run: it has no result.json")
    try:
        config = read_json(folder / "config.json")
        result = read_json(folder / "result.json")
        check_result(config, result)
        path = folder / "dev_logits.safetensors"
        if not path.exists():
            return FinishedRun(config, result, None, None)
        logits, labels = read_logits(path, next(iter(result["dev"])))
        check_logits(config, result, logits, labels)
    except PermissionError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
    except Exception as error:  # torn or foreign in one of too many ways to list
        if is_out_of_memory(error):
            raise
        raise InputError(f"{folder} is torn ({reason(error)[:100]}); train it again") from None
    return FinishedRun(config, result, logits, labels)


def read_logits(path, split):
    """dev_logits.safetensors -> logits (M, R, K), labels (R,) of a split, on the CPU."""
    path.open("rb").close()  # the library has other words for a file that may not be read
    stored = safetensors.torch.load_file(path)
    return stored[f"{split}.logits"], stored[f"{split}.labels"]


def check_result(config, result):
    """ValueError unless config.json and result.json tell of one run."""
    for name in ("task", "method", "seed", "exit_layers"):
        if config[name] != result[name]:
            raise ValueError(f"config.json and result.json have another {name}")
    if len(result["exit_scores"]) != len(config["exit_layers"]):
        raise ValueError("result.json has not a score for each exit")
    if result["metric"] not in glue.METRICS:
        raise ValueError(f"unknown metric {result['metric']}")


def check_logits(config, result, logits, labels):
    """ValueError unless result.json was made from these logits (M, R, K) and labels (R,)."""
    shape = (len(config["exit_layers"]), len(labels), config["num_labels"])
    metric = result["metric"]
    scores = [glue.score([metric], logits_m, labels)[metric] for logits_m in logits]
    same = [math.isclose(a, b, abs_tol=1e-6) for a, b in zip(scores, result["exit_scores"])]
    if logits.shape != shape or not all(same):
        raise ValueError("dev_logits.safetensors is not what result.json was made from")


def task_of(config):
    """(class names, text columns) of a run; runs of early versions name only their task."""
    task = glue.TASKS.get(config["task"])
    names = config.get("labels") or task.labels
    columns = config.get("text_columns") or task.text_columns
    return list(names), list(columns)


def dev_split(folder, config, result, labels):
    """The dev split as text, checked to be the one that the run was evaluated on: InputError."""
    with waiting(f"loading the data of {config['task']}"):
        _, splits = glue.load_task(
            config["task"], config["data"], config.get("limit_train"), config.get("holdout")
        )
    split = splits[next(iter(result["dev"]))]
    if split["label"][:] != labels.tolist():
        raise InputError(f"{folder}: its dev labels are not those of {config['data']}; the data "
                         "have changed")
    return split


def read_tradeoff(path):
    """The rows of a tradeoff.csv as `trade_off` gave them; InputError."""
    try:
        return [parse_row(row) for row in read_csv(path)]
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        problem = type(error).__name__
        raise InputError(f"{path} is torn ({problem}); python exits.py writes it anew where "
                         "dev_logits.safetensors is") from None


def parse_row(row):
    """Strings to numbers, None where there is no threshold or no patience."""
    return {
        "rule": row["rule"],
        "threshold": float(row["threshold"]) if row["threshold"] else None,
        "patience": int(float(row["patience"])) if row["patience"] else None,
        "speedup": float(row["speedup"]),
        "mean_exit_layer": float(row["mean_exit_layer"]),
        "score": float(row["score"]),
        "pareto": int(row["pareto"]),
    }


# ------------------------------------------------------------------------- the trade-off


def trade_off(logits, labels, layers, metric):
    """Every rule at many settings, from stored logits alone: a list of dicts, the columns of
    tradeoff.csv.

    logits (M, R, K) of any device; labels (R,); layers: the M exits' layer numbers; metric: a
    name of glue.METRICS.  speedup = layers[-1] / mean exit layer, counted.  pareto: 1 where no
    other setting of the rule is better in score or speed-up and no worse in the other.
    Raises ValueError where logits and layers do not fit.
    """
    if len(logits) != len(layers):
        raise ValueError(f"logits of {len(logits)} exits, but {len(layers)} layer numbers")
    logits, labels = logits.cpu(), labels.cpu()
    depth = torch.tensor(layers)  # (M,)
    rows = []
    for name, threshold, times in settings_to_try(logits):
        index = exit_indices(logits, make_rule(name, threshold, times))  # (R,)
        predictions = logits.argmax(dim=-1).gather(0, index[None])[0]  # (R,)
        mean_exit_layer = depth[index].double().mean().item()
        rows.append({
            "rule": name,
            "threshold": threshold,
            "patience": times,
            "speedup": layers[-1] / mean_exit_layer,
            "mean_exit_layer": mean_exit_layer,
            "score": glue.METRICS[metric](predictions, labels),
        })
    for row in rows:
        row["pareto"] = int(not is_beaten(row, rows))
    return rows


def settings_to_try(logits):
    """(rule, threshold, patience), ..  Thresholds are quantiles of what the exits say, so that
    they spread over all speeds; no label is used.  A rule of one's own gets steps from 0 on."""
    M = len(logits)
    early = logits[:-1] if M > 1 else logits  # nobody leaves *early* at the last exit
    entropies = quantiles(normalised_entropy(early))
    widest = (early.amax() - early.amin()).item()
    thresholds = {
        "entropy": entropies,
        "confidence": quantiles(early.float().softmax(dim=-1).amax(dim=-1)),
        "pcee": entropies[::2],
    }
    steps = (torch.linspace(0, 1, 41) ** 2 * widest).tolist()  # closer together where they are low

    settings = []
    for rule, names in EXIT_RULES.items():
        patiences = [None]
        if names == ("patience",):
            patiences = range(1, max(2, M - 1))
        elif "patience" in names:
            patiences = range(2, M)
        for times in patiences:
            of_rule = thresholds.get(rule, steps) if "threshold" in names else [None]
            settings += [(rule, threshold, times) for threshold in of_rule]
    return settings


def quantiles(values):
    """41 quantiles of a tensor, all different; rounding must not take them out of 0..1."""
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    found = values.double().flatten().quantile(grid).clamp(0, 1)
    return sorted(set(found.tolist()))


def is_beaten(row, rows):
    """Whether another setting of the same rule is better in one of both and no worse in the
    other."""
    here = (row["score"], row["speedup"])
    for other in rows:
        there = (other["score"], other["speedup"])
        no_worse = there[0] >= here[0] and there[1] >= here[1]
        if other["rule"] == row["rule"] and no_worse and there != here:
            return True
    return False


def at_speedup(rows, rule, speedup):
    """The slowest setting of `rule` that is at least `speedup` times as fast (counted), or None.
    Chosen by speed alone: the best-scoring one would be picked on dev.  Of equally slow ones the
    first."""
    fast = [row for row in rows if row["rule"] == rule and row["speedup"] >= speedup]
    return min(fast, key=lambda row: row["speedup"], default=None)


def majority_score(labels, metric):
    """What always answering the most frequent class of labels (R,) would score, in points: where
    an exit that has learnt nothing stands."""
    constant = torch.full_like(labels, labels.mode().values.item())
    return glue.METRICS[metric](constant, labels)


# ------------------------------------------------------------------------- the clock


def clock(model, split, tokenizer, rule, batch_size, device, rounds=5):
    """Seconds of the full model, seconds of early exit on the same length-sorted batches, and
    the counted speed-up.

    Warm-up, then the median of `rounds`; both take turns, so that a slow moment hits both.  The
    device is waited for.
    """
    numbers = glue.row_lengths(split).argsort(stable=True).split(batch_size)
    batches = [batch.to(device) for batch in glue.loader(split, numbers, tokenizer)]
    for batch in batches:
        batch.pop("label")

    # Each side once before the clock counts.
    with waiting(f"batch {batch_size}: warming up on {len(split)} samples"):
        time_once(model, batches, None)
        _, mean_exit_layer = time_once(model, batches, rule)

    full, early = [], []
    for _ in (bar := Progress(range(rounds), f"batch {batch_size}: rounds")):
        full.append(time_once(model, batches, None)[0])
        early.append(time_once(model, batches, rule)[0])
        bar.note(f"full model {full[-1]:.2f} s, early exit {early[-1]:.2f} s")
    return statistics.median(full), statistics.median(early), model.num_layers / mean_exit_layer


def time_once(model, batches, rule):
    """Seconds of early exit through all batches, and the mean exit layer."""
    start = time.perf_counter()
    exit_layers = [early_exit(model, batch, rule)[1] for batch in batches]
    mean_exit_layer = torch.cat(exit_layers).double().mean().item()  # waits for the device
    return time.perf_counter() - start, mean_exit_layer
