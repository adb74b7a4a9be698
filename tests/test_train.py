"""train.py: its options, one training step told again slowly, and a whole run as a plain loop.

The losses and the gate have their own tests in test_acl.py.
"""

import itertools
import math

import pytest
import torch

import glue
import train
from tests.small import answer, call, small_batch, small_model, small_task
from tools import machine, models
from tools.run import read_run

torch.set_num_threads(1)  # small tensors: a second thread only waits
CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def options(*words):
    [args] = train.parse_args(["--task", "rte", *words])
    return args


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Options of train.py for a small task of one's own, but for --method and --output."""
    return small_task(tmp_path_factory.mktemp("task"))


# ------------------------------------------------------------------------------- options

# Options after the small task's own, and a word that the line must have.
WRONG = [
    ("--method cee", "cee"),
    ("--epochs 1", "--method"),
    ("--method ce --seed=3", "--seeds"),
    ("--method ce --epoch-count 3", "--epoch-count"),
    ("--method ce --epochs 0", "--epochs"),
    ("--method ce --max-steps 0", "--max-steps"),
    ("--method ce --max-length 0", "--max-length"),
    ("--method ce --max-length 33", "--max-length 33"),
    ("--method ce --max-length 2", "no room for texts"),
    ("--method ce --lr inf", "--lr"),
    ("--method scl --temperature nan", "--temperature"),
    ("--method kd --weight -1", "--weight"),
    ("--method kd --weight nan", "--weight"),
    ("--method scl --weight 2", "--weight"),
    ("--method ce --seeds 1 1", "--seeds"),
    ("--method ce --seeds -1", "--seeds"),
    ("--method ce --conflict discard", "--conflict"),
    ("--method kd --conflict discard --conflict-at features", "--conflict-at"),
    ("--method scl --conflict-at features", "--conflict-at"),
    ("--method kd --no-students-embed", "--no-students-embed"),
    ("--method ce --predict --holdout 2", "--predict"),
    ("--method ce --exits 1,9", "layers from 1 to 2"),
    ("--method ce --exits 1", "layers from 1 to 2"),
    ("--method ce acl-cl --exits last", "students"),
    ("--method kd --exits last", "students"),
    ("--method ce --device cuda", "--device cuda"),
    ("--method ce --model ./nowhere", "--model ./nowhere"),
    ("--method ce --task demo --model bert-base-uncased", "its own data"),
    ("--method ce --task ../mine", "--task"),
]


@pytest.mark.parametrize("words, said", WRONG)
def test_wrong_options(words, said, task, tmp_path, capsys, monkeypatch):
    """One line that names what is wrong, status 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, error = answer(capsys, train.main, *task, *words.split())
    assert (status, out) == (2, "")
    *remarks, line = error.splitlines()
    assert line.startswith("train.py: ")
    assert said in line
    assert len(remarks) <= 1  # which columns are the texts
    assert not list(tmp_path.iterdir())


NAMES = "exits pooling weight temperature conflict epochs batch_size lr head_lr".split()
DEFAULTS = {
    "rte ce": "last mean 0.5 0.5 none 4 32 0.0001 0.002",
    "cola scl": "last mean 0.5 0.5 none 3 32 0.0001 0.002",
    "mine acl-cl": "all mean 0.5 0.5 discard 3 32 0.0001 0.002",
    "mrpc kd": "all mean 0.5 1.0 none 3 32 0.0001 0.002",
    "demo acl-grad": "last mean 0.01 0.05 discard 7 64 0.001 0.001",
    "demo kd": "all mean 0.5 1.0 none 7 64 0.001 0.001",
}


@pytest.mark.parametrize("names", DEFAULTS)
def test_defaults(names):
    task, method = names.split()
    [args] = train.parse_args(["--task", task, "--method", method])
    assert [str(getattr(args, name)) for name in NAMES] == DEFAULTS[names].split()


def test_methods_in_one_command_have_the_same_exits(task, tmp_path):
    """Each run is what it would be alone, with these exits."""
    task = [word for word in task if word not in ("--exits", "all")]
    argv = [*task, "--method", "ce", "acl-cl", "--max-steps", "2", "--output", tmp_path]
    assert call(train.main, *argv) == 0
    alone = tmp_path / "alone"
    argv = [*task, "--method", "ce", "--exits", "all", "--max-steps", "2", "--output", alone]
    assert call(train.main, *argv) == 0
    one, other = (read_run(folder / "mine_ce_1") for folder in (tmp_path, alone))
    assert one.config["exit_layers"] == [1, 2]
    assert torch.equal(one.logits, other.logits)


# ------------------------------------------------------------------------------- one run


def test_a_run_is_a_plain_loop(tmp_path):
    """The order of the samples, the clipped gradient, AdamW's update, warm-up and decay."""
    task = small_task(tmp_path, dropout=0.0)
    argv = [*task, "--method", "acl-cl", "--weight", "3", "--output", str(tmp_path)]
    assert call(train.main, *argv) == 0
    [args] = train.parse_args(argv)
    _, splits = glue.load_task(args.task, args.data)
    model, tokenizer = models.build_model(args, 1, 2, CPU)
    tokens = glue.tokenize(splits["train"], tokenizer, max_length=16)
    lengths = glue.row_lengths(tokens)
    averages = [[0 * p.detach(), 0 * p.detach()] for p in model.parameters()]  # of g and of g^2
    t = 0
    for epoch in (1, 2):
        generator = torch.Generator().manual_seed(1000 + epoch)
        batches = glue.bucketed_batches(lengths, 4, generator)
        for batch in glue.loader(tokens, batches, tokenizer):
            t += 1
            train.training_step(args, model.train(), batch, bf16=False)
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            assert norm > 1  # so that clipping shows
            for (name, p), (m, v) in zip(model.named_parameters(), averages):
                # Up over the first of 12 steps, then down to 0; heads learn 20 times as fast.
                lr = 0 if t == 1 else 1e-3 * (13 - t) / 11
                if name.startswith("classifiers"):
                    lr *= 20
                g = p.grad / norm
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                decay = 0.01 if p.dim() == 2 else 0
                p.data -= lr * (update + decay * p.data)

    trained = read_run(tmp_path / "mine_acl-cl_1")
    weights = models.load_model(trained.folder, trained.config)[0].state_dict()
    for name, p in model.named_parameters():
        # Attention does not depend on the key's bias: its gradient is rounding, whose sign AdamW
        # follows.
        if "key.bias" not in name:
            assert torch.allclose(p, weights[name], atol=1e-5), name


def test_each_step_has_an_order_and_dropout_of_its_own(task, tmp_path, monkeypatch):
    """So has each epoch and seed; each seed starts from classifiers of its own."""
    real_step = train.training_step
    seen = []

    def step(args, model, batch, bf16):
        assert model.training
        start = model.classifiers[0].weight.sum().item()
        seen.append((batch["input_ids"].tolist(), torch.initial_seed(), start))
        return real_step(args, model, batch, bf16)

    monkeypatch.setattr(train, "training_step", step)
    argv = [*task, "--method", "ce", "--seeds", "1", "2", "--output", tmp_path]
    assert call(train.main, *argv) == 0
    orders = [[tokens for tokens, _, _ in seen[i:i + 6]] for i in range(0, 24, 6)]
    assert len({str(order) for order in orders}) == 4
    assert len({seed for _, seed, _ in seen}) == 24
    assert seen[0][2] != seen[12][2]


def test_max_steps_and_limit_train(task, tmp_path):
    """10 samples are 3 steps an epoch; the second epoch ends after its first."""
    limits = ["--limit-train", "10", "--max-steps", "4"]
    assert call(train.main, *task, "--method", "ce", *limits, "--output", tmp_path) == 0
    found = read_run(tmp_path / "mine_ce_1")
    assert found.steps.epoch.tolist() == [1, 1, 1, 2]
    assert found.exits.epoch.tolist() == [1, 1, 2, 2]
    assert found.steps.angle.isna().all()
    assert found.result["conflict_share"] is None
    assert found.result["kept"] is None


# ------------------------------------------------------------------------------- numbers


def test_bf16_rounds_neither_the_losses_nor_what_they_see():
    model = small_model(dropout=0.0).train()
    batch = small_batch(6, 9) | {"label": LABELS}
    outputs = []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    args = options("--method", "acl-cl")
    rounded = train.training_step(args, model, batch, bf16=True)
    plain = train.training_step(args, model, batch, bf16=False)
    (h, logits), (_, plain_logits) = outputs
    assert (logits.dtype, plain_logits.dtype) == (torch.bfloat16, torch.float32)
    assert (h != h.bfloat16()).float().mean() > 0.9
    for loss, expected in zip(rounded[:2], plain[:2]):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_precision_is_bf16_where_the_processor_computes_in_it(monkeypatch):
    for name in ("avx512_bf16", "amx_bf16"):
        for has_it in (True, False):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: has_it})
            assert machine.use_bf16("auto", CPU) is has_it
            assert machine.use_bf16("bf16", CPU) is True
            assert machine.use_bf16("fp32", CPU) is False


def spoil(monkeypatch, step_number, change):
    """Let change(model, acl_loss, cosines) have the last word on one step."""
    real_step = train.training_step
    calls = itertools.count(1)

    def step(args, model, batch, bf16):
        ce_loss, acl_loss, cosines = real_step(args, model, batch, bf16)
        if next(calls) == step_number:
            acl_loss, cosines = change(model, acl_loss, cosines)
        return ce_loss, acl_loss, cosines

    monkeypatch.setattr(train, "training_step", step)


def test_nan_stops_before_the_weights_are_spoilt(task, tmp_path, capsys, monkeypatch):
    spoilt = []

    def change(model, acl_loss, cosines):
        spoilt.append(model)
        model.classifiers[0].weight.grad[0, 0] = math.nan
        return acl_loss, cosines

    spoil(monkeypatch, 3, change)
    argv = [*task, "--method", "ce", "--output", tmp_path]
    status, _, error = answer(capsys, train.main, *argv)
    line = error.splitlines()[-1]
    assert status == 1
    assert line.startswith("train.py: step 3: ce_loss 0.")
    assert "gradient norm nan" in line
    assert "--lr" in line
    assert all(p.isfinite().all() for p in spoilt[0].parameters())
    assert not (tmp_path / "mine_ce_1" / "result.json").exists()


def test_nan_of_the_second_loss_alone_is_a_conflict(task, tmp_path, monkeypatch):
    """The gate has left its gradient out, and training goes on."""
    spoil(monkeypatch, 2, lambda model, acl_loss, cosines: (acl_loss * math.nan, [math.nan]))
    argv = [*task, "--method", "acl-grad", "--max-steps", "4", "--output", tmp_path]
    assert call(train.main, *argv) == 0
    found = read_run(tmp_path / "mine_acl-grad_1")
    assert found.steps.cosine.isna().tolist() == [False, True, False, False]
    assert found.steps.kept[1] == 0
    assert found.result["conflict_share"] == pytest.approx(1 - found.steps.kept.mean())
