"""Texts that tokenizers stumble over, the same ones every time."""

import random

__all__ = ["HALF_A_PAIR", "nasty_texts"]

HALF_A_PAIR = "half of a pair \ud83d, as a JSON file can hold it"

CHOSEN = [
    "",
    " ",
    "\t\n\r\x0b\x0c",
    "\u00a0\u2003\u3000\u200b\ufeff",  # spaces that are no ASCII
    "a photo of a cat",
    "A Photo  of\ta\nCAT ",
    "it's we'll they've I'd I'm you're rock'n'roll 'S 'LL",
    "1234567890 3.14159 1,000,000 ²³½ ٣٤ Ⅻ",
    "!!! ??? ... --- ___ @#$%^&*(){}[]|\\:;\"'<>,./~`",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👩🏽‍🚀 🇩🇪🇫🇷 ☺️ ☹︎ 1️⃣ 🫠",
    "一只猫坐在垫子上",
    "漢字かなカナ ハンカク Fullwidth 한국어 조선",
    "قطة تجلس على السجادة ‏‎",
    "חתול יושב על שטיח",
    "बिल्ली चटाई पर बैठी है",
    "e\u0301 vs \u00e9, o\u0308\u0323 vs o\u0323\u0308, Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "İstanbul ıI ẞß ſ ﬁﬂ ŉ ΑΣ ας Ǆǅǆ",  # letters whose other case is longer, or another letter
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; &eacute;&nbsp;&#128049; &#x1F431; &notanentity; &#0;",
    "<b>bold</b> <img src='x' onerror=alert(1)>",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\u202eright to left\u202c \u2066isolate\u2069",
    "schÃ¶n â€œquotedâ€\x9d",  # UTF-8 read as Latin-1
    "\ufffd\ufffe\uffff\U0001f9ff\U0010ffff\ue000",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|endoftext|> a dog",
    "a <|startoftext|> dog <|endoftext|> and a cat",
    "<start_of_text> a dog <end_of_text> a cat <END_OF_TEXT>",
    "<end_of_text>",
    "</s>",
    "<s> a dog </s> a cat <unk> <pad> <mask> [CLS] [SEP] [PAD]",
    "</s></s></s>",
    "▁a▁dog ▁",
    "a" * 2000,
    "word " * 500,
    "猫" * 300,
    "👨‍👩‍👧‍👦" * 60,
    "\u0301" * 200,
    " " * 1000,
    "a" + " " * 1000 + "b",
    "(" * 200,
]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz     ",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abc",
    "0123456789.,-+/ %€$",
    "äöüßéèçñøåœæÄÖÜÉ aeiou",
    "的一是不了人我在有他这中大来上国，。",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя ",
    "😀😂🥺❤️🔥✨👍🏽👩‍🔬🏳️‍🌈🇯🇵\u200d\ufe0f",
    "\u0300\u0301\u0308\u0323\u20dd abcei",
    "\x00\x01\x07\x08\x1b\x7f\x85\t\n\r ab",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ab",
    "\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u00ad\u2060 ab",
]
PIECES = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<end_of_text>",
    "</s>",
    "<unk>",
    "&amp;",
    "&#39;",
    "'s",
    "'LL",
    "▁",
    "  ",
]


def nasty_texts(count: int = 10_000, *, seed: int = 0) -> list[str]:
    """The chosen ones, then random ones of every script and from the whole of Unicode; no half surrogate pairs."""
    draw = random.Random(seed)
    return [*CHOSEN, *(_random(draw) for _ in range(count - len(CHOSEN)))]


def _random(draw: random.Random) -> str:
    kind, length = draw.random(), min(200, int(draw.expovariate(1 / 14)))
    if kind < 0.45:
        return "".join(draw.choices(draw.choice(ALPHABETS), k=length))
    if kind < 0.8:  # several scripts, and now and then what a tokenizer takes for its own
        parts = ["".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 6))) for _ in range(1 + length // 6)]
        return "".join(draw.choice(PIECES) if draw.random() < 0.15 else part for part in parts)
    return "".join(_anywhere(draw) for _ in range(length))


def _anywhere(draw: random.Random) -> str:
    code = draw.randrange(0x110000 if draw.random() < 0.3 else 0x3000)
    return chr(code) if not 0xD800 <= code < 0xE000 else "x"
