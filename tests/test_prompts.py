"""Prompts that ship and prompts of one's own: readable, changeable, and stored whole with every checkpoint."""

from __future__ import annotations

import pytest

from restmcts.config import load_config
from restmcts.encoding import Encoder, PromptSettings, prompts, read_prompt
from restmcts.errors import ConfigError
from restmcts.tasks import get_task
from restmcts.types import Problem

QUESTION = Problem("q", "What is 1 + {question} + 1?")


class Letters:
    """A tokenizer whose ids are characters, with a chat template that shows who speaks."""

    name_or_path = "letters"
    chat_template = "yes"
    all_special_tokens = ()
    eos_token_id = 0

    def encode(self, text, add_special_tokens):
        return [ord(sign) for sign in text]

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>" * add_generation_prompt


def shown(prompt: PromptSettings) -> str:
    return "".join(map(chr, Encoder(Letters(), prompt).prompt(QUESTION)))


def test_both_languages_ship_with_examples_and_without():
    assert {"english", "english-few-shot", "english-choice", "chinese", "chinese-few-shot", "chinese-choice"} == set(
        prompts()
    )


def test_the_default_is_the_first_of_them():
    assert PromptSettings(name="english") == PromptSettings()


@pytest.mark.parametrize("name", prompts())
@pytest.mark.parametrize("chat", [True, False])
def test_every_prompt_asks_the_question_last(name, chat):
    prompt = PromptSettings(name=name, chat=chat)
    text = shown(prompt)
    before, _, after = text.rpartition(QUESTION.question)
    assert prompt.instruction in before
    assert after == ("<assistant>" if chat else prompt.question.split("{question}")[1])
    assert all(shot.solution in before for shot in prompt.examples)
    assert bool(prompt.examples) is name.endswith("few-shot")


@pytest.mark.parametrize("name", prompts())
def test_examples_and_instructions_state_answers_that_are_found(name):
    prompt = PromptSettings(name=name)
    for shot in prompt.examples:
        assert get_task("math").find_answer(shot.solution)
        for line in shot.solution.splitlines()[:-1]:
            assert get_task("math").find_answer(line) is None
    sentence = "答案：B" if name.startswith("chinese") else "Answer: B"
    assert sentence[:-1] in prompt.instruction
    assert get_task("choice").find_answer(f"...\n{sentence}") == "B"


def test_what_is_set_goes_before_the_prompt_named():
    config = load_config(overrides=["prompt.name=chinese-few-shot", "prompt.instruction=Think.", "prompt.chat=false"])
    assert config.prompt.instruction == "Think."
    assert config.prompt.question.startswith("问题")
    assert len(config.prompt.examples) == 3


def test_a_stored_prompt_needs_no_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('instruction: Be brief.\nquestion: "Q: {question}\\nA: "\nexamples: [{question: a, solution: b}]\n')
    prompt = PromptSettings(name=str(path), chat=False)
    path.unlink()
    assert PromptSettings(**prompt.model_dump()) == prompt
    assert shown(prompt) == f"Be brief.\n\nQ: a\nA: b\n\nQ: {QUESTION.question}\nA: "


def test_prompts_stored_before_there_were_names_are_read():
    assert PromptSettings(instruction="x", delimiter="\n", chat=True).question == PromptSettings().question


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"prompt\.name='.*mine\.yaml' is no prompt and no file; give one of chinese, "),
        ("a: [", r"mine\.yaml, line \d: not YAML"),
        ("- x", r"mine\.yaml: list is no prompt setting"),
        ("instrction: x", r"mine\.yaml: instrction is no prompt setting; use chat, delimiter, examples, "),
        ("name: english", r"mine\.yaml: name is no prompt setting"),
        ("question: x", r"must hold \{question\}"),
    ],
)
def test_a_bad_prompt_is_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(overrides=[f"prompt.name={path}"])
    assert "\n" not in str(caught.value)


def test_every_file_holds_only_settings():
    for name in prompts():
        assert {"instruction", "question"} <= read_prompt(name).keys()
