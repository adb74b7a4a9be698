"""BERT with an exit after chosen layers, and early exit that drops finished rows.  A model with one exit is the same class.

    tokens -> embeddings -> layer 1 -> layer 2 -> ... -> layer 12
                              |          |                 |
                            h^1        h^2               h^12       representation: shared pooler of [CLS], or mean of tokens
                              |          |                 |
                         classifier 1 classifier 2 ... classifier 12     dropout, then an own linear layer; rows of its
                              |          |                 |             weight are the label embeddings l_1^m .. l_K^m
                         leave here?   here?            always

Architecture second-hand (PCEE-BERT's code by one of the paper's authors); at inference an input leaves at the first exit
where a rule is content.  Speed-up is *counted*, layers / mean exit layer, and `--clock` puts the measured one beside it.

    python exits.py runs/rte_acl-cl_1                # score against speed-up from the run's stored dev logits
    python exits.py runs/rte_*                       # several runs: methods as rows, mean and sd over seeds
    python exits.py runs/rte_acl-cl_1 --clock        # measured speed-up at batch 1 and 32
"""

import argparse
import csv
import json
import statistics
import sys
import time
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging

import glue
from glue import InputError

logging.set_verbosity_error()
logging.disable_progress_bar()
huggingface_hub.utils.logging.set_verbosity_error()


class MultiExitBert(nn.Module):
    """encoder: what AutoModel returns for BERT, MiniLM, RoBERTa (its layers must be `encoder.layer`).  exits: layer numbers
    from 1, or "all" or "last"; the last layer must be among them, since it answers whatever is left.  pooling: "cls", the
    encoder's pooler (dense + tanh on the first token), or "mean" of the tokens without it.  Raises InputError."""

    def __init__(self, encoder, num_labels, exits="all", pooling="cls"):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self._check_layers()
        self.num_layers = encoder.config.num_hidden_layers
        self.exits = parse_exits(exits, self.num_layers)
        if pooling == "mean":
            encoder.pooler = None
        elif getattr(encoder, "pooler", None) is None:
            raise InputError("this encoder has no pooler: use --pooling mean")
        width = encoder.config.hidden_size
        self.dropout = nn.Dropout(encoder.config.hidden_dropout_prob)
        self.classifiers = nn.ModuleList(nn.Linear(width, num_labels) for _ in self.exits)
        for classifier in self.classifiers:                                   # as BERT initialises every linear layer
            nn.init.normal_(classifier.weight, std=0.02)
            nn.init.zeros_(classifier.bias)

    def embed(self, input_ids, attention_mask=None, token_type_ids=None):
        """(N, L) tokens -> hidden (N, L, d), the mask the layers take (or None: attend to all), token mask (N, L)."""
        if self.encoder.config.type_vocab_size < 2:                           # RoBERTa knows one segment only
            token_type_ids = None
        hidden = self.encoder.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        mask = create_bidirectional_mask(self.encoder.config, hidden, attention_mask)
        return hidden, mask, torch.ones_like(input_ids) if attention_mask is None else attention_mask

    def represent(self, hidden, token_mask):
        """hidden (N, L, d) of any layer -> h (N, d): the vector the classifier receives, before dropout."""
        if self.pooling == "cls":
            return self.encoder.pooler(hidden)
        weights = token_mask.unsqueeze(-1).to(hidden.dtype)                   # (N, L, 1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def encode(self, input_ids, attention_mask=None, token_type_ids=None):
        """(N, L) tokens -> h (M, N, d) of all M exits, from one walk through the layers."""
        hidden, mask, token_mask = self.embed(input_ids, attention_mask, token_type_ids)
        h = []
        for number, layer in enumerate(self.encoder.encoder.layer, start=1):
            hidden = layer(hidden, mask)                                      # (N, L, d): a tensor since transformers 5
            if number in self.exits:
                h.append(self.represent(hidden, token_mask))
        # (M, N, d) in the parameters' dtype: under autocast a pooler's output would be bf16, too coarse for the losses.
        return torch.stack(h).to(self.classifiers[0].weight.dtype)

    def classify(self, h):
        """h (M, N, d) -> logits (M, N, K), each exit's by its own classifier."""
        return torch.stack([classifier(self.dropout(x)) for classifier, x in zip(self.classifiers, h)])

    def forward(self, **batch):
        """A batch as Split.batch gives it -> h (M, N, d) and logits (M, N, K) of all M exits."""
        h = self.encode(**batch)
        return h, self.classify(h)

    def head_parameters(self):
        """The parameters that start from nothing and want a learning rate of their own: classifiers, a new pooler."""
        new_pooler = getattr(self.encoder, "pooler_is_new", False) and self.pooling == "cls"
        return list(self.classifiers.parameters()) + (list(self.encoder.pooler.parameters()) if new_pooler else [])

    @torch.no_grad()
    def _check_layers(self):
        """A maintainer's tripwire: walking the layers must give what the encoder's own forward gives.  MPNet, ELECTRA and
        DistilBERT do something else between or around them; a new transformers release may change a signature."""
        encoder = self.encoder.eval()
        batch = {"input_ids": torch.tensor([[5, 6, 7, 8]] * 2), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
        reason = "another result"
        try:
            hidden, mask, _ = self.embed(**batch)
            for layer in encoder.encoder.layer:
                hidden = layer(hidden, mask)
            same = torch.allclose(hidden, encoder(**batch).last_hidden_state, atol=1e-4)
        except Exception as error:                     # no such attribute, other arguments, a tuple where a tensor was, ..
            same, reason = False, type(error).__name__
        encoder.train()
        if not same:
            raise InputError(f"walking the layers of this {encoder.config.model_type} model as BERT's fails ({reason}, "
                             f"transformers {transformers.__version__}); use BERT, MiniLM, RoBERTa or a kin")


def parse_exits(exits, num_layers):
    """"all", "last", "3,6,12" or a list of numbers -> sorted list of layer numbers; InputError for what is not there."""
    if exits in ("all", "last"):
        return list(range(1, num_layers + 1)) if exits == "all" else [num_layers]
    try:
        numbers = sorted({int(number) for number in (exits.split(",") if isinstance(exits, str) else exits)})
    except ValueError:
        raise InputError(f"exits must be all, last or layer numbers such as 3,6,{num_layers}, not {exits!r}") from None
    if not numbers or numbers[0] < 1 or numbers[-1] != num_layers:
        raise InputError(f"exits {exits} do not fit a model of {num_layers} layers: numbers from 1, {num_layers} among them")
    return numbers


def load_encoder(name):
    """A hub id or a folder -> (encoder, tokenizer).  Raises InputError."""
    if (Path(name).exists() or name.startswith((".", "/"))) and not (Path(name) / "config.json").is_file():
        raise InputError(f"--model {name} is no model folder: it has no config.json")
    try:
        encoder, info = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:                         # offline, no such id, a torn file: the library's errors have many names
        reason = str(error).strip().splitlines()
        raise InputError(f"cannot load model {name} ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
                         "without network use --model FOLDER, or --task demo") from None
    missing = sorted(info["missing_keys"])
    if any("pooler" not in key for key in missing):
        raise InputError(f"model {name} lacks weights of its own architecture, first {missing[0]}")
    if not len(tokenizer.all_special_tokens) < len(tokenizer) <= encoder.config.vocab_size:
        raise InputError(f"model {name}: its tokenizer knows {len(tokenizer)} tokens, the encoder {encoder.config.vocab_size}; "
                         "are the tokenizer's files there?")
    encoder.pooler_is_new = bool(missing)
    return encoder, tokenizer


def demo_encoder(vocab_size):
    """The demo task's BERT, 4 layers, untrained: everything in it is new."""
    return BertModel(BertConfig(vocab_size=vocab_size, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
                                intermediate_size=256, max_position_embeddings=64, initializer_range=0.1,
                                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


# ------------------------------------------------------------------------------------------------- rules: who may leave now
# A rule sees the logits (m, n, K) of the m exits passed so far and n inputs still inside, and returns (n,) bool: leave now.

def normalised_entropy(logits):
    """H(p) / log K in 0..1 of logits (..., K).  From log_softmax: softmax and log give NaN at logits of 100 already."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1) / torch.tensor(float(logits.shape[-1])).log()


def entropy(logits, threshold):
    """Leave at the first exit with H(p)/log K <= threshold (DeeBERT, arXiv 2004.12993, normalised)."""
    return normalised_entropy(logits[-1]) <= threshold


def confidence(logits, threshold):
    """Leave at the first exit with max p >= threshold."""
    return logits[-1].float().softmax(dim=-1).amax(dim=-1) >= threshold


def patience(logits, patience):
    """Leave when `patience` exits after one another predict again what the exit before them did (PABEE, arXiv 2006.04152).

    >>> patience(torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 0.0]]]), patience=2)      # three exits, one row
    tensor([True])
    """
    predictions = logits[-patience - 1:].argmax(dim=-1)                       # (at most patience + 1, n)
    return (predictions == predictions[-1]).all(dim=0) & (len(logits) > patience)


def pcee(logits, threshold, patience):
    """Leave when H(p)/log K <= threshold for `patience` exits in a row (PCEE-BERT, second-hand)."""
    return (normalised_entropy(logits[-patience:]) <= threshold).all(dim=0) & (len(logits) >= patience)


RULES = {"entropy": (entropy, ("threshold",)), "confidence": (confidence, ("threshold",)),
         "patience": (patience, ("patience",)), "pcee": (pcee, ("threshold", "patience"))}


def make_rule(rule, threshold=None, patience=None):
    """RULES[rule] with its settings filled in: logits -> (n,) bool.  Raises InputError for settings that make no sense."""
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}")
    function, names = RULES[rule]
    settings = {key: {"threshold": threshold, "patience": patience}[key] for key in names}
    if "threshold" in names and (threshold is None or not 0 <= threshold <= 1):
        raise InputError(f"rule {rule} needs a threshold from 0 to 1, not {threshold}")
    if "patience" in names and (patience is None or patience < 1 or patience != int(patience)):
        raise InputError(f"rule {rule} needs a patience of 1 or more exits, not {patience}")
    return lambda logits: function(logits, **settings)


def exit_indices(logits, rule):
    """Who would leave where, from stored logits (M, R, K) of all exits: (R,) int64, index 0..M-1 into the exits."""
    index = torch.full(logits.shape[1:2], len(logits) - 1)                    # the deepest exit always answers
    inside = torch.ones(logits.shape[1], dtype=torch.bool)
    for m in range(len(logits) - 1):
        leave = rule(logits[:m + 1]) & inside
        index[leave] = m
        inside &= ~leave
    return index


@torch.no_grad()
def early_exit(model, batch, rule):
    """Walk the layers; after each exit drop the rows that leave, so that the rest of the walk costs less.

    batch: dict of (N, L) tensors; rule: from make_rule, or None (nobody leaves early and only the deepest exit is computed:
    the full model, to compare with).  Returns logits (N, K) and exit layer (N,), from 1, in the order of the input.

    Example: rows 0, 1, 2 are inside and row 1 leaves.  `stay` is [True, False, True]; hidden (3, L, d) becomes (2, L, d), and
    the mask and the exits' logits so far must lose the same row, or row 2 would go on under the mask of row 1.
    """
    hidden, mask, token_mask = model.embed(**batch)
    rows = torch.arange(len(hidden), device=hidden.device)                    # (n,) where the rows inside came from
    classifiers = dict(zip(model.exits, model.classifiers))
    answer = torch.empty(len(hidden), model.classifiers[0].out_features, device=hidden.device)   # (N, K)
    exit_layer = torch.full((len(hidden),), model.num_layers, device=hidden.device)             # (N,)
    so_far = []                                                               # logits of the exits passed, each (n, K)
    for number, layer in enumerate(model.encoder.encoder.layer, start=1):
        hidden = layer(hidden, mask)                                          # (n, L, d)
        if number == model.num_layers:
            answer[rows] = classifiers[number](model.represent(hidden, token_mask)).float()
        elif number in classifiers and rule is not None:
            so_far.append(classifiers[number](model.represent(hidden, token_mask)).float())
            leave = rule(torch.stack(so_far))                                 # (n,)
            if leave.any():
                answer[rows[leave]], exit_layer[rows[leave]] = so_far[-1][leave], number
                stay = ~leave
                if not stay.any():
                    break
                hidden, token_mask, rows = hidden[stay], token_mask[stay], rows[stay]
                mask = None if mask is None else mask[stay]
                so_far = [logits[stay] for logits in so_far]
    return answer, exit_layer


@torch.no_grad()
def all_exits(model, split, device, keep_h=0, batch_size=64):
    """One pass over a tokenised split: h (M, keep_h, d) of its first rows (all exits' h of QQP's test would take 14 GB) and
    logits (M, R, K) of all rows, float32 on the CPU, in the split's order."""
    model.eval()
    M, K = len(model.exits), model.classifiers[0].out_features
    kept, logits = torch.empty(M, min(keep_h, len(split)), model.encoder.config.hidden_size), torch.empty(M, len(split), K)
    for rows in glue.sorted_batches(split.lengths, batch_size):
        h, logits[:, rows] = (x.cpu() for x in model(**split.batch(rows, device)))
        kept[:, rows[rows < keep_h]] = h[:, rows < keep_h]
    return kept, logits


# ----------------------------------------------------------------------------------------- trade-off from the stored logits

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
        exit_layer = depth[index].double().mean().item()
        rows.append({"rule": name, "threshold": threshold, "patience": times, "speedup": layers[-1] / exit_layer,
                     "exit_layer": exit_layer, "score": glue.METRICS[metric](predictions, labels)})
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
        reason = (str(error).splitlines() or [""])[0][:80]
        raise InputError(f"{folder} is torn ({type(error).__name__}: {reason}); train it again") from None
    return config, result, logits, labels


def load_model(folder, config):
    """The trained model of a run, in eval mode, and its tokenizer.  Raises InputError."""
    model_folder = Path(folder) / "model"
    try:
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(model_folder), dtype=torch.float32)
        model = MultiExitBert(encoder, config["num_labels"], config["exit_layers"], config["pooling"])
        model.load_state_dict(safetensors.torch.load_file(model_folder / "model.safetensors"))
        return model.eval(), AutoTokenizer.from_pretrained(model_folder)
    except Exception as error:                         # torn or foreign in one of too many ways to list
        raise InputError(f"{model_folder} does not hold this run's model ({type(error).__name__}); train it again") from None


def clock(model, split, rule, batch_size, device, rounds=5):
    """Seconds of the full model, seconds of early exit on the same length-sorted batches, and the counted speed-up.

    Warm-up, then the median of `rounds`; both take turns, so that a slow moment hits both.  The device is waited for.
    """
    batches = [split.batch(rows, device) for rows in glue.sorted_batches(split.lengths, batch_size)]

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
        with open(folder / "tradeoff.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for i, (run, (setting, split)) in enumerate(zip(runs, chosen)):
        print(f"\n{run[0]}: " + ", ".join(f"{name} {value}" for name, value in setting.items() if value is not None))
        if args.examples:
            write_examples(run, make_rule(**setting), split)
        if args.clock:
            print_clock(*models[i], run[1]["max_length"], make_rule(**setting), split, torch.device(args.device))


def check_one_table(runs):
    """InputError unless the runs share task, exits and dev rows, and those of a method differ in seed alone."""
    methods = {}
    for folder, config, _, _, labels in runs:
        if (config["task"], config["exit_layers"], labels.tolist()) != (runs[0][1]["task"], runs[0][1]["exit_layers"],
                                                                        runs[0][4].tolist()):
            raise InputError(f"{folder} differs from {runs[0][0]} in task, exits or dev rows: one table cannot hold both")
        options = {k: v for k, v in config.items() if k not in ("seed", "device_name", "versions")}
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
    if split.labels.tolist() != labels.tolist():
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
    print(f"\n{'Pareto front':14}{'threshold':>10}{'patience':>10}{'score':>8}{'exit layer':>12}{'speed-up (counted)':>20}")
    front = {(row["rule"], row["speedup"]): row for row in rows if row["pareto"]}.values()        # equal rows once
    for row in sorted(front, key=lambda r: (list(RULES).index(r["rule"]), r["speedup"])):
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.6g}"
        print(f"{row['rule']:14}{threshold:>10}{row['patience'] or '':>10}{row['score']:8.1f}{row['exit_layer']:12.2f}"
              f"{row['speedup']:19.2f}x")


def write_examples(run, rule, split):
    """examples.tsv: where each sentence left, how sure the exit was, what it said, what is right."""
    folder, config, _, logits, labels = run
    task, index = glue.TASKS[config["task"]], exit_indices(logits, rule)                    # (R,)
    answers = logits[index, torch.arange(len(index))].softmax(dim=-1)                       # (R, K)
    with open(folder / "examples.tsv", "w", encoding="utf-8") as file:
        print("exit_layer", "confidence", "prediction", "label", *task.hub, sep="\t", file=file)
        for i, p in enumerate(answers):
            print(config["exit_layers"][index[i]], f"{p.max():.4f}", task.labels[p.argmax()], task.labels[labels[i]],
                  *(column[i] for column in split.texts), sep="\t", file=file)
    print(f"wrote {folder / 'examples.tsv'}")


def print_clock(model, tokenizer, max_length, rule, split, device):
    model.to(device)
    split.tokenize(tokenizer, max_length)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{where}, fp32, length-sorted batches, median of 5 rounds")
    print(f"{'batch':>6}{'counted':>10}{'clocked':>10}{'clocked/counted':>17}{'full, ms/row':>14}{'exits, ms/row':>15}")
    for batch_size in (1, 32):
        full, early, counted = clock(model, split, rule, batch_size, device)
        print(f"{batch_size:>6}{counted:9.2f}x{full / early:9.2f}x{full / early / counted:17.2f}"
              f"{1000 * full / len(split):14.2f}{1000 * early / len(split):15.2f}")


if __name__ == "__main__":
    sys.exit(main())
