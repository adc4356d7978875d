"""llm-models: which models run, load or sleep, what they take, and which of them nobody asks for."""

from __future__ import annotations

from grafana_foundation_sdk.builders import table as tables

from grafana.source.page import Page, variable
from grafana.source.panels import SAME, Column, Panel, Size, by_state, number, series, states, table
from grafana.source.query import AT, Query, gain, highest, pick, rate, renamed, select, total
from grafana.source.style import BAD, GOOD, WARN

MODEL = 'model=~"$model"'
EACH = f"{AT}, model"
OWN = ('layer=~"engine|frontend"', MODEL)
NONE = "no server of models tells its states"
LONG = 300


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-models",
        "LLM / Models",
        "Models that are loaded, loading, asleep or gone; the memory they take, and what is held by those nobody asks"
        " for.",
        variable("model", "Model", "llm_model_state", absent=True),
    )
    made.row("Now", *_now())
    made.row(
        "Over time",
        states(
            "Models",
            "The state of each model on each server.",
            "llm_model_state",
            "instance, target, model",
            "{{model}} ({{instance}} {{target}})",
            MODEL,
            empty=NONE,
            size=Size(16, 9),
        ),
        by_state(
            series(
                "Models by state",
                "How many models are in each state.",
                "none",
                Query(f"sum by (state) ({pick('llm_models')})", "{{state}}"),
                empty=NONE,
                size=Size(8, 9),
                stacked=True,
            ),
            "llm_models",
        ),
    )
    made.row("Traffic", *_traffic())
    made.row("Load: memory", *_memory())
    made.row("Parts: which to unload", idle(Size(24, 9), MODEL))
    return made


def _held(*matchers: str) -> str:
    return total(EACH, pick("llm_model_memory_bytes", *matchers))


def _loaded(*matchers: str) -> str:
    state = highest(EACH, "llm_model_state", *matchers, 'state="loaded"')
    return f"({state} == 1)"


def _unasked(*matchers: str) -> str:
    """Seconds since a loaded model was asked for something; of one that never was, since the exporter watches.

    Not every server tells when that was: of the others it is seen by the progress that its requests make.
    """
    asked = select("llm_model_last_request_timestamp_seconds", *matchers)
    moved = select("llm_target_last_progress_timestamp_seconds", 'layer="engine"', *matchers)
    watched = f"min by (job, instance) ({select('process_start_time_seconds')})"
    return (
        f"(time() - (max by ({EACH}) ({asked} or {moved})"
        f" or 0 * {_loaded(*matchers)} + on (job, instance) group_left () {watched})"
        f" and on ({EACH}) {_loaded(*matchers)})"
    )


def idle(size: Size, *matchers: str) -> tables.Panel:
    """Models in memory, by memory × time that nobody asked for them."""
    held, unasked = _held(*matchers), _unasked(*matchers)
    part = (
        f"{pick('llm_gpu_process_memory_bytes')} / on ({AT}, uuid) group_left () {pick('llm_gpu_memory_used_bytes')}"
        f" * on ({AT}, uuid) group_left () {pick('llm_gpu_power_watts')}"
    )
    by_workload = total("job, instance, workload", part)
    serves = f"{pick('llm_workload_info')} * on (job, instance, workload) group_left () {by_workload}"
    loads = total(EACH, gain("llm_model_loads_total", *matchers, over="$__range"))
    watts = total(AT, renamed(serves, "target", "serves"))
    return table(
        "Which model to unload",
        "Loaded models, those first that hold the most for the longest without being asked (GiB × hours), where their"
        " server tells what they take. Loads within the time shown say how soon one is wanted back; power is that of"
        " the server's processes, by their part of the GPU's memory.",
        {"model": "Model", "target": "Server"},
        Column("GiB × h unasked", "none", f"{held} / 2 ^ 30 * on ({EACH}) {unasked} / 3600", ((1, WARN), (10, BAD))),
        Column("Unasked for", "s", unasked, ((LONG, WARN),)),
        Column("Memory", "bytes", f"{held} > 0"),
        Column("Loads", "none", f"{loads} and on ({EACH}) {_loaded(*matchers)}"),
        Column("GPU power", "watt", f"0 * {_loaded(*matchers)} + on ({AT}) group_left () {watts}"),
        empty="no model is loaded, or no server tells",
        size=size,
        order="GiB × h unasked",
        links={"This model": f"/d/llm-models?var-model=${{__value.raw}}&{SAME}"},
    )


def _now() -> list[Panel]:
    state = pick("llm_models")
    return [
        by_state(
            number(
                "Models in each state",
                "Models that are loaded, loading, asleep, not in memory, or failed.",
                "none",
                Query(f"sum by (state) ({state}) > 0", "{{state}}"),
                empty=NONE,
                size=Size(12, 4),
            ),
            "llm_models",
        ),
        number(
            "Memory held",
            "Memory of all loaded models shown, on GPUs and off.",
            "bytes",
            Query(f"sum by (device) ({pick('llm_model_memory_bytes', MODEL)})", "{{device}}"),
            empty="no server tells what its models take",
        ),
        number(
            "Held by models nobody asks for",
            "Memory of models that were asked for nothing in the last 5 minutes.",
            "bytes",
            Query(
                f"sum({_held(MODEL)} and on ({EACH}) {_unasked(MODEL)} > {LONG}) or 0 * sum({_held(MODEL)})",
                "unasked 5 min",
            ),
            empty="no server tells what its models take",
            base=GOOD,
            steps=((1, WARN),),
        ),
    ]


def _traffic() -> list[Panel]:
    running, waiting = (
        f"sum by (layer, model) ({pick(f'llm_requests_{what}', *OWN)})" for what in ("running", "waiting")
    )
    requests = total("layer, model", rate("llm_requests_total", *OWN))
    tokens = total("layer, model", rate("llm_output_tokens_total", *OWN))
    name = "{{model}} ({{layer}})"
    return [
        series(
            "Requests",
            "Requests that finished, failures included; engines and frontends each for themselves.",
            "reqps",
            Query(requests, name),
            empty="no engine or frontend is read",
            size=Size(6, 8),
        ),
        series(
            "Output tokens",
            "Tokens that came out each second.",
            "cps",
            Query(tokens, name),
            empty="no engine or frontend is read",
            size=Size(6, 8),
        ),
        series(
            "Running and waiting",
            "Requests that are worked on, and those that nothing works on yet.",
            "none",
            Query(running, name),
            Query(waiting, name + " waiting", WARN),
            empty="no engine or frontend is read",
            size=Size(6, 8),
        ),
        series(
            "Loads and unloads",
            "Times that models were loaded and unloaded, within a step.",
            "none",
            Query(total("model", gain("llm_model_loads_total", MODEL)), "{{model}} loaded"),
            Query(total("model", gain("llm_model_unloads_total", MODEL)), "{{model}} unloaded"),
            empty=NONE,
            size=Size(6, 8),
        ),
    ]


def _memory() -> list[Panel]:
    held = pick("llm_model_memory_bytes", MODEL)
    gpu = total("instance, workload", pick("llm_gpu_process_memory_bytes"))
    return [
        series(
            "Memory by model",
            "Memory that each loaded model takes, on GPUs (vram) and off (ram).",
            "bytes",
            Query(
                f"sum by (instance, target, model, device) ({held})", "{{model}} {{device}} ({{instance}} {{target}})"
            ),
            empty="no server tells what its models take",
            stacked=True,
        ),
        series(
            "GPU memory by server",
            "Memory that the processes of each server of models hold on GPUs, its KV cache included.",
            "bytes",
            Query(gpu, "{{instance}} {{workload}}"),
            empty="no GPU is read, or nobody holds its memory",
            stacked=True,
        ),
        series(
            "Unasked for",
            "How long nobody has asked each loaded model for anything; of one that was never asked, since the exporter"
            " watches.",
            "s",
            Query(_unasked(MODEL), "{{model}} ({{instance}} {{target}})"),
            empty="no server tells, or no model was asked for anything yet",
        ),
    ]
