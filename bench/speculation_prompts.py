"""The forty prompts of the speculation benchmarks, as chat messages: twenty grounded, twenty open."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class BenchPrompt:
    """One request. ``kind`` is summarise, edit, extract or code (these bring their text), or open."""

    name: str
    kind: str
    text: str

    @property
    def grounded(self) -> bool:
        return self.kind != "open"

    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.text}]


def bench_prompts(per_kind: int | None = None) -> list[BenchPrompt]:
    """All of them, or the first ``per_kind`` of each grounded kind and four times as many open ones."""
    found = []
    for name, count in (("grounded", per_kind), ("open", None if per_kind is None else 4 * per_kind)):
        entries = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))["prompt"]
        seen: dict[str, int] = {}
        for entry in entries:
            kind = entry.get("kind", "open")
            seen[kind] = seen.get(kind, 0) + 1
            if count is None or seen[kind] <= count:
                text = entry["task"] + ("\n\n" + entry["text"].strip("\n") if "text" in entry else "")
                found.append(BenchPrompt(entry["name"], kind, text))
    return found
