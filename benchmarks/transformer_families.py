"""Models of the ``transformers`` library from small configurations, one of each family, with an example input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, Any]

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 16}
LANGUAGE = {**SHAPE, **TOKENS, "vocab_size": 30, "max_position_embeddings": 16}
OLD_NAMES = {"vocab_size": 30, "n_embd": 24, "n_layer": 2, "n_head": 6, "n_positions": 16, **TOKENS}
VISION = {**SHAPE, "image_size": 32, "patch_size": 8, "num_labels": 5}
STAGES = {"depths": [1, 1, 1, 1], "num_labels": 5}
PAIR = {
    **{f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in (("layers", 1), ("attention_heads", 6))},
    **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 24, "vocab_size": 30, "max_position_embeddings": 16},
    **{"decoder_start_token_id": 1, **TOKENS},
}
SERIES = {
    **{"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 7], "num_time_features": 1, "d_model": 24},
    **{name: PAIR[name] for name in PAIR if name.endswith(("layers", "heads", "ffn_dim"))},
}
SPEECH = {
    **{**SHAPE, "num_hidden_layers": 1, "mask_time_prob": 0.0, "num_feat_extract_layers": 2},
    **{"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3]},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
}
T5 = {"d_model": 24, "d_kv": 4, "d_ff": 18, "num_layers": 2, "num_heads": 6, "vocab_size": 30, "pad_token_id": 0}


def tokens(length: int = 8) -> torch.Tensor:
    return torch.randint(3, 30, (2, length))


def labelled() -> dict[str, Any]:
    """Tokens that are their own labels, so that the model returns its loss."""
    ids = tokens()
    return {"input_ids": ids, "labels": ids}


def masked(length: int = 8) -> dict[str, Any]:
    return {"input_ids": tokens(length), "attention_mask": torch.ones(2, length, dtype=torch.long)}


def series() -> dict[str, Any]:
    past = {"past_values": torch.randn(2, 23), "past_time_features": torch.randn(2, 23, 1)}
    future = {"future_values": torch.randn(2, 4), "future_time_features": torch.randn(2, 4, 1)}
    return {**past, **future, "past_observed_mask": torch.ones(2, 23)}


def image(size: int = 32) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, 3, size, size)


def family(name: str, kind: str, example: Callable[[], Any], **options: Any) -> Callable[[], Made]:
    """A model class by the name of its family, its configuration, and an example input."""

    def make() -> Made:
        import transformers

        head, _, config = kind.partition(":")
        settings = getattr(transformers, f"{name}{config or 'Config'}")(**options)
        return getattr(transformers, f"{name}{head}")(settings), example()

    return make


def decoder(name: str, **options: Any) -> Callable[[], Made]:
    return family(name, "ForCausalLM", labelled, **{**LANGUAGE, **options})


def encoder(name: str, length: int = 8, mask: bool = True, **options: Any) -> Callable[[], Made]:
    def example() -> dict[str, Any]:
        return masked(length) if mask else {"input_ids": tokens(length)}

    return family(name, "ForSequenceClassification", example, **{**LANGUAGE, **options})


def classifier(name: str, size: int = 32, **options: Any) -> Callable[[], Made]:
    return family(name, "ForImageClassification", image(size), **options)


GROUPED = {"num_key_value_heads": 3}
ROTARY = {**GROUPED, "head_dim": 4}
STATE_SPACE = {"mamba_d_state": 4, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_n_groups": 1}

FAMILIES: dict[str, Callable[[], Made]] = {
    # decoders
    "Mistral": decoder("Mistral", **ROTARY),
    "Qwen2": decoder("Qwen2", **GROUPED),
    "Qwen3": decoder("Qwen3", **ROTARY),
    "Qwen2-MoE": decoder(
        "Qwen2Moe", **GROUPED, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=12
    ),
    "Gemma": decoder("Gemma", **ROTARY),
    "Gemma 2": decoder("Gemma2", **ROTARY),
    "Gemma 3": family("Gemma3", "ForCausalLM:TextConfig", labelled, **LANGUAGE, **ROTARY),
    "Phi": decoder("Phi"),
    "StableLM": decoder("StableLm", **GROUPED),
    "Cohere": decoder("Cohere", **GROUPED),
    "OLMo": decoder("Olmo"),
    "OLMo 2": decoder("Olmo2"),
    "StarCoder2": decoder("Starcoder2", **GROUPED),
    "Granite": decoder("Granite", **GROUPED),
    "Persimmon": decoder("Persimmon"),
    "Nemotron": decoder("Nemotron", **GROUPED),
    "GLM": decoder("Glm", **ROTARY),
    "Falcon (one key)": decoder("Falcon", multi_query=True, new_decoder_architecture=False),
    "Falcon (keys in groups)": decoder("Falcon", num_kv_heads=3, new_decoder_architecture=True),
    "Falcon (ALiBi)": decoder("Falcon", multi_query=False, new_decoder_architecture=False, alibi=True),
    "BLOOM": family("Bloom", "ForCausalLM", labelled, vocab_size=30, hidden_size=24, n_layer=2, n_head=6, **TOKENS),
    "MPT": family("Mpt", "ForCausalLM", labelled, vocab_size=30, d_model=24, n_layers=2, n_heads=6, max_seq_len=16),
    "OPT": decoder("OPT", ffn_dim=16, word_embed_proj_dim=24),
    "GPT-J": family("GPTJ", "ForCausalLM", labelled, **{**OLD_NAMES, "n_head": 3, "rotary_dim": 4}),
    "CodeGen": family(
        "CodeGen", "ForCausalLM", labelled, **{**OLD_NAMES, "n_embd": 32, "n_head": 4, "rotary_dim": 4, "n_ctx": 16}
    ),
    "GPT-BigCode": family("GPTBigCode", "ForCausalLM", labelled, **OLD_NAMES),
    "GPT-Neo": family(
        "GPTNeo", "ForCausalLM", labelled, vocab_size=30, hidden_size=24, num_layers=2, num_heads=6,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=16, window_size=4, **TOKENS,
    ),
    "OpenAI GPT": family(
        "OpenAIGPT", "LMHeadModel", labelled, vocab_size=30, n_embd=24, n_layer=2, n_head=6, n_positions=16
    ),
    "CTRL": family("CTRL", "LMHeadModel", labelled, **OLD_NAMES, dff=16),
    # decoders with a state
    "Mamba-2": family(
        "Mamba2", "ForCausalLM", labelled, vocab_size=30, hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8,
        state_size=4, n_groups=1, expand=2, chunk_size=4,
    ),
    "FalconMamba": decoder("FalconMamba", state_size=4),
    "Bamba": decoder("Bamba", **GROUPED, **STATE_SPACE, mamba_chunk_size=4, attn_layer_indices=[1]),
    "Falcon-H1": decoder("FalconH1", **ROTARY, **STATE_SPACE, mamba_d_ssm=48, mamba_chunk_size=4),
    "Zamba2": decoder(
        "Zamba2", num_key_value_heads=6, mamba_d_state=4, mamba_expand=2, n_mamba_heads=4, mamba_headdim=12,
        mamba_ngroups=1, chunk_size=4, num_mem_blocks=1, hybrid_layer_ids=[1], layers_block_type=["mamba", "hybrid"],
    ),
    "Jamba": decoder(
        "Jamba", **GROUPED, num_experts=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    "RecurrentGemma": decoder(
        "RecurrentGemma", **ROTARY, lru_width=24, attention_window_size=8, block_types=["recurrent", "attention"]
    ),
    # encoders
    "RoBERTa": encoder("Roberta"),
    "ALBERT": encoder("Albert", embedding_size=10),
    "DistilBERT": family(
        "DistilBert", "ForSequenceClassification", masked, vocab_size=30, max_position_embeddings=16, dim=24, n_heads=6,
        n_layers=2, hidden_dim=16,
    ),
    "ELECTRA": encoder("Electra", embedding_size=10),
    "DeBERTa": encoder("Deberta", relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=8),
    "DeBERTa-v2": encoder(
        "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4, max_relative_positions=8
    ),
    "Longformer": encoder("Longformer", attention_window=4, max_position_embeddings=20),
    "BigBird": encoder(
        "BigBird", 48, mask=False, attention_type="block_sparse", block_size=4, num_random_blocks=1,
        max_position_embeddings=64,
    ),
    "XLNet": family(
        "XLNet", "ForSequenceClassification", lambda: {**masked(), "labels": torch.tensor([0, 1])}, vocab_size=30,
        d_model=24, n_layer=2, n_head=6, d_inner=16,
    ),
    "XLM": family(
        "XLM", "ForSequenceClassification", masked, vocab_size=30, emb_dim=24, n_layers=2, n_heads=6
    ),
    "Funnel": family(
        "Funnel", "ForSequenceClassification", masked, vocab_size=30, block_sizes=[1, 1], d_model=24, n_head=6,
        d_head=4, d_inner=16,
    ),
    "MPNet": encoder("MPNet"),
    "FNet": encoder("FNet", mask=False),
    "ConvBERT": encoder("ConvBert", head_ratio=2, embedding_size=10, conv_kernel_size=3),
    "SqueezeBERT": encoder(
        "SqueezeBert", embedding_size=24, q_groups=2, k_groups=2, v_groups=2, post_attention_groups=1,
        intermediate_groups=2, output_groups=2,
    ),
    "RoFormer": encoder("RoFormer", embedding_size=24),
    "Nystromformer": encoder("Nystromformer", mask=False, num_landmarks=4, segment_means_seq_len=8),
    "MobileBERT": encoder("MobileBert", embedding_size=12, intra_bottleneck_size=12, num_attention_heads=3),
    "ModernBERT": encoder(
        "ModernBert", global_attn_every_n_layers=2, local_attention=4, sep_token_id=2, cls_token_id=1
    ),
    # encoders with decoders
    "LongT5": family("LongT5", "ForConditionalGeneration", labelled, **T5, decoder_start_token_id=0, local_radius=2),
    "Switch": family(
        "SwitchTransformers", "ForConditionalGeneration", labelled, **{**T5, "num_layers": 1, "num_decoder_layers": 1},
        decoder_start_token_id=0, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    ),
    **{name: family(name, "ForConditionalGeneration", labelled, **PAIR) for name in ("Bart", "Pegasus", "Blenderbot")},
    "Marian": family("Marian", "MTModel", labelled, **PAIR),
    "M2M100": family("M2M100", "ForConditionalGeneration", labelled, **PAIR),
    "LED": family(
        "LED", "ForConditionalGeneration", labelled, **PAIR, attention_window=4, max_encoder_position_embeddings=20,
        max_decoder_position_embeddings=20,
    ),
    "ProphetNet": family(
        "ProphetNet", "ForConditionalGeneration", labelled, vocab_size=30, hidden_size=24, encoder_ffn_dim=16,
        num_encoder_layers=1, num_encoder_attention_heads=6, decoder_ffn_dim=16, num_decoder_layers=1,
        num_decoder_attention_heads=6, max_position_embeddings=16, decoder_start_token_id=0, **TOKENS,
    ),
    # images
    "DeiT": classifier("DeiT", **VISION),
    "BEiT": classifier("Beit", **VISION),
    "DINOv2": classifier("Dinov2", **VISION),
    "Swin v2": classifier(
        "Swinv2", 16, image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4
    ),
    "ConvNeXt": classifier("ConvNext", hidden_sizes=[8, 8, 12, 12], **STAGES),
    "ConvNeXt V2": classifier("ConvNextV2", hidden_sizes=[8, 8, 12, 12], **STAGES),
    "MobileNetV1": classifier("MobileNetV1", depth_multiplier=0.25, num_labels=5),
    "ResNet": classifier("ResNet", embedding_size=8, hidden_sizes=[8, 12, 16, 16], **STAGES),
    "RegNet": classifier("RegNet", embedding_size=8, hidden_sizes=[8, 16, 16, 16], groups_width=4, **STAGES),
    "BiT": classifier("Bit", embedding_size=32, hidden_sizes=[32, 64, 64, 64], num_groups=8, **STAGES),
    "SegFormer": classifier(
        "Segformer", 64, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, **STAGES
    ),
    "PoolFormer": classifier("PoolFormer", hidden_sizes=[8, 8, 12, 12], **STAGES),
    "PVT": classifier(
        "Pvt", 64, image_size=64, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 2, 2, 4], **STAGES
    ),
    "MobileViT": classifier(
        "MobileViT", 64, image_size=64, hidden_sizes=[12, 16, 20], neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32],
        num_attention_heads=4, num_labels=5,
    ),
    "LeViT": classifier(
        "Levit", 64, image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 3, 4], depths=[1, 1, 1],
        key_dim=[4, 4, 4], num_labels=5,
    ),
    "FocalNet": classifier(
        "FocalNet", embed_dim=8, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3], hidden_sizes=[8, 16],
        image_size=32, num_labels=5,
    ),
    # sound and time series
    "wav2vec 2.0": family("Wav2Vec2", "ForSequenceClassification", lambda: torch.randn(2, 400), **SPEECH),
    "wav2vec 2.0 Conformer": family(
        "Wav2Vec2Conformer", "ForSequenceClassification", lambda: torch.randn(2, 400), **SPEECH,
        conv_depthwise_kernel_size=3, position_embeddings_type="relative",
    ),
    "HuBERT": family("Hubert", "ForSequenceClassification", lambda: torch.randn(2, 400), **SPEECH),
    "AST": family(
        "AST", "ForAudioClassification", lambda: torch.randn(2, 32, 16), **SHAPE, patch_size=4, max_length=32,
        num_mel_bins=16, frequency_stride=4, time_stride=4,
    ),
    "Informer": family("Informer", "ForPrediction", series, **{**SERIES, "encoder_layers": 2}, sampling_factor=1),
    "Autoformer": family("Autoformer", "ForPrediction", series, **SERIES, moving_average=3, label_length=4),
    "PatchTST": family(
        "PatchTST", "ForPrediction", lambda: {"past_values": torch.randn(2, 16, 3)}, num_input_channels=3,
        context_length=16, patch_length=4, patch_stride=4, d_model=24, num_attention_heads=6, num_hidden_layers=2,
        ffn_dim=16, prediction_length=4,
    ),
}  # fmt: skip
