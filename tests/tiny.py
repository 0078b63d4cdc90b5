"""Open-vocabulary models of a few thousand random weights, in the files of the real ones.

They know nothing. What is real: the configuration, the weights' files, the word lists and the code
that reads them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    SwinConfig,
)

OWLV2_SIDE = 64  # of the square that it sees
OWLV2_READS = 16
DINO_READS = 24


def owlv2(folder: Path) -> Path:
    """64 patches in place of 3,600."""
    torch.manual_seed(0)
    config = Owlv2Config(
        vision_config={
            "image_size": OWLV2_SIDE,
            "patch_size": 8,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        text_config={
            "vocab_size": 300,
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": OWLV2_READS,
            "pad_token_id": 0,
            "bos_token_id": 298,
            "eos_token_id": 299,
        },
        projection_dim=24,
    )
    network = _random(Owlv2ForObjectDetection(config), 0.25)
    network.save_pretrained(folder)
    size = {"height": OWLV2_SIDE, "width": OWLV2_SIDE}
    Owlv2ImageProcessor(size=size).save_pretrained(folder)
    # the published repository has the word list in the files of CLIP's own time
    signs = [chr(code) for code in range(33, 127)]
    merges = ["c a", "ca t</w>", "d o", "do g</w>"]
    vocabulary = [*signs, *(sign + "</w>" for sign in signs)]
    vocabulary += [merge.replace(" ", "") for merge in merges]
    vocabulary += [f"<unused{n}>" for n in range(298 - len(vocabulary))]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    places = {token: place for place, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(places))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    tokenizer = {
        "tokenizer_class": "CLIPTokenizer",
        "pad_token": "!",
        "model_max_length": OWLV2_READS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def grounding_dino(folder: Path) -> Path:
    """20 boxes in place of 900."""
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
            out_indices=[2, 3, 4],  # type: ignore[call-arg]  # the field it becomes is private
        ),
        text_config=BertConfig(
            vocab_size=1040, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32,
        ),
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=20,
        max_text_len=DINO_READS,
    )  # fmt: skip
    network = _random(GroundingDinoForObjectDetection(config), 0.1)
    network.model.decoder.layer_norm.weight.data.mul_(0.05)  # else all scores are 0 or 1
    network.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 128}
    GroundingDinoImageProcessor(size=size).save_pretrained(folder)
    known = {101: "[CLS]", 102: "[SEP]", 0: "[PAD]", 100: "[UNK]", 103: "[MASK]"}
    known |= {1012: ".", 1029: "?", 1030: "cat", 1031: "dog", 1032: "red", 1033: "##s"}
    names = [known.get(place, f"[unused{place}]") for place in range(1040)]
    BertTokenizer(vocab={name: n for n, name in enumerate(names)}).save_pretrained(folder)
    return folder


def _random(network: Any, deviation: float) -> Any:
    """So large that patches and boxes differ."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=deviation)
    return network.eval()
