"""Texts that tell tokenizers apart: scripts, code, numbers, spaces, emoji, and special tokens in between."""

import random
from collections.abc import Sequence

WORDS = (
    *(
        "the",
        "model",
        "isn't",
        "THERE",
        "they'll",
        "We'VE",
        "naïve",
        "Straße",
        "façade",
        "Ελληνικά",
        "русский",
    ),
    *(
        "язык",
        "Українська",
        "עברית",
        "العربية",
        "हिन्दी",
        "ไทย",
        "日本語",
        "漢字かな交じり文",
        "中文分词",
        "한국어",
    ),
    *("𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "Ⅷ", "½", "²", "٣٤٥", "೧೨", "camelCase", "snake_case", "HTTPServer", "x86_64", "e.g."),
    *("co-operate", "rock'n'roll", "O'Neil", "'twas", "it's", "I'm", "you're"),
)
CODE = (
    "def f(x: int) -> str:\n    return f'{x!r:>10}'\n",
    "for (int i = 0; i < n; ++i) { sum += a[i] * 0x1F; }",
    "\tif a != b && c <= d:\n\t\tpass  # TODO\n\n\n",
    "SELECT * FROM \"t\" WHERE id=42 AND name LIKE '%x_%';",
    '<div class="a b">&nbsp;</div>\r\n',
    "#include <stdio.h>\r\n\r\nint main(void){return 0;}",
)
_NUMBERS = (
    "7",
    "42",
    "1984",
    "3.14159",
    "1,000,000",
    "-273.15",
    "0b1011",
    "2026-11-21T10:59:03Z",
    "١٢٣",
    "1e-05",
    "½¾",
)
_EMOJI = ("🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "✨✨✨", "👍🏽", "☕️", "♥")
_SPACES = (" ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000", "\u2009", "        ")
_MARKS = (
    ".",
    ",",
    "!",
    "?!",
    "...",
    "—",
    "«",
    "»",
    "。",
    "、",
    "://",
    "@",
    "#",
    "$",
    "€",
    "()",
    "[]",
    "_",
    "'",
    '"',
    "`",
)


def texts(count: int, specials: Sequence[str], seed: int = 20260101) -> list[str]:
    """``count`` strings that mix words, digits, code, spaces, emoji, marks and special tokens."""
    rng = random.Random(seed)
    pools = (WORDS, WORDS, CODE, _NUMBERS, _EMOJI, _SPACES, _SPACES, _MARKS, tuple(specials) or (" ",))
    fixed = [
        "",
        " ",
        "\n",
        "a",
        " a",
        "  a",
        "a ",
        "1",
        " 1",
        "12 ",
        "\u200b",
        "é",
        "e\u0301",
        "\ufeff",
        "\U0010ffff",
    ]
    made = list(fixed)
    while len(made) < count:
        pieces = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 24))]
        made.append(rng.choice(("", " ")).join(pieces))
    return made[:count]


HARD = (
    *(
        "'",
        "''s",
        "'s't",
        "it's I'm we'll THEY'RE you'Ve",
        " 's",
        "x'sx",
        "!'s",
        "'\n't",
        "\n'll",
        "\u2019s",
        "'ſ",
    ),
    *(
        "\n\n\n",
        "   \n  \n a",
        "\t\ta\t b",
        "a\r\nb\r\n\r\n",
        "a  b   c    d",
        "trailing  ",
        "!\n \n x",
        "-\r\n-",
    ),
    *("12345", "1 22 333 4444", "a1b22c333", "10**12", "½", " ²", "Ⅷ①", "٣٤٥٦", "१२३"),
    *(
        "e\u0301",
        "\u0301",
        "ǅ",
        "İ",
        "ﬀ",
        "\u00a0a",
        "a\u00a0b",
        "\u3000",
        "\u2028x",
        "x\u2029",
        "\x1c",
        "\x85",
        "\v\f",
    ),
    *("\x00a", "a\x00b", "\x00\x00", "\x7f", "\x1b[0m", "\ufffd", "\uffff", "\U00010000", "\U000fffff!"),
    *("=" * 300, " " * 77, "ab" * 100, "日本語の文章を空白なしで書く" * 8, "🙂" * 30),
)
"""What went wrong somewhere once, or could."""


def fragments(count: int, specials: Sequence[str], seed: int = 1) -> list[str]:
    """``count`` short strings of what begins and ends words, and of special tokens, whole and cut."""
    rng = random.Random(seed)
    pieces = [
        "'",
        "'s",
        "'S",
        "'re",
        "'LL",
        "'t",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "a",
        "B",
        "ab",
        "é",
        "ſ",
        "K",
    ]
    pieces += ["1", "22", "٣", "½", "!", "!!", ".", "_", "日", "🙂", "\u0301", "\x00", "\x85", "\x1c"]
    pieces += [text[:end] for text in specials for end in {len(text), len(text) - 1, 1} if end]
    return ["".join(rng.choices(pieces, k=rng.randint(1, 14))) for _ in range(count)]
