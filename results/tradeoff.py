"""Score against speed-up of finished runs, from the dev logits they stored: what `python exits.py RUN ..` runs.

    python exits.py runs/rte_acl-cl_1                # every rule: score at 1.5x, 2x, 3x, and its Pareto front; tradeoff.csv
    python exits.py runs/rte_*                       # several runs: methods as rows, mean and sd over seeds
    python exits.py runs/rte_acl-cl_1 --examples     # examples.tsv: which sentence left at which layer
    python exits.py runs/rte_acl-cl_1 --clock        # measured speed-up at batch 1 and 32; clock.csv

Speed-up is *counted*, layers / mean exit layer; `--clock` puts the measured one beside it.
"""

import argparse
import csv
import functools
import json
import statistics
import sys
import time
from pathlib import Path

import safetensors.torch
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import glue
from exits import MultiExitBert, confidence, early_exit, entropy, exit_indices, normalised_entropy, patience, pcee
from glue import InputError, reason

RULES = {"entropy": (entropy, ("threshold",)), "confidence": (confidence, ("threshold",)),
         "patience": (patience, ("patience",)), "pcee": (pcee, ("threshold", "patience"))}


def make_rule(rule, threshold=None, patience=None):
    """RULES[rule] with its settings filled in: logits -> (n,) bool.  Raises InputError for settings that make no sense."""
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}")
    function, names = RULES[rule]
    given = {"threshold": threshold, "patience": patience}
    if "threshold" in names and (threshold is None or not 0 <= threshold <= 1):
        raise InputError(f"rule {rule} needs a threshold from 0 to 1, not {threshold}")
    if "patience" in names and (not isinstance(patience, int) or patience < 1):
        raise InputError(f"rule {rule} needs a patience of 1 or more exits, not {patience}")
    return functools.partial(function, **{name: given[name] for name in names})


def load_run(folder):
    """A finished run: its config, result, and dev logits (M, R, K) and labels (R,) of its first dev split.  InputError."""
    folder = Path(folder)
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder} is no finished run: it has no result.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        stored = safetensors.torch.load_file(folder / "dev_logits.safetensors")
        split = next(iter(result["dev"]))
        logits, labels = stored[f"{split}.logits"], stored[f"{split}.labels"]
        scores = [glue.score(config["task"], z, labels)[result["metric"]] for z in logits]
        if logits.shape != (len(config["exit_layers"]), len(labels), config["num_labels"]) or scores != result["exit_scores"]:
            raise ValueError("dev_logits.safetensors is not what result.json was made from")
    except Exception as error:                         # torn or foreign in one of too many ways to list
        raise InputError(f"{folder} is torn ({reason(error)[:100]}); train it again") from None
    return config, result, logits, labels


def load_model(folder, config):
    """The trained model of a run, in eval mode, and its tokenizer.  Raises InputError."""
    model_folder = Path(folder) / "model"
    try:
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(model_folder), dtype=torch.float32)
        model = MultiExitBert(encoder, config["num_labels"], config["exit_layers"], config["pooling"])
        model.load_state_dict(safetensors.torch.load_file(model_folder / "model.safetensors"))
        return model.eval(), AutoTokenizer.from_pretrained(model_folder)
    except InputError:                                 # MultiExitBert's tripwire: another transformers
        raise
    except Exception as error:                         # torn or foreign in one of too many ways to list
        raise InputError(f"{model_folder} does not hold this run's model ({type(error).__name__}); train it again") from None


def trade_off(logits, labels, layers, metric):
    """Every rule at many settings, from stored logits alone: list of dicts, the columns of tradeoff.csv.

    logits (M, R, K), labels (R,), layers: the exits' layer numbers, metric: a name of glue.METRICS.  speedup is counted:
    layers[-1] / mean exit layer.  pareto: 1 where no other setting of the rule is better in score or speed-up and no worse
    in the other.  Thresholds are quantiles of what the exits say, so that they spread over all speeds; no label is used.
    """
    def quantiles(values):
        grid = torch.linspace(0, 1, 41, dtype=torch.float64)
        return sorted(set(values.double().flatten().quantile(grid).clamp(0, 1).tolist()))

    shallow, M = logits[:-1] if len(logits) > 1 else logits, len(logits)
    entropies, confidences = normalised_entropy(shallow), shallow.float().softmax(dim=-1).amax(dim=-1)
    settings = [("entropy", t, None) for t in quantiles(entropies)] + [("confidence", t, None) for t in quantiles(confidences)]
    settings += [("patience", None, p) for p in range(1, max(2, M - 1))]
    settings += [("pcee", t, p) for p in range(2, M) for t in quantiles(entropies)[::2]]
    rows, depth = [], torch.tensor(layers)
    for name, threshold, times in settings:
        index = exit_indices(logits, make_rule(name, threshold, times))                     # (R,)
        predictions = logits.argmax(dim=-1).gather(0, index[None])[0]                       # (R,)
        mean_exit_layer = depth[index].double().mean().item()
        rows.append({"rule": name, "threshold": threshold, "patience": times, "speedup": layers[-1] / mean_exit_layer,
                     "mean_exit_layer": mean_exit_layer, "score": glue.METRICS[metric](predictions, labels)})
    for row in rows:
        row["pareto"] = int(not any(
            r["rule"] == row["rule"] and r["score"] >= row["score"] and r["speedup"] >= row["speedup"]
            and (r["score"], r["speedup"]) != (row["score"], row["speedup"]) for r in rows))
    return rows


def at_speedup(rows, rule, speedup):
    """The slowest setting of `rule` that is at least `speedup` times as fast (counted), or None.  Chosen by speed alone: the
    best-scoring one would be picked on dev.  Of equally slow ones the first."""
    fast = [row for row in rows if row["rule"] == rule and row["speedup"] >= speedup]
    return min(fast, key=lambda row: row["speedup"], default=None)


def clock(model, split, tokenizer, rule, batch_size, device, rounds=5):
    """Seconds of the full model, seconds of early exit on the same length-sorted batches, and the counted speed-up.

    Warm-up, then the median of `rounds`; both take turns, so that a slow moment hits both.  The device is waited for.
    """
    by_length = glue.row_lengths(split).argsort(stable=True).split(batch_size)
    batches = [batch.to(device) for batch in glue.loader(split, by_length, tokenizer)]
    for batch in batches:
        batch.pop("label")

    def run(rule):
        start = time.perf_counter()
        layers = torch.cat([early_exit(model, batch, rule)[1] for batch in batches]).double().mean().item()    # waits
        return time.perf_counter() - start, layers

    run(None), run(rule)
    rounds = [(run(None), run(rule)) for _ in range(rounds)]
    full, early = (statistics.median(seconds for seconds, _ in side) for side in zip(*rounds))
    return full, early, model.num_layers / rounds[0][1][1]


# ------------------------------------------------------------------------------------------------------- the command line

SPEEDS = (1.5, 2, 3)


def main(argv=None):
    p = argparse.ArgumentParser(prog="exits.py", description="Score against speed-up of finished runs, from their dev logits.")
    p.error = lambda message: p.exit(2, f"exits.py: {message}; see python exits.py --help\n")
    p.add_argument("runs", nargs="+", help="run folders; several give one table, methods as rows")
    p.add_argument("--rule", default="entropy", help="of --examples and --clock: entropy, confidence, patience, pcee (entropy)")
    p.add_argument("--threshold", type=float, help="its threshold, 0 to 1 (default: the setting next above 2x)")
    p.add_argument("--patience", type=int, help="its patience, 1 or more exits")
    p.add_argument("--examples", action="store_true", help="write examples.tsv: each dev row's exit layer, prediction, text")
    p.add_argument("--clock", action="store_true", help="measure the speed-up at batch 1 and 32 beside the counted one")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="for --clock (cpu)")
    args = p.parse_args(argv)
    try:
        report(args)
        return 0
    except (InputError, OSError) as error:             # OSError: a full disk, a folder that cannot be written
        print(f"exits.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def report(args):
    given = args.threshold is not None or args.patience is not None
    if given and not (args.examples or args.clock):
        raise InputError("--threshold and --patience are for --examples and --clock; the table tries all settings")
    if args.rule not in RULES or given:
        make_rule(args.rule, args.threshold, args.patience)                    # complain before anything is written
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU to be seen; use --device cpu")
    runs = [(Path(folder), *load_run(folder)) for folder in args.runs]
    check_one_table(runs)
    tables = [trade_off(logits, labels, config["exit_layers"], result["metric"]) for _, config, result, logits, labels in runs]
    chosen = [choose(args, run, rows) for run, rows in zip(runs, tables)] if args.examples or args.clock else []
    models = [load_model(folder, config) for folder, config, *_ in runs] if args.clock else []

    print_table(runs, tables)
    if len(runs) == 1:
        print_front(tables[0])
    for (folder, *_), rows in zip(runs, tables):
        write_csv(folder / "tradeoff.csv", rows)
    for i, (run, (setting, split)) in enumerate(zip(runs, chosen)):
        print(f"\n{run[0]}: " + ", ".join(f"{name} {value}" for name, value in setting.items() if value is not None))
        if args.examples:
            write_examples(run, make_rule(**setting), split)
        if args.clock:
            write_csv(run[0] / "clock.csv", print_clock(*models[i], run[1]["max_length"], setting, split, torch.device(args.device)))


def read_csv(path):
    """A CSV's rows as dicts of strings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path, rows):
    """A list of dicts with the same keys, as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_one_table(runs):
    """InputError unless the runs share task, exits and dev rows, and those of a method differ in seed alone."""
    methods = {}
    for folder, config, _, _, labels in runs:
        if (config["task"], config["exit_layers"], labels.tolist()) != (runs[0][1]["task"], runs[0][1]["exit_layers"],
                                                                        runs[0][4].tolist()):
            raise InputError(f"{folder} differs from {runs[0][0]} in task, exits or dev rows: one table cannot hold both")
        options = {k: v for k, v in config.items() if v and k not in ("seed", "device_name", "versions")}     # absent or off: one
        seeds = methods.setdefault(config["method"], (options, set()))[1]
        if options != methods[config["method"]][0] or config["seed"] in seeds:
            raise InputError(f"{folder} has the method of another run but other options, or its seed: give one of them")
        seeds.add(config["seed"])


def choose(args, run, rows):
    """The rule's setting for --examples and --clock, and the dev split as text, checked to be the run's own."""
    folder, config, result, _, labels = run
    setting = {"rule": args.rule, "threshold": args.threshold, "patience": args.patience}
    if args.threshold is None and args.patience is None:
        row = at_speedup(rows, args.rule, 2)
        if row is None:
            raise InputError(f"{folder}: {args.rule} never reaches 2x; give --threshold or --patience")
        setting |= {"threshold": row["threshold"], "patience": row["patience"]}
    split = glue.load_task(config["task"], config["data"], config["limit_train"], config["holdout"])[next(iter(result["dev"]))]
    if split["label"][:] != labels.tolist():
        raise InputError(f"{folder}: its dev labels are not those of {config['data']}; the data have changed")
    return setting, split


def print_table(runs, tables):
    """Methods as rows, mean±sd over their runs: the score of each exit, and of each rule at counted speed-ups."""
    _, config, result, _, labels = runs[0]
    print(f"{config['task']}, {result['metric']} on {len(labels)} dev rows, mean±sd over runs")
    print(f"{'method':10}{'runs':>5}" + "".join(f"{f'exit {layer}':>11}" for layer in config["exit_layers"]) + f"{'mean':>11}")
    methods = list(dict.fromkeys(run[1]["method"] for run in runs))
    for method in methods:
        results = [run[2] for run in runs if run[1]["method"] == method]
        columns = zip(*(r["exit_scores"] + [r["mean_exit_score"]] for r in results))
        print(f"{method:10}{len(results):>5}" + "".join(f"{mean_sd(column):>11}" for column in columns))
    print(f"\n{'method':10}{'rule':12}" + "".join(f"{f'at {speed}x':>11}" for speed in SPEEDS) + "   (counted)")
    for method in methods:
        mine = [rows for run, rows in zip(runs, tables) if run[1]["method"] == method]
        for rule in RULES:
            cells = [[row and row["score"] for row in (at_speedup(rows, rule, speed) for rows in mine)] for speed in SPEEDS]
            print(f"{method:10}{rule:12}" + "".join(f"{mean_sd(scores):>11}" for scores in cells))


def mean_sd(scores):
    """mean±sd, or a dash where a run has no setting that fast."""
    if None in scores:
        return "-"
    return f"{statistics.mean(scores):.1f}" + (f"±{statistics.stdev(scores):.1f}" if len(scores) > 1 else "")


def print_front(rows):
    """The settings that no other setting of the same rule beats in both score and speed."""
    print(f"\n{'Pareto front':14}{'threshold':>10}{'patience':>10}{'score':>8}{'mean exit layer':>17}{'speed-up (counted)':>20}")
    front = {(row["rule"], row["speedup"]): row for row in rows if row["pareto"]}.values()        # equal rows once
    for row in sorted(front, key=lambda r: (list(RULES).index(r["rule"]), r["speedup"])):
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.6g}"
        print(f"{row['rule']:14}{threshold:>10}{row['patience'] or '':>10}{row['score']:8.1f}{row['mean_exit_layer']:17.2f}"
              f"{row['speedup']:19.2f}x")


def write_examples(run, rule, split):
    """examples.tsv: where each sentence left, how sure the exit was, what it said, what is right."""
    folder, config, _, logits, labels = run
    task, index = glue.TASKS[config["task"]], exit_indices(logits, rule)                    # (R,)
    answers = logits[index, torch.arange(len(index))].softmax(dim=-1)                       # (R, K)
    with open(folder / "examples.tsv", "w", encoding="utf-8") as file:
        print("exit_layer", "confidence", "prediction", "label", *task.hub_columns, sep="\t", file=file)
        for i, p in enumerate(answers):
            print(config["exit_layers"][index[i]], f"{p.max():.4f}", task.labels[p.argmax()], task.labels[labels[i]],
                  *(split[i][column] for column in task.hub_columns), sep="\t", file=file)
    print(f"wrote {folder / 'examples.tsv'}")


def print_clock(model, tokenizer, max_length, setting, split, device):
    """Print counted and clocked speed-up at batch 1 and 32; the rows of clock.csv."""
    model.to(device)
    split = glue.tokenize(split, tokenizer, max_length)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{where}, fp32, length-sorted batches, median of 5 rounds")
    print(f"{'batch':>6}{'counted':>10}{'clocked':>10}{'clocked/counted':>17}{'full, ms/row':>14}{'exits, ms/row':>15}")
    rows = []
    for batch_size in (1, 32):
        full, early, counted = clock(model, split, tokenizer, make_rule(**setting), batch_size, device)
        print(f"{batch_size:>6}{counted:9.2f}x{full / early:9.2f}x{full / early / counted:17.2f}"
              f"{1000 * full / len(split):14.2f}{1000 * early / len(split):15.2f}")
        rows.append({**setting, "device": where, "batch_size": batch_size, "counted": f"{counted:.4f}",
                     "clocked": f"{full / early:.4f}", "full_ms_per_row": f"{1000 * full / len(split):.4f}"})
    return rows


if __name__ == "__main__":
    sys.exit(main())
