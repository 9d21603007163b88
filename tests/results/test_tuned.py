"""The file of a tuned plan: a round trip, and every way in which it can be damaged or meet the wrong model."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.results import tuned
from avarc_cli.results.tuned import TunedPlan
from avarc_cli.scoring.plan import Plan, Stage

PLAN = TunedPlan(
    plan=Plan((Stage(2, 3, 1, 7.125, 2.5), Stage(4, 3, 1, 3.5, 0.25), Stage(4, 1, 3))),
    temperature=1.75,
    made_for={"model": "ab" * 32, "segments": 4, "candidates": [0, 4, 5], "precision": "fp32", "sigma": 0.1},
    guarantee={"agreement": 0.9, "level_images": 20},
    calibration={"images": 20, "rows": [0, 1]},
)


@pytest.fixture
def path(tmp_path):
    PLAN.write(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_what_is_written_is_read_again(path):
    assert tuned.read(path) == PLAN
    PLAN.write(path.with_name("again.json"))
    assert path.read_bytes() == path.with_name("again.json").read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["again.json", "plan.json"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_detected(path, data):
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255))
    damaged = data.draw(st.sampled_from([whole[:cut], whole[:cut] + bytes([byte]) + whole[cut + 1 :], whole[cut:]]))
    other = path.with_name("damaged.json")
    other.write_bytes(damaged)
    if damaged.split() == whole.split() or json_equal(damaged, whole):
        assert tuned.read(other) == PLAN
        return
    with pytest.raises(AvarcError, match=r"damaged\.json"):
        tuned.read(other)


def json_equal(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"sha256": 1}', '{"sha256": 1, "format": "x"}'])
def test_a_file_that_is_not_a_plan_is_refused(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(AvarcError, match=r"cannot use the plan|another format"):
        tuned.read(tmp_path / "plan.json")


def test_a_margin_changed_by_hand_is_refused(path):
    path.write_text(path.read_text().replace("7.125", "1.125"))
    with pytest.raises(AvarcError, match="not what was tuned"):
        tuned.read(path)


def test_a_plan_of_a_later_version_says_so(path):
    values = json.loads(path.read_text()) | {"format": 2}
    path.write_text(json.dumps(values))
    with pytest.raises(AvarcError, match="another format") as error:
        tuned.read(path)
    assert "upgrade" in error.value.fix


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(UsageError, match="no plan") as error:
        tuned.read(tmp_path / "nowhere.json")
    assert "avarc tune" in error.value.fix


@pytest.mark.parametrize(
    ("field", "value"), [("model", "cd" * 32), ("candidates", [0, 4]), ("precision", "bf16"), ("sigma", 0.2)]
)
def test_a_plan_for_something_else_is_refused_with_both_values(path, field, value):
    tuned.read(path).check({**PLAN.made_for})
    with pytest.raises(UsageError, match="does not hold here") as error:
        tuned.read(path).check({**PLAN.made_for, field: value})
    assert str(path) in error.value.what
    assert f"{field}: " in error.value.why and " there, " in error.value.why and " here" in error.value.why
