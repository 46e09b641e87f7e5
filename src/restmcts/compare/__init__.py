"""Methods at equal budgets: arms × budgets × seeds on one set of questions (`restmcts compare`).

`plan` says what is to be answered, `answer` has it answered, `results` says what came of it, `report` and `plot` show
it, and `run` makes a resumable command of all that.
"""
