"""Tests of what glue.load_task reads: GLUE's layouts, one's own files, and what is wrong with them.

Where a folder `data` holds GLUE's download, its real files are read too.
"""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertTokenizer

import glue
from tools import data_files, hub
from tools.command_line import InputError

ROOT = Path(__file__).parent.parent
REAL = ROOT / "data"
real_data = pytest.mark.skipif(
    not (REAL / "RTE" / "train.tsv").is_file(), reason="no GLUE download in data/")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Where the datasets library would cache: a folder that must stay empty."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    yield folder
    assert list(folder.rglob("*")) == []


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks for the hub without need fails."""
    def nobody(*_, **__):
        raise AssertionError("the hub was asked")
    monkeypatch.setattr(hub, "hub_answers", nobody)
    monkeypatch.setattr(datasets, "load_dataset", nobody)


def texts(split):
    """A split's samples as tuples of their texts."""
    columns = [column for column in split.column_names if column != "label"]
    return list(zip(*(split[column][:] for column in columns)))


def labels(splits):
    return {name: split["label"][:] for name, split in splits.items()}


def files_below(folder):
    return sorted((str(f), f.lstat().st_size) for f in folder.rglob("*"))


def refusal(*arguments, **options):
    """The one line of load_task's InputError."""
    with pytest.raises(InputError) as caught:
        glue.load_task(*arguments, **options)
    line = str(caught.value)
    assert line and "\n" not in line
    assert len(line) < 800
    return line


# ------------------------------------------------------------------------------ GLUE's download

RTE_TSV = "index\tsentence1\tsentence2\tlabel\n0\tA \"b\tC\tnot_entailment\n1\tD\tE\tentailment\n"
WNLI_TSV = "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n1\tC\tD\t0\n"
TEST_TSV = "index\tsentence1\tsentence2\n0\tF\tG\n"
MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
QNLI_TSV = "index\tquestion\tsentence\tlabel\n0\tA\tB\tentailment\n1\tC\tD\tnot_entailment\n"
QQP_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
MNLI_TSV = (
    "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\tx\tA\tB\tneutral\tcontradiction\n"
    "1\tx\tA\tB\tneutral\tneutral\n"
    "2\tx\tA\tB\tneutral\tentailment\n"
)
DOWNLOAD = {    # task: (train.tsv and dev.tsv, test.tsv, the first sample's texts, labels)
    "rte": (RTE_TSV, TEST_TSV, ('A "b', "C"), [1, 0]),
    "mrpc": (MRPC_HEADER + '1\t9\t8\tA\t"B\n0\t7\t6\tC\tD\n',
             "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t4\tE\tF\n", ("A", '"B'), [1, 0]),
    "cola": ("gj04\t1\t\tA.\ngj04\t0\t*\tB.\n", "index\tsentence\n0\tC.\n", ("A.",), [1, 0]),
    "sst2": ("sentence\tlabel\na b \t0\nc\t1\n", "index\tsentence\n0\td\n", ("a b ",), [0, 1]),
    "wnli": (WNLI_TSV, TEST_TSV, ("A", "B"), [1, 0]),
    "qnli": (QNLI_TSV, "index\tquestion\tsentence\n0\tA\tB\n", ("A", "B"), [0, 1]),
    "qqp": (QQP_HEADER + "1\t2\t3\tA\tB\t1\n4\t5\t6\tC\tD\t0\n",
            "id\tquestion1\tquestion2\n0\tA\tB\n", ("A", "B"), [1, 0]),
    "mnli": (MNLI_TSV, "index\tgenre\tsentence1\tsentence2\n0\tx\tA\tB\n", ("A", "B"), [2, 1, 0]),
}


def split_names(task):
    if task == "mnli":
        return ["train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"]
    return ["train", "dev", "test"]


def write_download(folder, task="rte", inside=None, **texts):
    """The task's files in GLUE's layout under `folder`, which is returned as a string.

    inside: the folder's name in there; texts: split=another text, or None for no such file.
    """
    labelled, test, _, _ = DOWNLOAD[task]
    here = folder / (inside or glue.TASKS[task].folder)
    here.mkdir(parents=True, exist_ok=True)
    for name in split_names(task):
        text = texts.get(name, test if name.startswith("test") else labelled)
        if text is None:
            continue
        if isinstance(text, str):
            text = text.encode()
        (here / f"{name}.tsv").write_bytes(text)
    return str(folder)


@pytest.mark.parametrize("task", DOWNLOAD)
def test_download_layout(task, tmp_path):
    spec, splits = glue.load_task(task, write_download(tmp_path, task), with_test=True)
    _, _, first, expected = DOWNLOAD[task]
    assert spec == glue.TASKS[task]
    assert list(splits) == split_names(task)
    for name, split in splits.items():
        assert split.column_names == [*spec.text_columns, "label"]
        if name.startswith("test"):
            assert split["label"][:] == [-1]
        else:
            assert split["label"][:] == expected
            assert texts(split)[0] == first


@pytest.mark.parametrize("task", ["rte", "mnli"])
def test_only_prediction_needs_test_files(task, tmp_path):
    tests = {name: None for name in split_names(task) if name.startswith("test")}
    data = write_download(tmp_path, task, **tests)
    _, splits = glue.load_task(task, data)
    assert list(splits) == [name for name in split_names(task) if name not in tests]
    assert next(iter(tests)) + ".tsv is missing" in refusal(task, data, with_test=True)


def test_windows_line_ends_and_short_qqp_rows(tmp_path, capsys):
    text = DOWNLOAD["rte"][0].replace("\n", "\r\n")
    data = write_download(tmp_path, "rte", train=text)
    assert glue.load_task("rte", data)[1]["train"]["label"][:] == [1, 0]
    data = write_download(tmp_path, "qqp", train=DOWNLOAD["qqp"][0] + "5\t6\n")
    assert len(glue.load_task("qqp", data)[1]["train"]) == 2
    assert "1 short rows skipped" in capsys.readouterr().err


def test_short_rows_are_an_error_outside_qqps_train(tmp_path):
    data = write_download(tmp_path, "qqp", dev=DOWNLOAD["qqp"][0] + "5\t6\n")
    assert "line 4" in refusal("qqp", data)


@pytest.mark.parametrize("odd", [
    "\r", "\v", "\f", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\0"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_newlines_end_a_row_and_only_tabs_a_cell(odd, end, tmp_path):
    text = RTE_TSV.replace("A \"b", f'{odd}a{odd}b "c, d{odd}').replace("\n", end)
    _, splits = glue.load_task("rte", write_download(tmp_path, train=text))
    assert texts(splits["train"]) == [(f'{odd}a{odd}b "c, d{odd}', "C"), ("D", "E")]


@real_data
@pytest.mark.parametrize("task, sizes, first, ones", [
    ("rte", (2490, 277, 3000), "No Weapons of Mass Destruction Found in Iraq Yet.", 1241),
    ("mrpc", (3668, 408, 1725), 'Amrozi accused his brother , whom he called " the witness " , '
     "of deliberately distorting his evidence .", 2474),
    ("cola", (8551, 1043, 1063),
     "Our friends won't buy this analysis, let alone the next one we propose.", 6023),
    ("sst2", (67349, 872, 1821), "hide new secretions from the parental units ", 37569),
    ("wnli", (635, 71, 146), None, 312)])
def test_real_files(task, sizes, first, ones):
    _, splits = glue.load_task(task, str(REAL), with_test=True)
    assert tuple(len(splits[name]) for name in ("train", "dev", "test")) == sizes
    assert first is None or texts(splits["train"])[0][0] == first
    assert sum(splits["train"]["label"][:]) == ones
    for split in splits.values():
        assert not any(text.startswith("\ufeff") for text in texts(split)[0])


RTE_ROW = "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t"


@pytest.mark.parametrize("text", [
    RTE_ROW + "entailment\n1\t" + "word " * 100_000 + "\tB\tnot_entailment\n",
    RTE_ROW + "entailment\n1\t\0\0\tB\tnot_entailment\n",
    RTE_ROW + "entailment\n1\t\t\tnot_entailment"], ids=["long", "NUL", "empty"])
def test_odd_but_valid_rows_are_read(text, tmp_path):
    _, splits = glue.load_task("rte", write_download(tmp_path, "rte", train=text))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    split = glue.tokenize(splits["train"], tokenizer, 64)
    assert split["label"][:] == [0, 1]
    assert glue.row_lengths(split).max() <= 64


# ------------------------------------------------------------------------------- other layouts

def hub_tables(task="rte", word="", names=None):
    """A DatasetDict as the hub's, its first texts starting with `word`."""
    spec = glue.TASKS[task]
    names = names or data_files.HUB_CLASSES.get(task, spec.labels)
    number = len(names)
    tables = {}
    for name in split_names(task):
        columns = {column: [f"{word}{name} {column} {i}" for i in range(number)]
                   for column in spec.text_columns}
        numbers = [-1] * number if name.startswith("test") else list(range(number))
        columns = columns | {"label": numbers, "idx": list(range(number))}
        features = {column: Value("string") for column in spec.text_columns}
        features |= {"label": ClassLabel(names=list(names)), "idx": Value("int32")}
        tables[name.replace("dev", "validation")] = Dataset.from_dict(columns, Features(features))
    return DatasetDict(tables)


def write_hub(folder, task="rte", layout="copy", **options):
    """The hub's tables under folder/task as a copy, as converted files, or as saved."""
    tables, here = hub_tables(task, **options), folder / task
    if layout == "saved":
        tables.save_to_disk(here)
        return str(folder)
    for name, table in tables.items():
        path = here / f"{name}-00000-of-00001.parquet"
        if layout == "converted":
            path = here / name / "0000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
    return str(folder)


def expected_texts(task, word=""):
    tables = hub_tables(task, word)
    columns = glue.TASKS[task].text_columns
    return {name: list(zip(*(tables[name.replace("dev", "validation")][c][:] for c in columns)))
            for name in split_names(task)}


@pytest.mark.parametrize("task", ["rte", "mnli", "wnli", "cola"])
@pytest.mark.parametrize("layout", ["copy", "converted", "saved"])
def test_the_hubs_layouts(layout, task, tmp_path):
    data = write_hub(tmp_path, task, layout)
    before = files_below(tmp_path)
    # The folder above, and the task's folder itself.
    for folder in (data, f"{data}/{task}"):
        spec, splits = glue.load_task(task, folder, with_test=True)
        assert {name: texts(split) for name, split in splits.items()} == expected_texts(task)
        assert list(splits) == split_names(task)
        for name, split in splits.items():
            numbers = list(range(len(spec.labels)))
            assert split["label"][:] == ([-1] * len(numbers) if "test" in name else numbers)
    assert files_below(tmp_path) == before


def test_local_copy_of_the_hub(tmp_path):
    """Without ClassLabel, and in two parts."""
    (tmp_path / "rte").mkdir()
    for name, label in (("train", 1), ("validation", 0), ("test", -1)):
        for part, letter in enumerate("AC"):
            number = label if label < 0 else abs(label - part)
            table = Dataset.from_dict({"sentence1": [letter], "sentence2": ["B"],
                                       "label": [number], "idx": [part]})
            table.to_parquet(tmp_path / "rte" / f"{name}-0000{part}-of-00002.parquet")
    _, splits = glue.load_task("rte", str(tmp_path), with_test=True)
    assert labels(splits) == {"train": [1, 0], "dev": [0, 1], "test": [-1, -1]}
    assert texts(splits["dev"]) == [("A", "B"), ("C", "B")]
    (tmp_path / "rte" / "train-00001-of-00002.parquet").unlink()
    assert "holds 1 of the 2 parts" in refusal("rte", str(tmp_path))


ODD_FOLDERS = ["glue[v1]", "glue*", "glue?", "gl ue", "glue{a,b}", "**", "[!a]", "glü", "a::b",
               "~", "hf:", "%20", "$HOME", "-x"]


@pytest.mark.skipif(os.name != "posix", reason="other systems refuse such names")
@pytest.mark.parametrize("layout", ["download", "copy", "converted", "saved", "own"])
def test_any_folder_name_means_itself(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Beside the odd names what they would match, were they patterns.
    folders = [*ODD_FOLDERS, "glue1", "gluev", "glue", "gluea", "a", "b"]
    for i, folder in enumerate(folders):
        word = f"folder {i}."
        if layout == "download":
            write_download(Path(folder), train=RTE_TSV.replace("A", word))
        elif layout == "own":
            Path(folder).mkdir()
            Path(folder, "train.csv").write_text(f"text,label\n{word},x\nB,y\nC,y\n")
        else:
            # The library writes `a::b` elsewhere, so under another name first.
            write_hub(Path("plain"), layout=layout, word=word)
            Path("plain").rename(folder)
    task = "mine" if layout == "own" else "rte"
    for i, folder in enumerate(ODD_FOLDERS):
        if layout == "saved" and "::" in folder:
            assert "rename the folder" in refusal(task, folder)
            continue
        _, splits = glue.load_task(task, folder)
        first_words = {row[0].split(".")[0] for split in splits.values() for row in texts(split)}
        assert {word for word in first_words if word.startswith("folder")} == {f"folder {i}"}


@pytest.mark.parametrize("layout", ["copy", "converted", "saved"])
def test_a_disk_that_ignores_case(layout, tmp_path):
    """There RTE/ is rte/; here a link says so."""
    data = write_hub(tmp_path, layout=layout)
    (tmp_path / "RTE").symlink_to("rte")
    assert texts(glue.load_task("rte", data)[1]["dev"]) == expected_texts("rte")["dev"]


@pytest.mark.parametrize("task, inside", [
    ("rte", "rte"), ("rte", "Rte"), ("sst2", "sst-2"), ("sst2", "sst2"), ("cola", "cola"),
    ("mnli", "mnli"), ("rte", ".")])
def test_the_download_in_other_folders(task, inside, tmp_path):
    data = write_download(tmp_path, task, inside)
    _, splits = glue.load_task(task, data)
    assert splits["train"]["label"][:] == DOWNLOAD[task][3]


def test_the_download_is_taken_before_parquet_files(tmp_path):
    write_hub(tmp_path)
    write_download(tmp_path, inside="RTE")
    assert texts(glue.load_task("rte", str(tmp_path))[1]["train"])[0] == ('A "b', "C")


def test_other_columns_are_named(tmp_path):
    """A Parquet or saved dataset of another task: which columns were wanted, which found."""
    for layout in ("copy", "saved"):
        data = write_hub(tmp_path / layout, "qnli", layout)
        line = refusal("rte", f"{data}/qnli")
        assert "sentence1, sentence2, label; found question, sentence, label, idx" in line


def test_classes_of_another_task_or_order(tmp_path):
    """RTE, WNLI and MRPC have the same columns."""
    data = write_hub(tmp_path, "wnli")
    assert "not_entailment, entailment; is it another task" in refusal("rte", f"{data}/wnli")
    assert "another task" in refusal("mrpc", f"{data}/wnli")
    data = write_hub(tmp_path, "rte", names=("not_entailment", "entailment"))
    assert "another task" in refusal("rte", data)


def test_nothing_there_says_what_was_looked_for(tmp_path):
    line = refusal("rte", str(tmp_path))
    for name in ("RTE/train.tsv", "rte/train-*.parquet", "rte/train/*.parquet",
                 "rte/dataset_dict.json"):
        assert name in line
    assert "--data FOLDER" not in line and "--task demo" not in line
    # A single split, saved, is not the whole.
    hub_tables()["train"].save_to_disk(tmp_path / "rte")
    assert "dataset_dict.json" in refusal("rte", str(tmp_path))


def test_a_split_that_is_not_there(tmp_path):
    for layout in ("copy", "converted"):
        data = write_hub(tmp_path / layout, layout=layout)
        for file in (tmp_path / layout / "rte").rglob("*.parquet"):
            if "validation" in str(file):
                file.unlink()
        assert "no validation-*.parquet" in refusal("rte", data)
    tables = hub_tables()
    del tables["validation"]
    tables.save_to_disk(tmp_path / "saved" / "rte")
    assert "no split validation; found train, test" in refusal("rte", str(tmp_path / "saved"))


def test_hub_copy_of_mnli_and_foreign_labels(tmp_path):
    (tmp_path / "mnli").mkdir()

    def write(name, numbers):
        table = {"premise": [name + "A"] * 3, "hypothesis": ["B"] * 3, "label": numbers}
        Dataset.from_dict(table).to_parquet(tmp_path / "mnli" / f"{name}-00000-of-00001.parquet")

    for name in ("train", "validation_matched", "validation_mismatched"):
        write(name, [0, 1, 2])
    for name in ("test_matched", "test_mismatched"):
        write(name, [-1] * 3)
    _, splits = glue.load_task("mnli", str(tmp_path), with_test=True)
    assert {name: split["premise"][0] for name, split in splits.items()} == {
        "train": "trainA", "dev_matched": "validation_matchedA",
        "dev_mismatched": "validation_mismatchedA",
        "test_matched": "test_matchedA", "test_mismatched": "test_mismatchedA"}
    for name, numbers in (("validation_matched", [0, 1, 3]), ("train", [0.0, 1.0, 2.0]),
                          ("train", [False, True, True]), ("train", [0, 1, None]),
                          ("test_matched", [None] * 3)):
        write(name, numbers)
        assert "labels outside" in refusal("mnli", str(tmp_path), with_test=True)
        write(name, [0, 1, 2])
    write("train", [-1, 1, 2])
    assert "labels outside 0..2" in refusal("mnli", str(tmp_path))
    table = {"premise": ["A", None, "C"], "hypothesis": ["B"] * 3, "label": [0, 1, 2]}
    Dataset.from_dict(table).to_parquet(tmp_path / "mnli" / "train-00000-of-00001.parquet")
    assert "a text in premise that is missing" in refusal("mnli", str(tmp_path))


@pytest.mark.parametrize("layout", ["download", "copy", "converted", "saved", "own"])
def test_reading_and_tokenising_leave_nothing_on_disk(layout, tmp_path, monkeypatch):
    """Nor in the cache: the fixture `caches` looks there."""
    data, task = tmp_path / "there", "rte"
    if layout == "download":
        write_download(data)
    elif layout == "own":
        task = "mine"
        data.mkdir()
        (data / "train.csv").write_text("text,label\nA,x\nB,y\nC,y\n")
    else:
        write_hub(data, layout=layout)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files_below(tmp_path)
    _, splits = glue.load_task(task, str(data))
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    tokenised = glue.tokenize(splits["train"], tokenizer, 16)
    assert tokenised.cache_files == [] and splits["train"].cache_files == []
    assert files_below(tmp_path) == before


# ------------------------------------------------------------------------ a path or a hub id

def test_paths_that_are_none(tmp_path, monkeypatch):
    """At once, and without the network, which the fixture forbids."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("nowhere")
    for value in ("dta", "./nowhere", "/nowhere", "../x/y", "a/b/c", "data/", "mine.csv",
                  "a/mine.csv", "a/x.PARQUET", "", " ", "~/glue", "a b/c", "C:\\data", "x\0y",
                  "x" * 5000, "-a/b", "é/b"):
        for task in ("rte", "mine"):
            if len(value) < 100:
                assert f"--data {value}: no such path" in refusal(task, value)
        with pytest.raises(InputError, match="--model .*: no such path"):
            hub.check_path_or_hub_id("--model", value)
    for value in ("link", "a/link"):
        assert "points nowhere, to nowhere" in refusal("rte", value)
        assert "points nowhere" in refusal("mine", value)
    assert hub.check_path_or_hub_id("--model", "a") is True
    assert hub.check_path_or_hub_id("--model", tmp_path / "a") is True
    for value in ("nyu-mll/glue", "google-bert/bert-base-uncased", "a/b.c_d-1"):
        assert hub.check_path_or_hub_id("--model", value) is False


def test_hub_ids_go_to_the_hub(monkeypatch):
    calls = []

    def load_dataset(*arguments):
        calls.append((arguments, huggingface_hub.constants.HF_HUB_OFFLINE))
        return hub_tables("mnli")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for answer in (True, False):
        monkeypatch.setattr(hub, "hub_answers", lambda: answer)
        _, splits = glue.load_task("mnli", "nyu-mll/glue")
        assert list(splits) == ["train", "dev_matched", "dev_mismatched"]
        assert texts(splits["dev_matched"]) == expected_texts("mnli")["dev_matched"]
    # Where the hub does not answer, the cache is asked; the switch is put back.
    assert calls == [(("nyu-mll/glue", "mnli"), False), (("nyu-mll/glue", "mnli"), True)]
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_no_network_names_two_ways_on(monkeypatch):
    def load_dataset(*_):
        raise ConnectionError("no network\nsecond line")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    line = refusal("rte", "nyu-mll/glue")
    assert "`hf download nyu-mll/glue --repo-type dataset --local-dir glue`" in line
    assert "--task rte --method acl-cl --data glue`" in line
    assert "`python train.py --task demo --method acl-cl`" in line
    assert "second line" not in line


ASK_THE_HUB = """
import time
import glue
from tools.command_line import InputError
start = time.monotonic()
try:
    glue.load_task("rte", "nyu-mll/glue")
except InputError as error:
    print(time.monotonic() - start)
    print(error)
"""


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_no_network_fails_within_ten_seconds(how, tmp_path):
    """Against a hub on this machine that refuses, or takes the call and never says a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if how == "refuses":
        listener.close()
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path),
                    "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", ASK_THE_HUB], cwd=ROOT, env=environment,
                            capture_output=True, text=True, timeout=120)
    listener.close()
    seconds, line = result.stdout.splitlines()
    assert line.startswith("cannot load rte from the hub's nyu-mll/glue (ConnectionError")
    assert float(seconds) < 10


# ----------------------------------------------------------------------------- one's own files

SAMPLES = [("It rains, again", "bad"), ('She said "yes"', "good"), ("two\nlines", "so so"),
           ("NA", "bad"), ("null", "good"), ("tab\there", "so so"), ("  spaces  ", "bad"),
           ("42", "good"), ("ünï — 漢字", "so so"), ("#no, comment", "bad")]


def write_own(path, samples, columns=("text", "label")):
    """Samples into a file of any kind by another library's writer."""
    import pandas
    frame = pandas.DataFrame([list(sample) for sample in samples], columns=list(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        lines = ["\t".join(columns)] + ["\t".join(map(str, sample)) for sample in samples]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records", indent=1)
    else:
        frame.to_parquet(path)
    return path


def own_samples(task, split):
    """What was read, as (texts.., label's name)."""
    names = [task.labels[number] for number in split["label"]]
    return [(*row, name) for row, name in zip(texts(split), names)]


KINDS = [".csv", ".tsv", ".jsonl", ".json", ".parquet"]


def fitting(kind):
    """A .tsv has no tabs and newlines in its cells."""
    if kind == ".tsv":
        return [sample for sample in SAMPLES if not set(sample[0]) & {"\t", "\n"}]
    return SAMPLES


@pytest.mark.parametrize("kind", KINDS)
def test_own_file_of_each_kind(kind, tmp_path, capsys):
    samples = fitting(kind)
    path = write_own(tmp_path / f"mine{kind}", samples)
    task, splits = glue.load_task("mine", str(path))
    assert task == glue.Task("mine", "mine", ("text",), ("text",), "label",
                             ("bad", "good", "so so"), ("accuracy", "macro_f1"))
    assert list(splits) == ["train", "dev"]
    together = [sample for split in splits.values() for sample in own_samples(task, split)]
    assert sorted(together) == sorted(samples) and len(splits["dev"]) == 1
    for split in splits.values():
        assert split.column_names == ["text", "label"]
    told = capsys.readouterr().err
    assert "3 classes: bad | good | so so" in told and "texts from text" in told
    assert f"no dev file; 1 of the {len(samples)} samples of mine{kind}" in told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dev", ["dev", "validation", "Val"])
def test_own_folder(kind, dev, tmp_path):
    samples = fitting(kind)
    write_own(tmp_path / f"train{kind}", samples)
    write_own(tmp_path / f"{dev}{kind}", samples[:2])
    write_own(tmp_path / f"test{kind}", [sample[:1] for sample in samples[1:3]], ["text"])
    (tmp_path / "README.md").write_text("no data")
    task, splits = glue.load_task("mine", str(tmp_path), with_test=True)
    assert own_samples(task, splits["train"]) == samples
    assert own_samples(task, splits["dev"]) == samples[:2]
    assert texts(splits["test"]) == [sample[:1] for sample in samples[1:3]]
    assert splits["test"]["label"][:] == [-1, -1]
    assert list(glue.load_task("mine", str(tmp_path))[1]) == ["train", "dev"]


def test_own_test_file_with_labels_some_hidden(tmp_path):
    write_own(tmp_path / "train.csv", SAMPLES)
    write_own(tmp_path / "test.csv", [("a", "good"), ("b", ""), ("c", "bad")])
    _, splits = glue.load_task("mine", str(tmp_path), with_test=True)
    assert splits["test"]["label"][:] == [1, -1, 0]


def test_quotes_in_a_tsv_are_plain_and_in_a_csv_not(tmp_path):
    rows = '"quoted"\tx\n"open\ty\nsay ""\ty\nmid"dle\tx\n'
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows)
    task, splits = glue.load_task("mine", str(tmp_path / "train.tsv"))
    together = [text for split in splits.values() for text, in texts(split)]
    assert sorted(together) == ['"open', '"quoted"', 'mid"dle', 'say ""']
    (tmp_path / "train.csv").write_text('text,label\n"a, ""b""\r\nc",x\nmid"dle,y\r\nd,y\n')
    task, splits = glue.load_task("mine", str(tmp_path / "train.csv"))
    together = [text for split in splits.values() for text, in texts(split)]
    assert sorted(together) == ['a, "b"\r\nc', "d", 'mid"dle']


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_odd_characters_end_no_row(kind, tmp_path):
    for odd in "\v\f\x1c\x85\u2028":
        samples = [(f"a{odd}b", "x"), ("c", "y"), ("d", "y")]
        path = tmp_path / f"mine{kind}"
        if kind == ".jsonl":
            lines = [json.dumps({"text": text, "label": label}, ensure_ascii=odd < " ")
                     for text, label in samples]
            path.write_text("\n".join(lines), encoding="utf-8")
        else:
            write_own(path, samples)
        task, splits = glue.load_task("mine", str(path))
        together = [sample for split in splits.values() for sample in own_samples(task, split)]
        assert sorted(together) == samples


@pytest.mark.parametrize("given, order", [
    (["b", "a", "C"], ("C", "a", "b")),
    (["10", "9", "2"], ("2", "9", "10")),
    ([10, 9, 2], ("2", "9", "10")),
    (["-1", "0", "1.5", "1e1"], ("-1", "0", "1.5", "1e1")),
    ([0.5, 2.0, -1.0], ("-1", "0.5", "2")),
    (["10", "9", "x"], ("10", "9", "x")),
    (["inf", "9", "1_0"], ("1_0", "9", "inf")),
    ([" a", "b ", "a"], ("a", "b")),
    ([True, False], ("False", "True"))])
@pytest.mark.parametrize("kind", [".csv", ".json", ".parquet"])
def test_order_of_classes(kind, given, order, tmp_path):
    if kind == ".csv" and given == [0.5, 2.0, -1.0]:
        given = ["0.5", "2", "-1"]      # in text the spelling is the class: 2.0 stays 2.0
    # Each class three times, so that every one stays in train.
    samples = [(f"text {i}", label) for i, label in enumerate(given * 3)]
    path = write_own(tmp_path / f"mine{kind}", samples)
    task, splits = glue.load_task("mine", str(path))
    assert task.labels == order
    by_text = {row[0]: task.labels[number] for split in splits.values()
               for row, number in zip(texts(split), split["label"])}
    assert by_text["text 0"] == order[order.index(str(given[0]).strip().removesuffix(".0"))]
    assert len(by_text) == len(samples)


def test_class_label_of_a_parquet_keeps_its_names_and_order(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a", "m"])})
    for name in ("train", "dev"):
        table = Dataset.from_dict({"text": ["A", "B", "C"], "label": [2, 0, 1]}, features)
        table.to_parquet(tmp_path / f"{name}.parquet")
    table = Dataset.from_dict({"text": ["A", "B"], "label": [-1, 1]}, features)
    table.to_parquet(tmp_path / "test.parquet")
    task, splits = glue.load_task("mine", str(tmp_path), with_test=True)
    assert task.labels == ("z", "a", "m")
    assert labels(splits) == {"train": [2, 0, 1], "dev": [2, 0, 1], "test": [-1, 1]}


def test_categories_of_pandas_are_read(tmp_path):
    import pandas
    frame = pandas.DataFrame({"text": ["A", "B", "C", "D"], "label": ["y", "x", "y", "x"]})
    frame["label"] = frame["label"].astype("category")
    frame[frame["text"] != "B"].to_parquet(tmp_path / "train.parquet")      # with its numbering
    frame.to_parquet(tmp_path / "dev.parquet")
    task, splits = glue.load_task("mine", str(tmp_path))
    assert task.labels == ("x", "y") and texts(splits["train"]) == [("A",), ("C",), ("D",)]
    assert labels(splits) == {"train": [1, 1, 0], "dev": [1, 0, 1, 0]}


@pytest.mark.parametrize("classes", [2, 5, 150])
def test_many_classes(classes, tmp_path):
    samples = [(f"text {i}", i % classes) for i in range(3 * classes)]
    task, splits = glue.load_task("mine", str(write_own(tmp_path / "a.csv", samples)))
    assert task.labels == tuple(str(k) for k in range(classes))
    assert set(splits["train"]["label"]) == set(range(classes))
    more = [(f"text {i}", i) for i in range(151)]
    line = refusal("mine", str(write_own(tmp_path / "b.csv", more)))
    assert "151 different value(s)" in line and "2 to 150 classes" in line


@pytest.mark.parametrize("columns, expected, left_out", [
    (["text", "label"], ("text",), []),
    (["label", "body"], ("body",), []),
    (["label", "body", "title"], ("body", "title"), []),
    (["hypothesis", "premise", "label"], ("premise", "hypothesis"), []),
    (["Id", "text", "label"], ("text",), ["Id"]),
    (["", "IDX", "question", "label", "sentence"], ("question", "sentence"), ["", "IDX"]),
    (["text", "author", "date", "label"], ("text",), ["author", "date"]),
    (["sentence2", "genre", "sentence1", "label", "text"], ("sentence1", "sentence2"),
     ["genre", "text"])])
def test_choice_of_text_columns(columns, expected, left_out, tmp_path, capsys):
    rows = [[f"{column or 'empty'} {i}" for column in columns] for i in range(4)]
    for i, row in enumerate(rows):
        row[columns.index("label")] = "xy"[i % 2]
    text = "\n".join(",".join(row) for row in [columns, *rows])
    (tmp_path / "mine.csv").write_text(text)
    task, splits = glue.load_task("mine", str(tmp_path / "mine.csv"))
    assert task.text_columns == expected == task.tsv_columns
    assert texts(splits["dev"])[0][0].startswith(expected[0])
    told = capsys.readouterr().err
    assert f"texts from {' and '.join(expected)};" in told
    if left_out:
        assert f"left out the columns {', '.join(map(repr, left_out))}" in told
    else:
        assert "left out" not in told


@pytest.mark.parametrize("columns", [
    ["a", "b", "c", "label"], ["text", "sentence", "c", "label"],
    ["sentence1", "sentence2", "premise", "hypothesis", "label"],
    ["sentence1", "sentence2", "premise", "hypothesis", "text", "label"]])
def test_ambiguous_text_columns_are_refused(columns, tmp_path):
    (tmp_path / "mine.csv").write_text(",".join(columns) + "\n" + ",".join("x" * len(columns)))
    assert "columns that may be texts" in refusal("mine", str(tmp_path / "mine.csv"))


def test_a_dev_share_is_fixed_and_leaves_every_class_in_train(tmp_path):
    # One class has a single sample, wherever it stands.
    for position in range(0, 40, 3):
        samples = [(f"text {i}", "xy"[i % 2]) for i in range(39)]
        samples.insert(position, ("alone", "z"))
        path = str(write_own(tmp_path / "mine.csv", samples))
        task, splits = glue.load_task("mine", path)
        assert len(splits["dev"]) == 4 and len(splits["train"]) == 36
        assert ("alone", "z") in own_samples(task, splits["train"])
        rows = own_samples(task, splits["train"]) + own_samples(task, splits["dev"])
        assert sorted(rows) == sorted(samples)
        # In the file's order, and the same each time.
        assert [row for row in samples if row in rows[:36]] == rows[:36]
        assert texts(glue.load_task("mine", path)[1]["dev"]) == texts(splits["dev"])
        # Not the end of the file, which may be sorted by class.
        assert own_samples(task, splits["dev"]) != samples[-4:]
    few = [("a", "x"), ("b", "y")]
    assert "each class has one sample" in refusal("mine", str(write_own(tmp_path / "f.csv", few)))


def test_holdout_and_limit_with_own_data(tmp_path):
    samples = [(f"text {i}", "xy"[i % 2]) for i in range(40)]
    path = str(write_own(tmp_path / "mine.csv", samples))
    _, whole = glue.load_task("mine", path)
    _, held = glue.load_task("mine", path, limit_train=30, holdout=10)
    # What is set aside as dev is not looked at to choose options.
    assert texts(held["train"]) == texts(whole["train"])[:20]
    assert texts(held["dev"]) == texts(whole["train"])[20:30]


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_read_anew(kind, tmp_path):
    path = write_own(tmp_path / f"mine{kind}", [("one", "x"), ("two", "y"), ("six", "y")])
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert glue.load_task("mine", str(path))[0].labels == ("x", "y")
    write_own(path, [("one", "v"), ("two", "w"), ("six", "w")])
    os.utime(path, ns=times)        # the same size and time
    assert glue.load_task("mine", str(path))[0].labels == ("v", "w")


def test_a_json_list_or_lines_alike_and_gaps(tmp_path):
    objects = [{"text": "a", "label": 1, "id": 7}, {"label": 2, "text": "b"},
               {"text": "c", "label": 2}]
    (tmp_path / "a.json").write_text(json.dumps(objects))
    (tmp_path / "b.json").write_text("\n\n".join(json.dumps(one) for one in objects) + "\n")
    for name in ("a.json", "b.json"):
        task, splits = glue.load_task("mine", str(tmp_path / name))
        rows = [row for split in splits.values() for row in own_samples(task, split)]
        assert sorted(rows) == [("a", "1"), ("b", "2"), ("c", "2")]


def test_names_of_own_tasks(tmp_path):
    path = str(write_own(tmp_path / "mine.csv", SAMPLES))
    for name in ("mine", "Mine-2", "a_b", "7"):
        assert glue.load_task(name, path)[0].name == name
    for name in ("", "a b", "../x", "a/b", "a.b", "ä", "-x", "a\n"):
        with pytest.raises(InputError, match="letters, digits"):
            glue.load_task(name, path)
    for name, meant in {"RTE": "rte", "Demo": "demo", "SST-2": "sst2", "sst_2": "sst2"}.items():
        assert f"did you mean {meant}?" in refusal(name, path)
    line = refusal("rte", path)
    assert "is a file, and rte is a task of GLUE" in line
    assert "a --task of their own" in refusal("rte", str(tmp_path))


# --------------------------------------------------------------------------------- bad input

def rte(text):
    return lambda folder: ("rte", write_download(folder, "rte", train=text))


def own(text, name="mine.csv", **others):
    """One's own file, or with `others` (stem=text of a .csv) a folder."""
    def make(folder):
        for stem, other in others.items():
            (folder / f"{stem}.csv").write_text(other)
        data = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(data)
        if others:
            return "mine", str(folder)
        return "mine", str(folder / name)
    return make


def make_missing_file(folder):
    return "rte", write_download(folder, dev=None)


def make_folder_as_file(folder):
    (folder / "RTE" / "train.tsv").mkdir(parents=True)
    return "rte", str(folder)


def make_dangling_file(folder):
    (folder / "RTE").mkdir()
    (folder / "RTE" / "train.tsv").symlink_to("nowhere")
    return "rte", str(folder)


def make_torn_parquet(folder):
    (folder / "rte").mkdir()
    for name in ("train", "validation", "test"):
        (folder / "rte" / f"{name}-0.parquet").write_bytes(b"PAR1")
    return "rte", str(folder)


def make_torn_saved(folder):
    write_hub(folder, layout="saved")
    next((folder / "rte" / "train").glob("*.arrow")).write_bytes(b"torn")
    return "rte", str(folder)


def make_parquet(**columns):
    def make(folder):
        Dataset.from_dict(columns).to_parquet(folder / "mine.parquet")
        return "mine", str(folder / "mine.parquet")
    return make


def make_two_trains(folder):
    for name in ("train.csv", "train.tsv"):
        (folder / name).write_text("text,label\na,x\n")
    return "mine", str(folder)


HALF = '{"text": "a", "label": 1}\n{"text": "b\\ud83d", "label": 2}\n'
TINY = "text,label\na,x\nb,y\nc,y\n"
BAD = {     # name: (folder -> task and data, a word that the message must have)
    "unknown task": (lambda f: ("rtee", "nyu-mll/glue"), "rtee"),
    "unknown task with GLUE's folder": (lambda f: ("rtee", write_download(f)), "rtee is none of"),
    "stsb": (lambda f: ("stsb", "nyu-mll/glue"), "regression"),
    "missing data": (lambda f: ("rte", "./nowhere"), "nowhere"),
    "empty data folder": (lambda f: ("rte", str(f)), "RTE/train.tsv"),
    "missing file": (make_missing_file, "dev.tsv"),
    "empty file": (rte(""), "train.tsv, line 1"),
    "header only": (rte("index\tsentence1\tsentence2\tlabel\n"), "no rows"),
    "wrong header": (rte("a\tb\tc\td\n0\tA\tB\tentailment\n"), "line 1"),
    "short row": (rte(RTE_ROW + "entailment\n1\tA\tB\n"), "line 3"),
    "long row": (rte(RTE_ROW + "entailment\tx\n"), "line 2"),
    "empty line in the middle": (rte(RTE_ROW + "entailment\n\n1\tA\tB\tentailment\n"), "line 3"),
    "foreign label": (rte(RTE_ROW + "neutral\n"), "neutral"),
    "label as a float": (rte(RTE_ROW + "1.0\n"), "1.0"),
    "empty label": (rte(RTE_ROW + "\n"), "line 2"),
    "random bytes": (rte(random.Random(0).randbytes(3000)), "train.tsv"),
    "invalid utf-8": (rte(RTE_ROW.encode() + b"entailment\n1\t\xff\xfe\tB\tentailment\n"),
                      "train.tsv"),
    "NUL bytes": (rte(b"\0" * 500), "line 1"),
    "a million columns": (rte(RTE_ROW + "entailment\n" + "x\t" * 10**6 + "\n"), "1000001 columns"),
    "a folder as file": (make_folder_as_file, "train.tsv"),
    "a link to nowhere as file": (make_dangling_file, "train.tsv is missing"),
    "a class absent from train": (rte(RTE_ROW + "entailment\n"), "not_entailment"),
    "torn parquet": (make_torn_parquet, "cannot load"),
    "torn saved dataset": (make_torn_saved, "cannot load"),
    "own: empty": (own(""), "is empty"),
    "own: newlines only": (own("\n\n\r\n"), "is empty"),
    "own: header only": (own("text,label\n"), "no rows"),
    "own: no label column": (own("text,class\na,x\n"), "no column label; found 'text, class'"),
    "own: semicolons": (own("text;label\na;x\n"), "no column label; found 'text;label'"),
    "own: no text column": (own("id,label\n1,x\n2,y\n"), "no text column"),
    "own: two columns of one name": (own("text,text,label\na,b,x\n"), "line 1: two columns"),
    "own: one class": (own("text,label\na,x\nb,x\n"), "1 different value(s) (x"),
    "own: numbers of a regression": (
        own("text,label\n" + "".join(f"a,{i / 7}\n" for i in range(999))), "999 different value"),
    "own: one number in two spellings": (own("text,label\na,1\nb,1.0\nc,2\n"), "1 and 1.0"),
    "own: a missing text": (own("text,label\na,x\n,y\n"), "line 3: the text text is missing"),
    "own: a text of spaces": (own("text,label\na,x\n  ,y\n"), "line 3: the text text is missing"),
    "own: a missing label": (own("text,label\na,x\nb,\n"), "line 3: the label is missing"),
    "own: a short row": (own("text,label\n\"a\n\",x\nb\n"), "line 4: 1 cells where"),
    "own: a long row": (own("text,label\na,x\nb,y,z\n"), "line 3: 3 cells where the header has 2"),
    "own: every row too long": (own("text,label\na,x,1\nb,y,1\n"), "line 2: 3 cells"),
    "own: an open quote": (own('text,label\na,x\n"b,y\nc,y\n'), "starts in line 3"),
    "own: text behind a quote": (own('text,label\n"a"b,x\n'), "starts in line 2"),
    "own: old Mac line ends": (own("text,label\ra,x\rb,y\r"), "line 1"),
    "own: latin-1": (own("text,label\nä,x\nb,y\n".encode("latin-1")), "is not UTF-8"),
    "own: utf-16": (own("text,label\na,x\nb,y\n".encode("utf-16")), "is not UTF-8"),
    "own: tsv with a short row": (own("text\tlabel\na\tx\nb\n", "m.tsv"), "line 3: 1 cells"),
    "own: tsv with a quoted tab": (own('text\tlabel\n"a\tb"\tx\n', "m.tsv"), "quoted or not"),
    "own: jsonl torn": (own('{"text": "a", "label": 1}\n{"text": ', "m.jsonl"), "line 2: no JSON"),
    "own: jsonl of lists": (own('["a", 1]\n', "m.jsonl"), "line 1"),
    "own: jsonl without a text": (own('{"text": "a", "label": 1}\n{"label": 2}\n', "m.jsonl"),
                                  "line 2: the text text is missing"),
    "own: jsonl with a number as text": (own('{"text": 5, "label": 1}\n{"text": "a", "label": 2}',
                                             "m.jsonl"), "line 1: the text text is missing"),
    "own: jsonl with a NaN label": (own('{"text": "a", "label": NaN}\n', "m.jsonl"),
                                    "line 1: the label is missing"),
    "own: jsonl with a list as label": (own('{"text": "a", "label": [1]}\n', "m.jsonl"),
                                        "neither a string nor a number"),
    "own: json of columns": (own('{"text": {"0": "a"}, "label": {"0": 1}}', "m.json"), "m.json"),
    "own: half an emoji": (own(HALF, "m.jsonl"), "line 2: '\\ud83d' is half a character"),
    "own: half an emoji for a label": (own('{"text": "a", "label": "\\ud83d"}\n', "m.jsonl"),
                                       "line 1: '\\ud83d' is half a character"),
    "own: lines that end with a carriage return": (own("text,label\ra,1\rb,2\r", "m.csv"),
                                                   "end the lines with a newline"),
    "own: json torn": (own('[{"text": "a"', "m.json"), "no JSON"),
    "own: json deep": (own("[" * 10**6, "m.json"), "no JSON"),
    "own: json of nothing": (own("[]", "m.json"), "no rows"),
    "own: torn parquet": (own(b"PAR1", "m.parquet"), "cannot load"),
    "own: parquet with a missing text": (make_parquet(text=["a", None], label=[0, 1]),
                                         "sample 2: the text text is missing"),
    "own: parquet with a missing label": (make_parquet(text=["a", "b"], label=[0, None]),
                                          "sample 2: the label is missing"),
    "own: parquet of vectors": (make_parquet(text=[[1], [2]], label=[0, 1]), "sample 1"),
    "own: another kind": (own("text,label\n", "m.xlsx"), ".xlsx is none of"),
    "own: no train": (own(TINY, "dev.csv", test=TINY), "holds no file train"),
    "own: two trains": (make_two_trains, "both hold train"),
    "own: two devs": (own(TINY, "train.csv", dev=TINY, validation=TINY), "both hold dev"),
    "own: class of dev unknown": (own(TINY, "train.csv", dev="text,label\na,x\nb,z\n"),
                                  "dev.csv, line 3: label 'z' is no class of train"),
    "own: dev without its text": (own(TINY, "train.csv", dev="body,label\na,x\n"),
                                  "train has the texts text; found 'body, label'"),
    "own: dev without labels": (own(TINY, "train.csv", dev="text\na\n"), "no column label"),
    "own: dev without rows": (own(TINY, "train.csv", dev="text,label\n"), "dev.csv has no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_one_line(name, tmp_path, monkeypatch):
    make, word = BAD[name]
    task, data = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    line = refusal(task, data)
    assert word in line, line
    assert "--data FOLDER" not in line
    assert files_below(tmp_path) == before


def test_a_class_only_in_the_held_out_end(tmp_path):
    text = RTE_ROW + "entailment\n1\tA\tB\tnot_entailment\n"
    assert "not_entailment" in refusal("rte", write_download(tmp_path, train=text), holdout=1)


@pytest.mark.parametrize("name", [
    "own: class of test unknown", "own: no test file", "own: one file"])
def test_bad_test_files(name, tmp_path):
    data = tmp_path
    (tmp_path / "train.csv").write_text(TINY)
    word = "which --predict needs"
    if name == "own: class of test unknown":
        (tmp_path / "test.csv").write_text("text,label\na,z\n")
        word = "test.csv, line 2: label 'z'"
    if name == "own: one file":
        data = tmp_path / "train.csv"
    assert word in refusal("mine", str(data), with_test=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user with limits")
def test_files_that_may_not_be_read(tmp_path):
    data = write_download(tmp_path)
    (tmp_path / "RTE" / "train.tsv").chmod(0)
    assert "cannot be read: Permission denied" in refusal("rte", data)


def test_the_csv_modules_limit_is_put_back(tmp_path):
    import csv
    before = csv.field_size_limit()
    path = write_own(tmp_path / "mine.csv", [("word " * 50_000, "x"), ("b", "y"), ("c", "y")])
    _, splits = glue.load_task("mine", str(path))
    assert max(len(row[0]) for split in splits.values() for row in texts(split)) == 250_000
    assert csv.field_size_limit() == before


def test_importing_glue_silences_nobody():
    code = ("import datasets, logging; before = datasets.logging.get_verbosity(); import glue; "
            "assert datasets.logging.get_verbosity() == before; "
            "assert datasets.utils.are_progress_bars_disabled() is False")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


