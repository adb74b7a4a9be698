"""The demo task's little BERT: untrained, no download."""

from transformers import BertConfig, BertModel, BertTokenizer

import glue


def demo_encoder():
    """4 layers, and a tokenizer of the demo's words alone: (encoder, tokenizer)."""
    words = set()
    for sample in glue.demo_rows(2000):
        words.update(f"{sample['sentence1']} {sample['sentence2']}".split())
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    vocabulary = {word: number for number, word in enumerate(tokens)}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    encoder = BertModel(config)
    encoder.pooler_is_new = True
    return encoder, BertTokenizer(vocab=vocabulary)
