"""Writes the GGUF file that llama.cpp needs of a checkpoint that `models/benches/random_checkpoint.py` made: the same
weights in bf16, and the tokenizer as far as speed depends on it.

    python loadtests/peers/gguf_of.py CHECKPOINT_DIRECTORY OUT.gguf      (needs gguf, safetensors and torch)
"""

import json
import sys
from pathlib import Path

import gguf
import torch
from safetensors import safe_open

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}


def write_shape(writer, config):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    writer.add_name("random weights")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def write_tokenizer(writer, folder, vocab_size):
    """Requests send ids, so how llama.cpp splits words does not matter."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens, types = [""] * vocab_size, [gguf.TokenType.NORMAL] * vocab_size
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index] = text
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)


def permuted(weight, heads):
    """Rows of queries and keys of the llama architecture, whose rotary halves llama.cpp wants interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_weights(writer, folder, config, names):
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():
            weight, projection = tensors.get_tensor(name), name.split(".")[-2]
            if config["model_type"] == "llama" and projection in heads:
                weight = permuted(weight, heads[projection])
            to = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if weight.dim() == 1:
                writer.add_tensor(to, weight.float().numpy())
            else:
                raw = weight.contiguous().view(torch.uint8).numpy()
                writer.add_tensor(to, raw, raw_shape=raw.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)


def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[architecture])
    write_shape(writer, config)
    write_tokenizer(writer, folder, config["vocab_size"])
    write_weights(writer, folder, config, gguf.get_tensor_name_map(architecture, config["num_hidden_layers"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


if __name__ == "__main__":
    main()
