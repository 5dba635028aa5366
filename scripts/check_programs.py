#!/usr/bin/env python3
"""Solve the planner's linear programs once more, with HiGHS, and compare the optima.

Reads lines of JSON as the test `write_linear_programs` writes them: minimise cost · x, where 0 <= x <= upper (null: no bound) and
the terms of every row sum up to no more than its bound; `optimum` is what microlp found, null when it found none.
"""

import json
import sys
from pathlib import Path

import highspy
import numpy as np

TOLERANCE = 1e-6


def least_cost(program: dict) -> float | None:
    """What HiGHS finds; None when there is no optimum."""
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    for cost, upper in zip(program["cost"], program["upper"]):
        highs.addCol(cost, 0.0, highspy.kHighsInf if upper is None else upper, 0, np.array([], np.int32), np.array([], float))
    for row in program["rows"]:
        variables = np.array([variable for variable, _ in row["terms"]], np.int32)
        factors = np.array([factor for _, factor in row["terms"]], float)
        highs.addRow(-highspy.kHighsInf, row["bound"], len(variables), variables, factors)
    highs.run()
    is_optimal = highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return highs.getInfo().objective_function_value if is_optimal else None


def differs(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return ours is not theirs
    return abs(ours - theirs) > TOLERANCE * max(1.0, abs(theirs))


def main() -> None:
    lines = Path(sys.argv[1]).read_text().splitlines()
    solvable = wrong = 0
    for number, line in enumerate(lines, 1):
        program = json.loads(line)
        theirs = least_cost(program)
        solvable += theirs is not None
        if differs(program["optimum"], theirs):
            wrong += 1
            print(f"program {number}: {program['optimum']}, HiGHS finds {theirs}")
    print(f"{len(lines)} linear programs, {solvable} with an optimum: {wrong} differ from HiGHS {highspy.Highs().version()}")
    sys.exit(bool(wrong) or not solvable)


if __name__ == "__main__":
    main()
