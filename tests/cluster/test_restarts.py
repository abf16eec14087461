"""When a failed training is started again."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.restarts import HOUR, Failure, RestartPolicy


def lost(step: int | None) -> Failure:
    return Failure("a machine was lost", lost_machine=True, step=step)


def failed(step: int | None, status: int = 1) -> Failure:
    return Failure("a rank failed", lost_machine=False, status=status, step=step)


def test_the_same_step_failing_twice_ends_it() -> None:
    policy = RestartPolicy()
    assert policy.why_not(failed(100), 0) is None
    assert policy.why_not(failed(120), 60) is None
    assert policy.why_not(failed(100), 7 * HOUR) == "it failed twice after step 100"


def test_a_failure_before_the_first_step_is_one_too() -> None:
    policy = RestartPolicy()
    assert policy.why_not(failed(None), 0) is None
    assert policy.why_not(failed(None), 1) == "it failed twice before its first step"


def test_a_configuration_at_fault_is_not_tried_again() -> None:
    assert "configuration is at fault" in str(RestartPolicy().why_not(failed(None, status=2), 0))


def test_lost_machines_at_one_step_prove_nothing_about_it() -> None:
    policy = RestartPolicy()
    assert [policy.why_not(lost(5), minute * 60.0) for minute in range(5)] == [None] * 5
    assert policy.why_not(lost(5), 300) == "5 restarts within an hour"
    # An hour after the first there is room for one again.
    assert policy.why_not(lost(5), HOUR) is None
    assert policy.why_not(lost(5), HOUR + 1) == "5 restarts within an hour"


@given(st.lists(st.floats(0, 3 * HOUR), max_size=60), st.integers(0, 6))
def test_never_more_restarts_than_allowed_in_any_hour(moments: list[float], per_hour: int) -> None:
    policy = RestartPolicy(per_hour)
    restarts = [now for now in sorted(moments) if policy.why_not(lost(None), now) is None]
    for number, now in enumerate(restarts):
        assert sum(now - HOUR < other <= now for other in restarts[: number + 1]) <= per_hour
