"""Writes a model as a complete Hugging Face directory."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from tokenizer import tokenizer_config


def model_config(config, tokenizer):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "dtype": "bfloat16",
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "tie_word_embeddings": True, "rope_scaling": None, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": None, "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"), **vars(config),
    }


def generation_config(tokenizer):
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    return {"eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export(model, tokenizer, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    os.chmod(folder / "model.safetensors", 0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", model_config(model.config, tokenizer))
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    write_json(folder / "tokenizer_config.json", tokenizer_config())
