"""Mutated inputs, and a guard that notices everything that a loader has no business to do."""

import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import M2xfpError

__all__ = [
    "HOSTILE",
    "READERS",
    "Attempt",
    "Forbidden",
    "Reader",
    "fuzz",
    "guarded",
    "json_text",
    "mutate_bytes",
    "mutate_json",
    "mutate_safetensors",
    "mutate_text",
    "opened",
    "reader",
]

HOSTILE = (
    *("", " ", "a b", "-x", "--help", "..", "../x", "/etc/passwd", "~", "*", "?", "\0", "\n", "\r"),
    *("'", '"', "`", "$x", "$(touch PWNED)", "`touch PWNED`", "; touch PWNED;", "| touch PWNED"),
    *("[exec touch PWNED]", "{", "}", "\\", "!touch PWNED", "%s", "%n", "{0.__class__}", "é", "☃"),
    *("\u202e", "\ud800", "$(shell touch PWNED)", '"); system("touch PWNED"); ("', "//", "/*", "#"),
    *(
        "__import__('os').system('touch PWNED')",
        "1e999",
        "nan",
        "-inf",
        "9" * 400,
        "-1",
        "0",
        "1_0",
    ),
    *(
        "0x10",
        "true",
        "none",
        "null",
        "\u0661",
        "1" * 5000,
        "=",
        ",",
        ":",
        "a=b",
        "[[[[",
        "a" * 300,
    ),
)
"""Texts that something between here and a tool could take for more than texts."""


class Forbidden(BaseException):
    """A loader did what no loader may do."""


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEVER = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.forkpty", "pty.spawn", "socket.connect", "socket.bind", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.sendto", "urllib.Request", "pickle.find_class"),
    *("ctypes.dlopen", "webbrowser.open", "ftplib.connect", "smtplib.connect", "code.__new__"),
)
_CHANGES = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile", "os.utime"),
)
# Methods of dataclasses that are made at first use; and a language of ~, &, ^ and | alone.
_OWN = ("<string>", "<Liberty function>", "<unknown>")  # the last: literals, as ast reads them
_allowed: list[Path] | None = None
_opened: set[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str):
        _opened.add(arguments[0])
    if _allowed is None:
        return
    if event in _NEVER:
        raise Forbidden(f"{event}{arguments!r}")
    if event in ("compile", "exec"):
        name = arguments[1] if event == "compile" else arguments[0].co_filename
        # Modules that are loaded on first use; and dataclasses and named tuples make methods.
        if name is not None and not str(name).endswith((".py", ".pyc")) and name not in _OWN:
            raise Forbidden(f"{event} of {name!r}")
    if event == "open":
        path, mode, flags = arguments
        writes = bool(flags & _WRITES) if mode is None else bool(set(str(mode)) & set("wax+"))
        if writes and isinstance(path, (str, bytes, os.PathLike)):
            _inside(event, path)
    elif event in _CHANGES:
        for path in arguments[:2]:
            if isinstance(path, (str, bytes, os.PathLike)):
                _inside(event, path)


def _inside(event: str, path: Any) -> None:
    assert _allowed is not None
    place = Path(os.path.abspath(os.fsdecode(path)))
    # Of Python, of the user, and of a part of PyTorch as it is imported.
    caches = "__pycache__" in place.parts or place == Path(os.devnull)
    caches |= place == Path.home() / ".cache" or place.name.startswith("torchinductor_")
    if not caches and not any(place.is_relative_to(folder) for folder in _allowed):
        raise Forbidden(f"{event} of {place}")


sys.addaudithook(_watch)


def opened(act: Callable[[], object]) -> set[Path]:
    """Return the files that are opened meanwhile."""
    global _opened
    _opened = set()
    try:
        act()
        return {Path(os.path.abspath(path)) for path in _opened}
    finally:
        _opened = None


@contextmanager
def guarded(*folders: Path) -> Iterator[None]:
    """Raise `Forbidden` at once for whatever is more than reading, and writing into folders."""
    global _allowed
    before, _allowed = _allowed, [Path(os.path.abspath(folder)) for folder in folders]
    try:
        yield
    finally:
        _allowed = before


def fuzz(
    count: int, seed: int, attempt: Callable[[random.Random], object], *errors: type[Exception]
) -> int:
    """Try so many mutated inputs; return how many were taken. Any other exception is a fault.

    ``attempt`` makes an input from a generator of its own, and reads it. What it returns must be
    right: it looks itself.
    """
    taken = 0
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        try:
            attempt(rng)
            taken += 1
        except errors as error:
            text = str(error)
            assert text.strip(), f"seed {seed}/{index}: an error without a word"
            assert "np.float" not in text, text
        except BaseException as error:
            raise AssertionError(f"seed {seed}/{index}: {type(error).__name__}: {error}") from error
    return taken


def mutate_bytes(data: bytes, rng: random.Random, most: int = 4) -> bytes:
    """Flip, change, cut, double, move or overwrite some bytes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(7)
        size = rng.choice((1, 1, 2, 4, 16, 256))
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[min(at, len(found) - 1)] = rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
            )
        elif kind == 2:
            del found[at : at + size]
        elif kind == 3:
            found[at:at] = found[at : at + size]
        elif kind == 4:
            found[at:at] = rng.randbytes(size)
        elif kind == 5:
            del found[at:]
        else:
            number = rng.choice((0, 1, -1, 1 << 31, 1 << 63, -(1 << 31)))
            packed = struct.pack("<Q", number & (1 << 64) - 1)[: rng.choice((2, 4, 8))]
            found[at : at + len(packed)] = packed
    return bytes(found)


def mutate_text(text: str, rng: random.Random, most: int = 4) -> str:
    """Change characters and words, double or drop lines, or put hostile texts in."""
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice((0, 1, 3, 10, 80)))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:at] + rng.choice(HOSTILE) + text[end:]
        elif kind == 1:
            text = text[:at] + text[end:]
        elif kind == 2:
            text = text[:end] + text[at:]
        elif kind == 3:
            other = chr(rng.choice((rng.randrange(32, 127), rng.randrange(1, 0x2FF))))
            text = text[:at] + other + text[end:]
        elif kind == 4:
            text = text[:at] + rng.choice("(){}[]\"';:,.=+-*!^&|/\\0189aE \n") + text[end:]
        else:
            lines = text.split("\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            text = "\n".join(lines)
    return text


def _odd(rng: random.Random) -> Any:
    deep: Any = []
    for _ in range(30):
        deep = [deep]
    return rng.choice(
        (
            *(None, True, False, 0, 1, -1, 2, 7, 255, 1 << 31, 1 << 62, 1 << 64, 10**30, 0.5, -0.0),
            *(1e308, -1e308, float("nan"), float("inf"), [], {}, [1], {"a": 1}, "m2xfp-act", deep),
            *(rng.choice(HOSTILE).encode("utf-8", "replace").decode(), [0, 0], [1 << 40, 1 << 40]),
        )
    )


def mutate_json(value: Any, rng: random.Random, most: int = 2) -> Any:
    """Return a copy with some members replaced, dropped, doubled, renamed or swapped."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, most)):
        places: list[tuple[Any, Any]] = []

        def visit(part: Any, places: list[tuple[Any, Any]] = places) -> None:
            items = part.items() if isinstance(part, dict) else enumerate(part)
            for key, inner in list(items):
                places.append((part, key))
                if isinstance(inner, (dict, list)):
                    visit(inner)

        if not isinstance(value, (dict, list)):
            return _odd(rng)
        visit(value)
        if not places:
            return _odd(rng)
        part, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 3:
            part[key] = _odd(rng)
        elif kind == 4:
            del part[key]
        elif kind == 5 and isinstance(part, dict):
            part[rng.choice(HOSTILE).encode("utf-8", "replace").decode()] = part.pop(key)
        elif kind == 6:
            other, name = rng.choice(places)
            part[key] = (
                json.loads(json.dumps(other[name]))
                if name in (other if isinstance(other, dict) else range(len(other)))
                else 0
            )
        elif isinstance(part[key], (int, float)) and not isinstance(part[key], bool):
            part[key] = part[key] + rng.choice((-1, 1, 0.5))
        elif isinstance(part[key], str):
            part[key] = mutate_text(part[key], rng, 2).encode("utf-8", "replace").decode()
        else:
            part[key] = [part[key], part[key]]
    return value


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header's JSON, texts within it, or bytes anywhere."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    texts = header.get("__metadata__", {})
    if texts and rng.random() < 0.6:
        key = rng.choice(list(texts))
        kind = rng.randrange(4)
        if kind == 0:
            texts[key] = mutate_text(texts[key], rng).encode("utf-8", "replace").decode()
        elif kind == 1:
            del texts[key]
        elif kind == 2:
            texts[key] = "[" * rng.choice((5, 100_000))
        else:
            try:
                texts[key] = json.dumps(mutate_json(json.loads(texts[key]), rng))
            except ValueError:
                texts[key] = rng.choice(HOSTILE).encode("utf-8", "replace").decode()
    elif rng.random() < 0.7:
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names)
        kind = rng.randrange(5)
        if kind == 0:
            del header[name]
        elif kind == 1:
            header[name]["dtype"] = rng.choice(
                (
                    "F16",
                    "BF16",
                    "F32",
                    "F64",
                    "I8",
                    "U8",
                    "I32",
                    "I64",
                    "BOOL",
                    "F8_E4M3",
                    "F8_E8M0",
                )
            )
        elif kind == 2:
            header[f"{name}x"] = header.pop(name)
        elif kind == 3:
            header[name]["shape"] = list(reversed(header[name]["shape"])) or [1]
        else:  # the same data as another tensor's
            header[name] = dict(header[rng.choice(names)])
    else:
        header = mutate_json(header, rng)
        if rest:
            rest = mutate_bytes(rest, rng, 1) if rng.random() < 0.3 else rest
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def json_text(value: Any, rng: random.Random) -> bytes:
    """Return a changed value as JSON, or now and then a text that is none."""
    text = json.dumps(mutate_json(value, rng))
    if rng.random() < 0.15:
        return mutate_bytes(text.encode(), rng)
    if rng.random() < 0.02:
        return rng.choice((b"", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"9" * 10_000))
    return text.encode()


Attempt = Callable[[random.Random], object]


@dataclass(frozen=True)
class Reader:
    """A loader: makes an attempt for a folder, and what it may raise."""

    make: Callable[[Path], Attempt]
    count: int = 200
    errors: tuple[type[Exception], ...] = (M2xfpError,)


READERS: dict[str, Reader] = {}


def reader(
    count: int = 200, *errors: type[Exception]
) -> Callable[[Callable[[Path], Attempt]], Callable[[Path], Attempt]]:
    """Add a loader to the table: inputs in the normal run, and errors beside the project's own."""

    def add(make: Callable[[Path], Attempt]) -> Callable[[Path], Attempt]:
        READERS[make.__name__] = Reader(make, count, (M2xfpError, *errors))
        return make

    return add
