"""Encoders of other families, models on disk, and the geometry of their representations."""

import math

import pytest
import safetensors.torch
import torch
from transformers import AutoModel, BertTokenizer

import exits
import train
from tests.small import (
    answer,
    call,
    gradients_of,
    make_run,
    small_batch,
    small_encoder,
    small_model,
    small_task,
)
from tools import models
from tools.errors import InputError
from tools.geometry import geometry
from tools.run import read_run

torch.set_num_threads(1)  # small tensors: a second thread only waits
FAMILIES = [("bert", "cls"), ("roberta", "cls"), ("albert", "cls"), ("electra", "mean"),
            ("distilbert", "mean"), ("mpnet", "mean"), ("modernbert", "mean")]
each_family = pytest.mark.parametrize("kind, pooling", FAMILIES)


@each_family
def test_any_encoder_trains(kind, pooling):
    """The gradient reaches every layer, and the same batch costs less after each step."""
    model = small_model(kind=kind, pooling=pooling, dropout=0.0).train()
    words = ["--method", "acl-cl", "--pooling", pooling, "--weight", "0.1"]
    [args] = train.parse_args(["--task", "rte", *words])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ce_losses = []
    for _ in range(3):
        batch = small_batch(6, 9) | {"label": torch.tensor([0, 1, 1, 0, 1, 0])}
        ce_loss, _, _ = train.training_step(args, model, batch, bf16=False)
        ce_losses.append(ce_loss.item())
        optimizer.step()
    assert ce_losses[0] > ce_losses[1] > ce_losses[2]
    for name, gradient in gradients_of(model).items():
        assert gradient is not None, name


@each_family
def test_early_exit_walks_layers_like_berts_and_refuses_others(kind, pooling):
    """A model that is refused once is refused again."""
    model = small_model(5, "all", pooling, num_labels=3, kind=kind)
    batch = small_batch(12, 8)
    for _ in range(2):
        if kind in ("bert", "roberta", "electra"):
            logits, _ = exits.early_exit(model, batch, None)
            with torch.no_grad():
                assert torch.allclose(logits, model.eval()(batch)[1][-1], atol=1e-5)
            continue
        with pytest.raises(InputError, match=f"this {kind} encoder.*counted speed-ups") as refusal:
            exits.early_exit(model, batch, None)
        assert "\n" not in str(refusal.value)


def test_another_walk_than_the_encoders_is_noticed():
    """As a new release of transformers might bring: something more around the layers."""
    def scale(module, inputs, outputs):
        outputs.hidden_states = [1.01 * hidden for hidden in outputs.hidden_states]

    model = small_model()
    model.encoder.register_forward_hook(scale)
    with pytest.raises(InputError, match="cannot walk the layers.*not close"):
        exits.early_exit(model, small_batch(2, 5), None)


def test_what_roberta_has_otherwise():
    model, batch = small_model(kind="roberta").eval(), small_batch(3, 6)
    segments = {"token_type_ids": torch.ones_like(batch["input_ids"])}
    assert torch.equal(model(batch | segments)[0], model(batch)[0])
    assert model.dropout.p == 0.1


@pytest.mark.parametrize("kind, room", [("bert", 64), ("roberta", 62), ("mpnet", 62)])
def test_a_sample_has_no_more_tokens_than_the_encoder_has_positions(kind, room, tmp_path):
    """RoBERTa and MPNet count them from 2."""
    _, tokenizer = models.load_encoder(write_model(tmp_path, "nothing"))
    model = small_model(kind=kind)
    models.try_out(model, tokenizer, room)
    with pytest.raises(InputError, match=f"this {kind} encoder .* --max-length {room + 1} "):
        models.try_out(model, tokenizer, room + 1)


# -------------------------------------------------------------------------- models on disk


def write_model(folder, lost):
    """A model folder that lacks the weights of this name."""
    encoder = small_encoder()
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "word"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    encoder.config.save_pretrained(folder)
    weights = {name: w for name, w in encoder.state_dict().items() if lost not in name}
    file = folder / "model.safetensors"
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("lost, heads", [("nothing", 6), ("pooler", 8)])
def test_a_missing_pooler_is_new_and_learns_like_a_head(lost, heads, tmp_path):
    """A head has a weight and a bias, and there are three classifiers."""
    encoder, _ = models.load_encoder(write_model(tmp_path, lost))
    assert len(exits.MultiExitBert(encoder, 2, pooling="cls").head_parameters()) == heads
    assert len(exits.MultiExitBert(encoder, 2).head_parameters()) == 6


def test_models_that_cannot_be_used(tmp_path, capsys):
    """One line before any folder is made, not random weights that train as well."""
    task = small_task(tmp_path)
    folders = {}
    folders["lacks weights"] = write_model(tmp_path / "weights", "layer.1.")
    folders["are the tokenizer's files there"] = write_model(tmp_path / "words", "nothing")
    for file in (tmp_path / "words").glob("*token*"):
        file.unlink()
    folders["cannot load the model"] = write_model(tmp_path / "torn", "nothing")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    folders["this bart encoder cannot be used"] = write_model(tmp_path / "bart", "nothing")
    small_encoder("bart").save_pretrained(tmp_path / "bart")
    for words, folder in folders.items():
        argv = [*task, "--method", "ce", "--pooling", "mean", "--model", folder]
        status, _, error = answer(capsys, train.main, *argv, "--output", tmp_path / "runs")
        assert status == 2
        assert words in error.splitlines()[-1]
        assert not (tmp_path / "runs").exists()


def test_a_trained_encoder_is_a_model_folder(tmp_path):
    """AutoModel reads it, and so does --model: at next to no learning rate it stays as it is."""
    first = make_run(tmp_path, "ce")
    trained = AutoModel.from_pretrained(first / "model").state_dict()
    argv = [*small_task(tmp_path), "--method", "ce", "--model", first / "model"]
    assert call(train.main, *argv, "--lr", "1e-12", "--output", tmp_path / "second") == 0
    second = read_run(tmp_path / "second" / "mine_ce_1")
    model, _ = models.load_model(second.folder, second.config)
    for name, weight in model.encoder.state_dict().items():
        torch.testing.assert_close(weight, trained[name], atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------ geometry


def test_geometry_by_hand():
    """Two classes, each at one point, at right angles; label embedding 0 on its class, 1
    opposite its class.  Of six pairs 2 are at distance 0, 4 at distance^2 2."""
    h = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    label_embeddings = torch.tensor([[1.0, 0], [0, -1]])
    numbers = geometry(h, torch.tensor([0, 0, 1, 1]), label_embeddings)
    assert numbers["label_cosine"] == pytest.approx(0)
    assert numbers["alignment"] == pytest.approx(0)
    assert numbers["uniformity"] == pytest.approx(math.log((2 * 1 + 4 * math.exp(-4)) / 6))

    # One class, at right angles: one pair, ||z_i - z_j||^2 = 2.
    numbers = geometry(h[[0, 2]], torch.tensor([0, 0]), label_embeddings)
    assert numbers["alignment"] == pytest.approx(2)
    assert math.isnan(numbers["label_cosine"])  # no sample of class 1
