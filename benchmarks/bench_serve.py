"""What batching gains: throughput of `modelassay serve` with 1, 8 and 32 conversations at once.

OpenAI's client asks a server on loopback, both in this process; the guard is in the loop. The ways
take turns in one run on the same loaded model, greedy, with the same prompts. Throughput is tokens
that were made over the time until the last answer, prompts included. Only ratios are reported: the
median over the rounds of the ratio to one at a time within a round, with its range. Beside that,
how many of the texts are those that one conversation alone is given, and how far risks are apart.

    python benchmarks/bench_serve.py [--model embedded] [--rounds 3] [--new-tokens 48]
        [--write docs/serve-benchmarks.md]
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modelassay.files.atomic import write_text_atomically
from modelassay.files.provenance import installed_versions
from modelassay.guard import Guard, Thresholds, load_guard
from modelassay.guard_bench.suites import LATENCY_PROMPTS
from modelassay.hub.listening import listen
from modelassay.serving.app import build_app
from modelassay.serving.running import http_server
from modelassay.serving.service import Service, Settings

AT_ONCE = (1, 8, 32)
ENDINGS = ("", " Write for a child.", " Be friendly.", " Begin with a question.")
PROMPTS = tuple(f"{prompt}{ending}" for ending in ENDINGS for prompt in LATENCY_PROMPTS)
SHOWN = Thresholds(0.999999, 1.0)
"""Nothing is refused, so that all ways make the same tokens; every token is scored all the same."""
ALONE = 8
"""Prompts that are asked one at a time: their throughput does not depend on how many there are."""


@dataclass
class Run:
    """One way in one round."""

    tokens: int = 0
    seconds: float = 0.0
    processor: float = 0.0
    """Seconds of processor time, client and server together; not moved by what else runs."""
    first_text: list[float] = field(default_factory=list)
    answers: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By prompt: text, and the highest risk."""

    @property
    def throughput(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@contextmanager
def serving(guard: Guard) -> Iterator[str]:
    """A server's base URL while it runs."""
    guarding = {"thresholds": SHOWN, "prompt_thresholds": SHOWN}
    service = Service(guard, Settings("bench", guarding=guarding, seconds=3600))
    if service.engine.alone_because is not None:
        raise SystemExit(f"This model cannot be batched: {service.engine.alone_because}.")
    with listen("127.0.0.1", 0) as listening:
        server = http_server(build_app(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()
        service.close()


async def ask_all(url: str, at_once: int, new_tokens: int) -> Run:
    """Asks all prompts, so many at a time."""
    from openai import AsyncOpenAI

    run, places = Run(), asyncio.Semaphore(at_once)
    prompts = PROMPTS[:ALONE] if at_once == 1 else PROMPTS

    async def ask(client: Any, prompt: str) -> None:
        async with places:
            begun, first, text = time.perf_counter(), None, ""
            stream = await client.chat.completions.create(
                model="bench",
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=new_tokens,
                stream=True,
                stream_options={"include_usage": True},
            )
            risk = 0.0
            async for chunk in stream:
                if chunk.usage:
                    run.tokens += chunk.usage.completion_tokens
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    if choice.delta.content and first is None:
                        first = time.perf_counter() - begun
                    risk = choice.model_extra["guard"].get("highest_risk") or risk
            run.answers[prompt] = text, risk
            if first is not None:
                run.first_text.append(first)

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=3600) as client:
        start, spent = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask(client, prompt) for prompt in prompts))
        run.seconds, run.processor = time.perf_counter() - start, time.process_time() - spent
    return run


def compare(guard: Guard, rounds: int, new_tokens: int) -> list[dict[int, Run]]:
    """The runs of each round by conversations at once, the order turning from round to round."""
    found = []
    with serving(guard) as url:
        asyncio.run(ask_all(url, 1, 2))  # so that nothing is done for the first time
        for number in range(rounds):
            ways = AT_ONCE if number % 2 == 0 else AT_ONCE[::-1]
            found.append({n: asyncio.run(ask_all(url, n, new_tokens)) for n in ways})
            print(number + 1, {n: round(run.throughput, 1) for n, run in found[-1].items()})
    return found


def page(guard: Guard, rounds: list[dict[int, Run]], new_tokens: int) -> str:
    """The page of numbers."""
    info, versions = guard.model.info, installed_versions()
    lines = [
        "# Speed of serving",
        "",
        "Written by `python benchmarks/bench_serve.py`.",
        "",
        "Throughput (tokens made, over the time until the last answer, prompts included) against"
        f" that of one conversation at a time in the same run, median of {len(rounds)} rounds"
        f" (least to largest). Model `{info.id}` ({info.dtype}), {len(PROMPTS)} prompts,"
        f" {new_tokens} tokens each, greedy, every token scored by the probe; OpenAI's client over"
        f" loopback. {guard.model.device.type}, {torch.get_num_threads()} threads,"
        f" {platform.machine()}, torch {versions['torch']}, transformers"
        f" {versions['transformers']}.",
        "",
        "| conversations at once | throughput | tokens a second of processor time | first text, in"
        " times of one alone |",
        "|---|---|---|---|",
    ]
    for n in AT_ONCE:
        gains = [each[n].throughput / each[1].throughput for each in rounds]
        each_second = [
            each[n].tokens / each[n].processor / (each[1].tokens / each[1].processor)
            for each in rounds
        ]
        waits = [
            statistics.median(each[n].first_text) / statistics.median(each[1].first_text)
            for each in rounds
        ]
        lines.append(f"| {n} | {_spread(gains)} | {_spread(each_second)} | {_spread(waits)} |")
    alone = rounds[0][1].answers
    same, apart, n = 0, 0.0, 0
    for each in rounds:
        for at_once in AT_ONCE[1:]:
            for prompt, (text, risk) in alone.items():
                n += 1
                same += text == each[at_once].answers[prompt][0]
                apart = max(apart, abs(risk - each[at_once].answers[prompt][1]))
    lines += [
        "",
        f"Of {n} answers given beside others, {same} have the text that they have alone, to the"
        f" last character; the highest risk of an answer differs by at most {apart:.1g}, which is"
        " what"
        " rounding in matrix products of another height comes to.",
        "",
    ]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.1f} ({min(values):.1f} to {max(values):.1f})" if min(values) != 1 else "1"


def main() -> None:
    """Runs the benchmark and prints or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--probe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()

    guard = load_guard(arguments.model, probe=arguments.probe, classifier=None)
    rounds = compare(guard, arguments.rounds, arguments.new_tokens)
    text = page(guard, rounds, arguments.new_tokens)
    if arguments.write:
        write_text_atomically(arguments.write, text)
    print(text)


if __name__ == "__main__":
    main()
