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


def tiny_tokenizer(family: str = "qwen", extra: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer of some 400 tokens, digits apart, with the family's special tokens and chat format.

    `extra` are further special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL[family], *extra]
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
        eos_token=SPECIAL[family][-1],
        pad_token=SPECIAL[family][-1],
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


# ---------------------------------------------------------------- public process reward models, random and tiny


def sentencepiece_tokenizer() -> Any:
    """As Llama's and Mistral's: spaces are part of the words after them, a beginning is marked, `ки` is one token."""
    import string

    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    alphabet = [character for character in string.printable if character != " "]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    words = [word for text in _TEXT for word in text.split()] + ["ки", "+", "-"] * 50
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tiny_prm(folder: Path, style: str, *, seed: int = 3) -> Path:
    """Write a tiny random process reward model of a family in `models.PRM_STYLES`, as its makers publish it."""
    import json

    import torch
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, Qwen2Config

    torch.manual_seed(seed)
    if style == "qwen":
        tokenizer = tiny_tokenizer("qwen", ("<extra_0>",))
        size = tiny_config("qwen", len(tokenizer)).to_dict()
        names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
        config = Qwen2Config(**{name: size[name] for name in names.split()}, tie_word_embeddings=False)
        model = AutoModelForCausalLM.from_config(config)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}  # lm_head included, as there
        width = config.hidden_size
        for layer, rows in ((0, width), (2, 2)):
            state[f"score.{layer}.weight"] = torch.randn(rows, width) / 4
            state[f"score.{layer}.bias"] = torch.randn(rows) / 4
        folder.mkdir(parents=True, exist_ok=True)
        from safetensors.torch import save_file

        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        published = config.to_dict() | {"architectures": ["Qwen2ForProcessRewardModel"], "model_type": "qwen2"}
        published["auto_map"] = {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        }
        (folder / "config.json").write_text(json.dumps(published))
    else:
        tokenizer = sentencepiece_tokenizer() if style == "math-shepherd" else tiny_tokenizer("llama")
        config = tiny_config({"math-shepherd": "mistral", "trl": "qwen"}.get(style, "llama"), len(tokenizer))
        kind = AutoModelForCausalLM
        if style == "trl":
            config.num_labels, kind = 2, AutoModelForTokenClassification
        model = kind.from_config(config)
        for parameter in model.parameters():
            parameter.data *= 3  # so that values are not all near a half
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
