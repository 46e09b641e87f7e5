"""The built-in problem sets: right steps, right answers, no question twice."""

from __future__ import annotations

import re
import sys
from collections import Counter

import pytest

from restmcts.errors import TaskError
from restmcts.tasks import get_task
from restmcts.tasks.generate import FAMILIES, SETS, evaluate, generate
from restmcts.tasks.questions import content_id, normal_question
from restmcts.tasks.words import TEMPLATES

STEP = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)")
EXPRESSION = re.compile(r"(?:What is|Calculate) ([-+*() \d]+)[?.]")


@pytest.fixture(scope="module")
def demo():
    return generate("demo", train=300, heldout=200, worked=100, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_is_right_and_the_last_gives_the_answer(family):
    size = {"gcd": 200}.get(family, 300)
    for problem in generate(family, train=0, heldout=0, worked=size, seed=3).worked:
        *steps, last = problem.solution.splitlines()
        game = problem.task == "countdown"  # its answer is an expression, which the known answer only checks
        if game:
            assert get_task("countdown").grade(problem.answer, last.removeprefix("Answer: "))
        else:
            assert last == f"Answer: {problem.answer}"
        assert 1 <= len(steps) <= 4
        for step in steps:
            x, sign, y, z = STEP.fullmatch(step).groups()
            x, y, z = int(x), int(y), int(z)
            assert (x == y * z) if sign == "/" else {"+": x + y, "-": x - y, "*": x * y}[sign] == z
            assert len(step) <= 20
        # gcd ends with two equal numbers; everything else with its result
        assert steps[-1].endswith(f" {problem.answer.split(' from ')[0]}")
        if expression := EXPRESSION.fullmatch(problem.question):
            assert eval(expression[1]) == int(problem.answer)
        assert len(problem.question) <= 110
        assert problem.extra["family"] == family


def test_the_answers_are_those_of_reasoning_gym():
    import reasoning_gym

    for family, levels in FAMILIES.items():
        for level in levels:
            if level.write is None:
                continue
            data = reasoning_gym.create_dataset(level.source, seed=11, size=400, **level.options)
            written = [(entry, level.write(entry["metadata"], entry["answer"])) for entry in data]
            kept = [(entry, item) for entry, item in written if item is not None]
            assert len(kept) >= 5, f"{family}: nearly everything is refused"
            for entry, item in kept:
                assert data.score_answer(item.answer, entry) == 1.0
                result = entry["metadata"]["target"] if family == "countdown" else entry["answer"]
                assert item.steps[-1].endswith(f" {result}")


def test_no_question_appears_twice(demo):
    problems = demo.train + demo.heldout + demo.worked
    assert [len(demo.train), len(demo.heldout), len(demo.worked)] == [300, 200, 100]
    assert len({normal_question(problem.question) for problem in problems}) == len(problems)
    assert len({problem.id for problem in problems}) == len(problems)


def test_word_problems_differ_in_more_than_names():
    problems = generate("word", train=600, heldout=300, worked=100, seed=0)

    def shape(problem):
        return re.sub(
            r"\b[A-Z][a-z]+\b|apples|balloons|books|cards|coins|marbles|pencils|shells|stamps|stickers",
            "",
            (problem.question),
        )

    train, heldout = ({shape(problem) for problem in part} for part in (problems.train, problems.heldout))
    assert not train & heldout
    assert sum(map(len, TEMPLATES.values())) >= 15
    assert {len(steps.split(";")) for steps in (" ; ".join(t.steps) for t in TEMPLATES[3])} == {3}


def test_only_worked_problems_show_their_solution(demo):
    assert all(problem.solution is None and problem.answer for problem in demo.train + demo.heldout)
    for problem in demo.worked:
        task = get_task(problem.task)
        lines = problem.solution.splitlines()
        assert task.grade(problem.answer, task.find_answer(lines[-1]))
        assert all(task.find_answer(line) is None for line in lines[:-1])


def test_a_question_repeated_as_its_answer_is_wrong(demo):
    """Else a search would soon find that it is the shortest solution."""
    for problem in demo.train:
        if expression := EXPRESSION.fullmatch(problem.question):
            assert not get_task(problem.task).grade(problem.answer, expression[1])


@pytest.mark.parametrize("part", ["train", "heldout", "worked"])
def test_families_and_difficulties_are_balanced(demo, part):
    problems = getattr(demo, part)
    families = Counter(problem.extra["family"] for problem in problems)
    turns = Counter(SETS["demo"])
    share = len(problems) / turns.total()
    assert families.keys() == turns.keys()
    assert all(abs(families[family] - share * turns[family]) <= 2 for family in families)
    levels = Counter((problem.extra["family"], problem.extra["difficulty"]) for problem in problems)
    for family in families:
        counts = [count for (name, _), count in levels.items() if name == family]
        assert len(counts) == len(FAMILIES[family])
        assert max(counts) - min(counts) <= 2
    # shuffled: no long run of one family
    assert len({problem.extra["family"] for problem in problems[:15]}) >= 4


def test_the_same_arguments_give_the_same_problems(demo):
    assert generate("demo", train=300, heldout=200, worked=100, seed=0) == demo


def test_a_larger_set_keeps_the_heldout_questions(demo):
    larger = generate("demo", train=400, heldout=200, worked=100, seed=0)
    assert larger.heldout == demo.heldout
    assert larger.worked == demo.worked
    assert {problem.id for problem in demo.train} < {problem.id for problem in larger.train}


def test_another_seed_gives_other_problems(demo):
    other = generate("demo", train=300, heldout=200, worked=100, seed=1)  # reasoning-gym would share 299 of 300
    for part in ("train", "heldout", "worked"):
        mine = {problem.question for problem in getattr(demo, part)}
        shared = mine & {problem.question for problem in getattr(other, part)}
        assert len(shared) < 0.2 * len(mine)


def test_a_family_that_is_used_up_leaves_its_turn_to_the_others():
    made = generate("arithmetic", train=3600, heldout=0, worked=0, seed=0)
    families = Counter(problem.extra["family"] for problem in made.train)
    assert families["gcd"] < 350
    assert families["chain_sum"] > 3600 / len(SETS["arithmetic"])


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("demoo", (1, 1, 1), "no built-in set is called 'demoo'; nearest is 'demo'"),
        ("demo", (-1, 1, 1), "train=-1 is negative"),
        ("gcd", (5000, 1, 1), "'gcd' has not enough different questions"),
    ],
)
def test_what_cannot_be_made_is_refused(name, sizes, message):
    train, heldout, worked = sizes
    with pytest.raises(TaskError, match=message):
        generate(name, train=train, heldout=heldout, worked=worked, seed=0)


def test_without_reasoning_gym_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match=r"pip install 'restmcts\[demo\]'"):
        generate("chain_sum", train=1, heldout=0, worked=0, seed=0)
    assert len(generate("word", train=10, heldout=0, worked=0, seed=0).train) == 10


@pytest.mark.parametrize(
    ("expression", "steps", "value"),
    [
        ("2 + 3 * 4", ("3 * 4 = 12", "2 + 12 = 14"), 14),
        ("(2 + 3) * 4", ("2 + 3 = 5", "5 * 4 = 20"), 20),
        ("1 - 2 - 3", ("1 - 2 = -1", "-1 - 3 = -4"), -4),
        ("7", (), 7),
    ],
)
def test_operations_are_written_in_the_order_they_are_done(expression, steps, value):
    assert evaluate(expression) == (steps, value)


@pytest.mark.parametrize("expression", ["2 / 3", "-2 + 3", "2 ** 3", "x + 1", "1 +", "1.5 + 2", "True + 1", "f(1)"])
def test_other_expressions_are_not_worked(expression):
    assert evaluate(expression) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 7 + 5?", "what is 7+5 ?"),
        ("I have 1,000 apples.", "I  have 1000 apples"),
        ("Add 5.0 and 2", "Add 5 and 2."),
        ("Straße", "STRASSE"),
    ],
)
def test_the_same_question_written_differently(one, other):
    assert normal_question(one) == normal_question(other)
    assert content_id(one) == content_id(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("7 - 5", "7 + 5"), ("12 + 3", "1 + 23"), ("5.05", "5.5"), ("f(x)", "f x"), ("1,23", "123"), ("a b", "ab")],
)
def test_different_questions(one, other):
    assert normal_question(one) != normal_question(other)
