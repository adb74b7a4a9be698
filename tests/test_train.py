"""train.py: its options, one training step told again slowly, and a whole run as a plain loop.

The losses and the gate have their own tests in test_acl.py.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import acl
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
    ("--method ce --max-length 33", "32 positions"),
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
    ("--method acl-cl --exits last", "students"),
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
    "rte ce": "last cls 0.1 0.5 none 8 32 5e-05 0.001",
    "cola scl": "last cls 0.1 0.5 none 5 32 2e-05 0.0004",
    "wnli acl-grad": "last cls 0.1 0.5 discard 5 32 2e-05 0.0004",
    "mine acl-cl": "all cls 0.1 0.5 discard 3 32 2e-05 0.0004",
    "mrpc kd": "all cls 0.5 2.0 none 5 32 2e-05 0.0004",
    "demo acl-grad": "last mean 0.01 0.05 discard 7 64 0.001 0.001",
    "demo kd": "all mean 0.5 2.0 none 7 64 0.001 0.001",
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


# ------------------------------------------------------------------------------ one step


def slow_losses(args, model, h, logits):
    """Cross-entropy and the second loss of each exit: two lists of M scalars."""
    tau = args.temperature
    label_embeddings = model.label_embeddings()
    ce_losses, second_losses = [], []
    for m in range(len(h)):
        ce_losses.append(F.cross_entropy(logits[m], LABELS))
        second = 0 * h[m].sum()
        is_student = m < len(h) - 1
        if args.method == "scl":
            second = acl.scl_loss(h[m], LABELS, tau)
        if args.method == "kd" and is_student:
            second = acl.kd_loss(logits[m], logits[-1], tau)
        if args.method.startswith("acl") and (args.students_embed or not is_student):
            second = acl.acl_embed_loss(h[m], LABELS, label_embeddings[m], tau)
        if args.method == "acl-cl" and is_student:
            guide = acl.acl_cl_loss(h[m], h[-1], LABELS, label_embeddings[-1], tau)
            second = second + guide
        second_losses.append(second)
    return ce_losses, second_losses


def gradients(loss, tensors):
    """The gradient for each tensor, None where there is none, as one forward's graph gives it."""
    return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)


def cosine_of(g_ce, g_acl):
    """Over the tensors that both losses reach."""
    pairs = [(a, b) for a, b in zip(g_ce, g_acl) if a is not None and b is not None]
    a = torch.cat([a.flatten() for a, _ in pairs])
    b = torch.cat([b.flatten() for _, b in pairs])
    return F.cosine_similarity(a, b, dim=0).item()


STEPS = [
    ("ce", "", "none parameters"),
    ("scl", "--weight 0.3", "none parameters"),
    ("scl", "--weight 0.3", "observe parameters"),
    ("scl", "--weight 0.3", "discard parameters"),
    ("scl", "--weight 0.3 --exit-weights uniform", "observe features"),
    ("scl", "--weight 0.3", "discard features"),
    ("acl-embed", "", "none parameters"),
    ("acl-grad", "--temperature 0.1", "discard parameters"),
    ("acl-grad", "--exit-weights uniform", "discard features"),
    ("acl-cl", "", "none parameters"),
    ("acl-cl", "--exit-weights uniform", "discard parameters"),
    ("acl-cl", "--no-students-embed", "observe parameters"),
    ("acl-cl", "", "discard features"),
    ("kd", "", "none parameters"),
    ("kd", "--exit-weights uniform", "discard parameters"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method, words, gate", STEPS)
def test_a_step_told_slowly(method, words, gate, seed):
    """The losses, the cosines and each parameter's gradient."""
    rule, place = gate.split()
    gate = ["--conflict", rule, "--conflict-at", place]
    args = options("--method", method, *gate, *words.split())
    model = small_model(5, "1,3,5", dropout=0.0, seed=seed).train()
    batch = small_batch(6, 9) | {"label": LABELS}
    h, logits = model(batch)
    w = [1, 1, 1] if args.exit_weights == "uniform" else [1, 3, 5]
    ce_losses, second_losses = slow_losses(args, model, h, logits)
    ce_loss = sum(w[m] * ce_losses[m] for m in range(3)) / sum(w)
    acl_losses = [w[m] * second_losses[m] / sum(w) for m in range(3)]
    ce_term = (1 - args.weight) * ce_loss if method == "scl" else ce_loss

    # Who is compared with whom, and what is left of the second loss.
    parameters = list(model.parameters())
    cosines = []
    kept = acl_losses
    if rule != "none" and place == "features":
        g_ce = gradients(ce_term, [h])[0]
        for m in range(3):
            g_acl = gradients(acl_losses[m], [h])[0]
            cosines.append(cosine_of([g_ce[m]], [g_acl[m]]))
        kept = [loss for loss, cosine in zip(acl_losses, cosines) if cosine >= 0]
    elif rule != "none":
        g_ce = gradients(ce_term, parameters)
        cosines = [cosine_of(g_ce, gradients(sum(acl_losses), parameters))]
        kept = acl_losses if cosines[0] >= 0 else []
    if rule == "observe":
        kept = acl_losses
    expected = gradients(ce_term + args.weight * sum(kept), parameters)

    found = train.training_step(args, model, batch, bf16=False)
    assert found[0].item() == pytest.approx(ce_loss.item(), rel=1e-5)
    assert found[1].item() == pytest.approx(sum(acl_losses).item(), rel=1e-5)
    assert found[2] == pytest.approx(cosines, abs=1e-4)
    for p, gradient in zip(parameters, expected):
        assert torch.allclose(p.grad, gradient, atol=1e-6)


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
