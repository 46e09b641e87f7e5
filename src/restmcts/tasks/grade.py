class Grader:
    def __enter__(self):
        return self

    def __exit__(self, *a):
        pass

    def grade_many(self, pairs):
        return [p.answer.strip() == a.strip() for p, a in pairs]
