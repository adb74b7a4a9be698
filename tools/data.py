"""Samples from files: GLUE's download, the hub's GLUE, or a table of one's own.

A file is read by pandas into a table of strings, and the table becomes a split: a datasets.Dataset
of the texts and `label`, a number.  What cannot be read is an InputError, whose one line names the
file; no row is left out without a word.
"""

import contextlib
import csv
import hashlib
import io
import json
import random
import re
import sys
from pathlib import Path

import datasets
import pandas
from datasets import Dataset

from tools.errors import InputError, is_here, reading, reason
from tools.processes import say

# ------------------------------------------------------------------------------ GLUE's files

COLA_COLUMNS = ["source", "label", "mark", "sentence"]  # its train and dev have no header


def read_glue(task, data, names):
    """{name: Dataset} of the splits `names` of a GLUE task.

    task: a glue.Task.  data: the hub's id; or a folder with GLUE's download (RTE/train.tsv ..) or
    with a copy of the hub's repository (rte/train-00000-of-00001.parquet ..).
    """
    return {name: read_glue_split(task, data, name) for name in names}


def read_glue_split(task, data, name):
    """One split of a GLUE task, from where `data` has it."""
    download = Path(data, task.folder, f"{name}.tsv")
    if download.exists():
        table = read_download(task, download)
        return make_split(download, table, task.text_columns, task.labels, name)

    # The hub's files, whose labels are numbers already.
    hub_name = name.replace("dev", "validation")
    copy = Path(data, task.name, f"{hub_name}-00000-of-00001.parquet")
    has_files = is_here("--data", data)
    try:
        if has_files:
            split = Dataset.from_pandas(pandas.read_parquet(copy))
        else:
            split = datasets.load_dataset(data, task.name, split=hub_name)
        return split.select_columns([*task.text_columns, "label"])
    except Exception as error:  # no network, no such id: the libraries' errors have many classes
        raise InputError(
            f"--data {data} holds no {name} of {task.name}: there is no {download} (GLUE's "
            "download), and neither a copy of the hub's nyu-mll/glue nor the hub can be read "
            f"({reason(error)}).  Where there is a network, `hf download nyu-mll/glue --repo-type "
            "dataset --local-dir glue` makes a copy for --data glue; without data there is "
            "--task demo; data of your own need a --task of their own"
        ) from error


def read_download(task, path):
    """A file of GLUE's download -> table with the hub's names of the columns."""
    hub_columns = dict(zip(task.tsv_columns, task.text_columns)) | {task.tsv_label: "label"}
    header = COLA_COLUMNS if task.name == "cola" and path.name != "test.tsv" else None
    columns = [name for name in hub_columns if name != task.tsv_label or path.name[:4] != "test"]
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}  # quotes are plain characters
    with reading(path), open(path, encoding="utf-8-sig", newline="") as lines:
        table = read_rows(lines, header, columns, **options).rename(columns=hub_columns)
    if task.name == "qqp" and path.name == "train.tsv":
        # A known fault of the download.
        is_short = table.isna().any(axis=1)
        say(f"{path}: {is_short.sum()} rows are too short and skipped", file=sys.stderr)
        table = table[~is_short]
    return table


# ------------------------------------------------------------------------ a table of one's own

SPLITS = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "test": "test",
}
NUMBERING = ("id", "idx", "index", "guid", "", "unnamed: 0", "__index_level_0__")
DEV_SHARE = 0.1
MOST_CLASSES = 150


def read_own(name, data, with_test):
    """Names of the text columns, classes in order, {split: Dataset} of a file or folder.

    Without a dev file a tenth of train, drawn with a fixed seed, is dev.  What was chosen is told
    on standard error.
    """
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise InputError(f"--task {name!r}: a name of your own has letters, digits, - and _ only")
    if not is_here("--data", data):
        raise InputError(f"--task {name} is none of GLUE's (--help names them), and your own needs "
                         f"--data, a file or folder: there is no {data} here")
    files = own_files(Path(data))
    tables = {}
    for split in ["train", "dev", "test"] if with_test else ["train", "dev"]:
        if split in files:
            table = read_table(files[split])
            tables[split] = table.where(table.map(has_text))  # a blank cell is missing
        elif split != "dev":
            raise InputError(f"--data {data} has no file {split} of your own "
                             f"({', '.join(KINDS)})")
    texts = choose_texts(files["train"], tables["train"])
    classes = choose_classes(files["train"], tables["train"])
    say(f"{name}: texts from {' and '.join(texts)}; {len(classes)} classes: "
        f"{' | '.join(classes)}", file=sys.stderr)

    splits = {}
    for split, table in tables.items():
        splits[split] = make_split(files[split], table, texts, classes, split)
    if "dev" not in splits:
        splits |= set_dev_aside(files["train"], splits["train"])
        say(f"{name}: no dev file; {len(splits['dev'])} of {len(tables['train'])} samples, drawn "
            "with a fixed seed, are dev", file=sys.stderr)
    return texts, classes, splits


def own_files(data):
    """{split: path}: one file is train; in a folder the files' names tell."""
    if data.is_file():
        return {"train": data}
    files = {}
    for path in sorted(data.iterdir()):
        split = SPLITS.get(path.stem.lower())
        if split and path.suffix.lower() in KINDS:
            if split in files:
                raise InputError(f"--data {data}: {files[split].name} and {path.name} both hold "
                                 f"{split}; keep one")
            files[split] = path
    return files


def choose_texts(path, table):
    """The one or two columns beside `label` and a numbering of the rows."""
    texts = [name for name in table if name.lower() not in ("label", *NUMBERING)]
    if "label" not in table or len(texts) not in (1, 2):
        raise InputError(f"{path} must have a column label, of classes, and one or two columns of "
                         f"texts; found {', '.join(table)[:80]}")
    return tuple(texts)


def choose_classes(path, table):
    """The classes of train, K strings in order: as numbers where all of them are numbers."""
    labels = table["label"]
    check(path, labels, labels.notna(), "is missing or no text")
    classes = sorted(set(labels.map(class_name)))
    with contextlib.suppress(ValueError):
        classes = sorted(classes, key=float)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InputError(f"{path}: the column label has {len(classes)} different value(s); it "
                         f"takes 2 to {MOST_CLASSES} classes")
    return tuple(classes)


def set_dev_aside(path, train):
    """{"train", "dev"}: a tenth of the samples, at least one, is dev; train keeps every class."""
    labels = train["label"][:]
    order = list(range(len(labels)))
    random.Random(0).shuffle(order)
    last = {labels[i]: i for i in order}  # of each class the sample that stays in any case
    count = max(1, round(DEV_SHARE * len(labels)))
    dev = [i for i in order if i != last[labels[i]]][:count]
    if not dev:
        raise InputError(f"{path}: each class has one sample, so that none can be dev; add samples "
                         "or a file dev")
    rest = set(order) - set(dev)
    return {"train": train.select(sorted(rest)), "dev": train.select(sorted(dev))}


def check_classes(task, train):
    """InputError for a class without samples in train.

    It would never be learnt: its label embedding would only be pushed away.
    """
    present = set(train["label"][:])
    for number, label in enumerate(task.labels):
        if number not in present:
            raise InputError(f"{task.name}: no row of train has the label {label}, and it takes "
                             "all classes to train; look at the data, --limit-train and --holdout")


# --------------------------------------------------------------------------------- any table

KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
HIDDEN_LABELS = ("", "-1", "?")  # in a test file

# A cell of a .tsv in quotes.  It may hold tabs or line ends, but not both: else two plain cells,
# of which one begins and the other ends with a quote, would be taken for one.
QUOTED_CELL = re.compile(r'(?<![^\t\n])(?:"(?:[^"\t]|"")*"|"(?:[^"\n]|"")*")(?![^\t\r\n])')


def read_table(path):
    """A file of one's own -> DataFrame of strings, the same for every kind of file.

    A number becomes its text; what is missing, or is neither a number nor a text, stays what it is.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise InputError(f"{path} is none of {', '.join(KINDS)}")
    with reading(path):
        if kind == ".parquet":
            table = pandas.read_parquet(path).reset_index(drop=True)
        elif kind in (".json", ".jsonl"):
            table = read_json(path)
        else:
            table = read_own_rows(path, kind)
        table = table.map(as_text, na_action="ignore")
    names = [str(name) for name in table]
    table.columns = ["label" if name.lower() == "label" else name for name in names]
    if table.empty:
        raise InputError(f"{path} has no rows")
    if not table.columns.is_unique:
        raise InputError(f"{path} names one column twice: {', '.join(table)[:80]}")
    return table


def read_text(path):
    """A file's text without the byte-order mark at its start and empty lines at its end."""
    return path.read_bytes().decode("utf-8-sig").rstrip("\r\n")


def read_own_rows(path, kind):
    """A .csv or .tsv -> DataFrame.

    A cell that holds a separator, a quote or a line end is in quotes, as pandas and Excel write
    it.  In a .tsv quotes are plain characters, as in GLUE's files, unless all of them belong to
    such cells.  In a .csv a European Excel writes semicolons.
    """
    text = read_text(path)
    separator = "\t"
    quoting = csv.QUOTE_MINIMAL
    if kind == ".csv":
        header = text.split("\n")[0]
        separator = ";" if ";" in header and "," not in header else ","
    elif '"' in QUOTED_CELL.sub("", text):
        quoting = csv.QUOTE_NONE
    return read_rows(io.StringIO(text), delimiter=separator, quoting=quoting)


def read_rows(lines, header=None, columns=None, **options):
    """The lines of a file -> DataFrame of strings, exactly as they stand.

    header: the columns' names, where the first line does not tell them.  columns: those to keep,
    since MNLI's file has parse trees, too.  A cell that a row lacks is missing, not empty.
    """
    rows = csv.reader(lines, strict=True, **options)
    header = header or next(rows, [])
    columns = columns or header
    if not set(columns) <= set(header):
        raise ValueError(f"the header must have {', '.join(columns)}; it has {', '.join(header)}")
    kept = []
    for row in rows:
        if len(row) > len(header):
            raise ValueError(f"line {rows.line_num} has {len(row)} cells, the header "
                             f"{len(header)}; a cell that holds the separator must be in quotes")
        cells = dict(zip(header, row))
        kept.append([cells.get(name) for name in columns])
    return pandas.DataFrame(kept, columns=columns)


def read_json(path):
    """A list of objects, or an object a line -> DataFrame.

    pandas.read_json would drop half a surrogate pair in silence.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        text = "[" + text.replace("\n", ",\n") + "]"
    return pandas.DataFrame(json.loads(text))


def as_text(cell):
    """A number as a CSV holds it: 5 as "5"."""
    return str(cell) if isinstance(cell, (bool, int, float)) else cell


def class_name(label):
    """A label -> the name of its class: spaces at the ends do not count, and 2.0 is 2."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str(label).strip())


def make_split(path, table, texts, classes, name):
    """A table -> Dataset of its texts and `label`, -1 where a test file does not tell it.

    path: the file, for messages.  name: the split's.
    """
    if table.empty:
        raise InputError(f"{path} has no rows")
    table = table.reindex(columns=[*texts, "label"])  # what the file lacks is missing in each row
    for column in texts:
        check(path, table[column], table[column].notna(), "is missing or no text")

    labels = table["label"].astype(object).fillna("").map(class_name)
    allowed = [*classes, *HIDDEN_LABELS] if name.startswith("test") else classes
    check(path, labels, labels.isin(allowed), f"is none of {', '.join(classes)[:80]}")
    numbers = {label: number for number, label in enumerate(classes)}
    columns = {column: table[column].tolist() for column in texts}
    columns["label"] = [numbers.get(label, -1) for label in labels]
    return Dataset.from_dict(columns)


def has_text(cell):
    return isinstance(cell, str) and cell.strip() != ""


def check(path, cells, is_right, problem):
    """InputError for the first of a column's cells for which `is_right` is False."""
    wrong = cells[~is_right]
    if len(wrong) > 0:
        shown = repr(wrong.iloc[0])[:60]
        raise InputError(f"{path}, sample {wrong.index[0] + 1}: {cells.name} {shown} {problem}")


# --------------------------------------------------------------------------------- fingerprint


def fingerprint(split):
    """Tokenised split -> 16 hex digits over its tokens and labels, in order.

    The same on every machine, whatever chunks or indices the table has.
    """
    table = split.with_format("arrow")[:]
    samples = table["input_ids"].combine_chunks()
    # Where one sample ends and the next begins counts too.
    columns = [samples.value_lengths(), samples.flatten(), table["label"].combine_chunks()]
    together = hashlib.sha256()
    for integers in columns:
        eight_bytes = integers.to_numpy(zero_copy_only=False).astype("<i8")  # little-endian
        together.update(hashlib.sha256(eight_bytes).digest())
    return together.hexdigest()[:16]
