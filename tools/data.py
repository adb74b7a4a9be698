"""Samples from files: GLUE's download, the hub's GLUE, or a table of one's own.

A file of any kind becomes a pandas.DataFrame whose index says where a row stands, and the table
becomes a split: a datasets.Dataset of the texts and `label`, a number.  What cannot be read is an
InputError, whose one line names the file; no row is left out without a word.
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
import pyarrow.parquet
from datasets import Dataset

from tools.errors import InputError, is_here, reading, reason
from tools.processes import say

# ------------------------------------------------------------------------------ GLUE's files

# What the hub calls the classes of tasks whose download has 0 and 1.
HUB_CLASSES = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "wnli": ("not_entailment", "entailment"),
}
COLA_COLUMNS = ["source", "label", "mark", "sentence"]  # its train and dev have no header


def read_glue(task, data, names):
    """{name: Dataset} of the splits `names` of a GLUE task.

    task: a glue.Task.  data: the hub's id; or a folder with GLUE's download (RTE/train.tsv ..) or
    with a copy of the hub's repository (rte/train-00000-of-00001.parquet ..).
    """
    splits = {}
    for name in names:
        source, table = find_glue(task, data, name)
        classes = task.labels
        if "classes" in table.attrs:
            # RTE, MRPC and WNLI have the same columns, but not these names in this order.
            classes = HUB_CLASSES.get(task.name, task.labels)
            found = table.attrs["classes"]
            if found != classes:
                raise InputError(f"{source}: the classes of {task.name} are {', '.join(classes)}; "
                                 f"found {', '.join(found)}: is it another task?")
        splits[name] = make_split(source, table, task.text_columns, classes, name)
    return splits


def find_glue(task, data, name):
    """A split of a GLUE task: where it was found, for messages, and its table."""
    hub_name = name.replace("dev", "validation")
    if not is_here("--data", data):
        return data, table_of_dataset(load_from_hub(task, data, hub_name))

    download = f"{name}.tsv"
    copy = f"{hub_name}-00000-of-00001.parquet"
    for folder in (Path(data, task.folder), Path(data, task.name), Path(data)):
        for path in (folder / download, folder / copy):
            if path.exists():
                with reading(path):
                    is_copy = path.name == copy
                    table = read_parquet(path) if is_copy else read_download(task, path)
                return path, table
    raise InputError(
        f"--data {data} holds no {name} of {task.name}: neither {task.folder}/{download} (GLUE's "
        f"download) nor {task.name}/{copy} (a copy of the hub's nyu-mll/glue); data of your own "
        "need a --task of their own"
    )


def read_download(task, path):
    """A file of GLUE's download -> table with the hub's names of the columns."""
    hub_columns = dict(zip(task.tsv_columns, task.text_columns)) | {task.tsv_label: "label"}
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        rows = plain_rows(file)
        header = COLA_COLUMNS
        if task.name != "cola" or path.name == "test.tsv":
            _, header = next(rows, (1, []))
        if task.name == "qqp" and path.name == "train.tsv":
            rows = without_short_rows(path, rows, len(header))
        return table_of_cells(path, header, rows, hub_columns).rename(columns=hub_columns)


def without_short_rows(path, rows, length):
    """QQP's train has some, a known fault of the download."""
    for number, cells in rows:
        if len(cells) < length:
            say(f"{path}: row {number} is too short and skipped", file=sys.stderr)
        else:
            yield number, cells


def load_from_hub(task, data, hub_name):
    """A split of the hub's `data`, or from the library's cache -> Dataset."""
    try:
        return datasets.load_dataset(data, task.name, split=hub_name)
    except Exception as error:  # no network, no such id: the library's errors have many classes
        raise InputError(
            f"--data {data}: no such folder is here, and the hub's cannot be loaded "
            f"({reason(error)}).  Two ways on: where there is a network, `hf download nyu-mll/glue "
            "--repo-type dataset --local-dir glue`, and here --data glue; or without data "
            "`python train.py --task demo --method acl-cl`"
        ) from error


# ------------------------------------------------------------------------ a table of one's own

SPLITS = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "test": "test",
}
# Texts that are taken, in this order, where a file has more than two columns beside `label`.
KNOWN_TEXTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence",),
    ("text",),
    ("question",),
)
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
    files = own_files(Path(data)) if is_here("--data", data) else {}
    needed = ["train", "test"] if with_test else ["train"]
    for split in needed:
        if split not in files:
            raise InputError(f"--task {name} is none of GLUE's (--help names them), and --data "
                             f"{data} has no file {split} of your own ({', '.join(KINDS)})")
    tables = {}
    for split in ("train", "dev", *needed[1:]):
        if split in files:
            tables[split] = read_table(files[split])
    texts = choose_texts(files["train"], tables["train"])
    classes = choose_classes(files["train"], tables["train"])
    say(f"{name}: texts from {' and '.join(texts)}; {len(classes)} classes: "
        f"{' | '.join(classes)[:200]}", file=sys.stderr)

    splits = {}
    for split, table in tables.items():
        splits[split] = make_split(files[split], table, texts, classes, split, has_text)
    if "dev" not in splits:
        splits |= set_dev_aside(files["train"], splits["train"])
        say(f"{name}: no dev file; {len(splits['dev'])} of the {len(tables['train'])} samples of "
            f"{files['train'].name}, drawn with a fixed seed, are dev", file=sys.stderr)
    return texts, classes, splits


def own_files(data):
    """{split: path}: one file is train; in a folder the files' names tell."""
    if not data.is_dir():
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
    """One or two columns: all but `label` and a numbering, or else names that are well known."""
    texts = [name for name in table.columns if name.lower() not in ("label", *NUMBERING)]
    for known in KNOWN_TEXTS:
        # A known pair gets its usual order; of more than two columns the known ones are taken.
        if set(known) == set(texts) or len(texts) > 2 and set(known) <= set(texts):
            texts = known
    if "label" not in table or not 1 <= len(texts) <= 2:
        raise InputError(f"{path} must have a column label, of classes, and one or two columns of "
                         "texts (if there are more, call them sentence1 and sentence2); found "
                         f"{columns_of(table)}")
    left_out = [repr(name) for name in table.columns if name not in ("label", *texts)]
    if left_out:
        say(f"{path}: left out the columns {', '.join(left_out)}", file=sys.stderr)
    return tuple(texts)


def choose_classes(path, table):
    """The classes of train, K strings in order: as numbers where all of them are numbers."""
    labels = table["label"]
    check(path, labels, labels.map(has_text), "is missing or no text")
    classes = sorted(set(labels.map(class_name)))
    with contextlib.suppress(ValueError):
        classes = sorted(classes, key=float)
    if "classes" in table.attrs:  # a Parquet file that names its classes has an order of them
        classes = [class_name(name) for name in table.attrs["classes"]]
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InputError(f"{path}: the column label has {len(classes)} different value(s) "
                         f"({', '.join(classes)[:40]} ..); it takes 2 to {MOST_CLASSES} classes")
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

    Its index says where a row stands: "row 7", where the header is row 1, or "sample 6".  A number
    becomes its text, and what is missing ""; what is neither a number nor a text stays what it is.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise InputError(f"{path} is none of {', '.join(KINDS)}")
    with reading(path):
        if kind == ".parquet":
            table = read_parquet(path)
        elif kind in (".json", ".jsonl"):
            table = read_json(path)
        else:
            rows = iter(own_rows(path, kind))
            _, header = next(rows)
            table = table_of_cells(path, header, rows, header)
        table = table.map(as_text)
    if table.empty:
        raise InputError(f"{path} has no rows")
    table.columns = ["label" if name.lower() == "label" else name for name in table.columns]
    if not table.columns.is_unique:
        raise InputError(f"{path}: two columns have one name: {columns_of(table)}")
    return table


def read_text(path):
    """A file's text without the byte-order mark at its start and empty lines at its end."""
    return path.read_bytes().decode("utf-8-sig").rstrip("\r\n")


def plain_rows(lines):
    """(number, cells) of each line, where a tab ends a cell and quotes are plain characters."""
    for number, line in enumerate(lines, start=1):
        yield number, line.rstrip("\r\n").split("\t")


def own_rows(path, kind):
    """(number, cells) of each row of a .csv or .tsv of one's own.

    A cell that holds a separator, a quote or a line end is in quotes, as pandas and Excel write
    it.  In a .tsv quotes are plain characters, as in GLUE's files, unless all of them belong to
    such cells.  In a .csv a European Excel writes semicolons.
    """
    text = read_text(path)
    separator = "\t"
    if kind == ".csv":
        header = text.split("\n")[0]
        separator = next((mark for mark in ",;\t" if mark in header), ",")
    elif '"' in QUOTED_CELL.sub("", text):
        return plain_rows(text.split("\n"))
    rows = []
    try:
        for cells in csv.reader(io.StringIO(text + "\n"), delimiter=separator, strict=True):
            rows.append((len(rows) + 1, cells or [""]))
    except csv.Error as error:
        raise InputError(f"{path}, row {len(rows) + 1}: {error}") from error
    return rows


def table_of_cells(path, header, rows, wanted):
    """Rows (number, cells) -> DataFrame of the columns `wanted`, or of all if it has none of them.

    pandas.read_csv would fill up short rows in silence.
    """
    kept = [i for i, name in enumerate(header) if name in wanted] or range(len(header))
    places = []
    table = []
    for number, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, row {number}: {len(cells)} cells where the header has "
                             f"{len(header)}")
        places.append(f"row {number}")
        table.append([cells[i] for i in kept])
    columns = [header[i].strip() for i in kept]
    return pandas.DataFrame(table, places, columns, dtype=object)


def read_json(path):
    """A list of objects, or an object a line -> DataFrame.

    pandas.read_json would drop half a surrogate pair in silence, and bend large numbers.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        lines = [line for line in text.split("\n") if line.strip()]
        text = "[" + ",\n".join(lines) + "]"
    objects = json.loads(text)
    json.dumps(objects, ensure_ascii=False).encode()  # an error for half a surrogate pair
    return table_of_objects(objects)


def read_parquet(path):
    """A Parquet file -> DataFrame.  No cache, and the file's name is taken for no pattern."""
    with open(path, "rb") as file:
        return table_of_dataset(Dataset(pyarrow.parquet.read_table(file)))


def table_of_dataset(split):
    """A Dataset -> DataFrame, where classes have their names; a number that is no class has ""."""
    table = table_of_objects(split.to_dict())
    names = getattr(split.features.get("label"), "names", None)
    if names:
        known = dict(enumerate(names))
        table["label"] = [known.get(number, "") for number in split["label"]]
        table.attrs["classes"] = tuple(names)
    return table


def table_of_objects(objects):
    """JSON's objects, or columns -> DataFrame."""
    table = pandas.DataFrame(objects)
    table.index = [f"sample {number}" for number in range(1, len(table) + 1)]
    table.columns = [str(name) for name in table.columns]
    return table


def as_text(cell):
    """A cell as a CSV holds it: 5 as "5", null and NaN as "" (NaN alone is unlike itself)."""
    if isinstance(cell, (str, bool, int, float)):
        return str(cell) if cell == cell else ""
    return "" if cell is None else cell


def class_name(label):
    """A label -> the name of its class: spaces at the ends do not count, and 2.0 is 2."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str(label).strip())


def make_split(path, table, texts, classes, name, is_text=pandas.notna):
    """A table -> Dataset of its texts and `label`, -1 where a test file does not tell it.

    path: the file, for messages.  name: the split's.  is_text: cell -> bool; GLUE's texts may be
    empty.
    """
    is_test = name.startswith("test")
    wanted = [*texts] if is_test else [*texts, "label"]
    if table.empty or not set(wanted) <= set(table.columns):
        raise InputError(f"{path} must have rows with the columns {', '.join(wanted)}; found "
                         f"{len(table)} rows with {columns_of(table)}")
    for column in texts:
        check(path, table[column], table[column].map(is_text), "is missing or no text")
    columns = {column: table[column].tolist() for column in texts}

    if "label" not in table:
        table = table.assign(label="")
    labels = table["label"].map(class_name)
    allowed = [*classes, *HIDDEN_LABELS] if is_test else classes
    check(path, labels, labels.isin(allowed), f"is none of {', '.join(classes)[:80]}")
    numbers = {label: number for number, label in enumerate(classes)}
    columns["label"] = [numbers.get(label, -1) for label in labels]
    return Dataset.from_dict(columns)


def columns_of(table):
    """The columns' names, for a message."""
    return ", ".join(table.columns)[:80]


def has_text(cell):
    return isinstance(cell, str) and cell.strip() != ""


def check(path, cells, is_right, problem):
    """InputError for the first of a column's cells for which `is_right` is False."""
    wrong = cells[~is_right]
    if len(wrong) > 0:
        shown = repr(wrong.iloc[0])[:60]
        raise InputError(f"{path}, {wrong.index[0]}: {cells.name} {shown} {problem}")


# --------------------------------------------------------------------------------- fingerprint


def fingerprint(split):
    """Tokenised split -> 16 hex digits over its tokens and labels, in order.

    The same on every machine, whatever chunks or indices the table has.
    """
    lengths, tokens, labels = (hashlib.sha256() for _ in range(3))
    for table in split.with_format("arrow").iter(10_000):
        for column in table.column("input_ids").chunks:
            # Where one sample ends and the next begins counts too.
            lengths.update(little_endian(column.value_lengths()))
            tokens.update(little_endian(column.flatten()))
        for column in table.column("label").chunks:
            labels.update(little_endian(column))
    together = lengths.digest() + tokens.digest() + labels.digest()
    return hashlib.sha256(together).hexdigest()[:16]


def little_endian(integers):
    """An arrow array of integers as bytes, 8 of each, in the same order on every machine."""
    return integers.to_numpy(zero_copy_only=False).astype("<i8").tobytes()
