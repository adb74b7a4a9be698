"""results/run.py and packed.py: the list of runs, training one, packing it, reading it back."""

import shutil
import subprocess

import pandas
import pytest

import train
from results import packed, run
from tests.small import answer, make_run
from tools.run import read_run
from tools.tradeoff import trade_off_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two exits, whose groups were watched."""
    folder = make_run(tmp_path_factory.mktemp("runs"))
    (folder / "groups.csv").write_text("step,group,cosine\n1,embeddings,0.1234\n")
    return folder


def listed(capsys, *argv):
    status, text, _ = answer(capsys, run.main, "--list", *argv)
    assert status == 0
    return text.splitlines()


# ------------------------------------------------------------------------------- the list


def test_the_list_is_that_of_the_packed_runs(capsys):
    """What a row's options come to in train.py is what stands in runs.csv."""
    runs = packed.read()["runs"].set_index("run")
    lines = listed(capsys)
    assert len(lines) == len(set(lines))
    others = set(runs.index)
    for line in lines:
        folder, task, method, seed, *options = line.split()
        name = f"{folder}/{task}_{method}_{seed}"
        if name not in others:  # not trained yet
            continue
        others.remove(name)
        row = runs.loc[name].to_dict()
        if options[0] == "--change":
            assert row["change"] == options[1]
            options = options[2:]
        [args] = train.parse_args(["--task", task, "--method", method, *options])
        words = [word for word in options if word.startswith("--")]
        given = {word[2:].replace("-", "_") for word in words} - {"model"}
        for key in {"conflict", "conflict_at", "students_embed", *given} & set(row):
            assert row[key] == vars(args)[key], name
        assert (len(row["exit_layers"]) == 1) == (args.exits == "last")

    # On a CPU as far as it went; seeds 2 and 3 of what looked best.
    assert {name.split("/")[0] for name in others} == {"mpnet_cpu", "tries", "ablate"}


def test_the_lists_options(capsys):
    assert listed(capsys, "few", "--only", " kd ") == [
        "few sst2 kd 1 --exits all --epochs 6 --lr 1e-4 --limit-train 3000 --holdout 2000 "
        "--weight 0.5 --temperature 1"
    ]


# ----------------------------------------------------------------------------- the packing


def test_a_run_comes_out_again(finished, tmp_path):
    """Every number to the last bit, beside another run; a run that is there stays as it is."""
    for name in ("block/setting/mine_acl-cl_1", "block/mine_acl-cl_2"):
        packed.pack(finished, name, tmp_path)
    data = packed.read(tmp_path)
    packed.pack(finished, "block/mine_acl-cl_2", tmp_path)
    assert all(frame.equals(data[kind]) for kind, frame in packed.read(tmp_path).items())
    want = read_run(finished)
    row = data["runs"].set_index("run").loc["block/setting/mine_acl-cl_1"]
    assert (row.block, row.setting, row.model) == ("block", "setting", "my model")
    known = want.config | want.result
    for name in (*packed.SCORES, "lr", "weight", "conflict", "students_embed"):
        assert row[name] == known[name], name
    frames = {"exits": want.exits, "steps": want.steps, "tradeoff": trade_off_of(want),
              "groups": pandas.read_csv(finished / "groups.csv")}
    for kind, frame in frames.items():
        rows = data[kind]
        ours = rows[rows.run == "block/setting/mine_acl-cl_1"].drop(columns="run")
        pandas.testing.assert_frame_equal(ours, frame, check_exact=True, check_dtype=False)
    assert len(data["runs"]) == 2


def test_after_a_kill_between_two_files_nothing_is_there_twice(finished, tmp_path):
    packed.pack(finished, "block/mine_acl-cl_1", tmp_path)
    steps = packed.read(tmp_path)["steps"]
    (tmp_path / "runs.csv").unlink()
    packed.pack(finished, "block/mine_acl-cl_1", tmp_path)
    assert packed.read(tmp_path)["steps"].equals(steps)


def test_the_committed_files_belong_together():
    """Each run has its rows in the other files."""
    data = packed.read()
    runs = data["runs"]
    names = set(runs.run)
    assert len(names) == len(runs) and tuple(runs) == packed.COLUMNS
    assert set(data["exits"].run) == set(data["steps"].run) == names
    assert set(data["tradeoff"].run) == set(runs.run[runs.exit_layers.map(len) > 1])
    clock = pandas.read_csv(packed.FOLDER / "clock.csv")
    assert set(data["groups"].run) | set(clock.run) < names


# ----------------------------------------------------------------------------- the training


@pytest.fixture
def commands(finished, monkeypatch):
    """The commands that run.py starts; in place of a training the finished run is copied."""
    started = []

    def call(command, env, stdout, stderr):
        words = [str(word) for word in command]
        started.append((words[1:], env["OMP_NUM_THREADS"]))
        option = dict(zip(words, words[1:]))
        if option["--method"] == "kd":
            return 2
        name = f"{option['--task']}_{option['--method']}_{option['--seeds']}"
        shutil.copytree(finished, f"{option['--output']}/{name}")
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    return started


def test_missing_runs_are_trained_and_packed(commands, tmp_path, monkeypatch, capsys):
    """With --change by the other program; without weights afterwards; and never twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packed, "FOLDER", tmp_path / "packed")
    argv = ["ablate", "few", "--only", "(ablate/none_center|few) sst2 acl-cl"]
    for _ in range(2):
        assert answer(capsys, run.main, *argv)[0] == 0
    common = "--task sst2 --method acl-cl --seeds 1 --data data --model minilm"
    (changed, threads), (plain, _) = sorted(commands)
    assert changed[:2] == [str(run.ROOT / "results" / "variants.py"), "center"]
    assert changed[2:12] == common.split() and threads == "1"
    assert plain[:11] == [str(run.ROOT / "train.py"), *common.split()]
    assert plain[-3:] == ["--output", "runs/few", "--resume"]
    assert packed.names(packed.FOLDER) == {"few/sst2_acl-cl_1", "ablate/none_center/sst2_acl-cl_1"}
    assert not list(tmp_path.rglob("model.safetensors"))


def test_runs_are_repeated_elsewhere_with_their_models(commands, tmp_path, capsys):
    """A failure is told, and the others go on; the packed runs stay as they are."""
    names = packed.names()
    status, text, _ = answer(capsys, run.main, "few", "--again", tmp_path)
    assert status == 1 and f"FAILED: {tmp_path / 'few-sst2_kd_1.log'}" in text
    assert len(packed.names(tmp_path)) == len(list(tmp_path.rglob("model.safetensors"))) == 3
    assert packed.names() == names


@pytest.mark.parametrize("argv", [[], ["nothing"]])
def test_bad_input(argv, capsys):
    status, _, error = answer(capsys, run.main, *argv)
    assert status == 2 and "name the blocks" in error and error.count("\n") == 1
