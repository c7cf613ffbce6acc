"""The generation section of `peers.py`: grounded and open prompts, with and without speculation."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from peers_rules import Samples
from peers_systems import System
from speculation import Child, Runs, groups, pooled
from speculation_prompts import BenchPrompt

SAMPLES = ("first", "rest", "drafted", "accepted", "steps")


def generation_session(
    systems: Sequence[System],
    prompts: Sequence[BenchPrompt],
    ids: Mapping[str, list[int]],
    common: dict,
    number: int,
) -> dict:
    """One round: every way of every system answers every prompt; they take turns in alternating order.

    A first prompt wakes them and is not counted.
    """
    answers: dict[str, dict[str, dict]] = {way.name: {} for system in systems for way in system.ways}
    with ExitStack() as stack:
        children = {}
        for system in systems:
            for command in {way.command for way in system.ways}:
                child = stack.enter_context(Child(system.name, system.commands[command]))
                child.read()  # loaded; the next one starts after it
                children[system.name, command] = child
        ways = [(children[system.name, way.command], way) for system in systems for way in system.ways]
        for child, way in ways:
            child.ask({**common, **way.request, "ids": ids[prompts[0].name]})
        for place, prompt in enumerate(prompts):
            for child, way in ways if (number + place) % 2 else ways[::-1]:
                found = child.ask({**common, **way.request, "ids": ids[prompt.name]})
                kept = {name: found[name] for name in SAMPLES}
                answers[way.name][prompt.name] = {"tokens": len(found["ids"]), **kept}
            print(f"\r{place + 1}/{len(prompts)} prompts", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {"answers": answers}


def generation_samples(
    sessions: Sequence[dict], prompts: Sequence[BenchPrompt]
) -> dict[str, dict[str, Samples]]:
    """Decoded tokens per second by class of prompts, then by way: all tokens over all time.

    In the middle every prompt has its median over rounds, so that a disturbance of one answer is left out;
    the samples are the rounds.
    """
    rounds = [answers_of([session]) for session in sessions]
    together = answers_of(sessions)
    ways = dict.fromkeys(way for way, _ in together)
    there = [prompt for prompt in prompts if all((way, prompt.name) in together for way in ways)]
    found: dict[str, dict[str, Samples]] = {}
    for group, some in groups(there).items():
        for way in ways:
            if some and (center := pooled(together, way, some)):
                values = tuple(pooled(runs, way, some) for runs in rounds)
                found.setdefault(group, {})[way] = Samples(values, center)
    return found


def answers_of(sessions: Sequence[dict]) -> dict[tuple[str, str], Runs]:
    """What `speculation` pools, by way and prompt."""
    found: dict[tuple[str, str], Runs] = {}
    for session in sessions:
        for way, answers in session["answers"].items():
            for name, answer in answers.items():
                kept = {**answer, "ids": range(answer["tokens"])}
                found.setdefault((way, name), Runs()).answers.append(kept)
    return found
