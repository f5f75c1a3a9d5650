"""Names that people take for each other: `Champion` and `champion`, or `churn` with a Cyrillic first letter that prints as c.

MLflow allows any letter of any script in names and aliases. A reader of `models:/churn@champion` never gets the
look-alike, but a person who looks at a list does, so a look-alike is never guarded less than the name it resembles.
The table holds the letters that Cyrillic and Greek print like Latin ones (Unicode Technical Standard 39, confusables.txt).
"""

from __future__ import annotations

import unicodedata

_CYRILLIC = {
    "a": 0x430,
    "b": 0x44C,
    "c": 0x441,
    "d": 0x501,
    "e": 0x435,
    "g": 0x50D,
    "h": 0x4BB,
    "i": 0x456,
    "j": 0x458,
    "l": 0x4CF,
    "m": 0x43C,
    "o": 0x43E,
    "p": 0x440,
    "q": 0x51B,
    "s": 0x455,
    "t": 0x442,
    "v": 0x475,
    "w": 0x51D,
    "x": 0x445,
    "y": 0x443,
}
_MORE_CYRILLIC = {"h": 0x43D, "k": 0x43A, "b": 0x432, "y": 0x4AF}
_GREEK = {
    "a": 0x3B1,
    "c": 0x3F2,
    "e": 0x3B5,
    "i": 0x3B9,
    "j": 0x3F3,
    "k": 0x3BA,
    "n": 0x3B7,
    "o": 0x3BF,
    "p": 0x3C1,
    "t": 0x3C4,
    "u": 0x3C5,
    "v": 0x3BD,
    "x": 0x3C7,
    "w": 0x3C9,
    "b": 0x3B2,
}
_LATIN = {"i": 0x131, "g": 0x261}
_TABLE = {code: letter for letters in (_CYRILLIC, _MORE_CYRILLIC, _GREEK, _LATIN) for letter, code in letters.items()}
_UNSEEN = ("Mn", "Cf", "Cc")


def folded(text: str) -> str:
    r"""Fold a name to what it looks like: compatibility forms, case, accents, invisible characters and look-alike letters undone.

    It is for comparing, never for storing. Two different names may fold to one, and then the stricter rule applies to both.

    Example:
        >>> folded("Champion"), folded("\u0441hurn"), folded("ch\u00fcrn\u200b\n")
        ('champion', 'churn', 'churn')

    """
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(char for char in plain if unicodedata.category(char) not in _UNSEEN).translate(_TABLE).strip()
