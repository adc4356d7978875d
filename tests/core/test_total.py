"""Each rule of totals by itself. That they hold together is shown by test_total_truth.py."""

import gc
import json
from typing import Any

import pytest
from helpers import MAP, MAP_WITH_FAILURES, Upstream, body

from exporter.catalogue import families
from exporter.core.errors import ReadError
from exporter.core.process import STEADY
from exporter.core.types import Series, SeriesTable

M = 'llm_requests_total{model="m"}'


def line(key: str, model: str = "m", name: str = "up_requests_total") -> str:
    return f'{name}{{key="{key}",model="{model}"}}'


def test_lines_that_fall_together_are_added() -> None:
    up = Upstream()
    up.read(body({line("a"): 3.0, line("b"): 4.0, line("c", "n"): 5.0}))
    assert up.shown() == {M: 7.0, 'llm_requests_total{model="n"}': 5.0}


def test_a_first_start_begins_at_what_the_upstream_shows() -> None:
    up = Upstream()
    up.read(body({line("a"): 40.0}))
    assert up.totals.samples(0).values[0] == 40.0


def test_where_no_state_can_be_kept_totals_begin_at_0() -> None:
    up = Upstream(from_zero=True)
    up.read(body({line("a"): 40.0}))
    up.read(body({line("a"): 42.0, line("b"): 1.0}))
    assert up.shown() == {M: 3.0}


def test_a_line_that_fell_adds_its_whole_value() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, line("b"): 1.0, line("c"): 1.0, line("d"): 1.0}))
    up.read(body({line("a"): 2.0, line("b"): 1.0, line("c"): 1.0, line("d"): 1.0}))
    assert up.shown() == {M: 15.0}


def test_a_line_that_begins_again_at_its_end_goes_on_and_is_no_sign_of_another_process() -> None:
    wrapping = "  llm_prompt_tokens_total: {from: [up_small_total], labels: {model: model}, wraps: 256}\n"
    up = Upstream(text=MAP + wrapping)
    small, tokens = [line(key, name="up_small_total") for key in "abc"], 'llm_prompt_tokens_total{model="m"}'
    up.read(body({line("a"): 100.0, **dict.fromkeys(small, 250.0)}, None))
    up.read(body({line("a"): 101.0, **dict.fromkeys(small, 4.0)}, None))
    assert up.shown() == {M: 101.0, tokens: 3 * 260.0}
    up.read(body({line("a"): 102.0, **dict.fromkeys(small[:2], 5.0)}, None))
    up.read(body({line("a"): 103.0, **dict.fromkeys(small, 3.0)}, None))
    assert up.shown() == {M: 103.0, tokens: 2 * 515.0 + 263.0}  # one was away: nobody knows how often it wrapped
    saved = up.dump()
    again = Upstream(saved, text=MAP + wrapping)
    again.read(body({line("a"): 103.0, **dict.fromkeys(small, 2.0)}, None))
    assert again.shown() == up.shown()


def test_a_vanished_line_never_makes_the_total_fall_and_adds_on_its_return_what_it_gained() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, line("b"): 1.0}))
    up.read(body({line("b"): 2.0}))
    assert up.shown() == {M: 12.0}
    up.read(body({line("a"): 13.0, line("b"): 2.0}))
    assert up.shown() == {M: 15.0}


def test_a_line_forgotten_and_back_is_a_new_baseline() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, line("b"): 1.0}))
    up.read(body({line("b"): 1.0}))
    up.time = 4000.0
    up.read(body({line("b"): 1.0}))
    up.read(body({line("a"): 99.0, line("b"): 1.0}))
    up.read(body({line("a"): 100.0, line("b"): 1.0}))
    assert up.shown() == {M: 12.0}


def test_a_series_whose_lines_are_all_forgotten_leaves_the_page_and_returns_where_it_was() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, line("b", "n"): 1.0}))
    up.read(body({line("b", "n"): 1.0}))
    assert M in up.shown()
    up.time = 4000.0
    up.read(body({line("b", "n"): 1.0}))
    assert M not in up.shown()
    up.read(body({line("a"): 11.0, line("b", "n"): 1.0}))
    up.read(body({line("a"): 13.0, line("b", "n"): 1.0}))
    assert up.shown()[M] == 12.0


def test_a_series_of_our_own_leaves_when_what_it_is_told_of_is_gone_and_returns_where_it_was() -> None:
    up, loads, model = Upstream(), families()["llm_model_loads_total"], (("model", "a"),)
    name = 'llm_model_loads_total{source="test",target="t",model="a"}'
    up.read(body({line("a"): 1.0}))
    up.totals.leave(loads, model)  # nothing is told of it
    assert name not in up.shown()
    up.totals.add(loads, model, 2.0)
    up.totals.leave(loads, model)
    up.totals.leave(loads, model)
    assert up.shown()[name] == 2.0  # a page may not have carried the last of it
    up.time = 4000.0
    assert name not in up.shown()
    up.totals.add(loads, model, 1.0)
    assert up.shown(0)[name] == 2.0
    assert up.shown()[name] == 3.0
    up.totals.leave(loads, model)
    up.totals.add(loads, model, 0.0)
    up.time = 9000.0
    assert up.shown()[name] == 3.0


@pytest.mark.parametrize("first", [True, False])
def test_another_process_adds_the_whole_of_its_values_though_it_has_overtaken_the_one_before(first: bool) -> None:
    up = Upstream()

    def of(start: float, value: float) -> str:
        identity, lines = f"process_start_time_seconds {start!r}\n", body({line("a"): value}, None)
        return identity + lines if first else lines + identity

    up.read(of(1000.0, 10.0))
    up.read(of(2000.0, 12.0))
    assert up.shown() == {M: 22.0}
    up.read(of(3000.0, 12.0))  # the very same bytes but for the start time
    assert up.shown() == {M: 34.0}


def test_without_a_start_time_series_created_anew_tell_another_process() -> None:
    up = Upstream()
    created = 'up_requests_created{key="a",model="m"}'
    up.read(body({line("a"): 10.0, created: 100.0}, None))
    up.read(body({line("a"): 12.0, created: 100.0}, None))
    assert up.shown() == {M: 12.0}
    up.read(body({line("a"): 13.0, created: 200.0}, None))
    assert up.shown() == {M: 25.0}


def test_without_a_start_time_most_counters_fallen_tell_another_process() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, line("b"): 10.0, line("c"): 10.0}, None))
    up.read(body({line("a"): 1.0, line("b"): 2.0, line("c"): 11.0}, None))  # c has overtaken
    assert up.shown() == {M: 44.0}


def test_workers_none_of_whom_was_there_before_tell_another_process() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, 'up_running{model="m",pid="1"}': 0.0}, None))
    up.read(body({line("a"): 12.0, 'up_running{model="m",pid="1"}': 0.0, 'up_running{model="m",pid="2"}': 0.0}, None))
    assert up.shown()[M] == 12.0
    up.read(body({line("a"): 12.5, 'up_running{model="m",pid="7"}': 0.0}, None))
    assert up.shown()[M] == 24.5


def test_a_restart_seen_in_a_cut_body_counts_lines_that_the_next_cut_body_did_not_reach() -> None:
    upstream = Upstream()
    start = "process_start_time_seconds {}\n"
    lines = 'up_requests_total{{model="a"}} {}\nup_requests_total{{model="b"}} {}\nup_requests_total{{model="c"}} {}\n'
    upstream.read(start.format(1) + lines.format(5, 5, 5))
    before = upstream.shown()
    restarted = start.format(2) + lines.format(1, 2, 5)  # the third has as many as before
    for at in (len(start), restarted.index("b") + 6):
        upstream.cut(restarted, at)
    upstream.read(restarted)
    gained = {name: value - before[name] for name, value in upstream.shown().items()}
    assert list(gained.values()) == [1.0, 2.0, 5.0]


def test_of_a_gauge_s_old_and_new_name_one_is_shown_and_the_other_where_it_goes() -> None:
    up = Upstream(text=MAP.replace("from: [up_running]", "from: [up_running, up_active]").replace(", merge: sum", ""))
    running = 'llm_requests_running{model="m"}'
    old, new = 'up_active{model="m"}', 'up_running{model="m"}'
    up.read(body({old: 3.0}, None))
    assert up.shown() == {running: 3.0}
    up.read(body({old: 4.0, new: 9.0}, None))
    assert up.shown() == {running: 4.0}, "the choice stays while what was chosen is there"
    up.read(body({new: 9.0}, None))
    assert up.shown() == {running: 9.0}
    up.read(body({old: 4.0, new: 9.0}, None))
    assert up.shown() == {running: 9.0}


def test_all_lines_missing_from_one_body_is_no_restart() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0}, None))
    up.read("# nothing\n")
    up.read(body({line("a"): 11.0}, None))
    assert up.shown() == {M: 11.0}


def test_a_cut_body_keeps_what_its_lines_gained_and_counts_nothing_twice() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, line("b"): 10.0}))
    whole = body({line("a"): 11.0, line("b"): 12.0})
    for at in range(len(whole)):
        up.cut(whole, at)
    up.read(whole)
    assert up.shown() == {M: 23.0}


def test_what_a_cut_body_of_another_process_gained_is_not_counted_again() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0}))
    another = body({line("a"): 15.0}, 2000.0)
    up.cut(another, another.index("process"))
    up.read(another)
    assert up.shown() == {M: 25.0}


def test_two_processes_that_take_turns_are_told_and_count_nothing() -> None:
    up = Upstream()
    a, b = body({line("a"): 10.0}, 1000.0), body({line("a"): 500.0}, 1500.0)
    up.read(a)
    up.read(b)
    before = up.shown()
    for _ in range(5):
        with pytest.raises(ReadError, match="take turns") as error:
            up.read(a)
        assert error.value.reason == "identity"
        with pytest.raises(ReadError, match="take turns"):
            up.read(b)
    assert up.shown() == before
    for _ in range(STEADY - 1):
        with pytest.raises(ReadError, match="take turns"):
            up.read(b)
    up.read(b)
    up.read(body({line("a"): 501.0}, 1500.0))
    assert up.shown() == {M: before[M] + 1.0}


def test_of_two_names_the_newer_counts_and_never_both() -> None:
    up = Upstream()
    up.read(body({line("a"): 5.0, line("a", name="up_calls_total"): 5.0}))
    assert up.shown() == {M: 5.0}


def test_a_switch_of_names_changes_no_total() -> None:
    up = Upstream()
    old, new = line("a", name="up_calls_total"), line("a")
    up.read(body({old: 5.0}))
    up.read(body({old: 7.0, new: 1.0}))  # the choice stays while the chosen one is there
    assert up.shown() == {M: 7.0}
    up.read(body({new: 3.0}))  # its present value is its baseline
    assert up.shown() == {M: 7.0}
    up.read(body({new: 4.0}))
    assert up.shown() == {M: 8.0}


def test_a_new_name_after_a_restart_counts_from_the_restart() -> None:
    up = Upstream()
    up.read(body({line("a", name="up_calls_total"): 5.0}))
    up.read(body({line("a"): 2.0}, 2000.0))
    assert up.shown() == {M: 7.0}


def test_a_new_series_is_shown_as_0_until_a_page_has_carried_it() -> None:
    up = Upstream()
    up.read(body({line("a"): 5.0}))
    up.totals.samples(0)
    up.read(body({line("a"): 5.0, line("b", "n"): 3.0}))
    assert [value for _, value in up.totals.samples(7)] == [5.0, 0.0]
    assert [value for _, value in up.totals.samples(7)] == [5.0, 0.0]
    assert [value for _, value in up.totals.samples(8)] == [5.0, 3.0]


def test_closed_values_exist_at_0_as_soon_as_their_parent_does() -> None:
    up = Upstream(text=MAP_WITH_FAILURES)
    up.read(body({line("a"): 5.0}))
    assert up.shown() == {
        M: 5.0,
        'llm_request_failures_total{model="m",reason="auth"}': 0.0,
        'llm_request_failures_total{model="m",reason="timeout"}': 0.0,
        'llm_request_failures_total{model="m",reason="other"}': 0.0,
    }
    failed = 'up_failures_total{model="m",status="403"}'
    up.read(body({line("a"): 6.0, failed: 1.0}))
    assert up.shown()['llm_request_failures_total{model="m",reason="auth"}'] == 1.0


def test_zeros_count_to_the_limit_on_series_and_are_the_first_to_be_left_out() -> None:
    up = Upstream(text=MAP_WITH_FAILURES, max_series=20)
    up.read(body({line("k", f"m{number}"): 1.0 for number in range(15)}))
    shown = up.shown()
    assert 20 <= len(shown) < 20 + 3  # those of one are shown together
    assert sum(value == 1.0 for value in shown.values()) == 15
    assert up.totals.dropped["limit"] > 0


def test_one_more_name_costs_to_name_its_own_series_and_not_all_others_again(monkeypatch: pytest.MonkeyPatch) -> None:
    named = 0
    name = SeriesTable.__call__

    def counted(*given: Any, **more: Any) -> Series:
        nonlocal named
        named += 1
        return name(*given, **more)

    monkeypatch.setattr(SeriesTable, "__call__", counted)
    up = Upstream(text=MAP_WITH_FAILURES)
    many = {line("k", f"m{number}"): 1.0 for number in range(300)}
    up.read(body(many))
    up.shown()
    named = 0
    up.read(body({**many, line("k", "another"): 1.0}))
    assert sum('model="another"' in name for name in up.shown()) == 4  # requests, and failures of three reasons
    assert named < 20


def test_a_restart_of_the_exporter_goes_on_exactly() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0}))
    up.read(body({line("a"): 4.0}))
    again = Upstream(json.loads(json.dumps(up.dump())))
    again.read(body({line("a"): 6.0, line("b"): 1.0}))
    assert again.shown() == {M: 17.0}
    again = Upstream(json.loads(json.dumps(up.dump())))
    again.read(body({line("a"): 100.0}, 2000.0))  # the upstream has been restarted meanwhile
    assert again.shown() == {M: 114.0}


def test_a_line_missing_at_the_restart_of_the_exporter_is_not_counted_again_on_its_return() -> None:
    up = Upstream()
    up.read(body({line("a"): 10.0, line("b"): 5.0}))
    again = Upstream(json.loads(json.dumps(up.dump())))
    again.read(body({line("b"): 5.0}))
    again.read(body({line("a"): 11.0, line("b"): 5.0}))
    assert again.shown() == {M: 16.0}


def test_counters_that_no_counter_can_have_are_left_out_and_counted() -> None:
    up = Upstream()
    up.read(
        body({line("a"): 5.0, line("b"): -1.0, line("c"): float("nan"), line("d"): float("inf")})
        .replace("nan", "NaN")
        .replace("inf", "+Inf")
    )
    assert up.shown() == {M: 5.0}
    assert up.totals.dropped["value"] == 3


def test_a_family_whose_type_contradicts_the_map_is_left_out_and_counted() -> None:
    up = Upstream()
    up.read("# TYPE up_requests_total gauge\n" + body({line("a"): 5.0}))
    assert up.shown() == {}
    assert up.totals.dropped["type"] == 1


def test_a_histogram_keeps_its_boundaries_and_one_without_inf_is_left_out() -> None:
    up = Upstream()
    rest = {'up_seconds_sum{model="m"}': 1.5, 'up_seconds_count{model="m"}': 2.0}
    up.read(body({'up_seconds_bucket{model="m",le="1"}': 1.0, 'up_seconds_bucket{model="m",le="+Inf"}': 2.0, **rest}))
    assert up.shown() == {
        'llm_request_duration_seconds_bucket{model="m",le="1.0"}': 1.0,
        'llm_request_duration_seconds_bucket{model="m",le="+Inf"}': 2.0,
        'llm_request_duration_seconds_sum{model="m"}': 1.5,
        'llm_request_duration_seconds_count{model="m"}': 2.0,
    }
    up = Upstream()
    up.read(body({'up_seconds_bucket{model="m",le="1"}': 1.0, **rest}))
    assert up.shown() == {}
    assert up.totals.dropped["histogram"] == 6  # three samples, twice looked at


def test_gauges_follow_their_lines_and_go_with_them() -> None:
    up = Upstream()
    up.read(body({'up_running{model="m",key="a"}': 2.0, 'up_running{model="m",key="b"}': 3.0}))
    assert up.shown() == {'llm_requests_running{model="m"}': 5.0}
    up.read(body({'up_running{model="m",key="b"}': 1.0}))
    assert up.shown() == {'llm_requests_running{model="m"}': 1.0}
    up.read(body({}))
    assert up.shown() == {}


def test_of_a_gauge_told_by_several_workers_the_one_that_changed_last_counts() -> None:
    up = Upstream()
    up.read(body({'up_running{model="m",pid="1"}': 4.0}))
    up.read(body({'up_running{model="m",pid="1"}': 4.0, 'up_running{model="m",pid="2"}': 1.0}))
    assert up.shown() == {'llm_requests_running{model="m"}': 1.0}


def test_too_many_series_are_left_out_and_counted() -> None:
    up = Upstream(max_series=3)
    up.read(body({line("a", f"m{number}"): 1.0 for number in range(10)}))
    assert len([name for name in up.shown() if name.startswith("llm_requests_total")]) == 3
    assert up.totals.dropped["limit"] == 7


def test_a_kept_label_shows_its_largest_values_and_the_rest_as_other() -> None:
    up = Upstream(keep=["team"])
    up.read(body({f'up_requests_total{{model="m",team="t{n:02}"}}': float(n + 1) for n in range(30)}))
    shown = up.shown()
    kept = [name for name in shown if name.startswith("llm_requests_total")]
    assert len(kept) == 21
    assert shown['llm_requests_total{model="m",team="t29"}'] == 30.0
    assert shown['llm_requests_total{model="m",team="other"}'] == sum(range(1, 11))
    up.read(body({f'up_requests_total{{model="m",team="t{n:02}"}}': 1000.0 for n in range(31)}))
    assert up.shown()['llm_requests_total{model="m",team="other"}'] == 11000.0  # who is shown stays


def test_names_that_come_and_go_are_forgotten_when_there_is_no_more_room() -> None:
    up = Upstream(max_series=20)
    for number in range(100):
        up.read(body({line("a", f"model-{number}"): 1.0}))
        up.time += 4000.0
        up.shown()
    assert up.totals.dropped["limit"] <= 20
    assert len(up.totals.ledger) <= 20
    gc.collect()
    assert len(up.totals._table) <= 50
