"""The work: data, teachers, stage one, students, objectives, stage two, evaluation."""

if __name__ != "polyp_difom.pipeline":
    raise ImportError("import this package as polyp_difom.pipeline")
