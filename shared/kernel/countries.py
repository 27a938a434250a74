"""Which countries there are. Source: ISO 3166-1 alpha-2, officially assigned codes."""

from typing import Final

_SECOND_LETTERS: Final = {
    "a": "defgilmoqrstuwxz",
    "b": "abdefghijlmnoqrstvwyz",
    "c": "acdfghiklmnoruvwxyz",
    "d": "ejkmoz",
    "e": "ceghrst",
    "f": "ijkmor",
    "g": "abdefghilmnpqrstuwy",
    "h": "kmnrtu",
    "i": "delmnoqrst",
    "j": "emop",
    "k": "eghimnprwyz",
    "l": "abcikrstuvy",
    "m": "acdefghklmnopqrstuvwxyz",
    "n": "acefgilopruz",
    "o": "m",
    "p": "aefghklmnrstwy",
    "q": "a",
    "r": "eosuw",
    "s": "abcdeghijklmnorstvxyz",
    "t": "cdfghjklmnortvwz",
    "u": "agmsyz",
    "v": "aceginu",
    "w": "fs",
    "y": "et",
    "z": "amw",
}
COUNTRIES: Final = frozenset(first + second for first, found in _SECOND_LETTERS.items() for second in found)
