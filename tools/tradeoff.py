"""Score against speed-up, from the dev logits that a finished run stored: no model is run again.

    run = read_run("runs/rte_acl-cl_1")
    rows = trade_off(run.logits, run.labels, run.config["exit_layers"], run.result["metric"])
    at_speedup(rows, "entropy", 2).score

Speed-up is counted, layers / mean exit layer; `clock` measures it.
"""

import itertools
import statistics
import time

import pandas
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

import exits
import glue
from tools import data
from tools.errors import InputError

# The rules of exits.py and their settings, which are called threshold and patience here.  A rule
# of your own is a function there, a line here.
EXIT_RULES = {
    "entropy": ("threshold",),
    "confidence": ("threshold",),
    "patience": ("patience",),
    "pcee": ("threshold", "patience"),
}

SPEEDS = (1.5, 2, 3)  # at which reports show a rule

COLUMNS = ("rule", "threshold", "patience", "speedup", "mean_exit_layer", "score")


# ------------------------------------------------------------------------------- a rule's setting


def make_rule(rule, **numbers):
    """A rule of exits.py with its numbers filled in: logits (m, n, K) -> (n,) bool.

    make_rule("pcee", threshold=0.3, patience=2); EXIT_RULES says which numbers a rule has.
    """
    if "patience" in numbers:
        numbers["patience"] = int(numbers["patience"])  # torch takes no integers of numpy
    values = [numbers[name] for name in EXIT_RULES[rule]]
    return lambda logits: getattr(exits, rule)(logits, *values)


def setting_at_2x(run, rule):
    """{"rule": "pcee", "threshold": 0.3, "patience": 2}: a rule's setting next above 2x on dev.

    run: a FinishedRun.  Raises InputError where no setting is that fast.
    """
    row = at_speedup(trade_off_of(run), rule, 2)
    if row is None:
        raise InputError(f"{run.folder}: {rule} never reaches 2x; choose another --rule, train "
                         "with --exits all, or give tools.predict a --threshold or --patience")
    return row[["rule", *EXIT_RULES[rule]]].to_dict()


def setting_text(setting):
    """'rule pcee, threshold 0.3125, patience 2'"""
    numbers = [f"{name} {setting[name]:.4g}" for name in EXIT_RULES[setting["rule"]]]
    return ", ".join([f"rule {setting['rule']}", *numbers])


# ----------------------------------------------------------------------------------- the trade-off


def trade_off(logits, labels, layers, metric):
    """Every rule at many settings, from stored logits alone: a DataFrame, one row a setting.

    logits (M, R, K), labels (R,), layers: the M exits' layer numbers, metric: one of glue.METRICS.

        rule, threshold, patience   the setting; empty where the rule has no such number
        mean_exit_layer             over the R samples
        speedup                     layers[-1] / mean_exit_layer
        score                       of the answers given at those exits, in points
    """
    depth = torch.tensor(layers)  # (M,)
    predictions = logits.argmax(dim=-1)  # (M, R)
    rows = []
    for setting in settings_to_try(logits):
        index = exits.exit_indices(logits, make_rule(**setting))  # (R,)
        answers = predictions.gather(0, index[None])[0]  # (R,)
        mean_exit_layer = depth[index].double().mean().item()
        rows.append({
            **setting,
            "speedup": layers[-1] / mean_exit_layer,
            "mean_exit_layer": mean_exit_layer,
            "score": glue.METRICS[metric](answers, labels),
        })
    table = pandas.DataFrame(rows, columns=COLUMNS)
    return table.astype({"threshold": "float64", "patience": "Int64"})


def trade_off_of(run):
    """A tools.run.FinishedRun's."""
    return trade_off(run.logits, run.labels, run.config["exit_layers"], run.result["metric"])


def settings_to_try(logits):
    """[{"rule": "entropy", "threshold": 0.1}, ..] for each rule.  No label is used.

    Thresholds are quantiles of what the exits say, so that they spread over all speeds.
    """
    M = len(logits)
    early = logits[:max(1, M - 1)]  # nobody leaves *early* at the last exit
    entropies = quantiles(exits.normalised_entropy(early))
    thresholds = {
        "entropy": entropies,
        "confidence": quantiles(early.float().softmax(dim=-1).amax(dim=-1)),
        "pcee": entropies[::2],
    }

    # A rule of your own gets steps from 0 on, closer together where they are low.
    widest = (early.amax() - early.amin()).item()
    steps = (torch.linspace(0, 1, 41) ** 2 * widest).tolist()

    settings = []
    for rule, names in EXIT_RULES.items():
        # {"rule": ["pcee"], "patience": [2, 3], "threshold": [0.1, ..]}
        grid = {"rule": [rule]}
        if "patience" in names:  # more than this lets nobody leave before the last exit
            grid["patience"] = range(2, M) if "threshold" in names else range(1, M - 1)
        if "threshold" in names:
            grid["threshold"] = thresholds.get(rule, steps)
        settings += [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return settings


def quantiles(values):
    """41 quantiles of a tensor, all different; rounding must not take them out of 0..1."""
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    return values.double().flatten().quantile(grid).clamp(0, 1).unique().tolist()


def at_speedup(rows, rule, speed):
    """The slowest setting of `rule` that is at least `speed` times as fast: a row, or None.

    Chosen by speed alone: the best-scoring one would be picked on dev.  Of equally slow ones the
    first.
    """
    fast = rows[(rows.rule == rule) & (rows.speedup >= speed)]
    return None if fast.empty else fast.iloc[fast.speedup.argmin()]


# ------------------------------------------------------------------------------------- the clock


def dev_split(run):
    """The dev split of a FinishedRun, as texts and as tokens.

    Raises InputError where it is no longer what it was.
    """
    config = run.config
    _, splits = glue.load_task(
        config["task"], config["data"], config["limit_train"], config["holdout"]
    )
    name = next(iter(run.result["dev"]))
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    tokens = glue.tokenize(splits[name], tokenizer, config["max_length"])
    if data.fingerprint(tokens) != config["data_fingerprint"][name]:
        raise InputError(f"{run.folder}: its dev samples are not those of {config['data']}; the "
                         "data have changed")
    return splits[name], tokens


def clock(model, batches, rule, rounds=5):
    """Early exit against the full model, on the same batches.

    Returns the seconds of the full model, those of early exit, and the counted speed-up.  After a
    warm-up the median of `rounds`; both sides take turns, so that a slow moment hits both.
    """
    full, early = [], []
    for _ in tqdm(range(rounds + 1), "rounds", leave=False, disable=None):
        full.append(time_once(model, batches, None)[0])
        seconds, mean_exit_layer = time_once(model, batches, rule)
        early.append(seconds)
    speedup = model.num_layers / mean_exit_layer
    return statistics.median(full[1:]), statistics.median(early[1:]), speedup


def time_once(model, batches, rule):
    """Seconds of early exit through all batches, and the mean exit layer."""
    start = time.perf_counter()
    exit_layers = [exits.early_exit(model, batch, rule)[1] for batch in batches]
    mean_exit_layer = torch.cat(exit_layers).double().mean().item()  # waits for the device
    return time.perf_counter() - start, mean_exit_layer
