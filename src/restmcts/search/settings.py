"""Settings of the search methods: the paper's parameters, each with its symbol, and hard budgets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from restmcts.settings import Settings
from restmcts.types import Budget

AnswerRule = Literal["majority", "weighted", "posterior", "best"]
"""See `nodes.leaf_weights`."""
StepAggregation = Literal["last", "min", "mean", "product"]
"""See `nodes.path_value`."""


class SearchSettings(Settings):
    """How to look for a solution. One object serves all methods; each reads what it needs."""

    method: str = Field(
        default="mcts_star",
        description="mcts_star, cot, sample, best_of_n, weighted_vote, beam, dvts, tot_bfs, tot_dfs, mcts, or another "
        "name in SEARCHES",
    )
    iterations: int = Field(
        default=16, ge=1, description="T: iterations of mcts_star and mcts; expansions of tot_dfs at most"
    )
    branch: int = Field(
        default=3, ge=1, description="b: next steps proposed at an expansion; M of beam and dvts, k of tot_bfs, tot_dfs"
    )
    greedy_first: bool | None = Field(
        default=None,
        description="begin mcts_star with the policy's likeliest solution, from the root to its end; unset: yes, but "
        "not where a run searches for traces to learn from, which are to differ",
    )
    rollout_steps: int = Field(
        default=32, ge=0, description="m: steps of the greedy rollout; 0: none; max_depth or more: to the end"
    )
    rollout_temperature: float | None = Field(
        default=None,
        ge=0,
        description="sampling temperature of rollout steps; unset: as temperature, or 0 for greedy rollouts with d = 1",
    )
    rollout_branch: int = Field(default=1, ge=1, description="d: samples of each rollout step, the best one kept")
    rollout: Literal["greedy", "random"] = Field(
        default="greedy",
        description="greedy: each step is the best of d, and v_max is the best value met; random: each is what the "
        "policy says (d = 1), and the value of the last one is taken for v_max",
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="α: weight of the node's own value against the rollout's")
    exploration: float = Field(default=0.5, ge=0, description="ε of the selection formula, c_puct of mcts")
    widening: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="w: a node of mcts_star that was visited N times gets b·N^w next steps (progressive widening); 0: "
        "b, as the paper has it, so that small trees are soon exhausted",
    )
    backup: Literal["weighted", "vanilla"] = Field(
        default="weighted",
        description="a node's value: weighted, the mean over its children by their visits; vanilla, the mean of what "
        "the iterations through it found",
    )
    threshold: float = Field(
        default=0.9, ge=0, description="l: a finished node with at least this value ends the search; above 1: never"
    )
    prune: float = Field(default=0.0, ge=0, le=1, description="v_th: tot_dfs follows only steps that are worth more")
    max_depth: int = Field(
        default=32, ge=1, description="steps on a path; a path of this length without an answer is dead"
    )
    temperature: float = Field(default=0.7, ge=0, description="sampling temperature; 0 is greedy")
    step_tokens: int = Field(default=256, ge=1, description="most tokens of one step, its delimiter included")
    self_critic: bool = Field(
        default=False, description="ask the policy before each expansion whether it is done, and for advice"
    )
    critic_tokens: int = Field(default=48, ge=1, description="most tokens of one word of the self-critic")
    answer_rule: AnswerRule | None = Field(
        default=None,
        description="how finished leaves make the answer: majority, weighted (by value), posterior (probability under "
        "the policy × value) or best (highest value); unset: the method's own",
    )
    step_aggregation: StepAggregation = Field(
        default="last",
        description="the value of a solution from those of its steps, in the answer rule and in beams: last, min, mean "
        "or product",
    )
    samples: int = Field(
        default=8,
        ge=1,
        description="N: chains of sample, best_of_n, weighted_vote; candidates for each step of beam, dvts, tot_bfs, "
        "of which samples / branch are kept",
    )
    parallel: int = Field(
        default=1,
        ge=1,
        description="expansions in flight at least, where there are few questions: so many in one tree, half as many "
        "in each of two, … and one in each from so many questions on; a tree records its own number",
    )
    stop_decided: bool = Field(
        default=False, description="end the search when what is left of it cannot change the answer"
    )
    stop_lead: float | None = Field(
        default=None,
        gt=0,
        description="end the search when the leading answer is so far ahead, though more search might change it: by so "
        "many votes, or with the rule posterior by so much of the policy's probability",
    )
    budget_tokens: int | None = Field(default=None, ge=1, description="most policy tokens for one question")
    budget_value_tokens: int | None = Field(
        default=None, ge=1, description="value tokens for one question after which no more scores are asked for"
    )
    budget_seconds: float | None = Field(
        default=None, gt=0, description="most seconds for one question; what is found then depends on the machine"
    )

    def budget(self) -> Budget:
        """The hard limits that `drive` holds each tree to."""
        return Budget(self.budget_tokens, self.budget_value_tokens, self.budget_seconds)

    def shared_by(self, questions: int) -> SearchSettings:
        """The settings of each of so many trees: what is to be in flight is shared out among them."""
        parallel = max(1, self.parallel // max(1, questions))
        return self if parallel == self.parallel else self.model_copy(update={"parallel": parallel})
