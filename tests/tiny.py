"""Tiny random-weight models with the real architectures and chat formats of the families restmcts supports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATES = {
    "llama": (
        "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
        "+ m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    # No system role: the template refuses it, as Mistral-7B-Instruct v0.1 and v0.2 do.
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "qwen": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "glm": (
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
SPECIAL = {
    "llama": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral": ["<s>", "[INST]", "[/INST]", "</s>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "glm": ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"],
}
FAMILIES = tuple(TEMPLATES)

_TEXT = [
    "What is 12 + 34 - 5? Solve the problem step by step, one short step per line. End with a line Answer: 41",
    "Tom has 3 apples and buys 4 more.\n3 + 4 = 7\nAnswer: 7\n0 1 2 3 4 5 6 7 8 9 = * / ( ) . , user assistant system",
]


def tiny_tokenizer(family: str = "qwen") -> Any:
    """A byte-level tokenizer of some 400 tokens, digits apart, with the family's special tokens and chat format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = SPECIAL[family]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0] if family in ("llama", "mistral") else None,
        eos_token=special[-1],
        pad_token=special[-1],
    )
    fast.chat_template = TEMPLATES[family]
    return fast


def tiny_config(family: str, vocabulary: int, **changes: Any) -> Any:
    """The family's own configuration class at a size that runs in milliseconds; grouped-query attention throughout."""
    from transformers import Glm4Config, LlamaConfig, MistralConfig, Qwen3Config

    kind = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen": Qwen3Config, "glm": Glm4Config}[family]
    size = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
    }
    return kind(**(size | changes))


def tiny_model(folder: Path, family: str = "qwen", *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
    """Write a tiny random causal language model of `family` with its tokenizer; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer(family)
    torch.manual_seed(seed)
    config = tiny_config(family, len(tokenizer), **changes)
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_value(folder: Path, family: str = "qwen", *, seed: int = 1, **changes: Any) -> Path:
    """Write a tiny random value model: a token classifier with one label."""
    import torch
    from transformers import AutoModelForTokenClassification

    tokenizer = tiny_tokenizer(family)
    torch.manual_seed(seed)
    config = tiny_config(family, len(tokenizer), **changes)
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
