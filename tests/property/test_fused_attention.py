"""What is special to the fused attention: single tokens take another way than prompts, threads, and values left out.

Cases and limits are those of tests/helpers/plans.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import CASES, MQA, TOLERANCES, Case, build_plan, by_name, relative_error
from numpy.typing import NDArray

import pysa


def run(case: Case, folder: Path, *, n_threads: int = 1, n_ubatch: int = 1, **options: Any) -> NDArray[np.float32]:
    """Logits (n_tok, n_vocab), evaluated n_ubatch tokens at a time."""
    types = {"type_k": case.type_k, "type_v": case.type_v}
    options = {"plan": case.plan(folder), "attention": "fused", "v_skip": 0.0, **types, **options}
    with pysa.Model(case.path(folder), n_threads=n_threads) as model:
        return model.session(n_ubatch=n_ubatch, **options).eval(case.tokens(), logits="all")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_single_tokens_equal_the_reference(case: Case, folder: Path) -> None:
    assert relative_error(run(case, folder), case.reference(folder)) <= TOLERANCES["fused", case.type_k]


@pytest.mark.parametrize("n_ubatch", [1, 40])
@pytest.mark.parametrize("name", ["mixed", "mixed-mha", "mixed-q8_0"])
def test_threads_change_no_bit(name: str, n_ubatch: int, folder: Path) -> None:
    """Units of work depend on the position alone, and their results are added in one order."""
    single, several = (run(by_name(name), folder, n_threads=n, n_ubatch=n_ubatch) for n in (1, 2))
    np.testing.assert_array_equal(single, several)


# -- values left out ---------------------------------------------------------------------------------------------------


def decode(case: Case, folder: Path, v_skip: float, plan: Any) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Logits of the case's tokens, one at a time, and the report."""
    with pysa.Model(case.path(folder), n_threads=1) as model:
        session = model.session(n_ubatch=1, type_k="f32", type_v="f32", attention="fused", plan=plan, v_skip=v_skip)
        return session.eval(case.tokens(), logits="all"), session.skip_report()


@pytest.mark.parametrize("kind", ["owners", "sa", "mixed"])
def test_values_left_out_stay_within_the_bound(kind: str, folder: Path) -> None:
    """The mass lost never exceeds v_skip; more of it means fewer values read and a larger error, of the same order."""
    case = Case("v-skip", MQA, kind, 0 if kind == "sa" else 4, 0 if kind == "sa" else 20, 613, seed=51)
    plan = build_plan(kind, MQA, case.n_sink, case.n_recent, seed=51)
    exact, none = decode(case, folder, 0.0, plan)
    assert none["n_values"] == none["n_values_read"] > 0
    assert none["dropped_mass_max"] == none["dropped_mass_mean"] == 0.0
    read, errors = [none["n_values_read"]], [0.0]
    for v_skip in (0.001, 0.01, 0.1):
        logits, report = decode(case, folder, v_skip, plan)
        assert report["n_values"] == none["n_values"]
        assert 0.0 < report["dropped_mass_mean"] <= report["dropped_mass_max"] <= v_skip * 1.0001
        read.append(report["n_values_read"])
        errors.append(relative_error(logits, exact))
        assert errors[-1] <= 3 * v_skip
    assert read == sorted(read, reverse=True)
    assert read[-1] < 0.9 * read[0]
    assert errors == sorted(errors)


def test_values_left_out_do_not_depend_on_threads(folder: Path) -> None:
    single, several = (run(by_name("mixed"), folder, n_threads=n, v_skip=0.05) for n in (1, 2))
    np.testing.assert_array_equal(single, several)
