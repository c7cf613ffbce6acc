"""The page of `peers.py`: the aims, the tables, and how to read them."""

from collections.abc import Mapping
from dataclasses import dataclass

import peers_encoder
from peers_generation import generation_samples
from peers_quality import Quality, qualities
from peers_rules import (
    AIMS,
    EQUAL_COSINE,
    EQUAL_PERPLEXITY,
    Samples,
    Verdict,
    best_peer,
    better_way,
    equal_quality,
    verdict,
)
from peers_speed import bounds, speed_samples
from peers_systems import REFERENCE
from speculation_prompts import bench_prompts

from onnxforge.compiler.markdown_table import table

Columns = Mapping[str, Mapping[str, Samples]]
LOWER = ("first_token", "load", "peak_rss")


@dataclass(frozen=True)
class Reading:
    """The state of a run, summed up for tables and plots."""

    content: Mapping
    speed: Columns
    generation: Columns
    encoder: Columns
    quality: Mapping[str, Quality]
    equal: Mapping[str, bool | None]
    cosines: Mapping[str, Mapping[str, float]]

    @property
    def ours(self) -> list[str]:
        return [name for name, facts in self.content["systems"].items() if facts["ours"]]

    @property
    def ways(self) -> dict[str, list[str]]:
        return {name: facts["ways"] for name, facts in self.content["systems"].items()}

    @property
    def encoders(self) -> dict[str, dict]:
        return self.content.get("encoder_systems", {})

    @property
    def own_encoders(self) -> list[str]:
        return [name for name, facts in self.encoders.items() if facts["ours"]]

    @property
    def equal_encoders(self) -> dict[str, bool]:
        return {name: found["mean"] >= EQUAL_COSINE for name, found in self.cosines.items()}

    def best(self, column: str, values: Mapping[str, float]) -> str | None:
        """The best peer of equal quality among the decoders."""
        return best_peer(values, self.ours, self.equal, column not in LOWER)

    def best_encoder(self, values: Mapping[str, float]) -> str | None:
        return best_peer(values, self.own_encoders, self.equal_encoders, higher=True)


def read(content: Mapping) -> Reading:
    quality_of = {name: f["quality_of"] for name, f in content["systems"].items() if f["quality_of"]}
    quality = qualities(content["quality"], quality_of, REFERENCE)
    equal = equal_quality({name: found.perplexity for name, found in quality.items()}, REFERENCE)
    return Reading(
        content,
        speed_samples(content["speed"]),
        generation_samples(content["generation"], bench_prompts()),
        peers_encoder.encoder_samples(content["encoder"]),
        quality,
        equal,
        content["encoder_quality"],
    )


def page(reading: Reading, machine: str, plots: Mapping[str, str]) -> str:
    parts = ["# Beside every peer on the CPU", machine, aims_table(reading)]
    if reading.content["systems"]:
        parts += [speed_table(reading)] if reading.speed else []
        parts += [facts_table(reading)]
        parts += [bound_table(reading)] if reading.speed else []
        parts += [generation_table(reading)] if reading.generation else []
    parts += [encoder_table(reading)] if reading.encoder or reading.cosines else []
    parts += [f"![{caption}]({name})" for name, caption in plots.items()]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def medians(columns: Columns, column: str) -> dict[str, float]:
    return {name: samples.median for name, samples in columns.get(column, {}).items()}


def verdicts(reading: Reading) -> list[Verdict]:
    """Every aim, for the first of our artifacts."""
    found = []
    for aim in AIMS:
        if aim.key == "grounded":
            values = better_way(medians(reading.generation, "grounded"), reading.ways)
            our, peer = next(iter(reading.ours), ""), reading.best(aim.key, values)
        elif aim.key in reading.encoder:
            values = medians(reading.encoder, aim.key)
            our, peer = next(iter(reading.own_encoders), ""), reading.best_encoder(values)
        else:
            values = medians(reading.speed, aim.key)
            our, peer = next(iter(reading.ours), ""), reading.best(aim.key, values)
        found.append(verdict(aim, values, our, peer))
    return found


def aims_table(reading: Reading) -> str:
    rows = []
    for found in verdicts(reading):
        reached = f"{found.reached:.2f}x" if found.reached is not None else ""
        numbers = [
            f"{n:,.2f}" if n is not None and n < 10 else f"{n:,.0f}" if n else ""
            for n in (found.ours, found.theirs)
        ]
        rows.append((found.aim.what, found.aim.text, reached, found.word, numbers[0], numbers[1], found.peer))
    first = next(iter(reading.ours), "encoders")
    title = f"## Aims: {first}, ratio to the best peer of equal quality\n\n"
    header = ("what", "aim", "reached", "", "ours", "best peer", "which is")
    return title + table(header, rows, right=(1, 2, 4, 5))


def mark(reading: Reading, name: str) -> str:
    return f"{name} †" if reading.equal.get(name) is False else name


def speed_table(reading: Reading) -> str:
    columns = [*(c for c in reading.speed if c not in LOWER), "first_token"]
    rows = []
    for name in reading.content["systems"]:
        cells = [cell(reading, column, name) for column in columns]
        if any(cells):
            rows.append((mark(reading, name), *cells))
    titles = {"first_token": "first token of 512, ms"}
    note = (
        "\nTokens a second, median ± half the distance between the quartiles, and the ratio to the best peer "
        f"of equal quality. † not of equal quality: perplexity above {EQUAL_PERPLEXITY:.2f}x of full "
        "precision, so no yardstick. First token: from the call to the token; less is better."
    )
    return (
        "## Prompts and decoding\n\n"
        + table(("", *(titles.get(c, c) for c in columns)), rows, right=tuple(range(1, len(columns) + 1)))
        + note
    )


def cell(reading: Reading, column: str, name: str) -> str:
    found = reading.speed.get(column, {}).get(name)
    if found is None:
        return ""
    values = medians(reading.speed, column)
    best = reading.best(column, values)
    ratio = f" ({found.median / values[best]:.2f}x)" if best else ""
    value = 1e3 * found.median if column == "first_token" else found.median
    return f"{value:,.0f}{found.spread_text}{ratio}"


def facts_table(reading: Reading) -> str:
    rows = []
    for name, facts in reading.content["systems"].items():
        load, rss = (reading.speed.get(column, {}).get(name) for column in ("load", "peak_rss"))
        quality = reading.quality.get(name)
        score = f"{quality.perplexity:.3f} ({quality.ratio:.3f}x ±{quality.error:.3f})" if quality else ""
        rows.append(
            (
                mark(reading, name),
                f"{load.median:.2f} s{load.spread_text}" if load else "",
                f"{max(rss.values) / 1e6:,.0f} MB" if rss else "",
                f"{facts['size'] / 1e6:,.0f} MB",
                score,
            )
        )
    protocol = reading.content.get("protocol", "")
    note = f"\nThe same token ids for all: {protocol}. Ratio to {REFERENCE}." if protocol else ""
    header = ("", "load", "peak RSS", "model files", "perplexity")
    return "## Loading, memory, size, quality\n\n" + table(header, rows, right=(1, 2, 3, 4)) + note


def bound_table(reading: Reading) -> str:
    limits = bounds(reading.content)
    columns = [column for column in reading.speed if column in limits]
    rows = []
    for name in reading.content["systems"]:
        found = [reading.speed[column].get(name) for column in columns]
        if any(found):
            shares = [s and 100 * s.median / limits[c][name] for c, s in zip(columns, found, strict=True)]
            rows.append((mark(reading, name), *(f"{share:.0f}%" if share else "" for share in shares)))
    note = (
        "\nDecode: reading its own weights and cache once a token at this machine's bandwidth. Prompts: the "
        "model's multiplications at the rate that int8 products reach here."
    )
    right = tuple(range(1, len(columns) + 1))
    return "## Percent of the machine's bound\n\n" + table(("", *columns), rows, right=right) + note


def generation_table(reading: Reading) -> str:
    classes = [*reading.generation]
    ways = [(system, way) for system, names in reading.ways.items() for way in names]
    rows = []
    for system, way in ways:
        found = [reading.generation[group].get(way) for group in classes]
        if any(found):
            cells = [f"{s.median:,.0f}{s.spread_text}" if s else "" for s in found]
            rows.append((f"{way} †" if reading.equal.get(system) is False else way, *cells))
    rounds = len(reading.content["generation"])
    note = f"\nDecoded tokens a second behind the first token, over all prompts of a class; {rounds} rounds."
    header, right = ("", *classes), tuple(range(1, len(classes) + 1))
    return "## Generation, with each one's speculation\n\n" + table(header, rows, right=right) + note


def encoder_table(reading: Reading) -> str:
    shapes = [column for column in reading.encoder if column not in LOWER]
    rows = []
    for name, facts in reading.encoders.items():
        cells = []
        for shape in shapes:
            values, found = medians(reading.encoder, shape), reading.encoder[shape].get(name)
            best = reading.best_encoder(values)
            ratio = f" ({found.median / values[best]:.2f}x)" if best and found else ""
            cells.append(f"{found.median:,.0f}{found.spread_text}{ratio}" if found else "")
        cosine, rss = reading.cosines.get(name), reading.encoder.get("peak_rss", {}).get(name)
        quality = f"{cosine['mean']:.4f} / {cosine['least']:.4f}" if cosine else ""
        memory = f"{max(rss.values) / 1e6:,.0f} MB" if rss else ""
        dagger = " †" if reading.equal_encoders.get(name) is False else ""
        rows.append((name + dagger, *cells, quality, f"{facts['size'] / 1e6:,.0f} MB", memory))
    header = ("batch x tokens", *shapes, "cosine, mean / least", "model files", "peak RSS")
    note = (
        "\nSentences a second, from text to pooled embedding; ratio to the best peer. Cosine to full "
        f"precision. † mean below {EQUAL_COSINE}: no yardstick."
    )
    return "## Encoders\n\n" + table(header, rows, right=tuple(range(1, len(header)))) + note
