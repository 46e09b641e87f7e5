"""The questions that the studies ask, and what a policy is not shown of them."""

from __future__ import annotations

import dataclasses
import importlib
import operator

import pytest

from restmcts.files import read_jsonl
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.types import Problem, Step, Tree
from studies import countdown
from studies.arithmetic import KIND, MODULUS, OPERANDS, WITHHELD, facts, problems, withheld, worked
from studies.kinds import write_model
from studies.methods import write_chances
from studies.verifiers import KINDS, Seed, Sizes

SUMS = dataclasses.replace(KIND, worked=((2, 20), (3, 30)))
TINY = Sizes(train=10, heldout=5)


def test_a_question_is_worked_one_operation_at_a_time():
    assert worked("13*6+4-5*3") == ["10+4-5*3", "14-5*3", "9*3", "Answer: 10"]
    assert worked("2-6") == ["Answer: 13"]
    assert facts("13*6+4") == [(13, "*", 6), (10, "+", 4)]


def test_questions_have_their_answers_and_are_all_different():
    taken = {"1+2"}
    made = problems(200, 0, "p", KIND.size, taken=taken)
    assert len({problem.question for problem in made} | {"1+2"}) == len(taken) == 201
    for problem in made:
        total = int(problem.question[0]) if not problem.question[1].isdigit() else int(problem.question[:2])
        for before, sign, number in facts(problem.question):
            assert before == total
            total = {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](total, number) % MODULUS
        assert problem.answer == str(total)
        assert (problem.solution or "").endswith(f"Answer: {total}")


def test_a_policy_is_never_shown_what_is_withheld(tmp_path):
    secret = withheld(3)
    assert len(secret) == round(WITHHELD * MODULUS * 3 * len(OPERANDS))
    assert secret != withheld(4)
    study = Seed(tmp_path, 3, SUMS, TINY)
    assert len(study.questions["worked"]) == 50
    assert all(secret.isdisjoint(facts(problem.question)) for problem in study.questions["worked"])
    asked = [fact for name in ("train", "heldout") for p in study.questions[name] for fact in facts(p.question)]
    assert secret & set(asked), "but it is asked for it"


def test_chances_of_samples(tmp_path):
    tree = Tree(Problem("p", "What is 3 + 4?", "7"), "sample", 0)
    for answer in ("7", "8", "7", "9"):
        tree.add(0, Step(f"Answer: {answer}"), status="finished", answer=answer)
    with Grader() as grader:
        write_chances(tmp_path, [tree], grader, 0)
    [found] = read_jsonl(tmp_path / "chances.jsonl")
    assert found["id"] == "p"
    assert found["pass"] == pytest.approx([0.5, 1.0, 1.0])  # of 1, of 4, and of 16, which are these 4
    assert found["majority"] == pytest.approx([0.5, 1.0, 1.0], abs=0.02)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_seeds_share_the_held_out_questions_alone(tmp_path, kind):
    kind = dataclasses.replace(kind, worked=((2, 20), (3, 30)))
    one, other = Seed(tmp_path / "1", 1, kind, TINY), Seed(tmp_path / "2", 2, kind, TINY)
    assert one.questions["heldout"] == other.questions["heldout"]
    asked = [{problem.question for problem in study.questions["train"]} for study in (one, other)]
    assert asked[0] != asked[1]
    for study in (one, other):
        heldout = {problem.question for problem in study.questions["heldout"]}
        assert all(heldout.isdisjoint(p.question for p in study.questions[name]) for name in ("train", "worked"))
    larger = Seed(tmp_path / "3", 1, kind, Sizes(train=20, heldout=8))
    assert larger.questions["worked"] == one.questions["worked"], "whatever else is large or small"


def test_countdown_questions_can_be_solved_and_are_graded_by_their_expression():
    task, made = get_task("countdown"), countdown.problems(100, 0, "p", 4, taken=set())
    assert len({problem.question for problem in made}) == 100
    for problem in made:
        steps = (problem.solution or "").splitlines()
        answer = task.find_answer(steps[-1])
        assert len(steps) == 4
        assert answer is not None
        assert task.grade(problem.answer or "", answer)
        assert countdown.faultless(problem.question, steps)
    shown = countdown.problems(100, 0, "p", 4, taken=set(), of_seed=1)
    aimed = [task.grade(p.answer or "", task.find_answer((p.solution or "").splitlines()[-1]) or "") for p in shown]
    assert 0.6 < sum(aimed) / 100 < 0.9, "some of what a policy is shown misses the target"
    assert countdown.faultless("24 from 3 9", ["3*9=27:3", "Answer: 3*9"])
    for wrong in ("3*9=28:4", "3*9=27:4", "3*9=27", "3*(9=27:3"):
        assert not countdown.faultless("24 from 3 9", [wrong, "Answer: 3*9"])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_model_knows_every_word_of_its_questions(tmp_path, kind):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "m", kind, 0, width=8))
    for problem in kind.draw(50, 1, "p", kind.size, taken=set()):
        text = f"{problem.question}\n{problem.solution}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("study", "asked", "said"),
    [
        ("search", ["--report"], "no finished seed in"),
        ("verifiers", ["--kind", "countdown", "--report"], "countdown: run one first, with --seed 0"),
        ("methods", ["--report"], "no finished seed in"),
        ("search", ["--seed", "0", "--report", "--arms", "mcts"], "weighted_vote is not shown; choose one of mcts"),
        ("search", ["--seed", "0", "--arms", "weighted_vote", "guess"], "there is no arm guess"),
    ],
)
def test_a_study_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, capsys, study, asked, said):
    module = importlib.import_module(f"studies.{study}")
    monkeypatch.setattr("sys.argv", [study, str(tmp_path), *asked])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
