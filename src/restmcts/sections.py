"""The sections of a run's settings (config.RunConfig), but for those of search, engines and trainings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from restmcts.search.settings import SearchSettings
from restmcts.settings import Settings
from restmcts.train.settings import PolicyTraining, ValueTraining
from restmcts.types import Budget

MethodName = Literal["rest-mcts", "rest-em", "self-rewarding", "mcts-dpo", "online"]

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "rest-em": {"search": {"method": "sample"}, "policy_training": {"start": "base", "pick": "random"}},
    "self-rewarding": {"search": {"method": "sample"}},
    "online": {"search": {"method": "sample"}},
}
"""What a method sets where nothing else is set."""

THROUGH_TRL = ("self-rewarding", "mcts-dpo", "online")
"""methods that train through trl"""


class JudgeSettings(Settings):
    """A model that gives points to solutions (tasks.judge), for the method self-rewarding and for labels by a judge."""

    model: str | None = Field(default=None, description="who judges; unset: the policy itself")
    votes: int = Field(default=3, ge=1, description="verdicts asked for on each solution; the mean of them counts")
    temperature: float = Field(default=0.7, ge=0, description="sampling temperature of the verdicts")
    line_tokens: int = Field(default=96, ge=1, description="most tokens of one line of a verdict")
    lines: int = Field(default=6, ge=1, description="lines after which a verdict without a score is none")


class Curriculum(Settings):
    """Which questions a round is about, how much search they get, and when more rounds do not help."""

    skip_solved: bool = Field(
        default=False,
        description="leave out questions of which every finished leaf was right when they were last searched",
    )
    more_search: float = Field(
        default=1.0,
        ge=1,
        description="times the iterations, samples and budgets for questions searched before of which fewer than half "
        "of the finished leaves were right",
    )
    hard_negatives: bool = Field(
        default=False,
        description="of a question's wrong leaves, train the value model on those it valued highest, not on a draw",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many rounds in a row whose held-out accuracy is below the best one before; the "
        "report then gives the models of the best round",
    )


class GenerateSettings(Settings):
    """A built-in problem set, made on the spot; train and held-out share no question."""

    name: str = Field(default="demo", description="which set")
    train: int = Field(default=300, ge=1, description="questions to search on")
    heldout: int = Field(default=300, ge=0, description="questions to evaluate on")
    worked: int = Field(default=60, ge=0, description="worked examples to start from (D_S0)")
    seed: int = Field(default=0, ge=0, description="which questions; apart from the run's seed, so that runs compare")


class WarmStart(Settings):
    """What the models learn from the worked examples before the first round."""

    policy: bool = Field(default=True, description="fine-tune the policy on the worked solutions (D_S0)")
    value: bool = Field(default=True, description="train the value model before the first round")
    value_data: Literal["worked", "sampled"] = Field(
        default="worked",
        description="on true and corrupted steps (D_V0), or on these and on solutions that the policy sampled itself",
    )
    corruptions: int = Field(default=3, ge=0, description="wrong turns made from each worked solution for D_V0")
    bootstrap: int = Field(
        default=100,
        ge=1,
        description="questions sampled by the policy to train the first value model, where it is trained on samples",
    )
    policy_training: PolicyTraining = Field(default_factory=PolicyTraining, description="unset: as policy_training")
    value_training: ValueTraining = Field(default_factory=ValueTraining, description="unset: as value_training")


class LabelSettings(Settings):
    """What a verified tree says about its steps (labels.RULES)."""

    rule: str = Field(
        default="rest-mcts",
        description="rest-mcts (process rewards inferred from the tree), orm (the outcome, at the last step), "
        "math-shepherd or omega-prm (from completions that the policy is asked for)",
    )
    unsolved: Literal["zero", "drop"] = Field(
        default="zero", description="trees without a right leaf: every finished branch wrong and worth 0, or no labels"
    )
    estimate: Literal["hard", "soft"] = Field(
        default="hard",
        description="a step is right iff a right answer follows from it, or by the share of right ones (not for orm)",
    )
    source: Literal["oracle", "majority", "judge"] = Field(
        default="oracle",
        description="which leaves are right: by the known answer, by the consensus of the tree's answers weighted by "
        "value, or by a judge (section judge); the last two need no known answers",
    )
    confidence: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="majority: least share of the votes, below which a tree is not labelled; judge: least mean share "
        "of the points of a solution that counts as right",
    )
    completions: int = Field(
        default=8, ge=1, description="completions of a step, for the rules that ask for them (temperature as search)"
    )

    def of_rule(self) -> dict[str, Any]:
        """The settings that change the labels, as manifests hold them: those that the rule reads."""
        read = {"rule", "unsolved", "estimate"}
        read -= {"rest-mcts": {"rule"}, "orm": {"estimate"}}.get(self.rule, set())
        read |= set() if self.source == "oracle" else {"source", "confidence"}
        return self.model_dump(mode="json", include=read)


class EvaluateSettings(Settings):
    """What is measured on the held-out questions, after the warm start and after every round."""

    methods: tuple[Literal["greedy", "search"], ...] = Field(
        default=("greedy", "search"), description="greedy answers, answers by search with the value model"
    )
    base: tuple[Literal["greedy", "search"], ...] = Field(
        default=("greedy", "search"),
        description="what is measured of the untrained model; its search is scored by the first value model",
    )
    examples: int = Field(default=3, ge=0, description="worked examples shown to the untrained model (few-shot)")
    search_rounds: Literal["every", "last"] = Field(
        default="every", description="evaluate the search after the warm start and every round, or after the last only"
    )
    limit: int | None = Field(default=None, ge=1, description="use only the first so many held-out questions")
    search: SearchSettings = Field(default_factory=SearchSettings, description="unset: as search")


class CompareSettings(Settings):
    """`restmcts compare`: arms × budgets × seeds on one set of questions."""

    methods: tuple[str, ...] | None = Field(
        default=None,
        description="arms to compare, in this order: names in arms, search methods, or their variants; unset: all of "
        "arms, or where there are none, sample, best_of_n, weighted_vote, mcts_star",
    )
    arms: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="arms with settings of their own over `search`, e.g. {no_rollout: {method: mcts_star, "
        "rollout_steps: 0}}; method: by default what the arm is called",
    )
    budgets: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1, 2, 4, 8, 16), min_length=1, description="most tokens that the policy may generate for a question"
    )
    unit: Literal["answers", "tokens"] = Field(
        default="answers",
        description="what budgets count: answers, the mean tokens of a greedy answer to these questions; or tokens",
    )
    seeds: int = Field(default=3, ge=1, description="how often every question is answered, with seeds from `seed` on")
    baseline: str | None = Field(
        default=None, description="the arm, or greedy, that the others are tested against; unset: all pairs"
    )
    trees: bool = Field(default=False, description="keep the search trees too")


class ServeSettings(Settings):
    """`restmcts serve`: where it listens, and the most that one request may have.

    The key that clients must know is read from RESTMCTS_SERVE_KEY; `engine.concurrency` trees are open at once.
    """

    host: str = Field(default="127.0.0.1", description="address to listen on; another than loopback needs a key")
    port: int = Field(default=8400, ge=0, le=65535, description="0: any free one")
    name: str = Field(
        default="restmcts", pattern=r"^[^\s:@]+$", description="what the model is called; NAME:METHOD@TOKENS works too"
    )
    queue: int = Field(default=1000, ge=0, description="requests that wait for their turn; further ones get 429")
    most_policy_tokens: int = Field(default=50_000, ge=1, description="and what one has that asks for no budget")
    most_value_tokens: int = Field(default=2_000_000, ge=1, description="as most_policy_tokens")
    most_seconds: float = Field(default=600, gt=0, description="as most_policy_tokens; waiting not counted")
    most_samples: int = Field(default=256, ge=1, description="most that samples, branch, … of a request may be")
    body_kb: int = Field(default=256, ge=1, description="largest body of a request, KiB")
    heartbeat: float = Field(default=10, gt=0, description="seconds of silence after which a stream says how far it is")
    grace: float = Field(default=10, ge=0, description="seconds that open searches get to end when the server is ended")


class ClusterSettings(Settings):
    """Searches and evaluations on the machines of a Ray cluster (docs/cluster.md). Nothing here changes what is found.

    `engine.concurrency` trees are open at each worker.
    """

    address: str | None = Field(
        default=None,
        description="HOST:PORT of the cluster, or auto: the one of this machine; unset: this process alone",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="workers on a node, each with models of its own; they share its GPUs and cores; unset: one for "
        "each GPU, or one where no node has any",
    )
    wait: float = Field(default=600, gt=0, description="seconds to wait for a worker while there is none")


class StageBudget(Settings):
    """Hard limits for each stage that searches, evaluations included; it ends with what was found when one is reached.

    They are no part of a stage's identity: raise them and run the same command again, and the search goes on.
    """

    policy_tokens: int | None = Field(default=None, ge=1, description="policy tokens after which nothing more is asked")
    value_tokens: int | None = Field(default=None, ge=1, description="value tokens after which nothing more is asked")
    seconds: float | None = Field(default=None, gt=0, description="seconds that the stage may take")

    def budget(self) -> Budget:
        """The limits, as `drive` holds them."""
        return Budget(self.policy_tokens, self.value_tokens, self.seconds)
