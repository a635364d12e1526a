"""Writes a checkpoint of a real model's shape with random bf16 weights, for measuring speed and memory offline: dense
speed does not depend on the values. The tokenizer is the demo model's, with words of no use for all other ids: what such a
model generates is any of them, and a server that has no text for a token sends no event.

    python models/benches/random_checkpoint.py qwen2.5-0.5b OUT_DIRECTORY      (needs torch and safetensors)
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

DEMO = Path(__file__).parent.parent / "demo" / "final"

SHAPES = {
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": True, "use_sliding_window": False, "torch_dtype": "bfloat16",
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True, "use_sliding_window": False,
        "sliding_window": None, "max_window_layers": 28, "torch_dtype": "bfloat16",
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "hidden_act": "silu",
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    },
}


def tensors(shape, generator):
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head = shape.get("head_dim", hidden // shape["num_attention_heads"])
    query, kv = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head

    def matrix(rows, columns):
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(torch.bfloat16)

    yield "model.embed_tokens.weight", matrix(shape["vocab_size"], hidden)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in [
            ("self_attn.q_proj", query, hidden), ("self_attn.k_proj", kv, hidden), ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, query), ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ]:
            yield f"{prefix}{name}.weight", matrix(rows, columns)
            if shape["model_type"] == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                yield f"{prefix}{name}.bias", torch.randn(rows, generator=generator).to(torch.bfloat16)
        if shape["model_type"] == "qwen3":
            for norm in ("self_attn.q_norm", "self_attn.k_norm"):
                yield f"{prefix}{norm}.weight", torch.ones(head, dtype=torch.bfloat16)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", torch.ones(hidden, dtype=torch.bfloat16)


def filled_tokenizer(vocab_size):
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    used = {*vocab.values(), *(added["id"] for added in tokenizer["added_tokens"])}
    vocab.update({f"Ġw{index}": index for index in range(vocab_size) if index not in used})
    return json.dumps(tokenizer, ensure_ascii=False)


def main():
    name, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors(SHAPES[name], torch.Generator().manual_seed(1234))), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(SHAPES[name], indent=2))
    (out / "tokenizer.json").write_text(filled_tokenizer(SHAPES[name]["vocab_size"]))
    for file in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / file, out / file)


if __name__ == "__main__":
    main()
