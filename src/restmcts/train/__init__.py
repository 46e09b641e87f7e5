"""Training on rows: the policy on correct traces, the value model on every labelled step.

`restmcts.train.policy.train_policy` and `restmcts.train.value.train_value` load torch; this package and its settings do
not.
"""
