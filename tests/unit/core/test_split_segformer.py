"""Hugging Face's SegFormer: stages of maps of several sizes, scores of a quarter of the labels' size."""

import torch
import transformers as tf

import locallearn as ll


def test_heads_of_a_segformer_learn_pixels():
    torch.manual_seed(0)
    config = tf.SegformerConfig(
        num_labels=3,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        hidden_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    labels = (torch.arange(32) // 11)[None, None].expand(2, 32, 32).contiguous()
    batch = {"pixel_values": labels[:, None].expand(2, 3, 32, 32) / 2.0, "labels": labels}
    model = tf.SegformerForSemanticSegmentation(config)
    network = ll.split(model, depth=2, example=batch, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    losses = [network.step(batch) for _ in range(25)]
    for name in ("loss/1", "loss/2"):
        assert losses[-1][name] < 0.6 * losses[0][name]
    assert set(network.merge().state_dict()) == set(model.state_dict())
