"""Asks a Prometheus every question of every dashboard: `python tests/grafana/ask.py http://127.0.0.1:9090`.

Prints how many questions there are and how many have an answer, then those that are refused and those that are empty.
Ends with 1 where one is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from questions import Question, dashboards, of_annotations, of_panels


@dataclass(frozen=True)
class Answer:
    """How many series a question has, or why it was refused."""

    question: Question
    series: int = 0
    refused: str = ""


def ask(url: str, question: Question, minutes: float) -> Answer:
    """One question, as Grafana asks it: now, or over the last minutes."""
    now = time.time()
    wanted = {"query": question.asked}
    if question.instant:
        path, wanted["time"] = "query", str(now)
    else:
        path = "query_range"
        wanted |= {"start": str(now - 60 * minutes), "end": str(now), "step": str(max(1.0, minutes * 60 / 300))}
    try:
        with urllib.request.urlopen(
            f"{url}/api/v1/{path}", urllib.parse.urlencode(wanted).encode(), timeout=30
        ) as answer:
            return Answer(question, len(json.load(answer)["data"]["result"]))
    except urllib.error.HTTPError as error:
        return Answer(question, refused=json.load(error)["error"])


def asked() -> list[Question]:
    """What all panels ask, and the annotations, which are the same on every dashboard."""
    every = dashboards().values()
    return [*(question for each in every for question in of_panels(each)), *of_annotations(next(iter(every)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of Prometheus")
    parser.add_argument("--minutes", type=float, default=60.0, help="that are looked back on (default 60)")
    arguments = parser.parse_args()
    answers = [ask(arguments.url.rstrip("/"), question, arguments.minutes) for question in asked()]
    refused = [answer for answer in answers if answer.refused]
    empty = [answer for answer in answers if not answer.refused and not answer.series]
    print(f"{len(answers)} questions, {len(answers) - len(refused) - len(empty)} with an answer")
    for answer in refused:
        print(f"refused: {answer.question.place}: {answer.refused}\n  {answer.question.asked}")
    for answer in empty:
        print(f"empty: {answer.question.place}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
