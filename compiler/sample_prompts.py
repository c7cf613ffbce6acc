"""Prompts on which a compile measures speculation: some bring the text that their answer is made of.

They are part of the compiler, so that every machine measures on the same ones, and no evaluation or
calibration text is in them. Whether drafts are accepted depends on the task far more than on the model:
where the answer copies (edit, extract, summarise, code) the prompt predicts it, and where it is made up it
does not. A default has to gain on the first kind and must not lose on the second.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplePrompt:
    """One request, as a user would type it."""

    name: str
    grounded: bool
    """Whether the prompt holds the text that is to be worked on."""
    text: str


_FERRY = (
    "The ferry between Aldhaven and the island of Sorrel runs four times a day from April to October and "
    "twice a day in winter. The crossing takes fifty minutes. Tickets are sold on board and cost nine "
    "crowns, or fifteen for a day return; children under six travel free. Bicycles are carried as long as "
    "there is room, cars only on the first and the last ferry of the day, and they must be announced the "
    "evening before. In strong westerly winds the ferry waits in the lee of the breakwater, and "
    "passengers should count on a delay of half an hour. Dogs are welcome on the lower deck."
)
_WORKSHOP = (
    "The workshop is open on tuesdays and fridays. Members can use the lathe after a short lesson. New "
    "members is asked to bring a pair of closed shoes. The saw may only be used when two person are in "
    "the room. Wood that is left over goes in the box by the door, where anyone can takes it."
)
_STAFF = (
    "Elin Varga leads the laboratory and can be reached on extension 204. Samples are received by Jonas "
    "Mbeki, extension 117, who also keeps the freezer list. Orders go through Petra Lindqvist on "
    "extension 230. For questions about safety call Sam Okoye, extension 911, at any hour; his deputy is "
    "Rosa Duarte, extension 912."
)
_CODE = """\
class Queue:
    def __init__(self, size):
        self.items = [None] * size
        self.head = 0
        self.count = 0

    def push(self, item):
        self.items[(self.head + self.count) % len(self.items)] = item
        self.count += 1

    def pop(self):
        item = self.items[self.head]
        self.head = (self.head + 1) % len(self.items)
        self.count -= 1
        return item
"""

SAMPLE_PROMPTS = (
    SamplePrompt("summarise", True, f"Summarise this text in a few sentences.\n\n{_FERRY}"),
    SamplePrompt("story", False, "Write a short story about a clockmaker who is afraid of silence."),
    SamplePrompt(
        "edit", True, f"Correct the grammar of this text and write out the whole text.\n\n{_WORKSHOP}"
    ),
    SamplePrompt("explain", False, "Explain how a refrigerator keeps food cold."),
    SamplePrompt("extract", True, f"List every person and the extension in this text.\n\n{_STAFF}"),
    SamplePrompt("advice", False, "How can I learn a new language in one year?"),
    SamplePrompt(
        "code",
        True,
        "Change this class so that push raises OverflowError when the queue is full and pop raises "
        f"IndexError when it is empty. Print the whole class.\n\n{_CODE}",
    ),
    SamplePrompt("history", False, "What was daily life like in a medieval town?"),
    SamplePrompt("program", False, "Write a program in Python that plays noughts and crosses."),
    SamplePrompt("plan", False, "Plan a birthday party for a child of seven."),
)
"""More of the open ones: their answers differ more in how much they repeat themselves."""
